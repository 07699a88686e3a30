"""One label out of a closed set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_problem, label_text
from fusetune.tasks.class_metrics import auroc, macro_f1
from fusetune.tasks.joined_head import JoinedHead
from fusetune.tasks.prompted_head import PromptedHead, Prompts
from fusetune.tasks.pseudo_values import pseudo_values
from fusetune.tasks.task import HeadMaker, LinearPart, Task, finite_rows

CURVES = {"macro_f1": macro_f1, "auroc": auroc}  # metrics that are no means over samples
METRICS = ("accuracy", "balanced_accuracy", *CURVES)
SKEWED = 10  # times the rows of the rarest label


@dataclass(frozen=True)
class ClassificationConfig:
    """
    Attributes:
        label: the manifest column that holds the answer.
        metric: accuracy, balanced_accuracy, macro_f1 or auroc: what early stopping and the champion go by. None:
            accuracy, or macro_f1 where the most frequent label has at least 10 times the training rows of the rarest.
        class_weights: none, or balanced: every label weighs the same in the loss, however many rows it has.
        label_smoothing: share of the target that is spread over all labels.
        prompts: what a dual encoder (CLIP, SigLIP) is asked about each label; training starts from its answers. None:
            it isn't asked.
    """

    label: str
    metric: str | None = None
    class_weights: str = "none"
    label_smoothing: float = 0.0
    prompts: Prompts | None = None

    def __post_init__(self) -> None:
        check(self.metric in (None, *METRICS), f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")
        known = ("none", "balanced")
        check(self.class_weights in known, f"class_weights: expected none or balanced, found '{self.class_weights}'.")
        check(0 <= self.label_smoothing < 1, f"label_smoothing: expected a share, found {self.label_smoothing}.")


class Classification(Task):
    """Cross-entropy over the labels of the training rows."""

    Config = ClassificationConfig
    skewed_metric = "macro_f1"
    targets_by_row = True
    plain = "classes"

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config
        self.metric = config.metric or "accuracy"
        self.labels: list[str] = []
        self.weights: list[float] = []

    def columns(self) -> list[str]:
        return [self.config.label]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        counts = Counter(label_text(value) for value in columns[self.config.label])
        self.labels = sorted(label for label in counts if label is not None)
        if len(self.labels) < 2:
            raise FusetuneError(
                f"column '{self.config.label}': a classification needs at least two labels among the training rows, "
                f"found {self.labels}."
            )
        for label in self.prompts.words if self.prompts else ():
            check(
                label_text(label) in self.labels,
                f"data.task.prompts.words: '{label}' is no label of the training rows in '{self.config.label}'. "
                f"Expected some of {', '.join(self.labels[:10])}.",
            )
        rows = [counts[label] for label in self.labels]
        if self.config.metric is None:
            self.metric = self.skewed_metric if max(rows) >= SKEWED * min(rows) else "accuracy"
        balanced = self.config.class_weights == "balanced"
        self.weights = [sum(rows) / len(rows) / count for count in rows] if balanced else []

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

    def head_in(self, spaces: Mapping[str, Any], widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        if not self.prompts:
            return self.head(widths, make)
        name = self.prompts.modality
        check(name in widths, f"data.task.prompts.modality: no modality '{name}'. Known: {', '.join(widths)}.")
        check(
            name in spaces,
            f"data.task.prompts: '{name}' has no common space with texts. Expected the tower of a dual encoder (CLIP, "
            f"SigLIP), without a trunk: backbone.towers: {{{name}: {{source: <hub id or folder>}}}}.",
        )
        return PromptedHead(self.prompts, spaces[name], len(self.labels), widths, make)

    def prompt_texts(self) -> list[list[str]]:
        return self.prompts.texts(self.labels) if self.prompts else []

    def linear_parts(self) -> dict[str, LinearPart]:
        return {"": LinearPart(self, len(self.labels))}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = outputs.new_tensor(self.weights) if self.weights else None
        return F.cross_entropy(outputs, targets, weight, label_smoothing=self.config.label_smoothing)

    def row_weights(self, targets: Tensor) -> Tensor:
        return torch.tensor(self.weights)[targets] if self.weights else super().row_weights(targets)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        right = (outputs.argmax(-1) == targets) & finite_rows(outputs)
        found = {"accuracy": right.float().cpu().numpy()}
        counts = torch.bincount(targets, minlength=len(self.labels))
        share = counts[targets].float() * (counts > 0).sum() / len(targets)
        found["balanced_accuracy"] = (right / share).cpu().numpy()
        if self.metric in CURVES:
            found[self.metric] = pseudo_values(CURVES[self.metric], outputs.cpu(), targets.cpu())
        return found

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        right = ((outputs.argmax(-1) == targets) & finite_rows(outputs)).float()
        found = {"accuracy": float(right.mean())}
        if self.metric == "balanced_accuracy":
            found[self.metric] = float(self.per_sample(outputs, targets)[self.metric].mean())
        elif self.metric in CURVES:
            found[self.metric] = CURVES[self.metric](outputs, targets)
        return found

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {name: curve(outputs, targets) for name, curve in CURVES.items() if name != self.metric}

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
        return {"labels": self.labels, "metric": self.metric, "weights": self.weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.labels = list(state["labels"])
        self.metric = state.get("metric", "accuracy")  # adapters of before knew no other
        self.weights = list(state.get("weights", []))
