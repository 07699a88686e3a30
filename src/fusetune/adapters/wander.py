"""Wander: low-rank sequence fusion of any number of modalities.

Guo et al., "A Wander Through the Multimodal Landscape: Efficient Transfer Learning via Low-rank Sequence Multimodal
Adapter", AAAI 2025, arXiv 2412.08979.

With tokens X_m (T_m x d_m) of modality m = 1..M:

    Z_m      = gelu(X_m W_m + b_m)                                   T_m x r
    F_m^(i)  = 1 c_m^(i)  +  sum_j A_m^(i,j)' Z_m B_m^(i,j)           T_h x d_h     (A: T_m x T_h, B: r x d_h)
    H        = s * sum_i prod_m F_m^(i)                               T_h x d_h
    X_h     <- X_h + H

H is the contraction of the outer product of all (Z_m, 1) with a weight tensor in CP form of rank R (index i), each of
whose factors is split over tokens and features with rank R_t (index j); the tensor itself is never built. The sum over
i comes after the product over modalities: summing the factors first would collapse the CP rank to one.

The bias row c starts at 1, as in low-rank multimodal fusion (Liu et al. 2018, arXiv 1806.00064): without it the product
of many modalities vanishes, and with it a missing modality, or a masked token, is a factor of c alone. The output scale
s (d_h) starts at 0, and nothing else does: the adapter begins as the identity and every factor still gets a gradient
from the second step on.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.adapter import Stream, StreamAdapter
from fusetune.adapters.streams import target_of
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens


@dataclass(frozen=True)
class WanderConfig:
    """
    Attributes:
        bottleneck_dim: r, width of the down-projection.
        rank: R, the CP rank: how many products of modalities are summed.
        token_rank: R_t, the rank of each factor over tokens and features.
        fused_tokens: T_h; 1 adds one fused vector to every token of the target, None fuses position by position.
        target: the stream that the fused sequence is added to (default: the first one).
    """

    bottleneck_dim: int = 16
    rank: int = 4
    token_rank: int = 2
    fused_tokens: int | None = 1
    target: str | None = None

    def __post_init__(self) -> None:
        for name in ("bottleneck_dim", "rank", "token_rank", "fused_tokens"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name}: expected a positive number, found {value}.")


class Wander(StreamAdapter):
    """Adds the low-rank fusion of all streams to one of them; see the module's docstring for the equations.

    Raises:
        FusetuneError: the target is no stream, or a sample has more tokens than was announced.
    """

    Config = WanderConfig
    bounded = True
    rank_key = "rank"

    def __init__(self, config: WanderConfig, streams: Mapping[str, Stream]) -> None:
        super().__init__(config, streams)
        self.config = config
        self.target = target_of(config.target, streams, "wander")
        width = streams[self.target].width
        self.fused_tokens = config.fused_tokens or streams[self.target].max_tokens
        check(
            self.fused_tokens in (1, streams[self.target].max_tokens),
            f"wander.fused_tokens: expected 1 or none (one per token of '{self.target}'), found {config.fused_tokens}.",
        )
        self.factors = nn.ModuleDict(
            {name: _Factor(config, s, self.fused_tokens, width) for name, s in streams.items()}
        )
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, streams: Mapping[str, Tokens]) -> dict[str, Tokens]:
        target = streams[self.target]
        fused = self.fuse(streams)  # (batch, T_h, width)
        if self.fused_tokens == 1:
            return {**streams, self.target: target.shifted(fused[:, 0])}
        fused = fused[:, : target.values.shape[1]]
        return {**streams, self.target: Tokens(target.values + fused, target.mask)}

    def fuse(self, streams: Mapping[str, Tokens]) -> Tensor:
        """H of the module's docstring, (batch, T_h, width); streams that are not given count as missing."""
        factors: dict[str, _Factor] = dict(self.factors.items())  # type: ignore[arg-type]
        parts = [f(streams[name]) if name in streams else f.constant() for name, f in factors.items()]
        product = functools.reduce(torch.mul, parts)  # (batch, R, T_h, width)
        return self.scale * product.sum(1)

    @torch.no_grad()
    def interactions(self, streams: Mapping[str, Tokens]) -> dict[tuple[str, str], Tensor]:
        """Which tokens of which modalities act together, by pair of modalities, (tokens, tokens).

        The mean over samples of the norm of that term of H in which one token of each of the two stands and of every
        other modality the bias row; in units of the target stream's values.
        """
        names = [name for name in self.factors if name in streams]
        found: dict[tuple[str, str], Tensor] = {}
        for a, b in combinations(names, 2):
            others = [f.constant() for name, f in self.factors.items() if name not in (a, b)]  # type: ignore[operator]
            constant = functools.reduce(torch.mul, others, self.scale[None, None, None])[0]  # (R, 1, width)
            total = torch.zeros(streams[a].mask.shape[1], streams[b].mask.shape[1])
            for i in range(len(streams[a].mask)):
                one, other = (self._by_token(name, streams[name], i) for name in (a, b))
                total += torch.einsum("itkd,iskd->tskd", one * constant[:, None], other).flatten(2).norm(dim=-1).cpu()
            found[a, b] = total / max(1, len(streams[a].mask))
        return found

    def _by_token(self, name: str, tokens: Tokens, row: int) -> Tensor:
        return self.factors[name].by_token(Tokens(tokens.values[row : row + 1], tokens.mask[row : row + 1]))[0]  # type: ignore[operator]


class _Factor(nn.Module):
    """F_m^(i) for all i at once."""

    undecayed = ("bias_row",)

    def __init__(self, config: WanderConfig, stream: Stream, fused_tokens: int, width: int) -> None:
        super().__init__()
        rank, token_rank, bottleneck = config.rank, config.token_rank, config.bottleneck_dim
        self.max_tokens = stream.max_tokens
        self.down = nn.Linear(stream.width, bottleneck)
        self.token_factors = nn.Parameter(torch.empty(rank, token_rank, stream.max_tokens, fused_tokens))
        self.feature_factors = nn.Parameter(torch.empty(rank, token_rank, bottleneck, width))
        self.bias_row = nn.Parameter(torch.ones(rank, width))
        with torch.no_grad():
            self.token_factors.copy_(_windows(rank, token_rank, stream.max_tokens, fused_tokens))
        # a sum over r features and R_t terms: at unit scale if Z is
        nn.init.normal_(self.feature_factors, std=(bottleneck * token_rank) ** -0.5)

    def forward(self, tokens: Tokens) -> Tensor:
        count = tokens.mask.shape[1]
        if count > self.max_tokens:
            raise FusetuneError(f"wander: a sample has {count} tokens, but the adapter was made for {self.max_tokens}.")
        z = F.gelu(tokens.through(self.down)) * tokens.mask.unsqueeze(-1)  # (batch, T_m, r)
        mixed = torch.einsum("btr,ijtk->bijkr", z, self.token_factors[:, :, :count])
        return self.constant() + torch.einsum("bijkr,ijrd->bikd", mixed, self.feature_factors)

    def by_token(self, tokens: Tokens) -> Tensor:
        """What each token adds to the factor, (batch, R, T_m, T_h, width)."""
        z = F.gelu(self.down(tokens.values)) * tokens.mask.unsqueeze(-1)
        own = self.token_factors[:, :, : z.shape[1]]
        return torch.einsum("btr,ijtk,ijrd->bitkd", z, own, self.feature_factors)

    def constant(self) -> Tensor:
        """The factor of a missing modality: (1, R, 1, width)."""
        return self.bias_row[None, :, None, :]


def _windows(rank: int, token_rank: int, tokens: int, fused_tokens: int) -> Tensor:
    """Initial token factors, (R, R_t, T_m, T_h): sums over the whole sequence and over stretches of it.

    The first term of a factor adds up all tokens, the second the i-th of R stretches that tile the sequence, so that
    the products differ in where they look before anything is learned; any further terms are random sums.
    """
    factors = torch.randn(rank, token_rank, tokens, fused_tokens) / tokens**0.5
    factors[:, 0] = tokens**-0.5
    if token_rank > 1:
        position = torch.arange(tokens)
        for i in range(rank):
            inside = (position * rank // tokens == i).float()
            factors[i, 1] = (inside / inside.sum().clamp(min=1) ** 0.5)[:, None]
    return factors
