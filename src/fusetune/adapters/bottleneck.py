"""Bottleneck adapters inside the blocks of a tower or the trunk.

Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, arXiv 1902.00751 (behind attention and MLP);
Pfeiffer et al., "AdapterFusion", EACL 2021, arXiv 2005.00247 (behind the MLP alone); He et al., "Towards a Unified View
of Parameter-Efficient Transfer Learning", ICLR 2022, arXiv 2110.04366 (beside the MLP).

With what a sub-layer puts out, before the skip connection, h (tokens x d):

    houlsby, pfeiffer   h <- h + gelu(h W_down + b_down) W_up + b_up
    parallel            h <- h + s (gelu(x W_down + b_down) W_up + b_up)     x: what the MLP reads

W_down: d x r; W_up: r x d starts at zero, so that the adapter begins as the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.adapters.adapter import Block, BlockAdapter, Stack
from fusetune.adapters.parts import fitting, linear, name_in
from fusetune.config import check

POSITIONS = {
    "houlsby": ("attention_output", "mlp_output"),
    "pfeiffer": ("mlp_output",),
    "parallel": ("mlp_output",),
}


class Bottleneck(nn.Module):
    """gelu(x W_down + b_down) W_up + b_up; zero at initialisation."""

    def __init__(self, width: int, bottleneck_dim: int, width_out: int | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck_dim)
        self.up = nn.Linear(bottleneck_dim, width_out or width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(states)))


@dataclass(frozen=True)
class BottleneckConfig:
    """
    Attributes:
        bottleneck_dim: r, width inside.
        position: houlsby, pfeiffer or parallel.
        scale: s, of `parallel`.
    """

    bottleneck_dim: int = 16
    position: str = "pfeiffer"
    scale: float = 1.0

    def __post_init__(self) -> None:
        check(self.bottleneck_dim > 0, f"bottleneck_dim: expected a positive width, found {self.bottleneck_dim}.")
        check(self.position in POSITIONS, f"position: expected one of {', '.join(POSITIONS)}, found '{self.position}'.")


class BottleneckAdapter(BlockAdapter):
    """Bottlenecks behind or beside the sub-layers of the chosen blocks; see the module's docstring."""

    Config = BottleneckConfig
    rank_key = "bottleneck_dim"

    def __init__(self, config: BottleneckConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        self.config, self._stack = config, stack
        roles = ("mlp_input", "mlp_output") if config.position == "parallel" else POSITIONS[config.position]
        self._blocks, self.missing = fitting(stack, blocks, roles)
        self.bottlenecks = nn.ModuleDict()
        for block in self._blocks:
            for role in POSITIONS[config.position]:
                read = linear(stack, block, "mlp_input").in_features if config.position == "parallel" else None
                width = linear(stack, block, role).out_features
                size = block.rank or config.bottleneck_dim
                self.bottlenecks[f"{block.number}_{role}"] = Bottleneck(read or width, size, width)

    def attach(self) -> None:
        for block in self._blocks:
            for role in POSITIONS[self.config.position]:
                bottleneck = self.bottlenecks[f"{block.number}_{role}"]
                written = linear(self._stack, block, role)
                if self.config.position == "parallel":
                    self._beside(linear(self._stack, block, "mlp_input"), written, bottleneck)
                else:
                    self._handles.append(written.register_forward_hook(self._behind(bottleneck)))

    def claims(self) -> list[str]:
        roles = POSITIONS[self.config.position]
        return [f"{name_in(self._stack, linear(self._stack, b, r))} output" for b in self._blocks for r in roles]

    def _behind(self, bottleneck: nn.Module) -> Any:
        return lambda _, __, out: out + bottleneck(out) if self.active else out

    def _beside(self, read: nn.Module, written: nn.Module, bottleneck: nn.Module) -> None:
        held: list[Tensor] = []
        keep = read.register_forward_pre_hook(lambda _, args: held.append(args[0]))

        def add(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            states = held.pop()
            return out + self.config.scale * bottleneck(states) if self.active else out

        self._handles += [keep, written.register_forward_hook(add)]
