"""Entering and leaving a model's stack of blocks at any depth, exactly.

Leaving: a hook in front of block `stop` keeps its input and stops the forward pass. Entering: the model's own forward
runs (so masks, position codes and the final norm are its own), but what stands before the blocks, and the blocks before
`start`, do nothing, and a hook puts the given states in front of block `start`. In eval mode and float32 the outputs
equal those of an undivided run bit by bit.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fusetune.backbones.families import Family


class Left(Exception):
    """Carries the hidden states out of a forward pass that stops early."""

    def __init__(self, hidden_states: Tensor) -> None:
        self.hidden_states = hidden_states


@contextmanager
def entered(model: nn.Module, family: Family, states: Tensor, start: int) -> Iterator[None]:
    """While this lasts, a forward pass of `model` starts at block `start`, with `states` (rows, tokens, width)."""
    blocks = model.get_submodule(family.blocks)
    with ExitStack() as stack:
        for path, stub in family.stubs.items():
            stack.enter_context(_forward(model.get_submodule(path), lambda *_, stub=stub, **__: stub(states)))
        for block in list(blocks.children())[:start]:
            stack.enter_context(_forward(block, lambda hidden_states, *_, **__: hidden_states))
        hook = blocks.get_submodule(str(start)).register_forward_pre_hook(lambda _, args: (states, *args[1:]))
        stack.callback(hook.remove)
        yield


@contextmanager
def left_at(block: nn.Module) -> Iterator[None]:
    """While this lasts, a forward pass ends in front of `block`, by raising `Left` with the block's input."""

    def leave(_: nn.Module, args: Any) -> None:
        raise Left(args[0])

    hook = block.register_forward_pre_hook(leave)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _forward(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Give one module another forward for a while; parameters, hooks and names stay as they are."""
    module.__dict__["forward"] = function
    try:
        yield
    finally:
        del module.__dict__["forward"]
