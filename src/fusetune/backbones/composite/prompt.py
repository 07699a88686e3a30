"""What a language model is shown: a picture's places, and a text in its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.text_tower import Reading, tokenizer_state
from fusetune.backbones.tower import Tower
from fusetune.config import check
from fusetune.tokens import Tokens, pad

IMAGE, GAP, BOS = "{image}", "{}", "{bos}"


@dataclass(frozen=True)
class Prompt:
    """
    Attributes:
        before: the text in front of the picture.
        after: the text behind it, with {} where a sample's own goes.
        adds_bos: whether the tokenizer's first token has to be put in front.
    """

    before: str
    after: str
    adds_bos: bool

    @classmethod
    def of(cls, processor: Any, image_token: str, given: str | None, default: str) -> "Prompt":
        """The given one, or the checkpoint's own chat template, or the family's.

        Raises:
            FusetuneError: one without {}, or without a place for the picture.
        """
        tokenizer = processor.tokenizer
        text = given or _chat(processor) or default
        bos = tokenizer.bos_token or ""
        text = text.replace(IMAGE, image_token).replace(BOS, bos)
        for part, name in ((GAP, "{} for a sample's text"), (image_token, f"{IMAGE} for its picture")):
            check(text.count(part) == 1, f"backbone.prompt: expected one {name}, found '{text}'.")
        before, _, after = text.partition(image_token)
        check(GAP in after, f"backbone.prompt: expected {IMAGE} in front of {GAP}, found '{text}'.")
        return cls(before, after, bool(bos) and bos not in text)


def _chat(processor: Any) -> str | None:
    if not getattr(processor, "chat_template", None):
        return None
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": GAP}]}]
    return processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)


class PromptTower(Tower):
    """Texts as the language model's token ids, in their prompt; a sample is a str. There is nothing to run: depth 0.

    Args:
        longest: tokens that the language model takes, the picture's places left out.
        max_tokens: what is longer is cut.
    """

    kind, depth = "text", 0

    def __init__(self, tokenizer: Any, prompt: Prompt, width: int, longest: int, max_tokens: int | None = None) -> None:
        super().__init__()
        self.processor, self.prompt, self.width = tokenizer, prompt, width
        self.first = self._ids(prompt.before)
        if prompt.adds_bos:
            self.first = [tokenizer.bos_token_id, *self.first]
        self.limit = min(longest, tokenizer.model_max_length, max_tokens or longest)
        check(
            self.limit > len(self.first),
            f"max_tokens: the prompt in front of the picture has {len(self.first)} tokens already, found {self.limit}.",
        )

    @property
    def offset(self) -> int:
        """Tokens in front of the picture."""
        return len(self.first)

    def prepare(self, samples: Sequence[Any]) -> Tokens:
        none = torch.zeros(0, 1, dtype=torch.long)
        return pad([none if s is None else torch.tensor(self._read(s)[0]).unsqueeze(1) for s in samples])

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """How each text is read: what is cut, and what the tokenizer doesn't know."""
        unknown = self.processor.unk_token_id
        found = []
        for text in texts:
            own = self._ids(text)
            ids, cut = self._read(text)
            found.append(Reading(tuple(ids), len(own), sum(i == unknown for i in own), cut))
        return found

    def advance(self, tokens: Tokens, start: int, stop: int) -> Tokens:
        return tokens

    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList()

    def tokens_out(self, tokens_in: int) -> int:
        return tokens_in

    def preprocessing(self) -> dict[str, Any]:
        return {**tokenizer_state(self.processor), "prompt": self.prompt, "max_length": self.limit}

    def save_pretrained(self, folder: Any) -> None:
        raise TypeError("a prompt belongs to its composite model, which is saved by reference")

    def _read(self, text: str) -> tuple[list[int], bool]:
        ids = [*self.first, *self._ids(self.prompt.after.replace(GAP, text))]
        return ids[: self.limit], len(ids) > self.limit

    def _ids(self, text: str) -> list[int]:
        return list(self.processor(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def laid_out(text: Tensor, image: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """The one sequence that text and picture make: the first `offset` tokens of the text, the picture, the rest.

    Args:
        text, image: masks, (rows, tokens), real ones first.

    Returns:
        (rows, longest): which of `cat([text, image])` stands there, and whether anything does.
    """
    texts, places = text.sum(1, keepdim=True), image.sum(1, keepdim=True)
    before = texts.clamp(max=offset)
    longest = text.shape[1] + image.shape[1] if text.is_meta else int((texts + places).max().clamp(min=1))
    at = torch.arange(longest, device=text.device)[None]
    in_image = (at >= before) & (at < before + places)
    of_text = torch.where(at < before, at, at - places)
    which = torch.where(in_image, text.shape[1] + at - before, of_text)
    real = at < texts + places
    return which.masked_fill(~real, 0), real
