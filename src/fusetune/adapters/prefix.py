"""Prefix tuning: trained keys and values in front of those of an attention.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021, arXiv 2101.00190. With queries Q,
keys K and values V of an attention:

    head = softmax(Q [P_K; K]' / sqrt(d)) [P_V; V]         P_K, P_V: n x d, trained

In training, [P_K, P_V] = tanh(E W_1 + b_1) W_2 + b_2 from embeddings E (n x e) by an MLP (section 4.3: more stable than
training P itself); afterwards it is folded away, and P alone is kept.

`modality_prefix` is the same in the trunk, with a prefix of its own for each modality: wherever the tokens of a
modality are attended to, by itself or by the others, its prefix is, in those samples that have the modality.

A prefix takes a share of the attention from the first step on: it does not begin as the identity.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.adapters.adapter import Block, BlockAdapter, Stack
from fusetune.adapters.attention_prefix import Prefix, Prefixing
from fusetune.adapters.parts import has_parts, linear, name_in, part
from fusetune.config import check

INITIAL_STD = 0.02


@dataclass(frozen=True)
class PrefixConfig:
    """
    Attributes:
        length: n, trained keys and values per attention.
        hidden: width of E and of the MLP that makes the prefix in training; 0 trains the prefix itself.
    """

    length: int = 8
    hidden: int = 64

    def __post_init__(self) -> None:
        check(self.length > 0, f"length: expected at least 1, found {self.length}.")
        check(self.hidden >= 0, f"hidden: expected 0 or more, found {self.hidden}.")


class PrefixTable(nn.Module):
    """Keys and values of one attention, (n, width) each: plain parameters, or made by an MLP until `fold`."""

    def __init__(self, length: int, width: int, hidden: int) -> None:
        super().__init__()
        self.made: nn.Sequential | None = None
        if hidden:
            self.embeddings = nn.Parameter(torch.randn(length, hidden))
            self.made = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 2 * width))
        else:
            self.table = nn.Parameter(torch.randn(length, 2 * width) * INITIAL_STD)

    def forward(self) -> tuple[Tensor, Tensor]:
        both = self.made(self.embeddings) if self.made else self.table
        keys, values = both.chunk(2, -1)
        return keys, values

    def fold(self) -> None:
        """Keep what the MLP makes, without the MLP."""
        if self.made:
            with torch.no_grad():
                self.table = nn.Parameter(self.made(self.embeddings))
            self.made = None
            del self.embeddings


class PrefixAdapter(BlockAdapter):
    """A prefix in the self-attention of each chosen block; see the module's docstring."""

    Config = PrefixConfig
    rank_key = "length"
    roles: tuple[tuple[str, str], ...] = (("attention", "key"),)  # the attention, and whose width its prefix has

    def __init__(self, config: PrefixConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        super().__init__(config, stack, blocks)
        self._stack = stack
        self._blocks = [block for block in blocks if self._pairs(block)]
        self.missing = frozenset() if self._blocks else frozenset(role for both in self.roles for role in both)
        self.tables = nn.ModuleDict()
        for block in self._blocks:
            for attention, key in self._pairs(block):
                width = linear(stack, block, key).out_features
                for name in self._tables(attention):
                    table = PrefixTable(block.rank or config.length, width, config.hidden)
                    self.tables[self._key(block, attention, name)] = table

    def attach(self) -> None:
        for block in self._blocks:
            for attention, _ in self._pairs(block):
                self._handles.append(Prefixing(part(self._stack, block, attention), self._given(block, attention)))

    def claims(self) -> list[str]:
        return [
            f"{name_in(self._stack, part(self._stack, b, a))} prefix" for b in self._blocks for a, _ in self._pairs(b)
        ]

    def fold(self) -> None:
        for table in self.tables.values():
            table.fold()  # type: ignore[operator]

    def _pairs(self, block: Block) -> list[tuple[str, str]]:
        """Its attentions, each once, though it may have several roles."""
        found = {
            id(part(self._stack, block, both[0])): both
            for both in self.roles
            if has_parts(self._stack, block, both) and self._tables(both[0])
        }
        return list(found.values())

    def _tables(self, attention: str) -> Sequence[str]:
        """Names of the prefixes of an attention."""
        return [self._stack.name]

    def _key(self, block: Block, attention: str, name: str) -> str:
        return f"{block.number}_{attention}_{name}"

    def _given(self, block: Block, attention: str) -> Any:
        table = self.tables[self._key(block, attention, self._stack.name)]
        return lambda _: ((*table(), None), None) if self.active else None


class ModalityPrefixAdapter(PrefixAdapter):
    """A prefix for each modality in the trunk's self- and cross-attention; a sample sees those of what it has.

    In a language model the self-attention has one for each stream in its sequence, a cross-attention one for what it
    reads.
    """

    sites = ("trunk",)

    def __init__(self, config: PrefixConfig, stack: Stack, blocks: Sequence[Block]) -> None:
        both = (("attention", "key"), ("cross_attention", "cross_key"))
        self.roles = both if "cross_attention" in stack.roles or not hasattr(stack.module, "places") else both[:1]
        super().__init__(config, stack, blocks)

    def _tables(self, attention: str) -> Sequence[str]:
        inside: Sequence[str] | None = getattr(self._stack.module, "told_apart", None)
        if inside is None:
            return list(self._stack.streams)
        return inside if attention == "attention" else [name for name in self._stack.streams if name not in inside]

    def _given(self, block: Block, attention: str) -> Any:
        def given(args: tuple[Any, ...]) -> tuple[Prefix, None] | None:
            if not self.active:
                return None
            keys, values, seen = [], [], []
            for name, there in self._present(block, attention, args):
                k, v = self.tables[self._key(block, attention, name)]()
                keys.append(k)
                values.append(v)
                seen.append(there[:, None].expand(-1, len(k)))
            return (torch.cat(keys), torch.cat(values), torch.cat(seen, 1)), None

        return given

    def _present(self, block: Block, attention: str, args: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
        """The prefixes of an attention that runs, and which samples have what each is of, (batch,)."""
        if hasattr(self._stack.module, "places"):
            present: Mapping[str, Tensor] = self._stack.module.present()  # type: ignore[operator]
            everywhere = torch.ones_like(next(iter(present.values())))
            for name in self._tables(attention):
                yield name, present.get(name, everywhere)
            return
        there, start = args[2], 0  # (batch, tokens of all streams in the context)
        for name, length in block.module.context:  # type: ignore[union-attr]
            yield name, there[:, start : start + length].any(1)
            start += length
