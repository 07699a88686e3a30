"""Cross-modal adapter: streams are projected down, read one another there, and are projected up again.

After Jiang et al., "Cross-Modal Adapter for Text-Video Retrieval", arXiv 2211.09623, and Lu et al., "UniAdapter", ICLR
2024, arXiv 2302.06605; bidirectional and gated. With tokens X_m (T_m x d_m):

    Z_m = norm(gelu(X_m D_m + b_m)) + P_m                           T_m x r; P_m: trained position codes
    C_m = (softmax((Z_m Q)(Z_o K)' / sqrt(r) + B_o) Z_o V * 2 sigmoid(Z_m S + s)) O
                                                                    o: the tokens of all other streams; heads as usual
    w   = softmax_m([z_1 .. z_M] G + c)                             z_m: mean of Z_m; w is of each sample
    X_m <- X_m + M / 2 w_m (C_m U_m)

B_o (heads x T_o) is trained and starts with one stretch of each stream a head; together they tile it. The sigmoid
(Qiu et al., "Gated Attention for Large Language Models", arXiv 2505.06708) says by the token that reads which heads are
heard. Both together make 'the part that the other asks for' a product that is easy to find, as Wander's is; without
either, three of five seeds never find it on scenes whose question names a place.

For two modalities that is vision + g (text to vision), text + (1 - g) (vision to text). U_m starts at zero: the adapter
begins as the identity. A missing stream gives nothing and gets nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.adapter import Stream, StreamAdapter
from fusetune.adapters.dropout import Dropout
from fusetune.adapters.gates import Gate, softmax_over_present
from fusetune.adapters.streams import pooled
from fusetune.backbones.blocks import Attention
from fusetune.backbones.trunk import sinusoids
from fusetune.config import check
from fusetune.tokens import Tokens

ATTENTION_STD = 1.5  # of queries and keys, in units of 1 / sqrt(r): flat attention takes many epochs to find its way
SLOPE = 2.0  # of a head's logits outside its stretch, for each stretch that a token is away


@dataclass(frozen=True)
class CrossModalConfig:
    """
    Attributes:
        bottleneck_dim: r, width in which the streams exchange.
        heads: of the attention in it.
        dropout: of the projected tokens, not of their position codes: contents are easier to memorise than where
            to look.
        positions: add trained position codes to Z_m, for towers whose last tokens say little of where they stand.
    """

    bottleneck_dim: int = 64
    heads: int = 8
    dropout: float = 0.0
    positions: bool = True

    def __post_init__(self) -> None:
        check(
            self.heads > 0 and self.bottleneck_dim > 0 and self.bottleneck_dim % self.heads == 0,
            f"bottleneck_dim: expected a multiple of heads ({self.heads}), found {self.bottleneck_dim}.",
        )
        check(0 <= self.dropout < 1, f"dropout: expected a share from 0 to below 1, found {self.dropout}.")


class GatedAttention(Attention):
    """Tokens that read say which heads they hear."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.gate = nn.Linear(width, width)

    def read(self, mixed: Tensor, hidden_states: Tensor) -> Tensor:
        return mixed * 2 * self.gate(hidden_states).sigmoid()


class CrossModal(StreamAdapter):
    """See the module's docstring; `observed` gives w, one column a modality."""

    Config = CrossModalConfig
    rank_key = "bottleneck_dim"
    undecayed = ("positions", "stretches")  # codes are to be told apart, not small

    def __init__(self, config: CrossModalConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        size = config.bottleneck_dim
        self.down = nn.ModuleDict({name: nn.Linear(s.width, size) for name, s in streams.items()})
        self.up = nn.ModuleDict({name: nn.Linear(size, s.width, bias=False) for name, s in streams.items()})
        for up in self.up.values():
            nn.init.zeros_(up.weight)  # type: ignore[arg-type]
        self.positions = nn.ParameterDict(
            {n: nn.Parameter(sinusoids(s.max_tokens, size)) for n, s in streams.items() if config.positions}
        )
        self.norm = nn.LayerNorm(size, elementwise_affine=False)
        self.dropout = Dropout(config.dropout)
        self.attention = GatedAttention(size, config.heads)
        self.stretches = nn.ParameterDict(
            {n: nn.Parameter(stretches(config.heads, s.max_tokens)) for n, s in streams.items() if s.max_tokens > 1}
        )
        for layer in (self.attention.query, self.attention.key):
            nn.init.normal_(layer.weight, std=ATTENTION_STD * size**-0.5)
        self.gate = Gate(size * len(streams), len(streams))
        self._seen: Mapping[str, Tensor] = {}

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        known = {name: tokens for name, tokens in streams.items() if name in self.down}
        low = {name: self._low(name, tokens) for name, tokens in known.items()}
        shares = self._shares(known, low)  # (batch, streams)
        changed: dict[str, Tokens] = dict(streams)
        for i, name in enumerate(self.down):
            others = [other for other in known if other != name]
            if name in known and others:
                context = torch.cat([low[other] for other in others], 1)
                mask = torch.cat([known[other].mask for other in others], 1)
                bias = torch.cat([self._stretch(other, low[other]) for other in others], 1)
                message = self.up[name](self.attention(low[name], context, mask, bias))
                weight = (len(self.down) / 2 * shares[:, i])[:, None, None]
                changed[name] = Tokens(known[name].values + weight * message, known[name].mask)
        return changed

    def observed(self) -> Mapping[str, Tensor]:
        return self._seen

    def reads(self) -> list[str]:
        """Who reads whom, in the order of the calls of `attention`; where all streams are there."""
        names = list(self.down)
        return [f"{name} reads {' and '.join(n for n in names if n != name)}" for name in names]

    def _low(self, name: str, tokens: Tokens) -> Tensor:
        low = self.dropout(self.norm(F.gelu(self.down[name](tokens.values))))
        if name in self.positions:
            low = low + self.positions[name][: low.shape[1]]
        return low * tokens.mask.unsqueeze(-1)

    def _stretch(self, name: str, low: Tensor) -> Tensor:
        """(heads, tokens): none for the one token of a vector, which all heads read."""
        if name in self.stretches:
            return self.stretches[name][:, : low.shape[1]]
        return low.new_zeros(self.attention.heads, low.shape[1])

    def _shares(self, known: Mapping[str, Tokens], low: Mapping[str, Tensor]) -> Tensor:
        projected = {name: Tokens(states, known[name].mask) for name, states in low.items()}
        vectors, present = pooled(projected, dict.fromkeys(self.down, self.attention.query.in_features))
        shares = softmax_over_present(self.gate(torch.cat(list(vectors.values()), -1)), present)
        self._seen = {f"gate_{name}": shares[:, i : i + 1].detach() for i, name in enumerate(self.down)}
        return shares


def stretches(heads: int, tokens: int) -> Tensor:
    """(heads, tokens): 0 where a token touches the head's stretch, less the farther it is away."""
    begin = torch.arange(tokens) * heads / tokens  # of each token, in stretches
    number = torch.arange(heads)[:, None]
    away = torch.maximum(begin - number - 1, number - begin - heads / tokens)
    return -SLOPE * away.clamp(min=0)
