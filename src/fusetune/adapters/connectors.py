"""Connectors: from one tower to what comes behind it, or into another tower.

`perceiver_resampler`, after Alayrac et al., "Flamingo", NeurIPS 2022, arXiv 2204.14198, section 2.1. With tokens X
(T x d) of a modality and queries L_0 (n x d):

    L_{l+1} = L_l + Attn(L_l, [X; L_l]) + MLP of it        n tokens, however many there were
    X      <- mean(X) + (L_last - L_0) U                    U starts at zero: it begins as the mean of the tokens

`linear_connector`, after Liu et al., "Visual Instruction Tuning" (LLaVA), NeurIPS 2023, arXiv 2304.08485, and
LLaVA-1.5, arXiv 2310.03744, whose projection has two layers. The tokens X_s of a source are projected into another
tower's space and stand in front of its tokens from depth k on, so that its frozen blocks read them:

    Z = X_s W + b,  or  gelu(X_s W_1 + b_1) W_2 + b_2       T_s x d_t
    [Z; X_t]_k -> blocks k .. depth of the target's tower

Both streams go on afterwards, the target's without the added places. It does not begin as the identity: the target's
attention sees more tokens from the first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.adapter import Stream, StreamAdapter
from fusetune.adapters.streams import target_of
from fusetune.backbones.blocks import MLP, Attention
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens


@dataclass(frozen=True)
class PerceiverResamplerConfig:
    """
    Attributes:
        source: the stream whose tokens are resampled (default: the first one).
        queries: n.
        width: of the attention, inside; a multiple of `heads`.
        layers: of attention and MLP.
        heads: of the attention.
    """

    source: str | None = None
    queries: int = 8
    width: int = 64
    layers: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("queries", "layers", "heads"):
            check(getattr(self, name) > 0, f"{name}: expected at least 1, found {getattr(self, name)}.")
        check(self.width % self.heads == 0, f"width: expected a multiple of heads ({self.heads}), found {self.width}.")


class ResamplerLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(width), MLP(width, 2)

    def reads(self) -> list[str]:
        return ["queries read the stream's tokens, then themselves"]

    def forward(self, latents: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm(latents)
        seen = torch.cat([mask, mask.new_ones(latents.shape[:2])], 1)
        latents = latents + self.attention(normed, torch.cat([states, normed], 1), seen)
        return latents + self.mlp(self.mlp_norm(latents))


class PerceiverResampler(StreamAdapter):
    """A fixed number of tokens that learned queries gather from a stream; see the module's docstring."""

    Config = PerceiverResamplerConfig
    sites = ("connector", "junction")
    rank_key = "queries"

    def __init__(self, config: PerceiverResamplerConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        self.config, self.source = config, target_of(config.source, streams, "perceiver_resampler")
        width = streams[self.source].width
        self.queries = nn.Parameter(torch.randn(config.queries, config.width))
        self.enter = nn.Linear(width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(ResamplerLayer(config.width, config.heads) for _ in range(config.layers))
        self.out = nn.Linear(config.width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        if self.source not in streams:
            return dict(streams)
        tokens = streams[self.source]
        states = self.norm(self.enter(tokens.values))
        first = self.queries.expand(len(states), -1, -1)
        latents = first
        for layer in self.layers:
            latents = layer(latents, states, tokens.mask)
        present = tokens.mask.any(1, keepdim=True)
        values = tokens.pooled().unsqueeze(1) + self.out(latents - first)  # (batch, queries, width)
        mask = present.expand(-1, self.config.queries)
        return {**streams, self.source: Tokens(values * mask.unsqueeze(-1), mask)}

    def streams_out(self, streams: Mapping[str, Stream]) -> dict[str, Stream]:
        return {**streams, self.source: Stream(streams[self.source].width, self.config.queries)}


@dataclass(frozen=True)
class LinearConnectorConfig:
    """
    Attributes:
        source: the stream that is projected.
        target: the modality whose tower reads it, a text or a sequence.
        depth: k, from 1; the target's tower is entered there.
        hidden: width of the middle of a two-layer projection; 0: one layer.
    """

    source: str
    target: str
    depth: int = 1
    hidden: int = 0

    def __post_init__(self) -> None:
        check(self.depth > 0, f"depth: expected a depth from 1, behind the embeddings, found {self.depth}.")
        check(self.source != self.target, f"target: expected another stream than the source, '{self.source}'.")


class LinearConnector(StreamAdapter):
    """Puts the projected tokens of one stream in front of another's; `AdaptedModel` runs the target's tower on."""

    Config = LinearConnectorConfig
    sites = ("connector",)

    def __init__(self, config: LinearConnectorConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        for name in (config.source, config.target):
            target_of(name, streams, "linear_connector")
        self.config, self.target = config, config.target
        self.source_tokens = streams[config.source].max_tokens
        width, width_out = streams[config.source].width, streams[config.target].width
        self.first = nn.Linear(width, config.hidden or width_out)
        self.second = nn.Linear(config.hidden, width_out) if config.hidden else None

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        source, target = streams.get(self.config.source), streams.get(self.target)
        if source is None or target is None:
            return dict(streams)
        states = self.first(source.values)
        if self.second is not None:
            states = self.second(F.gelu(states))
        values = torch.cat([states * source.mask.unsqueeze(-1), target.values], 1)
        mask = torch.cat([source.mask & target.mask.any(1, keepdim=True), target.mask], 1)
        return {**streams, self.target: Tokens(values, mask)}

    def reach(self, depths: Mapping[str, int]) -> dict[str, int]:
        if self.target not in depths:  # a request without it
            return dict(depths)
        if self.config.depth >= depths[self.target]:
            raise FusetuneError(
                f"linear_connector.depth: the tower of '{self.target}' has {depths[self.target]} blocks, so it can be "
                f"entered at depths 1 to {depths[self.target] - 1}, found {self.config.depth}."
            )
        return {**depths, self.target: self.config.depth}

    def leave(self, streams: Mapping[str, Tokens], before: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Take the added places off again, once the target's tower is through."""
        if self.target not in streams or self.config.source not in before:
            return dict(streams)
        added, tokens = before[self.config.source].values.shape[1], streams[self.target]
        return {**streams, self.target: Tokens(tokens.values[:, added:], tokens.mask[:, added:])}
