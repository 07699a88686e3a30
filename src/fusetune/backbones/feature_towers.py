"""Towers of our own for sequences and vectors: outlines, measurements, features that somebody else extracted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.blocks import ENCODER_ROLES, EncoderBlock
from fusetune.backbones.own_tower import OwnTower
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens, pad


@dataclass(frozen=True)
class FeatureTowerSettings:
    """
    Attributes:
        input_width: floats per token of the data.
        width: floats per token inside and at the end.
        depth: number of blocks (a vector tower has one, an MLP).
        heads: attention heads per block.
        max_tokens: longest sequence; a longer one is an error.
    """

    input_width: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    max_tokens: int = 128


class _FeatureTower(OwnTower):
    Settings = FeatureTowerSettings

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        rows = []
        for sample in samples:
            row = torch.zeros(0, self.settings.input_width) if sample is None else torch.as_tensor(sample)
            if row.shape[1] != self.settings.input_width or len(row) > self.settings.max_tokens:
                raise FusetuneError(
                    f"expected at most {self.settings.max_tokens} tokens of {self.settings.input_width} floats for "
                    f"this {self.kind} tower, found {tuple(row.shape)}."
                )
            rows.append(row)
        return pad(rows)

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in


class SequenceTower(_FeatureTower):
    """A small transformer over (tokens, width) floats, with learned positions."""

    kind = "sequence"

    def __init__(self, settings: FeatureTowerSettings) -> None:
        super().__init__(settings)
        self.depth, self.width = settings.depth, settings.width
        self.embedding = nn.Linear(settings.input_width, settings.width)
        self.positions = nn.Parameter(torch.randn(settings.max_tokens, settings.width) * 0.02)
        self.layers = nn.ModuleList(EncoderBlock(settings.width, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(settings.width)

    def blocks(self) -> nn.ModuleList:
        return self.layers

    def roles(self) -> Mapping[str, str]:
        return ENCODER_ROLES

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        hidden_states = tokens.values  # (batch, tokens, input_width) at depth 0, else (batch, tokens, width)
        if start == 0 < stop:
            hidden_states = self.embedding(hidden_states) + self.positions[: hidden_states.shape[1]]
        for block in self.layers[start:stop]:
            hidden_states = block(hidden_states, tokens.mask)
        if start < stop == self.depth:
            hidden_states = self.norm(hidden_states)
        return Tokens(hidden_states, tokens.mask)


class VectorTower(_FeatureTower):
    """A two-layer MLP on a vector, standardised by statistics that are saved with the weights; one token."""

    kind = "vector"
    depth = 1
    mean: Tensor
    std: Tensor

    def __init__(self, settings: FeatureTowerSettings) -> None:
        super().__init__(settings)
        self.width = settings.width
        self.register_buffer("mean", torch.zeros(settings.input_width))
        self.register_buffer("std", torch.ones(settings.input_width))
        width = settings.width
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(settings.input_width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))]
        )
        self.norm = nn.LayerNorm(width)

    def fit_statistics(self, tokens: Tokens) -> None:
        """Take mean and standard deviation from the training rows."""
        rows = tokens.values[tokens.mask]
        self.mean.copy_(rows.mean(0))
        self.std.copy_(rows.std(0).clamp(min=1e-6))

    def blocks(self) -> nn.ModuleList:
        return self.layers

    def roles(self) -> Mapping[str, str]:
        return {"mlp_input": "0", "mlp_output": "2"}

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        if start == stop:
            return tokens
        return Tokens(self.norm(self.layers[0]((tokens.values - self.mean) / self.std)), tokens.mask)
