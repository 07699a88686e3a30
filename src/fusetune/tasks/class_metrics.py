"""Metrics of classes and of labels that are no means over samples."""

import torch
from torch import Tensor


def macro_f1(outputs: Tensor, targets: Tensor) -> float:
    """Mean of the F1 of the classes that are there, in targets or in answers; (rows, classes) and (rows,)."""
    classes = outputs.shape[-1]
    answers = outputs.argmax(-1)
    right = torch.bincount(targets[answers == targets], minlength=classes).double()
    total = torch.bincount(targets, minlength=classes) + torch.bincount(answers, minlength=classes)
    there = total > 0
    return float((2 * right[there] / total[there]).mean()) if there.any() else 0.0


def auroc(outputs: Tensor, targets: Tensor) -> float:
    """Mean over classes of the area under the curve of one against the rest (Hand and Till's rank form); ties: half."""
    areas = (area(outputs[:, i], targets == i) for i in range(outputs.shape[-1]))
    found = [value for value in areas if value is not None]
    return sum(found) / len(found) if found else 0.5


def area(scores: Tensor, positive: Tensor) -> float | None:
    """Under the receiver's curve of one label; None where all samples have it, or none."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    ranks = mean_ranks(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def mean_ranks(values: Tensor) -> Tensor:
    """(rows,): from 1 for the smallest; equal values share the mean of theirs."""
    _, place, ties = values.double().unique(return_inverse=True, return_counts=True)
    return (ties.cumsum(0).double() - (ties.double() - 1) / 2)[place]


def mean_average_precision(outputs: Tensor, targets: Tensor) -> float:
    """Mean over the labels that some sample has of the average precision; (rows, labels) both.

    Samples with equal scores count as one step of the curve, as in scikit-learn.
    """
    several = (average_precision(outputs[:, i], targets[:, i] > 0.5) for i in range(outputs.shape[-1]))
    found = [value for value in several if value is not None]
    return sum(found) / len(found) if found else 0.0


def average_precision(scores: Tensor, positive: Tensor) -> float | None:
    if not positive.any():
        return None
    order = scores.argsort(descending=True, stable=True)
    ranked, right = scores[order], positive[order].double().cumsum(0)
    ends = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)]).nonzero().squeeze(1)
    precision = right[ends] / (ends + 1)
    steps = torch.diff(right[ends], prepend=right.new_zeros(1)) / right[-1]
    return float((precision * steps).sum())


def f1(answers: Tensor, targets: Tensor, by_label: bool) -> float:
    """Micro F1, or macro over the labels that are there; (rows, labels) of truth values both."""
    right = (answers & targets).sum(0).double()
    total = (answers.sum(0) + targets.sum(0)).double()
    if not by_label:
        return float(2 * right.sum() / total.sum().clamp(min=1))
    there = total > 0
    return float((2 * right[there] / total[there]).mean()) if there.any() else 0.0


def quadratic_kappa(answers: Tensor, targets: Tensor, count: int) -> float:
    """Cohen's kappa with quadratic weights, of numbers on a scale of `count`; 1 where nothing varies and all agree."""
    seen = torch.bincount(targets * count + answers, minlength=count * count).double().view(count, count)
    expected = seen.sum(1, keepdim=True) * seen.sum(0, keepdim=True) / seen.sum().clamp(min=1)
    steps = torch.arange(count, dtype=torch.float64)
    weights = (steps[:, None] - steps).square()
    chance = float((weights * expected).sum())
    return 1.0 - float((weights * seen).sum()) / chance if chance > 0 else 1.0
