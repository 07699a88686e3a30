"""One label out of a scale: never, seldom, often; a grade from 1 to 5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_text
from fusetune.tasks.class_metrics import quadratic_kappa
from fusetune.tasks.classification import Classification
from fusetune.tasks.pseudo_values import pseudo_values
from fusetune.tasks.task import finite_rows

METRICS = ("quadratic_kappa", "negative_mae", "accuracy")
ROUNDING = 1e-7  # of a sum of probabilities


@dataclass(frozen=True)
class OrdinalConfig:
    """
    Attributes:
        label: the manifest column that holds the answer.
        order: the labels from one end of the scale to the other; (): they are numbers, and stand in their order.
        metric: quadratic_kappa (Cohen's, with quadratic weights), negative_mae (in steps of the scale) or accuracy:
            what early stopping and the champion go by.
    """

    label: str
    order: tuple[Any, ...] = ()
    metric: str = "quadratic_kappa"

    def __post_init__(self) -> None:
        check(self.metric in METRICS, f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")
        texts = [str(label_text(value)) for value in self.order]
        check(len(set(texts)) == len(texts), f"order: a label stands there twice: {', '.join(texts)}.")


class Ordinal(Classification):
    """A distribution over the labels, by whose thresholds the loss goes: a miss by two steps costs more than by one.

    The loss is the mean over thresholds k of the cross-entropy of ``P(y > k)`` against whether the label lies above;
    of two labels it is that of a classification. The answer is the distribution's median.
    """

    Config = OrdinalConfig  # type: ignore[assignment]

    def __init__(self, config: OrdinalConfig) -> None:
        self.config: Any = config
        self.metric = config.metric
        self.labels: list[str] = []
        self.weights: list[float] = []

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        column = self.config.label
        found = {label_text(value) for value in columns[column]} - {None}
        if self.config.order:
            self.labels = [str(label_text(value)) for value in self.config.order]
            strange = sorted(str(label) for label in found if label not in self.labels)
            check(not strange, f"column '{column}': {', '.join(strange[:5])} is not in data.task.order.")
            return
        try:
            self.labels = sorted((str(label) for label in found), key=float)
        except ValueError:
            raise FusetuneError(
                f"column '{column}': the labels are no numbers ({', '.join(sorted(map(str, found))[:5])}). Say their "
                "order from one end to the other: data.task.order: [never, seldom, often]."
            ) from None
        check(len(self.labels) > 1, f"column '{column}': a scale has at least two labels, found {self.labels}.")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logs = outputs.log_softmax(-1)
        above = logs.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:]  # log P(y > k)
        below = logs.logcumsumexp(-1)[..., :-1]
        is_above = targets[..., None] > torch.arange(above.shape[-1], device=targets.device)
        return -torch.where(is_above, above, below).mean()

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        away = (_medians(outputs) - targets).abs().double().cpu()
        away[~finite_rows(outputs).cpu()] = len(self.labels) - 1  # no answer is as far off as one can be
        found = {"accuracy": (away == 0).double().numpy(), "negative_mae": -away.numpy()}
        found["within_one"] = (away <= 1).double().numpy()
        if self.metric == "quadratic_kappa":
            found[self.metric] = pseudo_values(self._kappa, outputs.cpu(), targets.cpu())
        return found

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        samples = self.per_sample(outputs, targets)
        found = {name: float(scores.mean()) for name, scores in samples.items()}
        return found | {"quadratic_kappa": self._kappa(outputs.cpu(), targets.cpu())}

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return (
            {} if self.metric == "quadratic_kappa" else {"quadratic_kappa": self._kappa(outputs.cpu(), targets.cpu())}
        )

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        medians = _medians(outputs)
        shares = outputs.float().softmax(-1).gather(-1, medians[:, None]).squeeze(-1)
        answers = zip(medians.tolist(), shares.tolist(), finite_rows(outputs).tolist(), strict=True)
        return [
            {"prediction": self.labels[i] if finite else None, "probability": p if finite else None}
            for i, p, finite in answers
        ]

    def _kappa(self, outputs: Tensor, targets: Tensor) -> float:
        return quadratic_kappa(_medians(outputs), targets, len(self.labels))


def _medians(outputs: Tensor) -> Tensor:
    """The first label up to which at least half of the probability lies; (rows,)."""
    below = outputs.float().nan_to_num().softmax(-1).cumsum(-1)
    return (below < 0.5 - ROUNDING).sum(-1).clamp(max=outputs.shape[-1] - 1)
