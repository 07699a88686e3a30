"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): memory for time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fusetune.backbones.replay import forward_of
from fusetune.plan.adapted import AdaptedModel


@contextmanager
def recomputed(model: AdaptedModel, wanted: bool = True) -> Iterator[None]:
    """While this lasts, blocks that gradients pass through keep their inputs alone, and run again in the backward pass.

    Of B blocks with activations of a bytes each, inputs of i bytes: B i + a bytes instead of B a, for one more forward
    pass. Random numbers (dropout) are the same both times.
    """
    stacks = [model.backbone.stack(name) for name in model.stacks()] if wanted else []
    with ExitStack() as stack:
        for module in stacks:
            for block in module.blocks():  # type: ignore[operator]
                stack.enter_context(forward_of(block, _again(block)))
        yield


def _again(block: nn.Module) -> Callable[..., Any]:
    own = block.forward

    def forward(*args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **named)
        return checkpoint(own, *args, use_reentrant=False, **named)

    return forward
