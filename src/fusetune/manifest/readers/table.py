"""Your own data without any Python: a Parquet, CSV, TSV or JSON Lines file, one row a sample.

    ingest:
      reader: manifest
      settings:
        file: /data/mine/samples.csv

`file` may be a folder of such files of one kind, or a pattern (`/data/mine/part-*.parquet`): their rows, by name.
Columns of media hold paths below the modality's `root` (data.modalities.<name>.root), Parquet may hold their bytes.
`sample_id` and `group_id` may be other columns' names or be left out: then rows are numbered, each a group of its own.
A `sequence` or `vector` is a column of lists, or comes from an array file, `.npy`, `.npz` or `.safetensors`:

    arrays:
      outline: {file: /data/mine/features.npz, key: outline}   # (rows, width) or (rows, tokens, width)
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune import on_disk
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.labels import label_text

logger = logging.getLogger(__name__)
DELIMITERS = (",", ";", "\t", "|")
BLOCK = 2**24  # bytes of a CSV that are read at once; no row may be longer


@dataclass(frozen=True)
class ArrayFile:
    """
    Attributes:
        file: `.npy`, `.npz` or `.safetensors`.
        key: the array in it; not for `.npy`.
        index: the column with each sample's row in the array; default: the n-th row is the n-th sample's.
    """

    file: str
    key: str = ""
    index: str | None = None


@dataclass(frozen=True)
class TableSettings:
    """
    Attributes:
        file: .parquet, .csv, .tsv or .jsonl; or a folder of one kind of them, or a pattern with `*`.
        sample_id, group_id, split: the columns that play these parts.
        arrays: column to make -> the array file that it comes from.
    """

    file: str
    sample_id: str | None = None
    group_id: str | None = None
    split: str | None = None
    arrays: Mapping[str, ArrayFile] = field(default_factory=dict)


def sources(settings: Mapping[str, Any]) -> list[str]:
    """The files that `read` reads: when one changes, the manifest is made anew."""
    arrays, file = (settings.get("arrays") or {}).values(), str(settings.get("file", ""))
    return [*(map(str, _files(file) or [Path(file)])), *(str(array.get("file", "")) for array in arrays)]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """The manifest; raises FusetuneError that names file, row and column of what can't be read."""
    chosen = build(TableSettings, settings, where)
    files = _files(chosen.file)
    kinds = {file.suffix.lower() for file in files} or {Path(chosen.file).suffix.lower()}
    reader = READERS.get(kinds.pop()) if len(kinds) == 1 else None
    if reader is None:
        among = f" with {', '.join(file.name for file in files[:3])} ..." if len(files) > 1 else ""
        raise FusetuneError(
            f"{where}.file: expected .parquet, .csv, .tsv or .jsonl, or a folder of one kind of them, found "
            f"'{chosen.file}'{among}."
        )
    if not files:
        raise FusetuneError(f"{where}.file: {chosen.file} is not there (looked in {Path.cwd()}).")
    table = _joined([reader(file) for file in files], files)
    for part in ("sample_id", "group_id", "split"):
        table = renamed(table, part, getattr(chosen, part), f"{where}.{part}")
    for name, array in chosen.arrays.items():
        table = _with_array(table, name, array, f"{where}.arrays.{name}")
    return numbered(table)


def _files(file: str) -> list[Path]:
    """The files that a setting names: one, those of a folder, or those of a pattern with `*`, by name."""
    path = Path(file)
    if any(sign in path.name for sign in "*?["):
        return sorted(found for found in path.parent.glob(path.name) if found.is_file())
    if path.is_dir():
        return sorted(found for found in path.iterdir() if found.is_file() and not found.name.startswith((".", "_")))
    return [path] if path.is_file() else []


def _joined(tables: Sequence[pa.Table], files: Sequence[Path]) -> pa.Table:
    """The rows of all, in the files' order; raises FusetuneError where their columns differ."""
    first = tables[0].schema
    for table, file in zip(tables[1:], files[1:], strict=True):
        own = table.schema
        names = dict.fromkeys([*first.names, *own.names])
        odd = next((n for n in names if _differ(_kind(first, n), _kind(own, n))), None)
        if odd is not None:
            raise FusetuneError(
                f"{file}, column '{odd}': {_kind(own, odd)}, where {files[0]} has {_kind(first, odd)}. Expected the "
                "same columns in all files."
            )
    return pa.concat_tables([table.select(first.names) for table in tables], promote_options="default")


def _kind(schema: pa.Schema, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "no such column"


def _differ(one: str, other: str) -> bool:
    return one != other and "null" not in (one, other)  # JSON's way of a column without any value


def numbered(table: pa.Table) -> pa.Table:
    """With `sample_id` and `group_id`: rows that have none are numbered, each a group of its own."""
    if "sample_id" not in table.column_names:
        names = (
            pa.array([f"{row:08d}" for row in range(s.start, s.stop)], pa.string()) for s in on_disk.slices(len(table))
        )
        table = table.append_column("sample_id", on_disk.column(names, pa.string()))
    if "group_id" not in table.column_names:
        table = table.append_column("group_id", table["sample_id"])
    return table


def _parquet(file: Path) -> pa.Table:
    try:
        return on_disk.read_parquet(file)
    except (pa.ArrowException, OSError) as error:
        raise FusetuneError(f"{file}: no readable Parquet ({error}).") from None


def _csv(file: Path) -> pa.Table:
    """Every column as text: `007` stays a name. An empty cell is a missing one."""
    from pyarrow import csv

    delimiter = "\t" if file.suffix.lower() == ".tsv" else _delimiter(file)
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with csv.open_csv(file, parse_options=parse) as opened:
            names = opened.schema.names
        _distinct(names, file)
        types = dict.fromkeys(names, pa.string())
        convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
        read = csv.ReadOptions(block_size=BLOCK)
        with csv.open_csv(file, read_options=read, parse_options=parse, convert_options=convert) as opened:
            return on_disk.table(opened, opened.schema)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise FusetuneError(f"{file}: no readable CSV in UTF-8 ({error}).") from None


def _delimiter(file: Path) -> str:
    """What divides the columns of the first line: the character that gives the most of them, a comma if in doubt."""
    import csv

    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            head = lines.readline()
    except UnicodeDecodeError as error:
        raise FusetuneError(f"{file}: no readable CSV in UTF-8 ({error}).") from None
    found = max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([head], delimiter=delimiter), [])))
    if found != ",":
        logger.info("%s: columns are divided by %r", file, found)
    return found


def _json_lines(file: Path) -> pa.Table:
    rows = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines):
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise FusetuneError(
                            f"{file}, line {number + 1}: expected an object {{...}}, found {line[:40]!r}."
                        )
    except UnicodeDecodeError as error:
        raise FusetuneError(f"{file}: no UTF-8 ({error}).") from None
    except json.JSONDecodeError as error:
        raise FusetuneError(f"{file}, line {number + 1}: no JSON ({error}).") from None
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows], name, file) for name in names})


def _column(values: list[Any], name: str, file: Path) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if bool in kinds and kinds & {int, float}:  # Arrow would make numbers of the truth values
        return pa.array([label_text(value) for value in values], pa.string())
    try:
        return pa.array(values)
    except pa.ArrowException:
        there = [value for value in values if value is not None]
        if not any(isinstance(value, list | dict) for value in there):
            return pa.array([None if value is None else str(value) for value in values])
        common = max({type(v) for v in there}, key=lambda kind: (sum(type(v) is kind for v in there), kind.__name__))
        row = next((i for i, v in enumerate(values) if v is not None and type(v) is not common), None)
        odd = f"row {row} holds a {type(values[row]).__name__}" if row is not None else "its lists differ in kind"
        raise FusetuneError(f"{file}, column '{name}': expected a {common.__name__} in every row; {odd}.") from None


def renamed(table: pa.Table, part: str, column: str | None, where: str) -> pa.Table:
    """With the column that plays a part under the part's name too; raises FusetuneError where there is none."""
    if column is None or column == part:
        return table
    if column not in table.column_names:
        raise FusetuneError(f"{where}: no column '{column}'. There are {', '.join(table.column_names)}.")
    if part in table.column_names:
        table = table.drop_columns([part])
    return table.append_column(part, table[column].cast(pa.string()))


def _with_array(table: pa.Table, name: str, settings: ArrayFile, where: str) -> pa.Table:
    array = load_array(settings, where)
    rows = np.arange(table.num_rows)
    if settings.index:
        if settings.index not in table.column_names:
            raise FusetuneError(f"{where}.index: no column '{settings.index}'.")
        try:
            rows = table[settings.index].cast(pa.int64()).to_numpy()
        except (pa.ArrowException, ValueError) as error:
            raise FusetuneError(f"{where}.index: expected whole numbers in '{settings.index}' ({error}).") from None
    elif len(array) != table.num_rows:
        raise FusetuneError(
            f"{where}: {len(array)} rows in {settings.file}, {table.num_rows} in the manifest. Name the column that "
            "says which belongs to which: `index`."
        )
    outside = np.flatnonzero((rows < 0) | (rows >= len(array)))
    if len(outside):
        row = int(outside[0])
        raise FusetuneError(f"{where}: row {row} asks for {int(rows[row])} of {len(array)} rows in {settings.file}.")
    if name in table.column_names:
        table = table.drop_columns([name])
    return table.append_column(name, nested(array[rows]))


def load_array(settings: ArrayFile, where: str) -> np.ndarray:
    """(rows, width) or (rows, tokens, width); nothing is unpickled."""
    file = Path(settings.file)
    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as opened:
                array = opened[settings.key]
        elif file.suffix == ".safetensors":
            from safetensors.numpy import load_file

            array = load_file(file)[settings.key]
        else:
            raise FusetuneError(f"{where}.file: expected .npy, .npz or .safetensors, found '{file}'.")
    except (OSError, ValueError, KeyError) as error:
        raise FusetuneError(f"{where}: {file} has no array '{settings.key}' that can be read ({error}).") from None
    if array.ndim not in (2, 3) or array.dtype.kind not in "fiu":
        raise FusetuneError(
            f"{where}: expected numbers of shape (rows, width) or (rows, tokens, width), found {array.dtype} of shape "
            f"{array.shape}."
        )
    return array


def nested(array: np.ndarray) -> pa.Array:
    """An array (rows, ...) as a column of lists, or of lists of lists, of float32."""
    found: Any = pa.array(np.ascontiguousarray(array, np.float32).reshape(-1))
    for size in reversed(array.shape[1:]):
        offsets = pa.array(np.arange(0, len(found) + 1, size, dtype=np.int32))
        found = pa.ListArray.from_arrays(offsets, found)
    return found


def _distinct(names: list[str], file: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FusetuneError(f"{file}: the column '{twice}' stands there twice.")


READERS = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines}
