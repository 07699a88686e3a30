"""Splits drawn by group and stratified by label: the same on any machine, in any order of the rows.

Cost: a hash a row and a place on disk for it; groups are put in order some at a time, and walked through once.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from fusetune import on_disk
from fusetune.errors import FusetuneError
from fusetune.keys import Keys
from fusetune.manifest.labels import label_text
from fusetune.manifest.schema import SPLITS
from fusetune.manifest.split_settings import SplitSettings


def with_splits(table: pa.Table, settings: SplitSettings) -> pa.Table:
    """The manifest with a `split` column; groups (`group_id`) stay whole.

    Groups stand in the order of a hash of seed and name, label by label (a group's label is its most frequent), and
    each goes to the split that lacks most of its share so far.
    """
    if settings.stratify and settings.stratify not in table.column_names:
        raise FusetuneError(
            f"ingest.split.stratify: the manifest has no column '{settings.stratify}'. It has "
            f"{', '.join(table.column_names)}."
        )
    names = on_disk.Cells(table["group_id"])
    keys = Keys.of_bytes(hashlib.sha256(f"{settings.seed}:{name}".encode()).digest() for name in names)
    group, first = keys.numbered()  # the number of each row's, and the first row of each
    keys = keys if len(first) == len(keys) else keys[first]
    rows = _counted(group, len(first))
    strata = _strata(table[settings.stratify], group, len(first)) if settings.stratify else None
    chosen = _chosen(_in_order(keys, strata), rows, (settings.train, settings.val, settings.test))
    values = pa.array(SPLITS)
    column = on_disk.column(
        (values.take(pa.array(chosen[group[some]])) for some in on_disk.slices(len(group))), pa.string()
    )
    if "split" in table.column_names:
        return table.set_column(table.column_names.index("split"), "split", column)
    return table.append_column("split", column)


def _counted(numbers: np.ndarray, count: int) -> np.ndarray:
    """How often each number below `count` stands there."""
    found = on_disk.full(count, 0, np.int64)
    for some in on_disk.slices(len(numbers)):
        there, times = np.unique(numbers[some], return_counts=True)
        found[there] += times
    return found


def _strata(column: pa.ChunkedArray, group: np.ndarray, count: int) -> np.ndarray:
    """(groups,): the place of each group's most frequent label among all of them, by name; of two the first."""
    places: dict[str, int] = {}
    labels = on_disk.array(len(group), np.int32)
    cells = iter(on_disk.Cells(column))
    for some in on_disk.slices(len(group)):
        texts = (str(label_text(next(cells))) for _ in range(some.start, some.stop))
        labels[some] = [places.setdefault(text, len(places)) for text in texts]
    by_name = np.empty(len(places), np.int64)
    by_name[[places[text] for text in sorted(places)]] = np.arange(len(places))
    votes = on_disk.array(len(group), np.int64)  # a group and a label in one number
    for some in on_disk.slices(len(group)):
        votes[some] = group[some] * len(places) + by_name[labels[some]]
    votes.sort()  # in its place
    found, begin = on_disk.array(count, np.int32), 0
    while begin < len(votes):
        part = votes[begin : begin + on_disk.ROWS]
        owner = part // len(places)
        if begin + len(part) < len(votes) and owner[0] != owner[-1]:  # a group is counted as a whole
            part = part[: np.searchsorted(owner, owner[-1])]
        elif owner[0] == owner[-1]:
            part = votes[begin : np.searchsorted(votes, (owner[0] + 1) * len(places))]
        vote, times = np.unique(part, return_counts=True)
        owner = vote // len(places)
        best = np.lexsort((vote, -times, owner))
        winners = best[np.unique(owner[best], return_index=True)[1]]
        found[owner[winners]] = vote[winners] % len(places)
        begin += len(part)
    return found


def _in_order(keys: Keys, strata: np.ndarray | None) -> Iterator[int]:
    """The numbers of groups, stratum by stratum, by their keys."""
    if strata is None:
        for part in keys.sorted():
            yield from part.tolist()
        return
    order = on_disk.by_group(keys.sorted(), len(keys), lambda groups: strata[groups])
    for some in on_disk.slices(len(order)):
        yield from order[some].tolist()


def _chosen(order: Iterator[int], rows: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """(groups,): the number of each group's split."""
    found, given, total = on_disk.array(len(rows), np.int8), [0.0] * len(shares), 0.0
    for group in order:
        count = int(rows[group])
        total += count
        lacks = [share * total - there for share, there in zip(shares, given, strict=True)]
        split = lacks.index(max(lacks))
        given[split] += count
        found[group] = split
    return found


def drawn_order(seed: int, name: str) -> str:
    """A key to sort names by: an order that only the seed and the names decide."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
