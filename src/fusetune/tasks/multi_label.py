"""Any number of labels out of a closed set: tags, emotions that come together."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_text
from fusetune.tasks.class_metrics import f1, mean_average_precision
from fusetune.tasks.joined_head import JoinedHead
from fusetune.tasks.pseudo_values import pseudo_values
from fusetune.tasks.task import HeadMaker, LinearPart, Task, finite_rows

METRICS = ("map", "micro_f1", "macro_f1")
MOST_WEIGHT = 20.0  # of a rare label's rows, with balanced weights


@dataclass(frozen=True)
class MultiLabelConfig:
    """
    Attributes:
        label: the column: lists of labels, or text.
        separator: between the labels of a text.
        min_rows: training rows that a label needs to be one; rarer ones are left out, and `rare` in the result says how
            many. An answer can't name them.
        metric: map, micro_f1 or macro_f1: what early stopping and the champion go by.
        class_weights: none, or balanced: rows that have a label count as much as those that don't, up to 20 times.
    """

    label: str
    separator: str = "|"
    min_rows: int = 5
    metric: str = "map"
    class_weights: str = "none"

    def __post_init__(self) -> None:
        check(self.metric in METRICS, f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")
        check(self.min_rows > 0, f"min_rows: expected at least 1, found {self.min_rows}.")
        check(bool(self.separator), "separator: expected some text, found none.")
        known = ("none", "balanced")
        check(self.class_weights in known, f"class_weights: expected none or balanced, found '{self.class_weights}'.")


class MultiLabel(Task):
    """Binary cross-entropy of each label; answers are the labels above one threshold, which validation rows set."""

    Config = MultiLabelConfig
    targets_by_row = True
    plain = "labels"

    def __init__(self, config: MultiLabelConfig) -> None:
        self.config = config
        self.metric = config.metric
        self.labels: list[str] = []
        self.rare = 0
        self.weights: list[float] = []
        self.threshold = 0.0  # of outputs, before the logistic function

    def columns(self) -> list[str]:
        return [self.config.label]

    def problems(self) -> dict[str, Callable[[Any], str | None]]:
        return {self.config.label: partial(list_problem, separator=self.config.separator)}

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        rows = self._lists(columns)
        counts = Counter(label for row in rows for label in row)
        self.labels = sorted(label for label, count in counts.items() if count >= self.config.min_rows)
        self.rare = len(counts) - len(self.labels)
        check(
            len(self.labels) > 1,
            f"column '{self.config.label}': {len(self.labels)} of {len(counts)} labels stand in at least "
            f"{self.config.min_rows} training rows (data.task.min_rows); expected two or more.",
        )
        shares = [counts[label] / len(rows) for label in self.labels]
        balanced = self.config.class_weights == "balanced"
        self.weights = [min(MOST_WEIGHT, (1 - share) / share) if balanced else 1.0 for share in shares]

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """(rows, labels), 0 or 1; labels that are too rare in training are no targets."""
        index = {label: i for i, label in enumerate(self.labels)}
        rows = self._lists(columns)
        found = torch.zeros(len(rows), len(self.labels))
        for row, labels in enumerate(rows):
            for label in labels:
                if label in index:
                    found[row, index[label]] = 1
        return found

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        cells = columns[self.config.label]
        return [cell is not None and list_problem(cell, self.config.separator) is None for cell in cells]

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        return JoinedHead(widths, len(self.labels), make)

    def linear_parts(self) -> dict[str, LinearPart]:
        return {"": LinearPart(self, len(self.labels))}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = outputs.new_tensor(self.weights)
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), pos_weight=weights)

    def settle(self, outputs: Tensor, targets: Tensor) -> None:
        """Take the threshold with the best micro F1 on these, the validation rows."""
        scores, wanted = outputs.flatten().double(), targets.flatten() > 0.5
        order = scores.argsort(descending=True)
        right = wanted[order].double().cumsum(0)
        value = 2 * right / (torch.arange(1, len(order) + 1) + wanted.sum())
        best = int(value.argmax())
        below = scores[order[best + 1]] if best + 1 < len(order) else scores[order[best]] - 1
        self.threshold = float((scores[order[best]] + below) / 2)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        answers, wanted = outputs > self.threshold, targets > 0.5
        exact = ((answers == wanted).all(-1) & finite_rows(outputs)).float().cpu().numpy()
        return {
            self.metric: pseudo_values(self._metric(self.metric), outputs.cpu(), targets.cpu()),
            "exact_match": exact,
        }

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {name: self._metric(name)(outputs.cpu(), targets.cpu()) for name in METRICS}

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        others = {name: self._metric(name)(outputs.cpu(), targets.cpu()) for name in METRICS if name != self.metric}
        return others | {"labels": float(len(self.labels)), "rare_labels": float(self.rare)}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        """The labels above the threshold, the surest first, with their probabilities."""
        rows = []
        for row, finite in zip(outputs.float().cpu(), finite_rows(outputs).tolist(), strict=True):
            best = [i for i in row.argsort(descending=True).tolist() if row[i] > self.threshold] if finite else []
            labels, shares = [self.labels[i] for i in best], row[best].sigmoid().tolist()
            rows.append({"labels": labels if finite else None, "label_probabilities": shares if finite else None})
        return rows

    def state(self) -> dict[str, Any]:
        return {"labels": self.labels, "rare": self.rare, "weights": self.weights, "threshold": self.threshold}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.labels, self.rare = list(state["labels"]), state["rare"]
        self.weights, self.threshold = list(state["weights"]), state["threshold"]

    def _metric(self, name: str) -> Callable[[Tensor, Tensor], float]:
        if name == "map":
            return mean_average_precision
        return lambda outputs, targets: f1(outputs > self.threshold, targets > 0.5, name == "macro_f1")

    def _lists(self, columns: Mapping[str, Sequence[Any]]) -> list[list[str]]:
        found = []
        for row, cell in enumerate(columns[self.config.label]):
            problem = "no value" if cell is None else list_problem(cell, self.config.separator)
            if problem:
                raise FusetuneError(
                    f"column '{self.config.label}', row {row}: {problem}. Expected a list of labels, or text with "
                    f"'{self.config.separator}' between them; [] for none."
                )
            found.append(as_labels(cell, self.config.separator))
        return found


def as_labels(cell: Any, separator: str) -> list[str]:
    """The labels of a cell: a list, a JSON list as text, or text with a separator; each once."""
    if isinstance(cell, str):
        text = cell.strip()
        cell = json.loads(text) if text.startswith("[") else [part for part in text.split(separator) if part.strip()]
    found = [label_text(value) for value in cell]
    return list(dict.fromkeys(label for label in found if label))


def list_problem(value: Any, separator: str) -> str | None:
    """Why a cell is no list of labels; None for one that is, or is missing."""
    if value is None:
        return None
    try:
        as_labels(value, separator)
    except (FusetuneError, TypeError, ValueError):
        return f"{str(value)[:60]!r} is no list of labels"
    return None
