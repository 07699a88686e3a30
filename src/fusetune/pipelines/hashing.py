"""Content hashes of files and folders, and of the code behind a function."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fusetune.filehash import remembered_sha256

PACKAGE = "fusetune"
ROOM = Path(__file__).parents[1]
_IMPORT = re.compile(rf"\b{PACKAGE}(?:\.\w+)+")


def content_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of a folder's names and bytes."""
    if path.is_file():
        return remembered_sha256(path)
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()}\0{remembered_sha256(file)}\n".encode())
    return sha.hexdigest()


def table_hash(table: Any) -> str:
    """SHA-256 (hex) of an Arrow table's schema and values."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def code_hash(function: Callable[..., Any]) -> str:
    """SHA-256 (hex) of the source files that a node's function can reach inside this package.

    Imports are followed wherever they stand, lazy ones and registered import paths included.
    """
    sha = hashlib.sha256()
    for module in sorted(reached_modules(function.__module__)):
        sha.update(f"{module}\0{remembered_sha256(_source(module))}\n".encode())
    return sha.hexdigest()


@cache
def reached_modules(module: str) -> frozenset[str]:
    """The modules of this package that `module` names, and those that they name, and so on."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        source = _source(name)
        if name in found:
            continue
        found.add(name)
        text = source.read_text()
        todo += _IMPORT.findall(text)
        for package, names in re.findall(rf"from ({PACKAGE}[\w.]*) import \(?([\w, \n]+)", text):
            todo += [f"{package}.{part.strip()}" for part in names.split(",")]
    return frozenset(found)


@cache
def _source(module: str) -> Path:
    """The module's file, found without importing anything."""
    parts = module.split(".")[1:]
    while parts:
        place = Path(ROOM, *parts)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
        parts.pop()  # the last part was an attribute
    return ROOM / "__init__.py"
