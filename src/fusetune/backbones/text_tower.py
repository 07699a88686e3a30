"""Towers over text encoders; depth 0 is (batch, tokens, 1) token ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.transformers_tower import RowTower
from fusetune.tokens import Tokens, pad

LIMIT = 512  # tokens; more is cut, as the tokenizers of the field do


@dataclass(frozen=True)
class Reading:
    """How a tower reads a text.

    Attributes:
        ids: of the tokens that are left after cutting, special ones and padding included.
        tokens: before cutting, without special ones.
        unknown: of them, how many the tokenizer has no token for.
        cut: whether some are left out.
        problem: why it can't be read at all, in words.
    """

    ids: tuple[int, ...]
    tokens: int
    unknown: int
    cut: bool
    problem: str = ""


class TextTower(RowTower):
    """A text encoder with its own tokenizer; a sample is a str."""

    kind, processor_class, cuts = "text", "AutoTokenizer", True

    @classmethod
    def blank(cls) -> Any:
        return "a"

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        rows = [torch.zeros(0, 1, dtype=torch.long)] * len(samples)
        present = [i for i, sample in enumerate(samples) if sample is not None]
        if present:
            fixed = "max_length" if self._fixed else False
            texts = [samples[i] for i in present]
            batch = self.processor(texts, truncation=True, max_length=self._limit, padding=fixed)
            for i, ids in zip(present, batch["input_ids"], strict=True):
                rows[i] = torch.tensor(ids).unsqueeze(1)
        return pad(rows)

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """How each text is read: what is cut, and what the tokenizer doesn't know."""
        whole = self.processor(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        fixed = "max_length" if self._fixed else False
        cut = self.processor(list(texts), truncation=True, max_length=self._limit, padding=fixed)["input_ids"]
        special, unknown = self.processor.num_special_tokens_to_add(), self.processor.unk_token_id
        return [
            Reading(tuple(left), len(ids), sum(i == unknown for i in ids), len(ids) + special > len(left))
            for ids, left in zip(whole, cut, strict=True)
        ]

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in

    def preprocessing(self) -> dict[str, Any]:
        return {**tokenizer_state(self.processor), "max_length": self._limit}

    @property
    def _fixed(self) -> bool:
        return bool(self.family and self.family.fixed_length)

    @property
    def _limit(self) -> int:
        reserved = self.family.reserved_positions if self.family else 0
        positions = getattr(self.model.config, "max_position_embeddings", LIMIT) - reserved
        return min(self.processor.model_max_length, positions, self.max_tokens or LIMIT, LIMIT)

    def _rows(self, tokens: Tokens, start: int) -> tuple[Tensor, Tensor]:
        return tokens.values, tokens.mask

    def _inputs(self, states: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
        ids = states.squeeze(-1) if start == 0 else torch.zeros_like(mask, dtype=torch.long)
        if self._fixed or mask.is_meta:  # without values there is no padding
            return {"input_ids": ids}
        return {"input_ids": ids, "attention_mask": mask.long()}

    def _tokens(self, out: Tensor, mask: Tensor, samples: int) -> Tokens:
        return Tokens(out, mask)


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """What the ids of a text depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend else {"vocabulary": tokenizer.get_vocab()}
    # set by whichever call came last, not part of what the tokenizer is
    state.pop("truncation", None)
    state.pop("padding", None)
    return {"class": type(tokenizer).__name__, "tokenizer": state}
