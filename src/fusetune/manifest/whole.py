"""What can be said of a row only where all others are known: repeated ids and contents, groups in two splits, labels
that training lacks, widths that others don't have.

Cost: each id, group and content is hashed and compared once; of a row 100 bytes lie on disk meanwhile, and what is
worked on at once is in memory.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune import on_disk
from fusetune.keys import NONE, Keys
from fusetune.manifest.checks import EXAMPLES, Failure
from fusetune.manifest.contents import readable_digests
from fusetune.manifest.labels import label_problem, label_text
from fusetune.manifest.probing import widths
from fusetune.manifest.schema import SPLITS, Modality

MANY = 15  # names of splits that are told apart


class Coded:
    """A column of few distinct values, as their places among them.

    Args:
        text: what a value is called; None: it is none.
        known: names that come first.

    Attributes:
        names: by place; None where a value is none.
        codes: (rows,).
    """

    def __init__(self, column: pa.ChunkedArray, text: Callable[[Any], str | None], known: Sequence[str] = ()) -> None:
        places: dict[str | None, int] = {name: place for place, name in enumerate(known)}
        self.codes = on_disk.array(len(column), np.int32)
        for some in on_disk.slices(len(column)):
            values, index = distinct(on_disk.part(column, some))
            own = [places.setdefault(text(value), len(places)) for value in values]
            self.codes[some] = np.array(own, np.int32)[index]
        self.names = list(places)

    def counts(self, kept: np.ndarray | None = None, split: np.ndarray | None = None) -> np.ndarray:
        """(names,) rows, or (names, splits) by another column's places; of those that are `kept`."""
        wide = MANY + 1 if split is not None else 1
        found = np.zeros(len(self.names) * wide, np.int64)
        for some in on_disk.slices(len(self.codes)):
            place = self.codes[some].astype(np.int64) * wide + (0 if split is None else split[some])
            found += np.bincount(place if kept is None else place[kept[some]], minlength=len(found))
        return found.reshape(len(self.names), wide) if split is not None else found


class Whole:
    """All rows of a manifest, as far as rows are compared.

    Args:
        labels: columns with classes.

    Attributes:
        kept: (rows,) those that nothing has set aside so far.
        splits, labels: as places among their names.
        repeated: (rows,) whether an earlier one has the same sample_id.
        widths: by modality of numbers, the most common one.
    """

    def __init__(self, table: pa.Table, modalities: Mapping[str, Modality], labels: Iterable[str]) -> None:
        self.table, self.modalities, self.count = table, modalities, table.num_rows
        self._step = on_disk.at_once(table.nbytes, table.num_rows)  # rows whose cells are looked at together
        self.kept = on_disk.full(self.count, True, bool)
        self.splits = Coded(table["split"], str, SPLITS)
        self.labels = {label: Coded(table[label], class_text) for label in labels}
        names, first = _numbered(table["sample_id"])
        self.repeated = on_disk.array(self.count, bool)
        for some in on_disk.slices(self.count):
            self.repeated[some] = first[names[some]] != np.arange(some.start, some.stop)
        same = table["group_id"].equals(table["sample_id"])
        self._groups, distinct_groups = (names, first) if same else _numbered(table["group_id"])
        self._group_count = len(distinct_groups)
        self.widths: dict[str, float] = {}
        for name, modality in modalities.items():
            if modality.kind in ("sequence", "vector"):
                column, seen = table[modality.column_of(name)], Counter[float]()
                for some in on_disk.slices(self.count, self._step):
                    there, times = np.unique(widths(modality, on_disk.part(column, some)), return_counts=True)
                    seen.update(dict(zip(there.tolist(), times.tolist(), strict=True)))
                sound = {width: often for width, often in seen.items() if width > 0}
                self.widths[name] = min(sound, key=lambda width: (-sound[width], width), default=float("nan"))

    def label_counts(self) -> dict[str, dict[str, int]]:
        """By column, rows by label."""
        return {
            label: {n: int(rows) for n, rows in zip(own.names, own.counts(), strict=True) if n is not None and rows}
            for label, own in self.labels.items()
        }

    def same_contents(self) -> Iterator[Failure]:
        """Samples that are the same in every modality: in two splits a leak, in one a duplicate."""
        readable = on_disk.array(self.count, bool)

        def contents() -> Iterator[bytes]:
            for some in on_disk.slices(self.count, self._step):
                columns = [
                    readable_digests(m, on_disk.part(self.table[m.column_of(n)], some))
                    for n, m in self.modalities.items()
                ]
                # where a content can't be read, that is no reason to set its row aside
                readable[some] = [None not in row for row in zip(*columns, strict=True)]
                if len(columns) == 1:
                    yield from (digest or NONE for digest in columns[0])
                else:
                    joined = (b"".join(digest or NONE for digest in row) for row in zip(*columns, strict=True))
                    yield from (sha256(row).digest() for row in joined)

        number, distinct_ = Keys.of_bytes(contents()).numbered()
        # of each content its first row, by split, then by place
        first = on_disk.full(len(distinct_), np.iinfo(np.int64).max, np.int64)
        for rows in self._rows(readable):
            turn = np.minimum(self.splits.codes[rows], len(SPLITS)).astype(np.int64)
            np.minimum.at(first, number[rows], turn * self.count + rows)
        for rows in self._rows(readable):
            like = first[number[rows]] % self.count
            twice = np.flatnonzero(like != rows)
            for row, same in zip(rows[twice].tolist(), like[twice].tolist(), strict=True):
                one = self.splits.codes[same] == self.splits.codes[row]
                told = f"the same as row {same} of {self.splits.names[self.splits.codes[same]]}"
                yield Failure(row, "", "content.duplicate" if one else "content.leakage", told)

    def untrained(self, label: str) -> Iterator[Failure]:
        """Labels of validation and test that no training row has, and training labels that a split lacks."""
        own = self.labels[label]
        counts = own.counts(self.kept, self._split())
        there = [
            {name for name, rows in zip(own.names, counts[:, s], strict=True) if rows and name is not None}
            for s in range(len(SPLITS))
        ]
        strange = np.array([name is not None and name not in there[0] for name in own.names], bool)
        for rows in self._rows() if strange.any() else ():
            found = rows[strange[own.codes[rows]] & (self.splits.codes[rows] != 0)]
            for row in found.tolist():
                yield Failure(row, label, "label.trained", f"{own.names[own.codes[row]]} is in no training row")
        for split, labels in zip(SPLITS[1:], there[1:], strict=True):
            lacking = sorted(there[0] - labels)
            if lacking:
                text = f"{split} lacks {', '.join(lacking[:EXAMPLES])}{' ...' if len(lacking) > EXAMPLES else ''}"
                yield Failure(-1, label, "label.every_split", text)

    def leaking_groups(self) -> Iterator[Failure]:
        """Rows whose group stands in several splits."""
        seen = on_disk.full(self._group_count, 0, np.int32)
        split, groups = self._split(), self.table["group_id"]
        for rows in self._rows():
            np.bitwise_or.at(seen, self._groups[rows], 1 << split[rows])
        for rows in self._rows():
            bits = seen[self._groups[rows]]
            several = np.flatnonzero(bits & (bits - 1))
            names = on_disk.taken(groups, rows[several]).to_pylist()
            for row, name, own in zip(rows[several].tolist(), names, bits[several].tolist(), strict=True):
                if name is not None:
                    found = sorted(str(n) for place, n in enumerate(self.splits.names) if own >> min(place, MANY) & 1)
                    yield Failure(row, "group_id", "group.leakage", f"{name}: {', '.join(found)}")

    def totals(self, least: int) -> Iterator[Failure]:
        """Whether there are rows enough in every split, and labels to tell apart."""
        counts = dict(zip(SPLITS, self.rows_per_split().tolist(), strict=True))
        if min(counts.values()) < least:
            yield Failure(-1, "split", "split.rows", ", ".join(f"{name} {count}" for name, count in counts.items()))
        for label, own in self.labels.items():
            trained = own.counts(self.kept, self._split())[:, 0]
            there = [name for name, rows in zip(own.names, trained, strict=True) if rows and name is not None]
            if len(there) < 2:
                yield Failure(-1, label, "label.classes", f"in training only {there}")

    def rows_per_split(self) -> np.ndarray:
        """(splits,) rows that are kept."""
        return self.splits.counts(self.kept)[: len(SPLITS)]

    def labels_per_split(self, label: str) -> dict[str, dict[str, int]]:
        """Rows that are kept, by label and split."""
        own = self.labels[label]
        counts = own.counts(self.kept, self._split())
        there = {n: rows for n, rows in zip(own.names, counts, strict=True) if n is not None and rows.any()}
        return {name: {s: int(there[name][place]) for place, s in enumerate(SPLITS)} for name in sorted(there)}

    def _split(self) -> np.ndarray:
        return self.splits.codes if len(self.splits.names) <= MANY else np.minimum(self.splits.codes, MANY)

    def _rows(self, more: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Rows that are kept, some at a time."""
        for some in on_disk.slices(self.count):
            own = self.kept[some] if more is None else self.kept[some] & more[some]
            yield np.flatnonzero(own) + some.start


def class_text(value: Any) -> str | None:
    """The label that a cell is; None where it is none."""
    return None if label_problem(value) else label_text(value)


def distinct(column: pa.ChunkedArray) -> tuple[list[Any], np.ndarray]:
    """The values of a column, each once where Arrow can tell them apart, and which of them each row has."""
    try:
        encoded = column.combine_chunks().dictionary_encode()
    except pa.ArrowNotImplementedError:  # lists
        values = column.to_pylist()
        return values, np.arange(len(values))
    values = [*encoded.dictionary.to_pylist(), None]
    return values, encoded.indices.fill_null(len(values) - 1).to_numpy()


def _numbered(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each cell (rows,) among the distinct ones, and the first row of each of those."""
    return Keys.of_texts(on_disk.Cells(column)).numbered()
