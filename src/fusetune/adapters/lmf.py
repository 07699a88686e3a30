"""Low-rank multimodal fusion of pooled streams, Wander's predecessor: the baseline without sequences.

Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors", ACL 2018, arXiv 1806.00064, eq. 8.
With pooled streams x_m (d_m):

    h = s * (sum_i prod_m (W_m^(i) [x_m; 1]) + b)        d_t, i = 1..R, added to every token of the target stream

The sum over i comes after the product over modalities. The column of W_m^(i) that meets the 1 starts at 1, so that a
product of many modalities does not vanish and a missing one is a factor of its own; s starts at zero: the adapter
begins as the identity.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusetune.adapters.adapter import Stream, StreamAdapter
from fusetune.adapters.streams import pooled, target_of
from fusetune.config import check
from fusetune.tokens import Tokens


@dataclass(frozen=True)
class LMFConfig:
    """
    Attributes:
        rank: R, how many products are summed.
        target: the stream that the fused vector is added to (default: the first one).
    """

    rank: int = 4
    target: str | None = None

    def __post_init__(self) -> None:
        check(self.rank > 0, f"rank: expected at least 1, found {self.rank}.")


class LMF(StreamAdapter):
    """See the module's docstring."""

    Config = LMFConfig
    reads_means = True
    rank_key = "rank"
    undecayed = ("ones",)

    def __init__(self, config: LMFConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        self.widths = {name: stream.width for name, stream in streams.items()}
        self.target = target_of(config.target, streams, "lmf")
        width = self.widths[self.target]
        self.factors = nn.ParameterDict(
            {n: nn.Parameter(torch.randn(config.rank, w, width) * w**-0.5) for n, w in self.widths.items()}
        )
        self.ones = nn.ParameterDict({n: nn.Parameter(torch.ones(config.rank, width)) for n in self.widths})
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        target = streams[self.target]
        fused = self.fuse(pooled(streams, self.widths)[0])
        return {**streams, self.target: target.shifted(fused)}

    def fuse(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """h of the module's docstring, (batch, d_t)."""
        parts = [torch.einsum("bd,ide->bie", x, self.factors[name]) + self.ones[name] for name, x in vectors.items()]
        return self.scale * (functools.reduce(torch.mul, parts).sum(1) + self.bias)
