"""Large batches on a CPU, cast a sample at a time by whoever reads them.

A batch of 64 pictures of ViT-B is 39 MB in float32, and every pass over it costs as long as its few products. A sample
fits into the processor's cache: memory is read once a pass, in the dtype in which features are kept, and nothing is
written. Cost of a linear layer over a batch, forward and backward: its bytes twice, instead of nine times.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.features.means import Means
from fusetune.features.rows import Rows
from fusetune.tokens import Tokens

LARGE = 8 * 2**20  # bytes of a batch in float32 from which it is read in parts


def is_large(rows: Rows | Means, which: np.ndarray) -> bool:
    """Whether some rows are a large batch; ids (of width 1) are none, and one token each is read once anyway."""
    longest = int(rows.length[which].max(initial=0))
    return min(longest, rows.width()) > 1 and longest * len(which) * rows.width() * 4 > LARGE


def means_of(flat: Tensor, starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The mean of each sample's tokens, (samples, width), float32; zeros where it has none."""
    samples = (flat[start : start + length] for start, length in zip(starts, lengths, strict=True))
    return torch.stack([tokens.float().sum(0) / max(1, len(tokens)) for tokens in samples])


class Gathered(Tokens):
    """A batch whose samples lie where they were kept until somebody asks for `values`.

    Args:
        flat: tokens, (many, width), as they are kept.
        starts, lengths: of each sample among them.
        mask: (batch, tokens).
        means: of each sample, (batch, width).
    """

    def __init__(
        self, flat: Tensor, starts: Sequence[int], lengths: Sequence[int], mask: Tensor, means: Tensor
    ) -> None:
        self.__dict__.update(mask=mask, _samples=(flat, starts, lengths), _pooled=means)

    @classmethod
    def of(cls, tokens: Tokens) -> "Gathered":
        """A padded batch, as its features are kept."""
        flat, lengths = tokens.values.flatten(0, 1), tokens.mask.sum(1).tolist()
        starts = range(0, len(flat), tokens.mask.shape[1])
        return cls(flat, starts, lengths, tokens.mask, means_of(flat, starts, lengths))

    @property
    def width(self) -> int:
        return self.__dict__["_samples"][0].shape[1]

    @cached_property
    def values(self) -> Tensor:
        flat, starts, lengths = self.__dict__["_samples"]
        found = torch.zeros(*self.mask.shape, flat.shape[1])
        for row, start, length in zip(found, starts, lengths, strict=True):
            row[:length] = flat[start : start + length]
        return found

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Tokens:
        stays = torch.device(device).type == "cpu" and dtype in (None, torch.float32)
        return self if stays else super().to(device, dtype)

    def through(self, layer: nn.Linear) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return super().through(layer)
        return _Through.apply(*self.__dict__["_samples"], self.mask.shape[1], layer.weight, layer.bias)


class _Through(torch.autograd.Function):
    """A linear layer over samples where they lie, one at a time; they themselves get no gradient."""

    @staticmethod
    def forward(
        ctx: Any, flat: Tensor, starts: Sequence[int], lengths: Sequence[int], tokens: int, weight: Tensor, bias: Tensor
    ) -> Tensor:
        ctx.samples = flat, starts, lengths
        out, turned = bias.expand(len(starts), tokens, -1).clone(), weight.t().contiguous()
        for row, start, length in zip(out, starts, lengths, strict=True):
            row[:length].addmm_(flat[start : start + length].float(), turned)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (flat, starts, lengths), [gradient] = ctx.samples, gradients
        of_weight = gradient.new_zeros(gradient.shape[-1], flat.shape[1])
        for row, start, length in zip(gradient, starts, lengths, strict=True):
            of_weight.addmm_(row[:length].t(), flat[start : start + length].float())
        return None, None, None, None, of_weight, gradient.sum((0, 1))
