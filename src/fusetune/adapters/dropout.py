"""Dropout whose masks can be those of several random streams at once, one for each member of an ensemble."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

_streams: ContextVar[Sequence[torch.Generator]] = ContextVar("streams", default=())


@contextmanager
def random_streams(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Within it, under `torch.vmap` over as many members, each member's masks come from its own generator."""
    token = _streams.set(generators)
    try:
        yield
    finally:
        _streams.reset(token)


class Dropout(nn.Module):
    """Zeroes entries with probability `p` and scales the rest by 1 / (1 - p), in training; as `nn.Dropout` does.

    A member of an ensemble draws what it would have drawn alone: the same generator, the same shapes, in turn.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not self.p:
            return values
        return values * _Mask.apply(values.detach(), self.p)


class _Mask(torch.autograd.Function):
    """0 or 1 / (1 - p), in the shape of `values`."""

    @staticmethod
    def forward(values: Tensor, p: float) -> Tensor:
        return torch.empty_like(values).bernoulli_(1 - p).div_(1 - p)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Tensor, p: float) -> tuple[Tensor, int]:
        generators = _streams.get()
        if len(generators) != info.batch_size:
            raise RuntimeError(f"dropout: {info.batch_size} members, {len(generators)} random streams")
        one = values if in_dims[0] is None else values.select(in_dims[0], 0)
        masks = [torch.empty_like(one).bernoulli_(1 - p, generator=generator) for generator in generators]
        return torch.stack(masks).div_(1 - p), 0
