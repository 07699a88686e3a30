"""Fewer labels: what is left of the training rows when only so many per class are known."""

import pyarrow as pa

from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_text
from fusetune.manifest.split_settings import FewShotSettings
from fusetune.manifest.splits import drawn_order


def few_shot(table: pa.Table, settings: FewShotSettings) -> pa.Table:
    """The first rows of each class in the order of a hash of seed and sample_id: the same in any order of the rows."""
    if settings.label not in table.column_names:
        raise FusetuneError(
            f"ingest.few_shot.label: no column '{settings.label}'. There are {', '.join(table.column_names)}."
        )
    by_class: dict[str, list[tuple[str, int]]] = {}
    columns = (table[name].to_pylist() for name in ("sample_id", "split", settings.label))
    keep = []
    for row, (sample, split, label) in enumerate(zip(*columns, strict=True)):
        if split == "train":
            by_class.setdefault(str(label_text(label)), []).append((drawn_order(settings.seed, sample), row))
        else:
            keep.append(row)
    for rows in by_class.values():
        keep += [row for _, row in sorted(rows)[: settings.per_class]]
    return table.take(pa.array(sorted(keep), pa.int64()))
