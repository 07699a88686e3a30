"""What a trained model is worth: test metrics with their uncertainty, and what each modality brings alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fusetune.config import check
from fusetune.tasks.task import Task

AT_ONCE = 4_000_000  # numbers of bootstrap draws in memory
MANY = 100_000  # groups from which a bootstrap's distribution is the normal one
MOST_LABELS = 40  # more are unreadable on a page: the most frequent stay


@dataclass(frozen=True)
class RolloutSettings:
    """
    Attributes:
        world: name in the registry of worlds in which what was trained acts; None: it doesn't.
        settings: the world's own.
        shifts: by name, what of the settings is otherwise: from what was trained in to what is real.
        episodes: in each of them, the same ones for every method.
        execute: steps of an answer that are carried out before it is asked again; 0: all that it has.
        seed: of the episodes.
    """

    world: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shifts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    episodes: int = 200
    execute: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.episodes > 0, f"episodes: expected at least 1, found {self.episodes}.")
        check(self.execute >= 0, f"execute: expected 0 or a number of steps, found {self.execute}.")
        check("" not in self.shifts, "shifts: expected a name for each.")


@dataclass(frozen=True)
class EvaluationSettings:
    """
    Attributes:
        bootstrap_samples: resamples behind a confidence interval, of groups of test rows.
        confidence: of the interval.
        seed: of the resampling.
        answered: test samples that a model that speaks answers word by word once it is trained, drawn by the seed; 0:
            none.
        shown: validation samples that such a model answers after every epoch, the same ones: what it says is shown.
        watched: validation samples that it answers after every so many epochs (`every`): a curve of what is right.
        every: epochs.
        rollouts: the world in which a model that says what to do does it.
    """

    bootstrap_samples: int = 1000
    confidence: float = 0.95
    seed: int = 0
    answered: int = 300
    shown: int = 4
    watched: int = 0
    every: int = 5
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)

    def __post_init__(self) -> None:
        for name in ("answered", "shown", "watched"):
            check(getattr(self, name) >= 0, f"{name}: expected a number of samples, found {getattr(self, name)}.")
        for name in ("bootstrap_samples", "every"):
            check(getattr(self, name) > 0, f"{name}: expected at least 1, found {getattr(self, name)}.")
        check(0 < self.confidence < 1, f"confidence: expected a share between 0 and 1, found {self.confidence}.")


def evaluate(
    task: Task,
    outputs: Tensor,
    targets: Tensor,
    settings: EvaluationSettings,
    kinds: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Metrics of one split.

    Args:
        kinds: one name a row; the metric of `main_metric` is also given for each.
        groups: rows of one group vary together and are drawn together; None: each row its own.

    Returns:
        ``{metric: value, metric_low: ..., metric_high: ..., by_group: {...}}``; the interval is the percentile
        bootstrap over groups (Efron & Tibshirani 1993, chapter 13; Field & Welsh 2007). Metrics that are no means of
        samples have none.
    """
    metrics: dict[str, Any] = {}
    scores = task.per_sample(outputs, targets)
    bounds = bootstrap_intervals(np.stack(list(scores.values())), settings, groups)
    for (name, values), (low, high) in zip(scores.items(), bounds, strict=True):
        metrics[name] = float(values.mean())
        metrics[f"{name}_low"], metrics[f"{name}_high"] = low, high
    metrics |= task.aggregates(outputs, targets)
    if kinds is not None:
        values, names = scores[main_metric(task, scores)], np.array(kinds)
        metrics["by_group"] = {str(kind): float(values[names == kind].mean()) for kind in sorted(set(kinds))}
    return metrics


def main_metric(task: Task, metrics: Mapping[str, Any]) -> str:
    """The task's, or the first where it is none of these: of words that were said, whether all are right."""
    return task.metric if task.metric in metrics else next(iter(metrics))


def bootstrap_interval(
    values: np.ndarray, settings: EvaluationSettings, groups: Sequence[Any] | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-sample scores."""
    return bootstrap_intervals(values[None], settings, groups)[0]


def bootstrap_intervals(
    scores: np.ndarray, settings: EvaluationSettings, groups: Sequence[Any] | None = None
) -> list[tuple[float, float]]:
    """The same of several scores of the same samples, (scores, samples), from the same draws.

    A few draws are in memory at a time: `AT_ONCE` numbers, however many samples there are. With more than `MANY` groups
    they come from the normal distribution that the bootstrap's is by then.
    """
    rng, (sums, sizes) = np.random.default_rng(settings.seed), by_group(scores, groups)
    count, means = len(sizes), np.empty((settings.bootstrap_samples, len(scores)))
    if count > MANY:
        totals = normal_totals(rng, np.vstack([sums, sizes]), len(means))
        means = totals[:, :-1] / totals[:, -1:]
    else:
        several = max(1, AT_ONCE // count)
        for start in range(0, len(means), several):
            picks = rng.integers(0, count, (min(several, len(means) - start), count))
            drawn = sizes[picks].sum(1)
            for column, of_groups in enumerate(sums):
                means[start : start + len(picks), column] = of_groups[picks].sum(1) / drawn
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def normal_totals(rng: np.random.Generator, values: np.ndarray, draws: int) -> np.ndarray:
    """Sums (draws, rows) of groups drawn anew, of values (rows, groups), by the central limit theorem."""
    count = values.shape[1]
    return rng.multivariate_normal(values.sum(1), np.atleast_2d(np.cov(values, bias=True)) * count, draws)


def by_group(scores: np.ndarray, groups: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums (scores, groups) of (scores, samples), and the groups' sizes."""
    if groups is None:
        return scores, np.ones(scores.shape[1])
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=row) for row in scores])
    return sums, np.bincount(index).astype(float)


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
