"""An answer in words, by the model's own head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import build, check, to_plain
from fusetune.errors import FusetuneError
from fusetune.tasks import word_metrics
from fusetune.tasks.decoding import Decoding
from fusetune.tasks.task import HeadMaker, Task
from fusetune.tasks.vqa_accuracy import vqa_accuracy

METRICS = ("token_accuracy", "exact_match", "log_likelihood")
NO_TOKEN = -100  # as a target
FORCED = "teacher_forced"  # column of predictions: each word behind the right ones; `prediction` is what was said alone
PEOPLE = 10  # who answered each question of VQA v2


@dataclass(frozen=True)
class GenerationConfig:
    """
    Attributes:
        answer: the manifest column that holds the answer, a text.
        max_answer_tokens: what is longer is cut, and `inputs` says how much that is.
        metric: token_accuracy, exact_match or log_likelihood: what early stopping and the champion go by.
        references: the manifest column with a list of all answers that would be right, against which what the model
            says is measured (several captions, the ten answers of VQA v2); None: `answer` alone.
        question_type: the manifest column that reports split results by; None: none.
        decoding: how the model looks for an answer of its own.
    """

    answer: str
    max_answer_tokens: int = 64
    metric: str = "token_accuracy"
    references: str | None = None
    question_type: str | None = None
    decoding: Decoding = field(default_factory=Decoding)

    def __post_init__(self) -> None:
        check(self.metric in METRICS, f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")
        most, new = self.max_answer_tokens, self.decoding.max_new_tokens
        check(most > 0, f"max_answer_tokens: expected at least 1, found {most}.")
        check(
            new is None or new <= most,
            f"max_new_tokens: expected at most {most}, what an answer has here (max_answer_tokens), found {new}.",
        )


class Generation(Task):
    """Cross-entropy of the answer's tokens, each behind the true ones before it (teacher forcing).

    `exact_match` is that of greedy decoding: it says the whole answer if and only if each token is the likeliest behind
    the true ones before it. `token_accuracy` and `log_likelihood` are means over a sample's tokens, then over samples;
    `perplexity` is over all tokens. Of what the model has said by itself there are `exact_match`, and how close its
    words are (`word_metrics`).

    Outputs are logits in training, what `kept` says where metrics are taken of them, and ids (rows, tokens) where the
    model has answered by itself.

    Attributes:
        no_token: stands behind an answer.
        words: turns answers into ids and back: the backbone's tower of answers (`meet`).
    """

    Config = GenerationConfig
    speaks = True
    words: Any = None
    no_token = NO_TOKEN

    def __init__(self, config: GenerationConfig) -> None:
        self.config, self.metric = config, config.metric

    def meet(self, words: Any) -> None:
        """Know the tokens of the model that is to answer."""
        self.words = words

    def decoding(self, changes: Mapping[str, Any] | None = None) -> Decoding:
        """How an answer is looked for, with some of it changed; raises FusetuneError for what makes no sense."""
        if not changes:
            return self.config.decoding
        changed = build(Decoding, {**to_plain(self.config.decoding), **changes}, "decoding")
        return replace(self.config, decoding=changed).decoding

    def columns(self) -> list[str]:
        return [n for n in (self.config.answer, self.config.references, self.config.question_type) if n]

    def problems(self) -> dict[str, Callable[[Any], str | None]]:
        several = {self.config.references: _problem_of_references} if self.config.references else {}
        return {self.config.answer: _problem, **several}

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Nothing is learned: the answers are the model's own words."""

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """(rows, longest): ids of each answer, its end included, and `NO_TOKEN` behind it."""
        rows = []
        for number, text in enumerate(columns[self.config.answer]):
            problem = _problem(text)
            if problem:
                raise FusetuneError(f"column '{self.config.answer}', row {number}: {problem}.")
            rows.append(self.words.ids(text))
        found = torch.full((len(rows), max(map(len, rows), default=1)), NO_TOKEN)
        for row, ids in zip(found, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return found

    def truths(self, columns: Mapping[str, Sequence[Any]]) -> list[list[str]]:
        """All answers that would be right, of each row."""
        if not self.config.references:
            return [[text] for text in columns[self.config.answer]]
        return [list(several) for several in columns[self.config.references]]

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        return [_problem(text) is None for text in columns[self.config.answer]]

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        return nn.Identity()  # the model's own is no part of what a plan places

    def row_weights(self, targets: Tensor) -> Tensor:
        return (targets != NO_TOKEN).sum(1).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over tokens; `targets` may be longer than the longest answer of the batch."""
        wanted = targets[:, : outputs.shape[1]]
        return F.cross_entropy(outputs.flatten(0, 1), wanted.flatten(), ignore_index=NO_TOKEN)

    def kept(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """(rows, longest, 2): of each token its log likelihood, and the likeliest one in its place; zeros behind."""
        assert targets is not None  # what is said by itself isn't measured here
        wanted = targets[:, : outputs.shape[1]]
        there = wanted != NO_TOKEN
        logs = outputs.log_softmax(-1).gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        found = torch.stack([logs, outputs.argmax(-1).float()], -1) * there.unsqueeze(-1)
        return F.pad(found, (0, 0, 0, targets.shape[1] - found.shape[1]))

    def per_sample(self, outputs: Tensor, targets: Any) -> dict[str, np.ndarray]:
        """Of what the model has said by itself, against `targets` or `truths`."""
        if outputs.ndim == 2:
            said, true = self._texts(outputs), self._true(targets)
            same = [
                any(one.strip() == other.strip() for other in several) for one, several in zip(said, true, strict=True)
            ]
            found = {"exact_match": np.array(same, dtype=np.float64)}
            if all(len(several) == PEOPLE for several in true):
                found["vqa_accuracy"] = np.array([vqa_accuracy(*pair) for pair in zip(said, true, strict=True)])
            return found | word_metrics.per_text(said, true)
        there = targets != NO_TOKEN
        tokens = there.sum(1).clamp(min=1)
        right = (outputs[..., 1].round() == targets) & there
        forced = {
            "token_accuracy": right.sum(1) / tokens,
            "exact_match": (right | ~there).all(1).float(),
            "log_likelihood": outputs[..., 0].sum(1) / tokens,
        }
        return {name: values.float().cpu().numpy() for name, values in forced.items()}

    def aggregates(self, outputs: Tensor, targets: Any) -> dict[str, float]:
        if outputs.ndim == 2:
            return {"bleu_4": word_metrics.bleu_4(self._texts(outputs), self._true(targets))}
        tokens = (targets != NO_TOKEN).sum()
        return {"perplexity": float((-outputs[..., 0].double().sum() / tokens).exp())}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        """What the model has said; of what is `kept`, what is likeliest in each place of the true answer."""
        column = "prediction" if outputs.ndim == 2 else FORCED
        return [{column: text} for text in self._texts(outputs if outputs.ndim == 2 else outputs[..., 1])]

    def _true(self, targets: Any) -> list[list[str]]:
        return [[text] for text in self._texts(targets)] if isinstance(targets, Tensor) else targets

    def _texts(self, ids: Tensor) -> list[str]:
        return [self.words.text(self._ended(row)) for row in ids.round().long().tolist()]

    def _ended(self, ids: list[int]) -> list[int]:
        ends = [i for i, number in enumerate(ids) if number == NO_TOKEN or number in self.words.stops]
        return ids[: ends[0]] if ends else ids


def _problem_of_references(cell: Any) -> str | None:
    if not isinstance(cell, list) or not cell:
        return f"expected a list of answers, found {cell!r}"
    return next((problem for text in cell if (problem := _problem(text))), None)


def _problem(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"expected an answer, a text, found {text!r}"
    return None if text.strip() else "expected an answer, found an empty text"
