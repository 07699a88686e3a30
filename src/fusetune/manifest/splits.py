"""Splits drawn by group and stratified by label: the same on any machine, in any order of the rows."""

import hashlib
from collections import Counter

import pyarrow as pa

from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_text
from fusetune.manifest.schema import SPLITS
from fusetune.manifest.split_settings import SplitSettings


def with_splits(table: pa.Table, settings: SplitSettings) -> pa.Table:
    """The manifest with a `split` column; groups (`group_id`) stay whole.

    Groups stand in the order of a hash of seed and name, label by label (a group's label is its most frequent), and
    each goes to the split that lacks most of its share so far.
    """
    groups = [str(group) for group in table["group_id"].to_pylist()]
    if settings.stratify and settings.stratify not in table.column_names:
        raise FusetuneError(
            f"ingest.split.stratify: the manifest has no column '{settings.stratify}'. It has "
            f"{', '.join(table.column_names)}."
        )
    labels = (
        [str(label_text(v)) for v in table[settings.stratify].to_pylist()] if settings.stratify else [""] * len(groups)
    )
    rows: Counter[str] = Counter(groups)
    votes: dict[str, Counter[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        votes.setdefault(group, Counter())[label] += 1
    stratum = {group: min(counts, key=lambda name: (-counts[name], name)) for group, counts in votes.items()}
    order = sorted(rows, key=lambda group: (stratum[group], drawn_order(settings.seed, group)))
    shares = dict(zip(SPLITS, (settings.train, settings.val, settings.test), strict=True))
    given: dict[str, float] = dict.fromkeys(SPLITS, 0.0)
    chosen: dict[str, str] = {}
    for group in order:
        total = sum(given.values()) + rows[group]
        chosen[group] = max(SPLITS, key=lambda split: shares[split] * total - given[split])
        given[chosen[group]] += rows[group]
    column = pa.array([chosen[group] for group in groups], pa.string())
    if "split" in table.column_names:
        return table.set_column(table.column_names.index("split"), "split", column)
    return table.append_column("split", column)


def drawn_order(seed: int, name: str) -> str:
    """A key to sort names by: an order that only the seed and the names decide."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
