"""Language blocks behind a connector that reads the question too (InstructBLIP).

What the connector makes of a picture depends on what is asked, so the picture's tower ends in front of it, and it runs
with the first of the blocks here. It reads the same words as they do, by a tokenizer of its own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.asking import AskedTrunk
from fusetune.backbones.composite.cuts import CONNECTOR, Carried, Cut
from fusetune.backbones.composite.language import LanguageTrunk
from fusetune.backbones.text_tower import tokenizer_state
from fusetune.config import digest
from fusetune.tokens import Tokens


class _Instructed(LanguageTrunk):
    """
    Attributes:
        asks: the connector's own tokenizer; None: the model is known by its configuration alone.
    """

    asks: Any = None

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        family, model = self.composite.family, self.composite.model
        self.connector = nn.ModuleList(model.get_submodule(path) for path in family.connector)
        self.apart = model.get_parameter(family.apart)
        self._queries = model.config.num_query_tokens

    def fingerprint(self) -> str:
        return digest([super().fingerprint(), tokenizer_state(self.asks)]) if self.asks else super().fingerprint()

    def modules_of_whole(self) -> dict[str, str]:
        family = self.composite.family
        connector = {f"connector.{i}": path for i, path in enumerate(family.connector)}
        return {**super().modules_of_whole(), **connector, "apart": family.apart}

    def _in_sequence(self, streams: Mapping[str, Tokens], start: int = 0) -> Mapping[str, Tokens]:
        """In front of the first block a picture has what the encoder gave; its places are as many as the queries."""
        own = dict(super()._in_sequence(streams, start))
        if start == 0 and self.image in own:
            there = own[self.image].mask.any(1, keepdim=True).expand(-1, self._queries)
            own[self.image] = Tokens(torch.zeros(*there.shape, self.width, device=there.device), there)
        return own

    def _shown(self, streams: Mapping[str, Tokens], joint: bool = False) -> tuple[dict[str, Any], Cut, Carried] | None:
        seen = streams.get(self.image)
        states = self.composite.pictures(seen)
        if seen is None or states is None:
            return None
        pictures = self.composite.seen(states.new_ones(len(states), *self.composite.picture_shape))
        asked = self._asked(streams, seen.mask.any(1))
        return pictures | asked, Cut(CONNECTOR), Carried(states)

    def _asked(self, streams: Mapping[str, Tokens], there: Tensor) -> dict[str, Tensor]:
        """Inputs that are the words, as the connector's tokenizer has them, of the samples with a picture."""
        texts = [""] * int(there.sum())
        if self.text in streams:
            said = streams[self.text]
            rows = zip(said.values[there], said.mask[there], strict=True)
            words: Any = self._words[0].processor
            texts = [words.decode(ids[mask][self.offset :, 0].tolist(), skip_special_tokens=True) for ids, mask in rows]
        found = self.asks(texts, padding=True, truncation=True, return_tensors="pt").to(there.device)
        return {"qformer_input_ids": found["input_ids"], "qformer_attention_mask": found["attention_mask"]}


class InstructedTrunk(_Instructed):
    """One sequence of the picture's places and the words (Vicuna, OPT)."""


class InstructedAskedTrunk(_Instructed, AskedTrunk):
    """An encoder and a decoder behind the connector (T5)."""
