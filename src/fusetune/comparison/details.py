"""What pictures need beside the summary: curves, confusion, gates and attention of each variant."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusetune.comparison.record import Compared
from fusetune.tasks.generation import FORCED
from fusetune.training.evaluation import confusion_counts


def curves(one: Compared) -> dict[int, tuple[list[int], list[float]]]:
    """By seed: epochs, and the validation metric."""
    return {
        seed: ([row["epoch"] for row in cell.results["curve"]], [row["val_metric"] for row in cell.results["curve"]])
        for seed, cell in one.cells.items()
    }


def confusion(one: Compared) -> tuple[list[str], np.ndarray] | None:
    """Labels, and how often each (row) was answered by another (column), of all seeds; see `confusion_counts`."""
    targets: list[str] = []
    predictions: list[str] = []
    for cell in one.cells.values():
        table, columns = cell.predictions(), cell.results["metrics"]["target_columns"]
        if not _has_classes(table):
            return None
        targets += one_by_one(table[columns[0]].to_pylist())
        predictions += one_by_one(table["prediction"].to_pylist())
    return confusion_counts(targets, predictions)


def by_class(one: Compared) -> dict[str, float]:
    """Share of right answers for each label; {} where the task predicts none, or answers in words."""
    hits: dict[str, list[float]] = {}
    for cell in one.cells.values():
        table, columns = cell.predictions(), cell.results["metrics"]["target_columns"]
        if not _has_classes(table):
            return {}
        right, said = (table[name].to_pylist() for name in (columns[0], "prediction"))
        scores = table["score"].to_pylist()
        if right and isinstance(right[0], list):  # a label for each segment
            right, said = one_by_one(right), one_by_one(said)
            scores = [float(a == b) for a, b in zip(right, said, strict=True)]
        for label, score in zip(right, scores, strict=True):
            hits.setdefault(str(label), []).append(score)
    return {label: float(np.mean(values)) for label, values in sorted(hits.items())}


def _has_classes(table: Any) -> bool:
    return "prediction" in table.column_names and FORCED not in table.column_names


def one_by_one(labels: Sequence[Any]) -> list[str]:
    """Of a row that has a label for each of its segments, all of them."""
    return [str(label) for row in labels for label in (row if isinstance(row, list) else [row])]


def gates(one: Compared) -> dict[str, list[float]]:
    """By gate, its values on the test samples of the first seed: columns that the adapter showed."""
    cell = one.cells[min(one.cells)]
    shown: Mapping[str, Any] = cell.results["metrics"].get("observed", {})
    table, found = cell.predictions(), {}
    for name, means in shown.items():
        values = np.array(table[name].to_pylist(), float).reshape(table.num_rows, -1)
        for i in range(len(means)):
            found[name if len(means) == 1 else f"{name} {i}"] = values[:, i].tolist()
    return found


def attention(one: Compared) -> dict[str, np.ndarray]:
    """By name, (tokens that read, tokens that are read), of the first seed."""
    return _maps(one, "attention")


def interactions(one: Compared) -> dict[str, np.ndarray]:
    """By name, how strongly tokens of two modalities act together, of the first seed."""
    return _maps(one, "interactions")


def _maps(one: Compared, key: str) -> dict[str, np.ndarray]:
    maps = one.cells[min(one.cells)].results.get(key, {})
    return {name: np.array(weights) for name, weights in maps.items()}
