"""What a language model is shown, as ids: a picture's places, a text in its prompt, the answer to learn."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fusetune.backbones.composite.prompt import GAP, Prompt
from fusetune.backbones.text_tower import Reading, tokenizer_state
from fusetune.backbones.tower import Tower
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.schema import TURN
from fusetune.tokens import Tokens, pad

ROOM = 256  # positions that are kept for answers, at most a quarter of all


class WordTower(Tower):
    """Token ids, as the language model takes them: there is nothing to run, depth 0. Of one that is known by its
    configuration alone there are no tokens either.

    Attributes:
        offset: tokens in front of the picture.
    """

    kind, depth, offset = "text", 0, 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        raise TypeError("a configuration alone has no tokenizer")

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        return tokens

    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList()

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in

    def preprocessing(self) -> dict[str, Any]:
        return {}

    def save_pretrained(self, folder: Any) -> None:
        raise TypeError("words belong to their composite model, which is saved by reference")


class PromptTower(WordTower):
    """Texts as the language model's token ids, in their prompt; a sample is a str.

    Args:
        longest: tokens that the language model takes, the picture's places left out.
        max_tokens: what is longer is cut.
        start: ids in front of everything.
        place: the id at a picture's places, which no text may hold.
        sign: whether the id stands in the text itself, once, for a picture that has no places.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt: Prompt,
        width: int,
        longest: int,
        max_tokens: int | None = None,
        start: Sequence[int] = (),
        place: int | None = None,
        sign: bool = False,
    ) -> None:
        super().__init__(width)
        self.processor, self.prompt, self.place = tokenizer, prompt, place
        self.first = [*start, *self._ids(prompt.before), *([place] if sign and place is not None else [])]
        if prompt.adds_bos:
            self.first = [tokenizer.bos_token_id, *self.first]
        self.limit = min(longest, tokenizer.model_max_length, max_tokens or longest)
        self.offset, own = len(self.first), len(self._whole(""))
        check(self.limit > own, f"max_tokens: the prompt alone has {own} tokens, found {self.limit}.")

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        none = torch.zeros(0, 1, dtype=torch.long)
        return pad([none if s is None else torch.tensor(self._read(s)[0]).unsqueeze(1) for s in samples])

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """How each text is read: what is cut, and what the tokenizer doesn't know."""
        unknown = self.processor.unk_token_id
        found = []
        for text in texts:
            own = self._ids(text)
            try:
                ids, cut = self._read(text)
            except FusetuneError as error:
                found.append(Reading((), len(own), 0, False, str(error)))
                continue
            found.append(Reading(tuple(ids), len(own), sum(i == unknown for i in own), cut))
        return found

    def preprocessing(self) -> dict[str, Any]:
        return {**tokenizer_state(self.processor), "prompt": self.prompt, "max_length": self.limit}

    def _read(self, text: str) -> tuple[list[int], bool]:
        """Its ids; of one that is too long, the sample's own text is cut, never the prompt."""
        ids = self._whole(text)
        if len(ids) <= self.limit:
            return ids, False
        if TURN in text:  # the first turns go
            rest = text.split(TURN, 2)[2:]
            return self._read(rest[0])[0], True
        start, own, end = (self._ids(part) for part in (self.prompt.after.partition(GAP)[0], text, self.prompt.end))
        room = self.limit - len(self.first) - len(start) - len(end)
        return [*self.first, *start, *own[: max(0, room)], *end][: self.limit], True

    def _whole(self, text: str) -> list[int]:
        return [*self.first, *without_place(self._ids(self.prompt.filled(text)), self.place, text)]

    def _ids(self, text: str) -> list[int]:
        return ids_of(self.processor, text)


class AnswerTower(WordTower):
    """Answers as token ids behind the prompt, the last one left out: nothing is said after it.

    Args:
        most: tokens of an answer; what is longer is cut, and has no end.

    Attributes:
        stops: the ids that end an answer.
    """

    def __init__(self, words: PromptTower, most: int) -> None:
        super().__init__(words.width)
        self.processor, self.prompt, self.place, self.most = words.processor, words.prompt, words.place, most
        ends = self.prompt.answer.endswith(GAP)
        last = self.processor.eos_token_id
        last = self.processor.sep_token_id if last is None else last  # BERT's, as BLIP has it
        check(
            not ends or last is not None,
            "backbone.prompt: the tokenizer has no token that ends an answer. Put what ends it behind {answer}.",
        )
        self.end = [last] if ends else []
        self.stops = self.end or ids_of(self.processor, self.prompt.answer.rpartition(GAP)[2])[:1]
        self._before = ids_of(self.processor, self.prompt.end)

    def ids(self, text: str) -> list[int]:
        """What the model has to say, its end included, tokenised as behind a prompt; what is too long is cut."""
        return self._whole(text)[: self.most]

    def _whole(self, text: str) -> list[int]:
        said = self.prompt.answer.replace(GAP, text)
        whole, count = ids_of(self.processor, self.prompt.end + said), len(self._before)
        own = whole[count:] if whole[:count] == self._before else ids_of(self.processor, said)
        return without_place([*own, *self.end], self.place, text)

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, up to the end of the answer."""
        return str(self.processor.decode(list(ids), skip_special_tokens=True)).strip()

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        rows = [[] if sample is None else self.ids(sample)[:-1] for sample in samples]
        return pad([torch.tensor(ids, dtype=torch.long).unsqueeze(1) for ids in rows])

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """How each answer is read: what is cut, and what the tokenizer doesn't know."""
        unknown, found = self.processor.unk_token_id, []
        for text in texts:
            try:
                whole = self._whole(text)
            except FusetuneError as error:
                found.append(Reading((), 0, 0, False, str(error)))
                continue
            ids, cut = tuple(whole[: self.most]), len(whole) > self.most
            found.append(Reading(ids, len(whole), sum(i == unknown for i in whole), cut))
        return found

    def preprocessing(self) -> dict[str, Any]:
        return {**tokenizer_state(self.processor), "prompt": self.prompt, "most": self.most}


def without_place(ids: list[int], place: int | None, text: str) -> list[int]:
    """The ids; raises FusetuneError for a text with the token of a picture's place, which would ask for one more."""
    check(
        place is None or place not in ids,
        f"text {text[:60]!r}: it holds the token that stands for a picture. Take it out: the prompt has its own.",
    )
    return ids


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Of a part of a sequence: nothing is put around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def room(composite: Any) -> int:
    """Positions that no prompt takes: an answer stands there."""
    return min(ROOM, positions(composite) // 4)


def positions(composite: Any) -> int:
    """Places of the language model; of one that knows distances alone (T5), as good as any number."""
    config = composite.model.config.get_text_config()
    names = ("max_position_embeddings", "max_target_positions")
    return next((int(number) for name in names if (number := getattr(config, name, None))), 1 << 20)
