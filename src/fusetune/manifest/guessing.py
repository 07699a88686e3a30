"""What a table of somebody's own holds, guessed from its names and its cells: kinds, splits, groups, what to predict.

A guess is a proposal: what each column was taken for, and why, is told and can be mended in one line.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.schema import SPLITS

LOOKED_AT = 200  # cells of a column that are there
MOSTLY = 0.9  # of the cells
SUFFIXES = {
    "image": {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"},
    "audio": {".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus"},
    "video": {".mp4", ".avi", ".mov", ".mkv", ".webm"},
}
MAGIC = {
    "image": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*"),
    "audio": (b"fLaC", b"ID3", b"OggS"),
}
LABELS = ("label", "target", "class", "category", "kind", "sentiment", "answer", "y")
GROUPS = re.compile(r"(^|_)(group|author|user|speaker|patient|subject|person|session|source|video|scene)(_?id)?$", re.I)
IDS = re.compile(r"(^|_)(id|uid|uuid|key)$", re.I)
SPLIT = re.compile(r"^(split|subset|fold|partition|set)$", re.I)
SEPARATORS = ("|", ";")
FEW_CLASSES = 20  # numbers with as many values or fewer are labels, unless they have fractions


@dataclass(frozen=True)
class Guess:
    """
    Attributes:
        modalities: kind by column.
        roots: of media that are paths, the folder that they lie in.
        parts: column by part: sample_id, group_id, split.
        task: settings of `data.task`.
        stratify: whether the drawn splits should have each label in the same proportions.
        why: column -> what it was taken for, and why, in words.
    """

    modalities: dict[str, str]
    roots: dict[str, str]
    parts: dict[str, str]
    task: dict[str, Any]
    stratify: bool
    why: dict[str, str] = field(default_factory=dict)


def modality_name(column: str) -> str:
    """A column's name as that of a stream: letters, digits and underscores."""
    return re.sub(r"\W", "_", column)


def guess(table: pa.Table, folder: Path, label: str | None) -> Guess:
    """What the columns of a table are for.

    Args:
        folder: that the table lies in; paths of media are looked for below it.
        label: the column to be predicted; None: it is guessed by its name.

    Raises:
        FusetuneError: no such column, none that could be one, or no modality.
    """
    names = table.column_names
    if label is None:
        label = next((name for wanted in LABELS for name in names if name.lower() == wanted), None)
    check(
        label in names,
        f"new.label: expected the column that is to be predicted, found {label!r}. There are {', '.join(names)}.",
    )
    assert label is not None
    found = Guess({}, {}, {}, {}, False)
    task, stratify, told = _task(label, table[label].drop_null().to_pylist())
    found.why[label] = told
    for name in names:
        if name != label:
            _place(found, table, name, folder)
    if not found.modalities:
        told = "; ".join(f"{name}: {why}" for name, why in found.why.items())
        raise FusetuneError(
            "new.table: no column that a model could read. Expected texts, paths or bytes of media, or lists of "
            f"numbers; found {told}."
        )
    return Guess(found.modalities, found.roots, found.parts, task, stratify, found.why)


def _place(found: Guess, table: pa.Table, name: str, folder: Path) -> None:
    """Find a part for a column, and say why."""
    cells, rows = _cells(table, name), table.num_rows
    values = table[name]
    distinct = len(values.unique()) if not pa.types.is_nested(values.type) else rows
    if SPLIT.match(name) and set(map(str, cells)) & {*SPLITS, "valid", "validation", "dev"}:
        held = {str(value) for value in values.unique().to_pylist()}
        if held <= set(SPLITS) and len(held) == len(SPLITS):
            found.parts["split"], found.why[name] = name, "the splits, by its name"
        else:
            found.why[name] = (
                f"left out: values {', '.join(sorted(held))}; with train, val and test it would be the splits"
            )
        return
    kind, root, told = _modality(cells, folder, name)
    if kind and not (kind == "text" and _is_short(cells, distinct, rows)):
        found.modalities[name], found.why[name] = kind, told
        if root is not None:
            found.roots[name] = root
    elif GROUPS.search(name) and 1 < distinct < rows and "group_id" not in found.parts:
        found.parts["group_id"], found.why[name] = (
            name,
            f"groups that stay in one split, by its name; {distinct:,} of them",
        )
    elif IDS.search(name) and distinct == rows and "sample_id" not in found.parts:
        found.parts["sample_id"], found.why[name] = name, "names of the samples, each its own"
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or _numbers(cells):
        found.why[name] = "left out: one number a row; a model reads numbers as a list (kind vector)"
    else:
        found.why[name] = f"left out: {distinct:,} short values in {rows:,} rows; if they are to be read: kind text"


def _modality(cells: Sequence[Any], folder: Path, name: str) -> tuple[str | None, str | None, str]:
    """Kind, folder of paths, and why."""
    one = next(iter(cells), None)
    if isinstance(one, list):
        inner = next((item for cell in cells for item in cell), None)
        if isinstance(inner, list):
            return "sequence", None, "sequences of vectors"
        if isinstance(inner, int | float):
            return "vector", None, f"vectors of {len(one)} numbers"
        if not isinstance(inner, str) or _suffix_kind([item for cell in cells for item in cell]) != "image":
            return None, None, ""
        cells = [item for cell in cells for item in cell]
    if isinstance(one, bytes):
        kind = next((kind for kind, starts in MAGIC.items() if one.startswith(starts)), None)
        wave = one[:4] == b"RIFF"
        kind = kind or ("audio" if wave and one[8:12] == b"WAVE" else "image" if wave else None)
        kind = kind or ("video" if one[4:8] == b"ftyp" else None)
        return kind, None, f"bytes of {kind}" if kind else ""
    if not isinstance(one, str):
        return None, None, ""
    kind = _suffix_kind(cells)
    if kind is None:
        return "text", None, f"texts, e.g. {one[:40]!r}"
    root = _root(cells, folder)
    if root is None:
        raise FusetuneError(
            f"new.table: column '{name}' holds paths of {kind} files, e.g. '{one}', and hardly one of them is below "
            f"{folder}. Expected paths below the table's folder, or below new.root."
        )
    return kind, root, f"paths of {kind} files below {root}"


def _suffix_kind(cells: Sequence[str]) -> str | None:
    for kind, suffixes in SUFFIXES.items():
        if sum(Path(cell).suffix.lower() in suffixes for cell in cells) >= MOSTLY * len(cells) > 0:
            return kind
    return None


def _root(cells: Sequence[str], folder: Path) -> str | None:
    """The folder below which most of the paths lead to a file: the given one, or one in it."""
    inside = [entry.path for entry in os.scandir(folder) if entry.is_dir()] if folder.is_dir() else []
    for root in (str(folder), *sorted(inside)):
        if sum(Path(root, cell).is_file() for cell in cells) >= MOSTLY * len(cells):
            return root
    return None


def _is_short(cells: Sequence[str], distinct: int, rows: int) -> bool:
    """Whether texts are rather names of classes: single words, or few that come back again and again."""
    words = sum(len(cell.split()) for cell in cells) / max(1, len(cells))
    return words < 1.5 or (distinct <= 50 and distinct < rows / 4)


def _task(label: str, cells: Sequence[Any]) -> tuple[dict[str, Any], bool, str]:
    """Settings of the task, whether splits can be stratified by it, and why."""
    if not cells:
        raise FusetuneError(f"new.label: the column '{label}' is empty.")
    if isinstance(cells[0], list):
        return {"name": "multi_label", "label": label}, False, "to be predicted: several labels a row, lists"
    counts = Counter(map(str, cells))
    numbers = _numbers(cells)
    if numbers and (len(counts) > FEW_CLASSES or any(value % 1 for value in numbers)):
        return {"name": "regression", "label": label}, False, f"to be predicted: numbers, e.g. {cells[0]}"
    for separator in SEPARATORS:
        if not numbers and sum(separator in str(cell) for cell in cells) > len(cells) / 4:
            task = {"name": "multi_label", "label": label, "separator": separator}
            return task, False, f"to be predicted: several labels a row, divided by '{separator}'"
    words = sum(len(str(cell).split()) for cell in cells) / len(cells)
    if len(counts) > len(cells) / 2 and words > 2:
        task = {"name": "generation", "answer": label}
        return task, False, f"to be predicted: answers in words, e.g. {str(cells[0])[:40]!r}, by a model that speaks"
    rarest, rows = min(counts.items(), key=lambda item: item[1])
    told = f"to be predicted: one of {len(counts)} labels, the rarest {rarest!r} in {rows:,} rows"
    return {"name": "classification", "label": label}, rows > 2, told


def _numbers(cells: Sequence[Any]) -> list[float]:
    """The cells as numbers; [] where some are none."""
    try:
        return [float(cell) for cell in cells if not isinstance(cell, bool | list | bytes)]
    except (TypeError, ValueError):
        return []


def _cells(table: pa.Table, name: str) -> list[Any]:
    """The first cells that are there."""
    return table[name].drop_null()[:LOOKED_AT].to_pylist()
