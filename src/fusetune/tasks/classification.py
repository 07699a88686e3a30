"""One label out of a closed set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_problem, label_text
from fusetune.tasks.joined_head import JoinedHead
from fusetune.tasks.task import HeadMaker, LinearPart, Task, finite_rows


@dataclass(frozen=True)
class ClassificationConfig:
    """
    Attributes:
        label: the manifest column that holds the answer.
    """

    label: str


class Classification(Task):
    """Cross-entropy over the labels of the training rows."""

    metric = "accuracy"
    Config = ClassificationConfig

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config
        self.labels: list[str] = []

    def columns(self) -> list[str]:
        return [self.config.label]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        found = {label_text(value) for value in columns[self.config.label]}
        self.labels = sorted(label for label in found if label is not None)
        if len(self.labels) < 2:
            raise FusetuneError(
                f"column '{self.config.label}': a classification needs at least two labels among the training rows, "
                f"found {self.labels}."
            )

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        index = {label: i for i, label in enumerate(self.labels)}
        values = [str(label_text(value)) for value in columns[self.config.label]]
        unknown = next((i for i, value in enumerate(values) if value not in index), None)
        if unknown is not None:
            raise FusetuneError(
                f"column '{self.config.label}', row {unknown}: label '{values[unknown]}' is in no training row. "
                "Remove the row or add training rows with this label."
            )
        return torch.tensor([index[value] for value in values])

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        labels = set(self.labels)
        return [label_problem(v) is None and label_text(v) in labels for v in columns[self.config.label]]

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        return JoinedHead(widths, len(self.labels), make)

    def linear_parts(self) -> dict[str, LinearPart]:
        return {"": LinearPart(self, len(self.labels))}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        right = (outputs.argmax(-1) == targets) & finite_rows(outputs)
        return {"accuracy": right.float().cpu().numpy()}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        probabilities, best = outputs.float().softmax(-1).max(-1)
        answers = zip(best.tolist(), probabilities.tolist(), finite_rows(outputs).tolist(), strict=True)
        return [
            {"prediction": self.labels[i] if finite else None, "probability": p if finite else None}
            for i, p, finite in answers
        ]

    def probabilities(self, outputs: Tensor) -> dict[str, tuple[list[str], Tensor]]:
        return {"probabilities": (self.labels, outputs.float().softmax(-1))}

    def state(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.labels = list(state["labels"])
