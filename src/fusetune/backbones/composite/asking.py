"""The language blocks of a composite model that reads a text with its picture first, and answers from what it has read.

An encoder of its own reads the question (T5's, with the picture's places in its sequence; BLIP's for questions, by
cross-attention); the blocks that answer read what it gives, by cross-attention, behind a first token that nobody says.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.composite.cuts import CONNECTOR, LANGUAGE, MEMORY, QUESTION, Carried, Cut
from fusetune.backbones.composite.layout import Layout, blank_words
from fusetune.backbones.composite.model import CompositeModel
from fusetune.backbones.composite.quantising import quantise
from fusetune.backbones.composite.reading import ReadingTrunk
from fusetune.backbones.composite.seeing import SeeingTower
from fusetune.backbones.composite.words import WordTower
from fusetune.backbones.trunk import Change
from fusetune.config import digest
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens


class AskedTrunk(ReadingTrunk):
    """The blocks that read a question, then, once answers in words are asked for, those that say one.

    Up to the depth `asked` streams are as in one sequence of picture and text (or the text's alone, with the picture
    beside it); an answer waits as ids. From there on what has been read stays as it is, and the answer's states, the
    first token's in front, are what goes on.
    """

    one_sequence = False

    def __init__(self, composite: CompositeModel, words: WordTower, image: str, text: str, seeing: SeeingTower) -> None:
        super().__init__(composite, words, image, text, seeing)
        family = composite.family
        self.question = composite.model.get_submodule(family.memory)
        self.depth = self.asked = len(composite.blocks(QUESTION))
        self._beside = not family.placed  # the picture is no part of the sequence
        if not self._beside:
            self.own_widths = {}
        self._read_by: Mapping[str, Tensor] = {}  # by stream, whether a sample has any, once answers are said

    def blocks(self) -> nn.ModuleList:
        saying = self.composite.blocks(LANGUAGE) if self.answer else []
        return nn.ModuleList([*self.composite.blocks(QUESTION), *saying])

    def modules_of_whole(self) -> dict[str, str]:
        return {**super().modules_of_whole(), "question": self.composite.family.memory}

    def quantise(self, kind: str) -> None:
        self._name = digest([self.fingerprint(), kind])
        for part in (QUESTION, LANGUAGE):
            quantise(nn.ModuleList(self.composite.blocks(part)), kind)

    def take_answers(self, name: str, most: int) -> WordTower:
        tower = super().take_answers(name, most)
        self.depth = self.asked + len(self.composite.blocks(LANGUAGE))
        return tower

    def advance(self, streams: Mapping[str, Tokens], start: int, stop: int) -> dict[str, Tokens]:
        known = dict(streams)
        if start < min(stop, self.asked):
            known |= self._read_question(known, start, min(stop, self.asked))
        if stop > max(start, self.asked):
            known |= self._say(known, max(start, self.asked), stop)
        return known

    def said(self, streams: Mapping[str, Tokens]) -> Tensor:
        return self.composite.said(streams[self.answer].values)

    def lengths(self, streams: Mapping[str, Tokens]) -> list[int]:
        """One each: answers begin together, however long their questions are."""
        return [1] * len(next(iter(streams.values())).mask)

    @contextmanager
    def prompted(self, streams: Mapping[str, Tokens]) -> Iterator[dict[str, Any]]:
        known = {**streams, **self._read_question(streams, 0, self.asked)}
        memory = self._memory_of(known)
        begun = self._begun(memory.mask)
        self._answering(begun.mask)
        with self._followed():
            yield {
                self.composite.family.words[0]: begun.values.squeeze(-1),
                "memory": memory.values,
                "memory_mask": memory.mask.long(),
            }

    @property
    def told_apart(self) -> list[str]:
        return [name for name in (self.image, self.text) if name and not (self._beside and name == self.image)]

    def told_in(self, number: int) -> list[str]:
        """The streams in the sequence of a block."""
        return self.told_apart if number < self.asked else [self.text]

    def places(self) -> dict[str, Tensor]:
        """As `LanguageTrunk.places`; all that is said is text."""
        if not self._read_by:
            return super().places()
        return {self.text: torch.ones_like(self._layout.real[:, :1]) if self._goes_on else self._layout.real}

    def present(self) -> dict[str, Tensor]:
        if not self._read_by:
            return super().present()
        times = len(self._layout.real) // len(next(iter(self._read_by.values())))
        return {name: there.repeat_interleave(times, 0) for name, there in self._read_by.items()}

    def behind(self, number: int, change: Change) -> Any:
        if self._beside:
            return super().behind(number, change)
        if number >= self.asked:
            raise FusetuneError(
                f"behind block {number} an answer is said: places of the picture and of the text stand in blocks 0 to "
                f"{self.asked - 1}, which read the question. Expected one of these (blocks: explicit)."
            )
        if number + 1 < self.asked:
            return self._in_front_of(self.blocks()[number + 1], change)
        return self.blocks()[number].register_forward_hook(
            lambda _, args, out: (self._changed(change, out[0]), *out[1:])
        )

    def _in_sequence(self, streams: Mapping[str, Tokens], start: int = 0) -> Mapping[str, Tokens]:
        outside = [self.answer, *([self.image] if self._beside else [])]
        return {name: tokens for name, tokens in streams.items() if name not in outside}

    def _read_question(self, streams: Mapping[str, Tokens], start: int, stop: int) -> dict[str, Tokens]:
        """What stands at `stop` of the text, and of the picture where it is in the sequence."""
        own, composite = self._in_sequence(streams, start), self.composite
        self._lay_out(own, start)
        self._read_by = {}
        inputs = self._inputs({} if start else own)
        cut = Cut(QUESTION, stop) if stop < self.asked else Cut(MEMORY)
        memory = self._memory(streams) if self._beside else None
        if start or self._layout.which.is_meta:
            blank = {} if start else blank_words(self._layout, own, self.image, self.width, None)
            states = self._layout.joined(blank or own)
            out = composite.carry(inputs, cut, Cut(QUESTION, start), Carried(states, memory))
        elif memory is not None:
            out = composite.carry(inputs, cut, Cut(CONNECTOR), Carried(memory))
        else:
            out = self._carried(inputs, streams, cut)
        found = self._apart(out.states)
        if self._beside and self.image in streams and stop == self.asked:  # nothing reads it any more
            seen = streams[self.image]
            found[self.image] = Tokens(torch.zeros_like(seen.values[:, :1]), torch.zeros_like(seen.mask[:, :1]))
        return found

    def _memory_of(self, streams: Mapping[str, Tokens]) -> Tokens:
        """What has been read, in one sequence."""
        own = self._in_sequence(streams, self.asked)
        self._lay_out(own, self.asked)
        self._read_by = {name: tokens.mask.any(1) for name, tokens in own.items()}
        return Tokens(self._layout.joined(own), self._layout.real)

    def _say(self, streams: Mapping[str, Tokens], start: int, stop: int) -> dict[str, Tokens]:
        memory = self._memory_of(streams)
        begun = self._begun(memory.mask)
        answer = streams.get(self.answer, begun)
        if start == self.asked and answer is not begun:
            answer = Tokens(torch.cat([begun.values, answer.values], 1), torch.cat([begun.mask, answer.mask], 1))
        self._answering(answer.mask)
        ids = answer.values.squeeze(-1) if start == self.asked else torch.zeros_like(answer.mask, dtype=torch.long)
        inputs = self.composite.answered(memory.mask, ids, answer.mask)
        states = answer.values
        if start == self.asked:
            states = states.new_zeros(*answer.mask.shape, self.width).float() if ids.is_meta else memory.values
        first = Cut(MEMORY) if start == self.asked and not ids.is_meta else Cut(LANGUAGE, start - self.asked)
        last = self._cut(stop) if stop == self.depth else Cut(LANGUAGE, stop - self.asked)
        out = self.composite.carry(inputs, last, first, Carried(states, memory.values)).states
        return {self.answer: Tokens(out * answer.mask[..., None], answer.mask)}

    def _begun(self, rows: Tensor) -> Tokens:
        """The first token of every answer, to so many rows."""
        ids = torch.full((len(rows), 1, 1), self.composite.first_id, device=rows.device)
        return Tokens(ids, torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device))

    def _answering(self, mask: Tensor) -> None:
        which = torch.arange(mask.shape[1], device=mask.device).expand_as(mask) * mask
        self._layout = Layout({self.answer: mask}, which, mask)
