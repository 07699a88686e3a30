"""What a comparison says: one row a variant, all differences, and the sentences that a reader takes home."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fusetune.comparison import acting
from fusetune.comparison.cells import Cell
from fusetune.comparison.details import by_class
from fusetune.comparison.measures import BINS
from fusetune.comparison.record import Compared
from fusetune.comparison.second_sets import Elsewhere
from fusetune.comparison.second_sets import told as told_of
from fusetune.comparison.statistics import Difference, PowerLaw, all_differences, interval, power_law
from fusetune.config import check
from fusetune.runs.account import percent
from fusetune.training.evaluation import EvaluationSettings

LEVEL = 0.05  # of the adjusted p values below which a difference is called one
Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        metric: that is compared.
        samples: of the test split.
        rows: of each variant with a cell, the best on the validation split first; see `_row`. Of a method with several
            settings the best there is `chosen`; only what is chosen is tested against one another.
        errors: of each variant that has none in some seed.
        differences: on the test split, of every pair of chosen variants, the better one first.
        sentences: plain, the most important first.
        points: of the scaling: size, samples, error, by variant and seed.
        law: that was fitted to them.
        winner: the name of the variant that is best on the validation split, and the folder of its best adapter there.
        elsewhere: the numbers of second sets.
    """

    metric: str
    samples: int
    rows: Mapping[str, Numbers]
    errors: Mapping[str, Mapping[int, str]]
    differences: Sequence[Difference]
    sentences: Sequence[str]
    points: Sequence[Numbers]
    law: PowerLaw | None
    winner: tuple[str, str]
    elsewhere: Elsewhere = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "metric": self.metric,
            "test_samples": self.samples,
            "winner": self.winner[0],
            "sentences": list(self.sentences),
            "rows": dict(self.rows),
            "errors": {name: {str(seed): text for seed, text in own.items()} for name, own in self.errors.items()},
            "differences": [asdict(pair) for pair in self.differences],
            "second_sets": {name: dict(own) for name, own in self.elsewhere.items()},
            "scaling": {"points": list(self.points), "law": asdict(self.law) if self.law else None},
        }

    def flat(self) -> dict[str, dict[str, Any]]:
        """The numbers that `dvc metrics` shows, by variant."""
        told = ("mean", "low", "high", "seeds", "ece", "trainable_parameters", "train_seconds")
        return {
            name: {self.metric if key == "mean" else key: row[key] for key in told} for name, row in self.rows.items()
        }


def summarize(
    found: Sequence[Compared],
    groups: Sequence[Any] | None,
    unimodal: Numbers,
    settings: EvaluationSettings,
    plain: Numbers | None = None,
    elsewhere: Elsewhere | None = None,
) -> Summary:
    """
    Args:
        groups: of the test samples, in the manifest's order.
        unimodal: the metric of each modality alone.
        plain: that of what scikit-learn reaches on raw inputs.
        elsewhere: by second set and variant; see `comparison.second_sets`.

    Raises:
        FusetuneError: no variant has a cell.
    """
    compared = [one for one in found if one.compared and one.cells]
    errors = {one.name: one.errors for one in found if one.errors}
    reasons = "; ".join(f"{name}: {next(iter(texts.values()))}" for name, texts in errors.items())
    check(bool(compared), f"compare: nothing came to an end. {reasons}")
    metric = next(iter(compared[0].cells.values())).results["metrics"]["metric"]
    matrices = {one.name: scores(one) for one in compared}
    rows = {one.name: _row(one, matrices[one.name], groups, settings) for one in compared}
    rows = dict(sorted(rows.items(), key=lambda item: -item[1]["validation"]))
    first = {row["method"]: name for name, row in reversed(rows.items())}
    rows = {name: {**row, "chosen": first[row["method"]] == name} for name, row in rows.items()}
    tested = {name: matrices[name] for name, row in rows.items() if row["chosen"]}
    pairs = all_differences(tested, groups, settings.confidence) if len(tested) > 1 else []
    points = _points(found)
    law = power_law(*([p[key] for p in points] for key in ("size", "samples", "error"))) if points else None
    best = next(one for one in compared if one.name == next(iter(rows)))
    told = sentences(metric, rows, pairs, unimodal, plain or {}, settings.confidence)
    told += acting.told(rows)
    told += told_of(elsewhere or {}, rows, settings.confidence)
    count = next(iter(matrices.values())).shape[1]
    return Summary(metric, count, rows, errors, pairs, told, points, law, (best.name, _adapter(best)), elsewhere or {})


def scores(one: Compared) -> np.ndarray:
    """(seeds, samples), of the main metric."""
    return np.stack([cell.predictions()["score"].to_numpy() for _, cell in sorted(one.cells.items())]).astype(float)


def _row(one: Compared, matrix: np.ndarray, groups: Sequence[Any] | None, settings: EvaluationSettings) -> Numbers:
    cells = [cell for _, cell in sorted(one.cells.items())]
    low, high = interval(matrix, groups, settings.confidence, settings.seed)
    by_seed, costs, results = matrix.mean(1), [c.cost for c in cells], [c.results for c in cells]
    metrics = [result["metrics"] for result in results]
    return {
        "method": one.method,
        "changed": dict(one.changed),
        "validation": float(np.mean([validated(cell) for cell in cells])),
        "mean": float(matrix.mean()),
        "low": low,
        "high": high,
        "deviation": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
        "seeds": len(cells),
        "by_seed": by_seed.tolist(),
        "other_metrics": _means([{k: v for k, v in m["test"].items() if isinstance(v, float)} for m in metrics]),
        "before_training": _mean([m.get("before_training") for m in metrics]),
        "by_class": by_class(one),
        "by_group": _means([m["test"].get("by_group", {}) for m in metrics]),
        "ece": _mean([r["calibration"].get("ece") for r in results]),
        "calibration": _bins([r["calibration"].get("bins", []) for r in results]),
        "conditions": _nested([r["conditions"] for r in results]),
        "trainable_parameters": metrics[0]["trainable_parameters"],
        "percent_of_base": percent(metrics[0]["trainable_parameters"], metrics[0]["base_parameters"]),
        "cache_bytes": one.account.get("cache_bytes", 0),
        "flops_per_sample": one.account.get("flops_per_sample", 0),
        "memory_bytes": one.account.get("memory_bytes", 0),
        "frontier": one.account.get("frontier", ""),
        "train_seconds": _mean([c["train_seconds"] for c in costs]),
        "epochs": _mean([c["epochs"] for c in costs]),
        "how": costs[0]["how"],
        "peak_bytes": max(c["peak_bytes"] for c in costs),
        "joules": _mean([c["joules"] for c in costs]),
        "seconds_per_answer": _mean([c["seconds_per_answer"] for c in costs]),
        "overhead": _mean([c["overhead"] for c in costs]),
    }


def sentences(
    metric: str,
    rows: Mapping[str, Numbers],
    pairs: Sequence[Difference],
    unimodal: Numbers,
    plain: Numbers,
    confidence: float,
) -> list[str]:
    """What a reader takes home; points are hundredths of the metric."""
    name = metric.replace("_", " ")
    best = next(iter(rows))
    row = rows[best]
    several = f"{row['seeds']} seeds" if row["seeds"] > 1 else "one seed"
    found = [
        f"{best} is best on validation ({row['validation']:.3f}); its test {name} is {row['mean']:.3f} "
        f"({confidence:.0%} CI {row['low']:.3f} to {row['high']:.3f}, {several}) with "
        f"{row['trainable_parameters']:,} trained parameters."
    ]
    beaten = [pair for pair in pairs if pair.first == best and pair.adjusted < LEVEL]
    better = [pair for pair in pairs if pair.second == best and pair.adjusted < LEVEL]
    alike = [
        pair.second if pair.first == best else pair.first
        for pair in pairs
        if best in (pair.first, pair.second) and pair.adjusted >= LEVEL
    ]
    found += [f"On the test split {beats(pair, rows, confidence)}" for pair in better]
    if beaten:
        pair = max(beaten, key=lambda p: rows[p.second]["mean"])
        found.append(beats(pair, rows, confidence))
        others = [p.second for p in beaten if p is not pair]
        if others:
            found.append(f"It also beats {listed(others)}.")
    if alike:
        verb = "is" if len(alike) == 1 else "are"
        found.append(f"{listed(alike)} {verb} not distinguishable from it.")
        cheap = min(alike, key=lambda other: rows[other]["trainable_parameters"])
        if rows[cheap]["trainable_parameters"] < row["trainable_parameters"]:
            found.append(
                f"The smallest of these is {cheap}: {rows[cheap]['mean']:.3f} with "
                f"{_share(rows[cheap], row)} the parameters of {best}."
            )
    if unimodal:
        modality = max(unimodal, key=lambda key: unimodal[key])
        gain = 100 * (row["mean"] - unimodal[modality])
        found.append(
            f"The best modality alone, {modality}, reaches {unimodal[modality]:.3f}: fusion brings {gain:.1f} points."
        )
    if row["before_training"] is not None:
        gain = 100 * (row["mean"] - row["before_training"])
        found.append(
            f"Before any training the base has {row['before_training']:.3f}: {best} brings {gain:+.1f} points."
        )
    if plain:
        strongest = max(plain, key=lambda key: plain[key])
        told = f"Without any of this, {strongest} reaches {plain[strongest]:.3f} (scikit-learn on the raw inputs)"
        found.append(told + ("." if row["mean"] >= plain[strongest] else ", which is MORE: look for another base."))
    without = row["conditions"].get("without", {})
    if without:
        modality = min(without, key=lambda key: without[key])
        lost = 100 * (row["conditions"]["whole"] - without[modality])
        found.append(f"{best} leans most on {modality}: without it, it loses {lost:.1f} points.")
    return found


def beats(pair: Difference, rows: Mapping[str, Numbers], confidence: float) -> str:
    """'Wander beats LoRA by 1.9 points (95% CI 0.7 to 3.1) with 40% of its parameters.'"""
    points, low, high = (f"{100 * value:.1f}" for value in (pair.value, pair.low, pair.high))
    return (
        f"{pair.first} beats {pair.second} by {points} points ({confidence:.0%} CI {low} to {high}) with "
        f"{_share(rows[pair.first], rows[pair.second])} its parameters."
    )


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _share(row: Numbers, other: Numbers) -> str:
    ratio = row["trainable_parameters"] / max(1, other["trainable_parameters"])
    return f"{ratio:.0%} of" if ratio < 2 else f"{ratio:.1f} times"


def _adapter(best: Compared) -> str:
    """Of the seed that is best on the validation split: the test split chooses nothing."""
    return str(max(best.cells.values(), key=validated).adapter)


def validated(cell: Cell) -> float:
    """The validation metric of the epoch that was kept."""
    return float(cell.results["metrics"]["validation"])


def _points(found: Sequence[Compared]) -> list[Numbers]:
    """Of the scaling's variants: size, training samples and error of each seed."""
    scaled = [one for one in found if not one.compared]
    points: list[Numbers] = []
    for one in scaled:
        (size,) = one.changed.values()
        for seed, cell in one.cells.items():
            metrics = cell.results["metrics"]
            error = 1 - metrics["test"][metrics["metric"]]
            n = metrics["train_samples"]
            points.append({"variant": one.name, "seed": seed, "size": size, "samples": n, "error": error})
    return points


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _means(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in several])) for key in (several[0] if several else {})}


def _nested(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: _means([one[key] for one in several]) if isinstance(value, Mapping) else _mean([o[key] for o in several])
        for key, value in several[0].items()
    }


def _bins(several: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """The bins of all seeds as one set of bins."""
    found = []
    for number in range(BINS):
        rows = [row for bins in several for row in bins if round(row["confidence"] * BINS + 0.5) - 1 == number]
        weights = [row["share"] for row in rows]
        if rows:
            means = {
                key: float(np.average([row[key] for row in rows], weights=weights))
                for key in ("confidence", "accuracy")
            }
            found.append({**means, "share": sum(weights) / len(several)})
    return found
