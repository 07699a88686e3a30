"""What a comparison says: one row a variant, all differences, the sentences that a reader takes home."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fusetune.comparison import acting, in_turn
from fusetune.comparison.cells import Cell
from fusetune.comparison.details import by_class
from fusetune.comparison.measures import BINS
from fusetune.comparison.record import Compared
from fusetune.comparison.second_sets import Elsewhere
from fusetune.comparison.second_sets import told as told_of
from fusetune.comparison.sentences import Numbers, sentences
from fusetune.comparison.statistics import Difference, PowerLaw, all_differences, interval, power_law
from fusetune.config import check
from fusetune.runs.account import percent
from fusetune.training.evaluation import EvaluationSettings


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
        baselines, unimodal: the metric of what scikit-learn reaches on raw inputs, and of each modality alone.
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
    baselines: Numbers = field(default_factory=dict)
    unimodal: Numbers = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "metric": self.metric,
            "test_samples": self.samples,
            "winner": self.winner[0],
            "sentences": list(self.sentences),
            "baselines": dict(self.baselines),
            "unimodal": dict(self.unimodal),
            "rows": dict(self.rows),
            "errors": {name: {str(seed): text for seed, text in own.items()} for name, own in self.errors.items()},
            "differences": [asdict(pair) for pair in self.differences],
            "second_sets": {name: dict(own) for name, own in self.elsewhere.items()},
            "scaling": {"points": list(self.points), "law": asdict(self.law) if self.law else None},
        }

    def flat(self) -> dict[str, dict[str, Any]]:
        """The numbers that `dvc metrics` shows, by variant."""
        told = ("mean", "low", "high", "seeds", "ece", "trainable_parameters", "train_seconds")
        found = {
            name: {self.metric if key == "mean" else key: row[key] for key in told} for name, row in self.rows.items()
        }
        for name, row in self.rows.items():
            found[name] |= {
                f"forgetting_{way}": one["forgetting"] for way, one in row["continual"].items() if "forgetting" in one
            }
        return found


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
    told += in_turn.sentences(rows, metric)
    told += told_of(elsewhere or {}, rows, settings.confidence)
    count = next(iter(matrices.values())).shape[1]
    return Summary(
        metric,
        count,
        rows,
        errors,
        pairs,
        told,
        points,
        law,
        (best.name, _adapter(best)),
        elsewhere or {},
        plain or {},
        unimodal,
    )


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
        "continual": in_turn.over_seeds([r["continual"] for r in results]),
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
