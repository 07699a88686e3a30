"""Heads: the bounds from below. A linear probe and a late fusion are a head and nothing else."""

from dataclasses import dataclass

from torch import Tensor, nn

from fusetune.adapters.adapter import HeadAdapter
from fusetune.config import check


@dataclass(frozen=True)
class LinearHeadConfig:
    """A linear head has no settings."""


class LinearHead(HeadAdapter):
    """y = W x + b on the pooled streams, side by side."""

    Config = LinearHeadConfig

    def __init__(self, config: LinearHeadConfig, width: int, outputs: int) -> None:
        super().__init__(config, width, outputs)
        self.linear = nn.Linear(width, outputs)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(pooled)


@dataclass(frozen=True)
class MLPHeadConfig:
    """
    Attributes:
        hidden: width of the hidden layer.
    """

    hidden: int = 64

    def __post_init__(self) -> None:
        check(self.hidden > 0, f"hidden: expected a positive width, found {self.hidden}.")


class MLPHead(HeadAdapter):
    """Late fusion: y = W2 gelu(W1 x + b1) + b2 on the pooled streams, side by side."""

    Config = MLPHeadConfig

    def __init__(self, config: MLPHeadConfig, width: int, outputs: int) -> None:
        super().__init__(config, width, outputs)
        self.layers = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, outputs))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)
