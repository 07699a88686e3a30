"""UniPELT: bottleneck, prefix and LoRA in one block, each behind a learned gate.

Mao et al., "UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning", ACL 2022, arXiv 2110.07577.
With x what a sub-layer reads, token by token, and gates g_S = sigmoid(x w_S + b_S) of the submodules S:

    query, value    W x + g_L (alpha / r) B A x                             LoRA
    attention       (1 - g_P) softmax(Q K') V + g_P softmax(Q [P_K; K]') [P_V; V]      prefix
    MLP             h + g_A (gelu(h W_down + b_down) W_up + b_up)            bottleneck behind it

A gate of 0 leaves the block as it is without the submodule, a gate of 1 is the submodule alone. The paper scales P_K
and P_V themselves, by one gate per sequence: a prefix of zeros would still take attention, and a mean over the
sequence would depend on its padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fusetune.adapters.adapter import Block, BlockAdapter, Stack
from fusetune.adapters.attention_prefix import Prefixing
from fusetune.adapters.bottleneck import Bottleneck
from fusetune.adapters.gates import Gate
from fusetune.adapters.parts import fitting, linear, name_in, part
from fusetune.adapters.prefix import PrefixTable
from fusetune.config import check

NEEDED = ("attention", "query", "key", "value", "mlp_input", "mlp_output")


@dataclass(frozen=True)
class UniPELTConfig:
    """
    Attributes:
        bottleneck_dim: width inside the bottleneck.
        prefix_length: trained keys and values per attention.
        prefix_hidden: of the MLP that makes them in training; 0 trains them directly.
        rank: of LoRA on query and value.
        alpha: LoRA's change is scaled by alpha / rank; None: alpha = rank.
    """

    bottleneck_dim: int = 8
    prefix_length: int = 4
    prefix_hidden: int = 0
    rank: int = 4
    alpha: float | None = None

    def __post_init__(self) -> None:
        for name in ("bottleneck_dim", "prefix_length", "rank"):
            check(getattr(self, name) > 0, f"{name}: expected at least 1, found {getattr(self, name)}.")


class LowRank(nn.Module):
    """(alpha / r) B A x; zero at initialisation."""

    def __init__(self, width: int, width_out: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = nn.Linear(width, rank, bias=False)
        self.b = nn.Linear(rank, width_out, bias=False)
        self.scale = alpha / rank
        nn.init.zeros_(self.b.weight)

    def forward(self, states: Tensor) -> Tensor:
        return self.scale * self.b(self.a(states))


class GatedBlock(nn.Module):
    """The three submodules of one block, and their gates."""

    def __init__(self, config: UniPELTConfig, stack: Stack, block: Block) -> None:
        super().__init__()
        query, value = (linear(stack, block, role) for role in ("query", "value"))
        alpha, width = config.alpha or config.rank, query.in_features
        self.lora_query = LowRank(width, query.out_features, config.rank, alpha)
        self.lora_value = LowRank(width, value.out_features, config.rank, alpha)
        key_width = linear(stack, block, "key").out_features
        self.prefix = PrefixTable(config.prefix_length, key_width, config.prefix_hidden)
        self.bottleneck = Bottleneck(linear(stack, block, "mlp_output").out_features, config.bottleneck_dim)
        self.gates = nn.ModuleDict(
            {
                "lora": Gate(width, 1),
                "prefix": Gate(width, 1),
                "bottleneck": Gate(linear(stack, block, "mlp_input").in_features, 1),
            }
        )
        self.seen: dict[str, Tensor] = {}

    def gate(self, name: str, states: Tensor) -> Tensor:
        """(batch, tokens, 1); what it was, averaged over the tokens of each row, is kept to be looked at."""
        gate = self.gates[name](states).sigmoid()
        self.seen[name] = gate.detach().flatten(1).mean(1, keepdim=True)
        return gate


class UniPELT(BlockAdapter):
    """Gated submodules in every chosen block; see the module's docstring."""

    Config = UniPELTConfig
    rank_key = "rank"

    def __init__(self, config: UniPELTConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        self._stack = stack
        self._blocks, self.missing = fitting(stack, blocks, NEEDED)
        self.gated = nn.ModuleDict(
            {str(b.number): GatedBlock(self.sized(config, b.rank), stack, b) for b in self._blocks}
        )

    def attach(self) -> None:
        for block in self._blocks:
            self._attach(block, self.gated[str(block.number)])

    def _attach(self, block: Block, gated: Any) -> None:
        stack, held = self._stack, {}

        def changed(low_rank: nn.Module) -> Any:
            def hook(_: nn.Module, args: Any, out: Tensor) -> Tensor:
                return out + gated.gate("lora", args[0]) * low_rank(args[0]) if self.active else out

            return hook

        def given(args: Any) -> Any:
            return ((*gated.prefix(), None), gated.gate("prefix", args[0])) if self.active else None

        def keep(_: nn.Module, args: Any) -> None:
            held["read"] = args[0]

        def behind(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            read = held.pop("read")
            return out + gated.gate("bottleneck", read) * gated.bottleneck(out) if self.active else out

        self._handles += [
            linear(stack, block, "query").register_forward_hook(changed(gated.lora_query)),
            linear(stack, block, "value").register_forward_hook(changed(gated.lora_value)),
            Prefixing(part(stack, block, "attention"), given),
            linear(stack, block, "mlp_input").register_forward_pre_hook(keep),
            linear(stack, block, "mlp_output").register_forward_hook(behind),
        ]

    def claims(self) -> list[str]:
        found = []
        for block in self._blocks:
            names = {role: name_in(self._stack, part(self._stack, block, role)) for role in NEEDED}
            found += [f"{names['query']}.weight", f"{names['value']}.weight"]
            found += [f"{names['attention']} prefix", f"{names['mlp_output']} output"]
        return found

    def fold(self) -> None:
        for gated in self.gated.values():
            gated.prefix.fold()  # type: ignore[operator, union-attr]

    def observed(self) -> Mapping[str, Tensor]:
        return {
            f"{self.stack_name}_block{number}_{name}": gate
            for number, gated in self.gated.items()
            for name, gate in gated.seen.items()  # type: ignore[union-attr, operator]
        }
