"""VL-Adapter: bottlenecks in the streams of the trunk, and how they share their weights.

Sung, Cho and Bansal, "VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks", CVPR 2022,
arXiv 2112.06825. Behind the MLP or the cross-attention of each chosen block, for each chosen stream, with h what the
sub-layer puts out (tokens x d); in the one sequence of a language model a stream has its places, and an answer those
of the text:

    h <- h + gelu(h W_down + b_down) W_up + b_up

    sharing: none       weights of its own for each stream, position and block
    sharing: streams    one bottleneck for all streams of a position and block ("single adapter")
    sharing: compacter  W = sum_i A_i (x) (S_i T_i), Kronecker products; A (n x n x n) is shared by all bottlenecks of
                        the placement, S_i (d / n x k) and T_i (k x r / n) are a bottleneck's own (Karimi Mahabadi et
                        al., "Compacter", NeurIPS 2021, arXiv 2106.04647, equations 5 and 6)

The last factor starts at zero: the adapter begins as the identity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.adapter import Block, BlockAdapter, Stack
from fusetune.adapters.bottleneck import Bottleneck
from fusetune.adapters.parts import fitting, linear, name_in
from fusetune.config import check
from fusetune.errors import FusetuneError

BEHIND = {"mlp": "mlp_output", "cross_attention": "cross_output"}
SHARING = ("none", "streams", "compacter")


@dataclass(frozen=True)
class VLAdapterConfig:
    """
    Attributes:
        bottleneck_dim: r, width inside.
        streams: those that get one; none named: all.
        behind: mlp, cross_attention, or both.
        sharing: none, streams or compacter.
        kronecker_dim: n, of `compacter`; divides the trunk's width and r.
        kronecker_rank: k, of `compacter`.
    """

    bottleneck_dim: int = 16
    streams: tuple[str, ...] = ()
    behind: tuple[str, ...] = ("mlp",)
    sharing: str = "none"
    kronecker_dim: int = 4
    kronecker_rank: int = 1

    def __post_init__(self) -> None:
        check(self.bottleneck_dim > 0, f"bottleneck_dim: expected a positive width, found {self.bottleneck_dim}.")
        check(
            bool(self.behind) and set(self.behind) <= set(BEHIND),
            f"behind: expected some of {', '.join(BEHIND)}, found {list(self.behind)}.",
        )
        check(self.sharing in SHARING, f"sharing: expected one of {', '.join(SHARING)}, found '{self.sharing}'.")


class Kronecker(nn.Module):
    """x W + b with W = sum_i A_i (x) (S_i T_i), (width, width_out); A is given, shared."""

    def __init__(self, shared: nn.Parameter, width: int, width_out: int, rank: int, zero: bool) -> None:
        super().__init__()
        count = len(shared)
        if width % count or width_out % count:
            raise FusetuneError(
                f"vl_adapter.kronecker_dim: {count} doesn't divide {width} and {width_out}, the widths of a bottleneck."
            )
        self._shared = [shared]  # registered once, by the placement
        self.s = nn.Parameter(torch.randn(count, width // count, rank) * (rank * width // count) ** -0.5)
        self.t = nn.Parameter(torch.zeros(count, rank, width_out // count))
        if not zero:
            nn.init.normal_(self.t)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def weight(self) -> Tensor:
        a, b = self._shared[0], self.s @ self.t  # (n, n, n), (n, d / n, r / n)
        return torch.einsum("iab,icd->acbd", a, b).flatten(0, 1).flatten(1)

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight() + self.bias


class KroneckerBottleneck(nn.Module):
    """A bottleneck whose two matrices are sums of Kronecker products."""

    def __init__(self, shared: Any, width: int, config: VLAdapterConfig, size: int) -> None:
        super().__init__()
        self.down = Kronecker(shared[0], width, size, config.kronecker_rank, zero=False)
        self.up = Kronecker(shared[1], size, width, config.kronecker_rank, zero=True)

    def forward(self, states: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(states)))


class VLAdapter(BlockAdapter):
    """See the module's docstring."""

    Config = VLAdapterConfig
    sites = ("trunk",)
    rank_key = "bottleneck_dim"

    def __init__(self, config: VLAdapterConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        self.config, self._stack = config, stack
        known = tuple(getattr(stack.module, "told_apart", stack.streams))
        self.streams = config.streams or known
        unknown = [name for name in self.streams if name not in known]
        check(not unknown, f"vl_adapter.streams: no stream '{''.join(unknown[:1])}'. Known: {', '.join(known)}.")
        roles = [BEHIND[place] for place in config.behind]
        self._blocks, self.missing = fitting(stack, blocks, roles)
        count = config.kronecker_dim
        self.shared = nn.ParameterList(
            nn.Parameter(torch.randn(count, count, count) * count**-0.5)
            for _ in range(2 if config.sharing == "compacter" else 0)
        )
        self.bottlenecks = nn.ModuleDict()
        for block in self._blocks:
            for role in roles:
                for stream in self._met(block):
                    key = self._key(block, role, stream)
                    if key not in self.bottlenecks:
                        self.bottlenecks[key] = self._made(linear(stack, block, role).out_features, block)

    def _met(self, block: Block) -> Sequence[str]:
        """The streams in a block's sequence that get a bottleneck."""
        told = getattr(self._stack.module, "told_in", None)
        return [name for name in self.streams if told is None or name in told(block.number)]

    def attach(self) -> None:
        for block in self._blocks:
            for place in self.config.behind:
                role = BEHIND[place]
                layer = linear(self._stack, block, role)
                self._handles.append(layer.register_forward_hook(self._behind(block, role)))

    def claims(self) -> list[str]:
        roles = [BEHIND[place] for place in self.config.behind]
        names = [name_in(self._stack, linear(self._stack, b, role)) for b in self._blocks for role in roles]
        return [f"{name} output of {stream}" for name in names for stream in self.streams]

    def _made(self, width: int, block: Block) -> nn.Module:
        size = block.rank or self.config.bottleneck_dim
        if self.config.sharing == "compacter":
            return KroneckerBottleneck(self.shared, width, self.config, size)
        return Bottleneck(width, size)

    def _key(self, block: Block, role: str, stream: str) -> str:
        return f"{block.number}_{role}" if self.config.sharing == "streams" else f"{block.number}_{role}_{stream}"

    def _behind(self, block: Block, role: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            if not self.active:
                return out
            if hasattr(self._stack.module, "places"):
                return self._in_places(block, role, out)
            stream: str = block.module.stream  # type: ignore[assignment]
            return out + self.bottlenecks[self._key(block, role, stream)](out) if stream in self.streams else out

        return hook

    def _in_places(self, block: Block, role: str, out: Tensor) -> Tensor:
        """One sequence of several streams, (rows, tokens, d), or the same without rows, as OPT has it."""
        places: Mapping[str, Tensor] = self._stack.module.places()  # type: ignore[operator]
        added = torch.zeros_like(out)
        for stream in self.streams:
            if stream in places:
                at = places[stream].reshape(*out.shape[:-1], 1)
                added = added + self.bottlenecks[self._key(block, role, stream)](out) * at
        return out + added
