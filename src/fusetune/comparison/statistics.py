"""How sure one can be: intervals, paired tests with correction, a power law. Scores are (seeds, samples) arrays.

A method's score varies with the seed and with the test sample, so both are sources of error of a difference d between
two methods: with A and B seeds, N samples and e the interaction of the two,

    Var(d) = V_samples + V_seeds - V_interaction

V_samples is that of the mean over samples of the paired differences of seed means (robust to samples of one group),
V_seeds that of the two means over seeds, and V_interaction is in both, so it is taken off once (the two-way layout of
Dorfman, Berbaum & Metz 1992, with seeds nested in methods). With one seed each it is the paired t-test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusetune.training.evaluation import AT_ONCE, MANY, by_group, normal_totals

DRAWS = 4000  # bootstrap resamples
STEEPEST = 4.0  # exponent of a power law


@dataclass(frozen=True)
class Difference:
    """
    Attributes:
        value: mean score of the first less that of the second.
        low, high: confidence interval, of this one difference alone.
        p: two-sided, that they are equal.
        adjusted: p after correction for the number of comparisons.
    """

    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    adjusted: float = math.nan


def interval(
    scores: np.ndarray, groups: Sequence[Any] | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: seeds and groups of samples are drawn anew.

    Args:
        scores: (seeds, samples).
        groups: of the samples; None: each its own.
    """
    rng, (sums, sizes) = np.random.default_rng(seed), by_group(scores, groups)
    seeds, count = sums.shape
    values, totals, several = np.vstack([sums, sizes]), np.empty((DRAWS, seeds + 1)), max(1, AT_ONCE // count)
    if count > MANY:
        totals = normal_totals(rng, values, DRAWS)
    else:
        for start in range(0, DRAWS, several):
            weights = rng.multinomial(count, np.full(count, 1 / count), min(several, DRAWS - start))
            totals[start : start + len(weights)] = weights @ values.T  # how often each group is drawn
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    means = (drawn * totals[:, :-1]).sum(1) / totals[:, -1]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def difference(
    first: tuple[str, np.ndarray],
    second: tuple[str, np.ndarray],
    groups: Sequence[Any] | None = None,
    confidence: float = 0.95,
) -> Difference:
    """The test of the module's docstring; degrees of freedom by Satterthwaite (1946).

    Args:
        first, second: name and scores (seeds, samples) on the same samples.
    """
    from scipy import stats

    a, b = first[1], second[1]
    value = float(a.mean() - b.mean())
    samples, freedom_samples = _variance_of_samples(a.mean(0) - b.mean(0), groups)
    parts = [(samples, freedom_samples)]
    shared = 0.0
    for scores in (a, b):
        if len(scores) > 1:
            parts.append((float(scores.mean(1).var(ddof=1)) / len(scores), len(scores) - 1))
            shared += _variance_of_interaction(scores, groups)
    variance = max(sum(part for part, _ in parts) - shared, max(part for part, _ in parts))
    if variance == 0:
        return Difference(first[0], second[0], value, value, value, 1.0 if value == 0 else 0.0)
    freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / of for part, of in parts)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Difference(first[0], second[0], value, value - reach, value + reach, p)


def all_differences(
    scores: Mapping[str, np.ndarray], groups: Sequence[Any] | None = None, confidence: float = 0.95
) -> list[Difference]:
    """Every pair, the better one first, with p values adjusted after Holm (1979)."""
    order = sorted(scores, key=lambda name: -float(scores[name].mean()))
    pairs = [
        difference((a, scores[a]), (b, scores[b]), groups, confidence)
        for i, a in enumerate(order)
        for b in order[i + 1 :]
    ]
    adjusted = holm([pair.p for pair in pairs])
    return [Difference(**{**vars(pair), "adjusted": p}) for pair, p in zip(pairs, adjusted, strict=True)]


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number, in the order given: the chance of any false alarm stays at the level."""
    order = np.argsort(values)
    raised = [min(1.0, (len(values) - rank) * values[i]) for rank, i in enumerate(order)]
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(raised) if raised else []
    return [float(p) for p in adjusted]


@dataclass(frozen=True)
class PowerLaw:
    """error = floor + a / size**alpha + b / samples**beta (the form of Hoffmann et al., 2022, equation 2).

    Attributes:
        determination: share of the errors' variance that it explains.
        points: that it was fitted to.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    determination: float
    points: int

    def error(self, size: float, samples: float) -> float:
        return self.floor + self.a * size**-self.alpha + self.b * samples**-self.beta


def power_law(sizes: Sequence[float], samples: Sequence[float], errors: Sequence[float]) -> PowerLaw | None:
    """Least squares; None for fewer points than it has parameters, or one size or number of samples alone."""
    from scipy.optimize import least_squares

    x, n, y = (np.asarray(values, float) for values in (sizes, samples, errors))
    if len(y) < 6 or len(set(sizes)) < 2 or len(set(samples)) < 2:
        return None
    unit = n / n.max()  # samples in units of the most, so that all parameters are of one size

    def model(theta: np.ndarray) -> np.ndarray:
        floor, a, alpha, b, beta = theta
        return floor + a * x**-alpha + b * unit**-beta

    bounds = ([0, 0, 0.01, 0, 0.01], [1, np.inf, STEEPEST, np.inf, STEEPEST])
    fits = [
        least_squares(lambda t: model(t) - y, [y.min() / 2, y.std() + 1e-3, alpha, y.std() + 1e-3, beta], bounds=bounds)
        for alpha in (0.3, 1.0)
        for beta in (0.3, 1.0)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    floor, a, alpha, b, beta = (float(value) for value in best.x)
    spread = float(((y - y.mean()) ** 2).sum())
    determination = 1 - 2 * float(best.cost) / spread if spread else 0.0
    return PowerLaw(floor, a, alpha, b * float(n.max()) ** beta, beta, determination, len(y))


def _variance_of_samples(values: np.ndarray, groups: Sequence[Any] | None) -> tuple[float, int]:
    """Of the mean of one value a sample, and its degrees of freedom: those of the groups, less 1."""
    sums, _ = by_group((values - values.mean())[None], groups)
    count = sums.shape[1]
    return float((sums**2).sum()) * count / max(1, count - 1) / len(values) ** 2, max(1, count - 1)


def _variance_of_interaction(scores: np.ndarray, groups: Sequence[Any] | None) -> float:
    seeds, samples = scores.shape
    rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    sums, _ = by_group(rest, groups)
    count = sums.shape[1]
    return float((sums**2).sum()) * count / max(1, count - 1) / ((seeds - 1) * seeds * samples**2)
