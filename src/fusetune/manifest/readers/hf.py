"""A data set of Hugging Face `datasets` on disk, as `save_to_disk` writes it (extra ``datasets``).

Pictures and sounds come as their encoded bytes, class labels as their names. A `DatasetDict`'s splits become ours:
train, validation (or val, valid, dev) and test; of a single `Dataset` the splits are drawn by `ingest.split`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build
from fusetune.errors import FusetuneError

SPLITS = {"validation": "val", "valid": "val", "dev": "val"}


@dataclass(frozen=True)
class HFSettings:
    """
    Attributes:
        folder: what `save_to_disk` wrote.
        sample_id, group_id: the columns that play these parts; default: rows are numbered, each a group of its own.
    """

    folder: str
    sample_id: str | None = None
    group_id: str | None = None


def sources(settings: Mapping[str, Any]) -> list[str]:
    folder = Path(str(settings.get("folder")))
    return sorted(str(file) for file in (*folder.rglob("*.arrow"), *folder.rglob("*.json")))


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """All columns of the data set, with sample_id, group_id and, where there are some, splits."""
    try:
        import datasets
    except ImportError as error:
        raise FusetuneError("readers: 'hf' needs `pip install 'fusetune[datasets]'`.") from error
    chosen = build(HFSettings, settings, where)
    try:
        found = datasets.load_from_disk(chosen.folder)
    except (OSError, ValueError) as error:
        raise FusetuneError(f"{where}.folder: {chosen.folder} is no data set on disk ({error}).") from None
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
    tables = [_table(part, SPLITS.get(name, name), chosen, f"{where}, {name}") for name, part in parts.items()]
    return pa.concat_tables(tables)


def _table(part: Any, split: str, chosen: HFSettings, where: str) -> pa.Table:
    import datasets

    columns: dict[str, Any] = {}
    plain = part.with_format("arrow")[:]
    for name, feature in part.features.items():
        column = plain[name]
        if isinstance(feature, datasets.Image | datasets.Audio):
            column = pa.array([_bytes(cell, f"{where}, column '{name}'") for cell in column.to_pylist()], pa.binary())
        elif isinstance(feature, datasets.ClassLabel):
            column = pa.array(
                [None if v is None or v < 0 else feature.int2str(v) for v in column.to_pylist()], pa.string()
            )
        columns[name] = column
    numbered = pa.array([f"{split}{row:08d}" for row in range(len(part))], pa.string())
    columns["sample_id"] = _named(columns, chosen.sample_id, numbered, where)
    columns["group_id"] = _named(columns, chosen.group_id, columns["sample_id"], where)
    if split:
        columns["split"] = pa.array([split] * len(part), pa.string())
    return pa.table(columns)


def _named(columns: Mapping[str, Any], name: str | None, default: Any, where: str) -> Any:
    if name is None:
        return default
    if name not in columns:
        raise FusetuneError(f"{where}: no column '{name}'. There are {', '.join(columns)}.")
    return columns[name].cast(pa.string())


def _bytes(cell: Any, where: str) -> bytes | None:
    if cell is None:
        return None
    if cell.get("bytes") is not None:
        return cell["bytes"]
    try:
        return Path(cell["path"]).read_bytes()
    except OSError as error:
        raise FusetuneError(f"{where}: {cell['path']} can't be read ({error.strerror}).") from None
