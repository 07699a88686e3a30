"""Content hashes of files and folders, remembered by size and time of change, and of the code behind a function."""

import atexit
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "fusetune"
_IMPORT = re.compile(rf"\b{PACKAGE}(?:\.\w+)+")
_memo: dict[str, list[Any]] | None = None


def content_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of a folder's names and bytes."""
    if path.is_file():
        return _file_hash(path)
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        sha.update(f"{file.relative_to(path).as_posix()}\0{_file_hash(file)}\n".encode())
    return sha.hexdigest()


def code_hash(function: Callable[..., Any]) -> str:
    """SHA-256 (hex) of the source files that a node's function can reach inside this package.

    Imports are followed wherever they stand, lazy ones and registered import paths included.
    """
    sha = hashlib.sha256()
    for module in sorted(reached_modules(function.__module__)):
        sha.update(f"{module}\0{_file_hash(_source(module) or Path())}\n".encode())
    return sha.hexdigest()


@cache
def reached_modules(module: str) -> frozenset[str]:
    """The modules of this package that `module` names, and those that they name, and so on."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        source = _source(name)
        if name in found or source is None:
            continue
        found.add(name)
        text = source.read_text()
        todo += _IMPORT.findall(text)
        for package, names in re.findall(rf"from ({PACKAGE}[\w.]*) import \(?([\w, \n]+)", text):
            todo += [f"{package}.{part.strip()}" for part in names.split(",")]
    return frozenset(found)


@cache
def _source(module: str) -> Path | None:
    while module:
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec and spec.origin:
            return Path(spec.origin)
        module = module.rpartition(".")[0]  # the last part was an attribute
    return None


def _file_hash(path: Path) -> str:
    memo = _memory()
    stat = path.stat()
    seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    known = memo.get(str(path))
    if known and known[:3] == seen:
        return known[3]
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    memo[str(path)] = [*seen, value]
    return value


def _memory() -> dict[str, list[Any]]:
    global _memo
    if _memo is None:
        file = _memory_file()
        try:
            _memo = json.loads(file.read_text())
        except (OSError, ValueError):
            _memo = {}
        atexit.register(_remember, file, dict(_memo))
    return _memo


def _remember(file: Path, before: dict[str, list[Any]]) -> None:
    if _memo == before or _memo is None:
        return
    kept = {path: known for path, known in _memo.items() if os.path.exists(path)}
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept))
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only or full disk costs us the memory, not the run


def _memory_file() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return root / PACKAGE / "hashes.json"
