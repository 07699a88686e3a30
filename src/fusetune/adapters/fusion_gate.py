"""Gated fusion of M modalities, the gates learned for the task.

Arevalo et al., "Gated Multimodal Units for Information Fusion", ICLR workshop 2017, arXiv 1702.01992, from two to M
modalities. With pooled streams x_m (d_m):

    h_m = tanh(x_m W_m + b_m)                      r
    g   = softmax_m([x_1 .. x_M] V + c)            M gates of each sample; a missing modality has gate 0
    y   = (sum_m g_m h_m) U                        d_t, added to every token of the target stream

U starts at zero: the adapter begins as the identity.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusetune.adapters.adapter import Stream, StreamAdapter
from fusetune.adapters.gates import Gate, softmax_over_present
from fusetune.adapters.streams import pooled, target_of
from fusetune.config import check
from fusetune.tokens import Tokens


@dataclass(frozen=True)
class FusionGateConfig:
    """
    Attributes:
        bottleneck_dim: r, width of h_m.
        target: the stream that the fused vector is added to (default: the first one).
    """

    bottleneck_dim: int = 64
    target: str | None = None

    def __post_init__(self) -> None:
        check(self.bottleneck_dim > 0, f"bottleneck_dim: expected a positive width, found {self.bottleneck_dim}.")


class FusionGate(StreamAdapter):
    """See the module's docstring; `observed` gives the gates of each sample, one column a modality."""

    Config = FusionGateConfig
    reads_means = True
    rank_key = "bottleneck_dim"

    def __init__(self, config: FusionGateConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        self.widths = {name: stream.width for name, stream in streams.items()}
        self.target = target_of(config.target, streams, "fusion_gate")
        size = config.bottleneck_dim
        self.hidden = nn.ModuleDict({name: nn.Linear(width, size) for name, width in self.widths.items()})
        self.norm = nn.LayerNorm(sum(self.widths.values()), elementwise_affine=False)
        self.gate = Gate(sum(self.widths.values()), len(streams))
        self.up = nn.Linear(size, self.widths[self.target], bias=False)
        nn.init.zeros_(self.up.weight)
        self._seen: Mapping[str, Tensor] = {}

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        vectors, present = pooled(streams, self.widths)
        gates = softmax_over_present(self.gate(self.norm(torch.cat(list(vectors.values()), -1))), present)
        hidden = torch.stack([self.hidden[name](vector).tanh() for name, vector in vectors.items()], 1)
        fused = self.up((gates.unsqueeze(-1) * hidden).sum(1))  # (batch, d_t)
        self._seen = {f"gate_{name}": gates[:, i : i + 1].detach() for i, name in enumerate(self.widths)}
        return {**streams, self.target: streams[self.target].shifted(fused)}

    def observed(self) -> Mapping[str, Tensor]:
        return self._seen
