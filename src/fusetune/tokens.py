"""Tokens: the one currency between modules."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """A padded batch of token sequences.

    Attributes:
        values: (batch, tokens, width); integer ids have width 1.
        mask: (batch, tokens), True = real. A sample without this modality has no True.
    """

    values: Tensor
    mask: Tensor

    @property
    def width(self) -> int:
        return self.values.shape[-1]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Tokens":
        """Move to `device`; floats are cast to `dtype`, integer ids are not."""
        cast = dtype if self.values.is_floating_point() else None
        return Tokens(self.values.to(device, cast, non_blocking=True), self.mask.to(device, non_blocking=True))

    def pooled(self) -> Tensor:
        """Mean of the real tokens, (batch, width); zeros where there is none. Computed once."""
        return self._pooled

    @cached_property
    def _pooled(self) -> Tensor:
        values, weights = self.values, self.mask.to(self.values.dtype)
        counts = weights.sum(1, keepdim=True).clamp(min=1)
        whole = nullcontext() if values.is_meta else torch.autocast(values.device.type, enabled=False)
        with whole:  # a mean of float32 is taken in it
            return torch.bmm(weights.unsqueeze(1), values).squeeze(1) / counts  # one pass, no product in memory

    def shifted(self, vectors: Tensor) -> "Tokens":
        """With a vector of each sample, (batch, width), added to all of its tokens.

        Where nobody asks for the tokens but for their mean alone, no token is read or written.
        """
        return _Shifted(self, vectors)

    def through(self, layer: nn.Linear) -> Tensor:
        """Each token behind a linear layer, (batch, tokens, outputs)."""
        return layer(self.values)

    def ragged(self) -> list[Tensor]:
        """The real tokens of each sample: a list of (tokens_i, width)."""
        return [row[keep] for row, keep in zip(self.values, self.mask, strict=True)]


class _Shifted(Tokens):
    def __init__(self, tokens: Tokens, vectors: Tensor) -> None:
        self.__dict__.update(mask=tokens.mask, _tokens=tokens, _vectors=vectors)

    @property
    def width(self) -> int:
        return self.__dict__["_tokens"].width

    @cached_property
    def values(self) -> Tensor:
        return self.__dict__["_tokens"].values + self.__dict__["_vectors"].unsqueeze(1)

    @cached_property
    def _pooled(self) -> Tensor:
        return self.__dict__["_tokens"].pooled() + self.__dict__["_vectors"] * self.mask.any(1, keepdim=True)


@dataclass(frozen=True)
class Lattice:
    """How the tokens of one item (a picture, a clip) lie: some that stand for no place, then time by time, row by row.

    Attributes:
        lead: tokens in front that stand for no place (a class token, registers).
        times, rows, columns: of the others, 1 each where there is no such direction.
    """

    lead: int = 0
    times: int = 1
    rows: int = 1
    columns: int = 1

    @property
    def places(self) -> int:
        return self.times * self.rows * self.columns

    @property
    def tokens(self) -> int:
        return self.lead + self.places


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Batches one behind another, padded to the longest of them."""
    longest = max(part.mask.shape[1] for part in parts)
    grown = [(part, longest - part.mask.shape[1]) for part in parts]
    values = torch.cat([F.pad(part.values, (0, 0, 0, more)) if more else part.values for part, more in grown])
    return Tokens(values, torch.cat([F.pad(part.mask, (0, more)) if more else part.mask for part, more in grown]))


def pad(rows: Sequence[Tensor]) -> Tokens:
    """Right-pad with zeros a list of (tokens_i, width); at least one token long, so that no dimension is empty."""
    if len({row.shape for row in rows}) == 1 and len(rows[0]):  # nothing to pad
        return Tokens(torch.stack(list(rows)), rows[0].new_ones(len(rows), len(rows[0]), dtype=torch.bool))
    longest = max(1, max(len(row) for row in rows))
    values = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        values[i, : len(row)] = row
        mask[i, : len(row)] = True
    return Tokens(values, mask.to(values.device))
