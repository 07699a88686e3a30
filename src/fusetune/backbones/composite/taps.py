"""What is read of lower depths of the encoder, beside what its last block gives.

A tap is a module that reads the states behind a block of the encoder for language blocks (Qwen3-VL). At a cut above
that block, what it reads is carried beside the states there; at the places, what it has made of that. All of one width,
they stand side by side in the last dimension: states first, then the taps in their order.

Where the connector itself reads several depths (Mllama), a tap is the block: what it gives is carried up to the
connector, which has it in its own states.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.cuts import CONNECTOR, ENCODER, PLACES, Cut
from fusetune.backbones.replay import forward_of, put_at


class Taps:
    """
    Args:
        taps: number of a block, and the module that reads what it gives, or the block itself.
        blocks: of the encoder.
    """

    def __init__(self, taps: Sequence[tuple[int, nn.Module]], blocks: Sequence[nn.Module]) -> None:
        self._taps = taps
        self._are_blocks = any(module is blocks[number] for number, module in taps)

    def below(self, cut: Cut) -> list[nn.Module]:
        """Those of a depth that a pass up to a cut has been through, as far as they are carried apart."""
        if cut.part == ENCODER:
            return [module for block, module in self._taps if block < cut.block]
        apart = cut.part in (CONNECTOR, PLACES) and not self._are_blocks
        return [module for _, module in self._taps] if apart else []

    def beside(self, cut: Cut) -> int:
        """How many states stand side by side there, one included."""
        return 1 + (len(self._taps) if cut.part == CONNECTOR else len(self.below(cut)))

    def listened(self, cut: Cut, stack: ExitStack) -> list[Tensor]:
        """What a pass that ends at a cut has to carry of them: filled while it runs, until the stack is closed."""
        found: list[Tensor] = []

        def keep(states: Tensor) -> None:
            found.append(states)

        for module in self.below(cut):
            if cut.part == PLACES or self._are_blocks:
                hook = module.register_forward_hook(lambda _, __, out: keep(out))
            else:
                hook = module.register_forward_pre_hook(lambda _, args: keep(args[0]))
            stack.callback(hook.remove)
        return found

    def given(self, cut: Cut, states: Tensor, stack: ExitStack) -> Tensor:
        """The states alone; the taps below are given what stood beside them, until the stack is closed."""
        below = self.below(cut)
        own, *rest = states.chunk(1 + len(below), -1)
        for module, part in zip(below, rest, strict=True):

            def said(*_: Any, part: Tensor = part, **__: Any) -> Tensor:
                return part

            gives = cut.part == PLACES or self._are_blocks
            stack.enter_context(forward_of(module, said) if gives else put_at(module, part.contiguous()))
        return own.contiguous()


def side_by_side(states: Tensor, tapped: Sequence[Tensor]) -> Tensor:
    """(..., width times one more than there are)."""
    return torch.cat([states, *tapped], -1) if tapped else states
