"""Words of a text that were masked, by what stands around them: how a language's adapter is trained on text alone.

Devlin et al., NAACL 2019, with whole words masked; every text is masked several times over, each time elsewhere.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.tasks.task import HeadMaker, Task
from fusetune.tokens import Tokens

RATE = 0.15  # of the words, one at least
NOT_ASKED = -100
CJK = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))  # which are written without blanks


def masked(text: str, tokenizer: Any, rng: random.Random) -> tuple[str, list[int]] | None:
    """A text with some of its words masked, and by token what stood there (`NOT_ASKED` where nothing is asked).

    None for a text whose tokens aren't those of its words, one by one.
    """
    words = _words(text)
    whole = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    if not words or [piece for own in pieces for piece in own] != whole:
        return None
    chosen = set(rng.sample(range(len(words)), max(1, round(RATE * len(words)))))
    shown = [" ".join([tokenizer.mask_token] * len(own)) if i in chosen else words[i] for i, own in enumerate(pieces)]
    asked = [piece if i in chosen else NOT_ASKED for i, own in enumerate(pieces) for piece in own]
    text = " ".join(shown)
    framed, bare = (tokenizer(text, add_special_tokens=special)["input_ids"] for special in (True, False))
    front = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), None)
    if front is None or len(bare) != len(asked):
        return None
    return text, [NOT_ASKED] * front + asked


def _words(text: str) -> list[str]:
    spaced = "".join(f" {char} " if any(low <= ord(char) <= high for low, high in CJK) else char for char in text)
    return spaced.split()


@dataclass(frozen=True)
class MaskedWordsConfig:
    """
    Attributes:
        modality: the text with masks.
        asked: the column with what stood there, a number a token.
    """

    modality: str
    asked: str = "masked: asked"


class WordHead(nn.Module):
    """Scores of known tokens at each place: a trained map of the states, against the encoder's own embeddings.

    Attributes:
        takes_tokens: it is given streams token by token.
    """

    takes_tokens = True

    def __init__(self, modality: str, embeddings: Tensor, width: int, make: HeadMaker) -> None:
        super().__init__()
        self.modality = modality
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head: Any = make(width, embeddings.shape[1])
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.scale = embeddings.shape[1] ** -0.5

    def forward(self, streams: Mapping[str, Tokens], pooled: Mapping[str, Tensor]) -> Tensor:
        del pooled
        known: Any = self.embeddings
        return self.head(self.norm(streams[self.modality].values)) @ F.normalize(known, dim=1).T / self.scale


class MaskedWords(Task):
    """Cross-entropy over the tokens of the training texts; `accuracy` is that of the masked tokens of a text."""

    Config = MaskedWordsConfig
    metric = "accuracy"
    by_sample = False  # the mean over those tokens that are asked for

    def __init__(self, config: MaskedWordsConfig) -> None:
        self.config = config
        self.known_ids: list[int] = []
        self._tower: Any = None

    @property
    def token_outputs(self) -> int:  # type: ignore[override]
        return len(self.known_ids)

    def columns(self) -> list[str]:
        return [self.config.asked]

    def meet_towers(self, towers: Mapping[str, Any]) -> None:
        self._tower = towers.get(self.config.modality)

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.known_ids = sorted(_asked(columns[self.config.asked]))

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """(rows, most tokens): the place among known tokens; `NOT_ASKED` where nothing is, or nobody could know."""
        places = {token: place for place, token in enumerate(self.known_ids)}
        rows = columns[self.config.asked]
        targets = torch.full((len(rows), max(map(len, rows), default=1)), NOT_ASKED)
        for row, own in enumerate(rows):
            targets[row, : len(own)] = torch.tensor([places.get(token, NOT_ASKED) for token in own])
        return targets

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        name = self.config.modality
        check(name in widths and self._tower is not None, f"'{name}': no such modality.")
        weights = self._tower.model.get_input_embeddings().weight[self.known_ids].detach().clone()
        return WordHead(name, weights, widths[name], make)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets[:, : outputs.shape[1]].to(outputs.device)
        asked = wanted != NOT_ASKED
        return (
            F.cross_entropy(outputs[:, : wanted.shape[1]][asked], wanted[asked]) if asked.any() else outputs.sum() * 0
        )

    def kept(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """(rows, 1): the share of a row's masked tokens that are right."""
        if outputs.ndim == 2 or targets is None:
            return outputs[:, :1] if outputs.ndim == 2 else outputs.new_zeros(len(outputs), 1)
        wanted = targets[:, : outputs.shape[1]].to(outputs.device)
        asked = wanted != NOT_ASKED
        right = (outputs[:, : wanted.shape[1]].argmax(-1) == wanted) & asked
        return (right.sum(1) / asked.sum(1).clamp(min=1))[:, None]

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        return {"accuracy": self.kept(outputs, targets)[:, 0].double().cpu().numpy()}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        return [{} for _ in outputs]

    def state(self) -> dict[str, Any]:
        return {"known_ids": self.known_ids}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.known_ids = list(state["known_ids"])


def _asked(rows: Iterable[Sequence[int]]) -> set[int]:
    return {token for row in rows for token in row if token != NOT_ASKED}
