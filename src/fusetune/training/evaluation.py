"""What a trained model is worth: test metrics with their uncertainty, and what each modality brings alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fusetune.config import check
from fusetune.tasks.task import Task

MOST_LABELS = 40  # more are unreadable on a page: the most frequent stay


@dataclass(frozen=True)
class EvaluationSettings:
    """
    Attributes:
        bootstrap_samples: resamples of the test rows behind a confidence interval.
        confidence: of the interval.
        seed: of the resampling.
    """

    bootstrap_samples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.bootstrap_samples > 0, f"bootstrap_samples: expected at least 1, found {self.bootstrap_samples}.")
        check(0 < self.confidence < 1, f"confidence: expected a share between 0 and 1, found {self.confidence}.")


def evaluate(
    task: Task, outputs: Tensor, targets: Tensor, settings: EvaluationSettings, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Metrics of one split.

    Args:
        groups: one name a row; the task's main metric is also given for each of them.

    Returns:
        ``{metric: value, metric_low: ..., metric_high: ..., by_group: {...}}``; the interval is the percentile
        bootstrap over rows (Efron & Tibshirani 1993, chapter 13).
    """
    metrics: dict[str, Any] = {}
    scores = task.per_sample(outputs, targets)
    for name, values in scores.items():
        low, high = bootstrap_interval(values, settings)
        metrics[name] = float(values.mean())
        metrics[f"{name}_low"], metrics[f"{name}_high"] = low, high
    if groups is not None:
        values, names = scores[task.metric], np.array(groups)
        metrics["by_group"] = {str(g): float(values[names == g].mean()) for g in sorted(set(groups))}
    return metrics


def bootstrap_interval(values: np.ndarray, settings: EvaluationSettings) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-sample scores."""
    rng = np.random.default_rng(settings.seed)
    picks = rng.integers(0, len(values), (settings.bootstrap_samples, len(values)))
    means = values[picks].mean(1)
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def confusion_counts(targets: Sequence[str], predictions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The most frequent labels, and how often each (row) was answered by another (column); rows add up to at most 1."""
    counts = Counter(targets)
    labels = sorted(label for label, _ in counts.most_common(MOST_LABELS))
    index = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)))
    for target, prediction in zip(targets, predictions, strict=True):
        if target in index and prediction in index:
            matrix[index[target], index[prediction]] += 1
    return labels, matrix / np.array([[counts[label]] for label in labels])
