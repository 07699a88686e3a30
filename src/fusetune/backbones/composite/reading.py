"""The language blocks of a composite model that read what they see or hear by cross-attention."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.composite.cuts import FINAL, LANGUAGE, MEMORY, TOP, Carried, Cut
from fusetune.backbones.composite.language import LanguageTrunk
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.composite.words import WordTower
from fusetune.backbones.trunk import Change
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens


class ReadingTrunk(LanguageTrunk):
    """Language blocks that read the picture (or sound) by cross-attention at every depth, as the encoder gave it.

    It passes through unchanged, a stream beside the words'; a sample without it reads zeros.
    """

    def __init__(self, composite: CompositeModel, words: WordTower, image: str, text: str, width: int) -> None:
        super().__init__(composite, words, image, text)
        self.own_widths = {image: width}

    def advance(self, streams: Mapping[str, Tokens], start: int, stop: int) -> dict[str, Tokens]:
        if start == stop:
            return dict(streams)
        own = self._in_sequence(streams)
        memory = self._memory(streams)
        self._lay_out(own, start)
        inputs = self._inputs({} if start else own)
        cut = Cut(LANGUAGE, start) if start else Cut(MEMORY)
        carried = Carried(self._layout.joined(own) if start else memory, memory)
        out = self._apart(self.composite.carry(inputs, self._cut(stop), cut, carried).states)
        return {name: out.get(name, tokens) for name, tokens in streams.items()}

    @property
    def told_apart(self) -> list[str]:
        return [self.text] if self.text else []

    def said(self, streams: Mapping[str, Tokens]) -> Tensor:
        return super().said(self._in_sequence(streams))

    def _in_sequence(self, streams: Mapping[str, Tokens]) -> Mapping[str, Tokens]:
        return {name: tokens for name, tokens in streams.items() if name != self.image}

    def behind(self, number: int, change: Change) -> Any:
        raise FusetuneError(
            "behind language blocks that read by cross-attention no stream of the picture can be changed. Place the "
            "adapter in blocks (lora, bottleneck, prefix ...), or in the tower."
        )

    def _memory(self, streams: Mapping[str, Tokens]) -> Tensor:
        if self.image in streams:
            return streams[self.image].values
        one = next(iter(streams.values())).mask
        return torch.zeros(len(one), 1, self.own_widths[self.image], device=one.device)

    def _cut(self, stop: int) -> Cut:
        if stop < self.depth:
            return Cut(LANGUAGE, stop)
        return Cut(TOP if self.composite.family.top == self.composite.family.head else FINAL)

    @contextmanager
    def _read(self, inputs: dict[str, Any], streams: Mapping[str, Tokens]) -> Iterator[dict[str, Any]]:
        memory = self._memory(streams)
        with self.composite.entered(inputs, Cut(MEMORY), Carried(memory, memory)) as given:
            yield given
