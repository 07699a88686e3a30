"""Towers that learn nothing: what somebody else extracted, standardised and passed through."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.backbones.own_tower import OwnTower
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens, pad

CLIP = 5.0  # standard deviations
CONSTANT = 1e-6  # share of a channel's largest value below which its spread is rounding


class Standardise(nn.Module):
    """(value - mean) / standard deviation, per channel, within `CLIP`; a channel that is constant counts as 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))

    def forward(self, values: Tensor) -> Tensor:
        return ((values - self.mean) / self.std).clamp(-CLIP, CLIP)

    def fit(self, parts: Iterable[Tensor]) -> int:
        """Take the statistics of all rows of (rows, channels) in the parts; returns how many channels are constant.

        One pass, parts joined as by Chan, Golub and LeVeque (1983), in float64.
        """
        count, mean, squares, largest = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
        for part in parts:
            values = part.double()
            total, own = count + len(values), values.mean(0)
            shift = own - mean
            squares = squares + (values - own).square().sum(0) + shift.square() * (count * len(values) / total)
            mean = mean + shift * (len(values) / total)
            largest = torch.maximum(largest.to(values), values.abs().amax(0))
            count = total
        std = (squares / max(1, count - 1)).sqrt()
        constant = std <= CONSTANT * largest
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(constant, torch.inf))
        return int(constant.sum())


@dataclass(frozen=True)
class FeaturesSettings:
    """
    Attributes:
        inputs: floats per token.
        max_tokens: of a sequence; what is longer is cut. None: any length.
    """

    inputs: int
    max_tokens: int | None = None


class LayersTower(OwnTower):
    """Blocks one after the other on each token; what is missing stays 0."""

    layers: nn.ModuleList

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        values = tokens.values
        for block in self.layers[start:stop]:
            values = block(values) * tokens.mask.unsqueeze(-1)
        return Tokens(values, tokens.mask)

    def blocks(self) -> nn.ModuleList:
        return self.layers


class FeaturesTower(LayersTower):
    """One block without a parameter; its statistics are those of the training rows, saved and fingerprinted as weights.

    A sample is (tokens, inputs) floats; a vector is one token.
    """

    Settings = FeaturesSettings
    registered: ClassVar[str]  # name in the registry of towers
    depth = 1

    def __init__(self, settings: FeaturesSettings) -> None:
        super().__init__(settings)
        self.width, self.max_tokens = settings.inputs, settings.max_tokens
        self.layers = nn.ModuleList([Standardise(settings.inputs)])
        self.constant = 0

    @classmethod
    def fitted(cls, parts: Iterable[Sequence[Any]], where: str, max_tokens: int | None = None) -> Self:
        """A tower with the statistics of these samples, which come in parts.

        Raises:
            FusetuneError: no sample, or samples of several widths.
        """
        iterator = (row for part in parts for row in _present(part))
        first = next(iterator, None)
        if first is None:
            raise FusetuneError(f"{where}: no training row has this modality.")
        tower = cls(FeaturesSettings(first.shape[1], max_tokens))

        rows = (tower._checked(row, number, where) for number, row in enumerate(chain([first], iterator)))
        standardise: Any = tower.layers[0]
        tower.constant = standardise.fit(_blocks(rows))
        return tower

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        empty = np.zeros((0, self.settings.inputs), np.float32)
        rows = (
            empty if sample is None else self._checked(_array(sample), i, "batch")[: self.max_tokens]
            for i, sample in enumerate(samples)
        )
        return pad([torch.from_numpy(row) for row in rows])

    def tokens_out(self, tokens_in: int) -> int:
        return min(tokens_in, self.max_tokens or tokens_in)

    def _checked(self, row: np.ndarray, number: int, where: str) -> np.ndarray:
        if row.shape[1] != self.settings.inputs:
            raise FusetuneError(
                f"{where}: sample {number} has {row.shape[1]} floats a token, expected {self.settings.inputs} as in "
                "the first training row. All rows of a column of features have one width."
            )
        return row


class FeaturesVector(FeaturesTower):
    kind, registered = "vector", "features_vector"


class FeaturesSequence(FeaturesTower):
    kind, registered = "sequence", "features_sequence"


TOWERS: dict[str, type[FeaturesTower]] = {tower.kind: tower for tower in (FeaturesVector, FeaturesSequence)}
BLOCK = 4096  # tokens whose statistics are taken at once


def _array(sample: Any) -> np.ndarray:
    values = np.asarray(sample, np.float32)
    return values.reshape(-1, values.shape[-1])


def _present(part: Sequence[Any]) -> list[np.ndarray]:
    return [_array(sample) for sample in part if sample is not None]


def _blocks(rows: Iterable[np.ndarray]) -> Iterable[Tensor]:
    gathered: list[np.ndarray] = []
    count = 0
    for row in rows:
        gathered.append(row)
        count += len(row)
        if count >= BLOCK:
            yield torch.from_numpy(np.concatenate(gathered))
            gathered, count = [], 0
    if gathered:
        yield torch.from_numpy(np.concatenate(gathered))
