"""The language blocks of a composite model that read what they see or hear by cross-attention."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.composite.cuts import FINAL, LANGUAGE, MEMORY, TOP, Carried, Cut
from fusetune.backbones.composite.language import LanguageTrunk
from fusetune.backbones.composite.layout import FRONT
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.composite.seeing import SeeingTower
from fusetune.backbones.composite.words import WordTower
from fusetune.backbones.trunk import Change
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens


class ReadingTrunk(LanguageTrunk):
    """Language blocks that read the picture (or sound) by cross-attention at every depth, as the encoder gave it.

    It passes through unchanged, a stream beside the words'; a sample without it reads zeros.
    """

    def __init__(self, composite: CompositeModel, words: WordTower, image: str, text: str, seeing: SeeingTower) -> None:
        super().__init__(composite, words, image, text)
        self.own_widths = {image: seeing.width}
        self._seeing = (seeing,)  # in a tuple: it is no part of this trunk

    def advance(self, streams: Mapping[str, Tokens], start: int, stop: int) -> dict[str, Tokens]:
        if start == stop:
            return dict(streams)
        own = self._in_sequence(streams, start)
        memory = self._memory(streams)
        self._lay_out(own, start)
        inputs = self._inputs({} if start else own) | self._crossed(streams)
        cut = Cut(LANGUAGE, start) if start else Cut(MEMORY)
        carried = Carried(self._layout.joined(own) if start else memory, memory)
        out = self._apart(self.composite.carry(inputs, self._cut(stop), cut, carried).states)
        return {name: out.get(name, tokens) for name, tokens in streams.items()}

    @property
    def told_apart(self) -> list[str]:
        return [self.text] if self.text else []

    def said(self, streams: Mapping[str, Tokens]) -> Tensor:
        return super().said(self._in_sequence(streams, self.depth))

    def _in_sequence(self, streams: Mapping[str, Tokens], start: int = 0) -> Mapping[str, Tokens]:
        own = {name: tokens for name, tokens in streams.items() if name != self.image}
        if start == 0 and self.text in own and self.composite.family.crossed:
            own[self.text] = _without(own[self.text], self.offset - 1, ~self._there(streams))
        return own

    def _there(self, streams: Mapping[str, Tokens]) -> Tensor:
        """(rows,): whether a sample has anything to read."""
        seen = streams.get(self.image)
        return torch.zeros_like(next(iter(streams.values())).mask[:, 0]) if seen is None else seen.mask.any(1)

    def _crossed(self, streams: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """Inputs that say which tokens of what was laid out read a picture, where not all do."""
        composite, layout, masks = self.composite, self._layout, self._layout.masks
        if not composite.family.crossed:
            return {}
        first = (masks[FRONT].shape[1] if FRONT in masks else 0) + (self.offset - 1 if self.text in masks else 0)
        behind = (layout.which >= first) & layout.real & self._there(streams)[:, None]
        return composite.family.crossed(behind, composite.picture_shape, composite.picture_side)

    def behind(self, number: int, change: Change) -> Any:
        raise FusetuneError(
            "behind language blocks that read by cross-attention no stream of the picture can be changed. Place the "
            "adapter in blocks (lora, bottleneck, prefix ...), or in the tower."
        )

    def _memory(self, streams: Mapping[str, Tokens]) -> Tensor:
        if self.image in streams:
            return streams[self.image].values
        one, (seeing,) = next(iter(streams.values())).mask, self._seeing
        return torch.zeros(len(one), seeing.tokens_out(1), seeing.width, device=one.device)

    def _cut(self, stop: int) -> Cut:
        if stop < self.depth:
            return Cut(LANGUAGE, stop)
        return Cut(TOP if self.composite.family.top == self.composite.family.head else FINAL)

    @contextmanager
    def _read(self, inputs: dict[str, Any], streams: Mapping[str, Tokens]) -> Iterator[dict[str, Any]]:
        memory, inputs = self._memory(streams), inputs | self._crossed(streams)
        with self.composite.entered(inputs, Cut(MEMORY), Carried(memory, memory)) as given:
            yield given


def _without(tokens: Tokens, place: int, rows: Tensor) -> Tokens:
    """Some rows without the token at a place; what stands behind it moves up."""
    if tokens.mask.is_meta:
        return tokens
    at = torch.arange(tokens.mask.shape[1], device=rows.device)
    drop = rows & tokens.mask[:, place]
    which = (at + (drop[:, None] & (at >= place))).clamp(max=len(at) - 1)
    return Tokens(
        tokens.values.gather(1, which[..., None].expand_as(tokens.values)),
        at < (tokens.mask.sum(1) - drop.long())[:, None],
    )
