"""Test samples that a reader should see: those on which methods disagree, those that nobody and that everybody gets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.comparison.record import Compared
from fusetune.tasks.generation import FORCED

MOST = 60  # samples on a page
SHARES = {"disagreed": 0.6, "nobody": 0.2, "everybody": 0.2}  # of them
LONGEST = 4  # items of an answer that is a list
UNSAID = ("probability", "probabilities", "cosines")  # how sure an answer is, not what it is


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        told: most seeds' answer; of several, the first seed's.
        score: of the main metric, mean over seeds.
        region: four numbers, of an answer that is a box, the first seed's.
    """

    told: str
    score: float
    region: Sequence[float] | None = None


@dataclass(frozen=True)
class Example:
    """
    Attributes:
        sample: its `sample_id`.
        kind: one of `SHARES`: by what it was chosen.
        truth: what is right.
        answers: by variant, in the order of the comparison.
        region: what is right, where that is a box, as the manifest has it.
    """

    sample: str
    kind: str
    truth: str
    answers: Mapping[str, Answer]
    region: Any = None


@dataclass(frozen=True)
class Examples:
    """
    Attributes:
        graded: whether each answer is right or wrong, with nothing between.
        samples: of the test split, of which some are shown.
    """

    shown: Sequence[Example]
    graded: bool
    samples: int


def examples(
    found: Sequence[Compared], truths: Sequence[str], most: int = MOST, separator: str | None = None
) -> Examples:
    """The samples to show, the most disagreed on first; draws among equals have a fixed seed.

    Args:
        truths: columns of the predictions with what is right.
        separator: of several in one text there.
    """
    tables = {one.name: [cell.predictions() for _, cell in sorted(one.cells.items())] for one in found}
    scores = {name: np.stack([np.array(t["score"].to_pylist(), float) for t in own]) for name, own in tables.items()}
    means = np.stack([values.mean(0) for values in scores.values()])
    graded = all(bool(np.isin(values, (0.0, 1.0)).all()) for values in scores.values())
    columns = {one.name: _columns(one, tables[one.name][0]) for one in found}
    texts = {name: [_told(table, columns[name]) for table in own] for name, own in tables.items()}
    first = next(iter(tables.values()))[0]
    wanted, ids = _told(first, truths), first["sample_id"].to_pylist()
    wanted = [text.replace(separator, ", ") for text in wanted] if separator else wanted
    regions = {name: _regions(own[0], columns[name]) for name, own in tables.items()}
    right = _regions(first, truths)
    shown, among = [], _answered(tables)
    for kind, chosen in _chosen(means[:, among], most):
        place = int(among[chosen])
        answers = {
            name: Answer(
                Counter(text[place] for text in own).most_common(1)[0][0],
                round(float(scores[name][:, place].mean()), 4),
                regions[name][place],
            )
            for name, own in texts.items()
        }
        shown.append(Example(ids[place], kind, wanted[place], answers, right[place]))
    return Examples(shown, graded, len(ids))


def _answered(tables: Mapping[str, Sequence[pa.Table]]) -> np.ndarray:
    """Places of the samples that may be shown: of answers in words those where each variant was let speak."""
    several = [table for own in tables.values() for table in own]
    said = np.ones(several[0].num_rows, bool)
    for table in several:
        if FORCED in table.column_names and "prediction" in table.column_names:
            said &= np.array(table["prediction"].is_valid())
    return np.flatnonzero(said if said.any() else np.ones_like(said))


def _chosen(means: np.ndarray, most: int) -> list[tuple[str, int]]:
    """Kind and place; (variants, samples) mean scores."""
    count = means.shape[1]
    drawn = np.random.default_rng(0).permutation(count)
    spread, mean = means.std(0)[drawn], means.mean(0)[drawn]
    orders = {"disagreed": -spread, "nobody": mean, "everybody": -mean}
    fits = {"disagreed": spread > 0, "nobody": mean <= np.median(mean), "everybody": mean >= np.median(mean)}
    found: dict[int, str] = {}
    for kind, order in orders.items():
        wanted = round(min(most, count) * SHARES[kind])
        fitting = [int(drawn[i]) for i in np.argsort(order, kind="stable") if fits[kind][i]]
        found |= dict.fromkeys([place for place in fitting if place not in found][:wanted], kind)
    return [(kind, place) for place, kind in found.items()]


def _targets(one: Compared) -> list[str]:
    return list(one.cells[min(one.cells)].results["metrics"]["target_columns"])


def _columns(one: Compared, table: pa.Table) -> list[str]:
    """Those with the answer."""
    metrics = one.cells[min(one.cells)].results["metrics"]
    other = {"sample_id", "score", *_targets(one), *metrics.get("observed", {})}
    return [name for name in table.column_names if name not in other and not name.endswith(UNSAID)]


def _told(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Each row's values as one text."""
    values = [table[name].to_pylist() for name in columns]
    if len(columns) == 1:
        return [told(value) for value in values[0]]
    return [
        "; ".join(f"{name.replace('_', ' ')}: {told(value)}" for name, value in zip(columns, row, strict=True))
        for row in zip(*values, strict=True)
    ]


def told(value: Any) -> str:
    """'a, b, c, ... (12)' of a list, '0.123' of a number, 'nothing' of what isn't there."""
    if isinstance(value, list):
        parts = ", ".join(f"[{told(one)}]" if isinstance(one, list) else told(one) for one in value[:LONGEST])
        return f"{parts}, ... ({len(value)})" if len(value) > LONGEST else parts or "nothing"
    return "nothing" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _regions(table: pa.Table, columns: Sequence[str]) -> list[Any]:
    """Of the first of the columns that holds four numbers; None for each row where none does."""
    for name in columns:
        values = table[name].to_pylist()
        if all(value is None or _is_region(value) for value in values) and any(values):
            return values
    return [None] * table.num_rows


def _is_region(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(one, float | int) for one in value)
