"""Paths in a manifest: below their root, or nowhere."""

import os
from pathlib import Path
from typing import Any

from fusetune.errors import FusetuneError

INSIDE, THERE, FULL = "path.inside", "path.exists", "path.empty"


def path_problem(root: str | Path, cell: str) -> tuple[str, str] | None:
    """The check that a path fails, and what was found; None for a file with something in it, below `root`.

    Links are followed: one that leads out of the root is outside.
    """
    if not cell.strip() or "\0" in cell:
        return THERE, f"{cell!r} is no path"
    if os.path.isabs(cell) or ".." in Path(cell).parts or (len(cell) > 1 and cell[1] == ":"):
        return INSIDE, cell
    base = os.path.realpath(root)
    path = os.path.realpath(os.path.join(base, cell))
    if os.path.commonpath([base, path]) != base:
        return INSIDE, f"{cell} -> {path}"
    try:
        status = os.stat(path)
    except OSError as error:
        return THERE, f"{cell}: {error.strerror}"
    if not os.path.isfile(path):
        return THERE, f"{cell} is no file"
    return (FULL, f"{cell}: 0 bytes") if not status.st_size else None


def read_media(root: str | Path, cell: Any, where: str) -> Any:
    """The bytes of a media cell, of a list a list of them; raises FusetuneError for a path to no file below it."""
    if isinstance(cell, list):
        return [read_media(root, item, where) for item in cell]
    if not isinstance(cell, str):
        return cell
    problem = path_problem(root, cell)
    if problem:
        raise FusetuneError(f"{where}: {problem[1]} ({problem[0]}). Expected a file below the modality's root, {root}.")
    return Path(root, cell).read_bytes()
