"""What validation found, as JSON: every failed check with count and examples, and how the sound rows are made up."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fusetune import on_disk
from fusetune.manifest.checks import BY_BASE, EXAMPLES, SEVERITIES, Failure, ValidationSettings
from fusetune.manifest.schema import SPLITS, Modality
from fusetune.manifest.whole import Whole

BINS = 30  # of a histogram, at most
# what a histogram shows of a kind, and its unit
SIZES = {
    "text": ("length", "characters"),
    "image": ("largest", "pixels, the longer side"),
    "audio": ("seconds", "seconds"),
    "video": ("largest", "pixels, the longer side"),
    "sequence": ("length", "tokens"),
}


QUARANTINE = pa.schema(
    [pa.field(name, pa.int64() if name == "row" else pa.string())
     for name in ("sample_id", "row", "column", "check", "value")]
)  # fmt: skip


class Judged:
    """What has failed, as far as it is told: counts, a few examples, and the rows that are set aside.

    Args:
        kept: (rows,) those that nothing has set aside; kept up to date.
    """

    def __init__(self, table: pa.Table, settings: ValidationSettings, kept: np.ndarray) -> None:
        self.table, self.settings, self.kept = table, settings, kept
        self.rows: Counter[tuple[str, str]] = Counter()  # by check and column
        self.examples: dict[tuple[str, str], list[Failure]] = {}
        self._aside = on_disk.Growing(QUARANTINE)

    def add(self, failures: Iterable[Failure]) -> None:
        """What was found of some rows or of all; nobody else finds the same of them."""
        coming = iter(failures)
        while some := list(islice(coming, on_disk.AT_ONCE)):
            self._add([f for f in some if self.settings.level(f.check) != "off"])

    def _add(self, failures: Sequence[Failure]) -> None:
        rows: dict[tuple[str, str], set[int]] = {}
        aside = [f for f in failures if f.row >= 0 and self.settings.level(f.check) == "quarantine"]
        for failure in failures:
            name = (failure.check, failure.column)
            rows.setdefault(name, set()).add(failure.row)
            shown = self.examples.setdefault(name, [])
            if len(shown) < EXAMPLES:
                shown.append(failure)
        for name, own in rows.items():
            self.rows[name] += len(own)
        if aside:
            self.kept[[f.row for f in aside]] = False
            lines = [(self.sample_id(f.row), f.row, f.column, f.check, f.value) for f in aside]
            columns = [
                pa.array(values, own.type) for values, own in zip(zip(*lines, strict=True), QUARANTINE, strict=True)
            ]
            self._aside.write(pa.record_batch(columns, QUARANTINE))

    def sample_id(self, row: int) -> str:
        return str(self.table["sample_id"][row].as_py())

    def aside(self) -> pa.Table:
        """sample_id, row, column, check and value of what set a row aside, a line each."""
        return self._aside.table()


class Sizes:
    """Of each row whether a modality is there, and how large it is."""

    def __init__(self, count: int, modalities: Mapping[str, Modality]) -> None:
        self.count, self.modalities = count, modalities
        self.present = {name: on_disk.array(count, bool) for name in modalities}
        self.sizes: dict[str, np.ndarray] = {}

    def add(self, facts: pd.DataFrame, some: slice) -> None:
        """Of some rows."""
        for name, modality in self.modalities.items():
            self.present[name][some] = facts[f"{name}: present"]
            size = f"{name}: {SIZES.get(modality.kind, ('', ''))[0]}"
            if size in facts and name not in self.sizes:
                self.sizes[name] = on_disk.full(self.count, np.nan, np.float64)
            if size in facts:
                self.sizes[name][some] = facts[size].astype(float)

    def missing(self, name: str, kept: np.ndarray) -> int:
        """Sound rows without this modality."""
        present = self.present[name]
        return sum(int((~present[some] & kept[some]).sum()) for some in on_disk.slices(self.count))

    def _sizes(self, name: str, kept: np.ndarray) -> Iterator[np.ndarray]:
        """Of sound rows that have one, some at a time."""
        for some in on_disk.slices(self.count):
            own = self.sizes[name][some][kept[some]]
            yield own[~np.isnan(own)]

    def histogram(self, name: str, kept: np.ndarray, unit: str) -> dict[str, Any]:
        if name not in self.sizes:
            return {}
        count, different = 0, set[float]()
        for values in self._sizes(name, kept):
            count += len(values)
            if len(different) < BINS:
                different |= set(np.unique(values).tolist())
        whole = on_disk.filled(self._sizes(name, kept), count, np.float64)
        counts, edges = np.histogram(whole, bins=min(BINS, max(1, len(different))))
        return {"unit": unit, "counts": counts.tolist(), "edges": edges.tolist()}


def make_report(
    whole: Whole | None,
    found: Judged,
    sizes: Sizes,
    labels: Sequence[str],
    modalities: Mapping[str, Modality],
    settings: ValidationSettings,
) -> dict[str, Any]:
    """JSON-ready.

    Args:
        whole: None of a manifest without rows.
    """
    checks = [
        {
            "check": name,
            "severity": settings.level(name),
            "column": column,
            "rows": found.rows[name, column],
            "examples": [
                {"row": f.row, "sample_id": found.sample_id(f.row) if f.row >= 0 else None, "value": f.value}
                for f in found.examples[name, column]
            ],
        }
        for name, column in sorted(found.rows)
    ]
    rows, kept = found.table.num_rows, found.kept
    sound = sum(int(kept[some].sum()) for some in on_disk.slices(rows))
    aside = rows - sound
    stopped = [
        f"{c['check']} ({c['column']})" if c["column"] else c["check"] for c in checks if c["severity"] == "error"
    ]
    if aside > settings.max_quarantined * rows:
        stopped.append(f"max_quarantined: {aside} of {rows} rows, more than {settings.max_quarantined:.1%}")
    per_split = whole.rows_per_split().tolist() if whole else [0] * len(SPLITS)
    of_kind = {name: SIZES.get(modality.kind, ("", ""))[1] for name, modality in modalities.items()}
    return {
        "rows": rows,
        "sound_rows": sound,
        "quarantined_rows": aside,
        "stopped_by": stopped,
        "rows_per_split": dict(zip(SPLITS, per_split, strict=True)),
        "labels": {n: whole.labels_per_split(n) if whole else {} for n in labels if n != "group_id"},
        "missing": {name: sizes.missing(name, kept) for name in modalities} if rows else {},
        "sizes": {name: sizes.histogram(name, kept, unit) for name, unit in of_kind.items() if sound},
        "checked": sorted(name for name in SEVERITIES if settings.level(name) != "off" and name not in BY_BASE),
        "checks": checks,
    }
