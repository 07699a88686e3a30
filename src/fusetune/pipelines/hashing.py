"""Content hashes of files and folders, and of the code behind a function."""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fusetune.filehash import remembered_sha256

PACKAGE = "fusetune"
ROOM = Path(__file__).parents[1]
# what modules import -> the distributions whose versions change what comes out
LIBRARIES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("torch", "peft", "numpy", "scipy", "pyarrow", "pandas", "pandera", "matplotlib")},
    **{name: (name,) for name in ("safetensors", "soundfile", "soxr", "av", "datasets", "optuna", "plotly")},
    "transformers": ("transformers", "tokenizers"),
    "tokenizers": ("tokenizers",),
    "PIL": ("pillow",),
    "unicodedata": ("python",),
}
_OUTSIDE = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
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
    """SHA-256 (hex) of what a node's function can reach: this package's source files, and versions of libraries.

    Imports are followed wherever they stand, lazy ones and registered import paths included.
    """
    modules = reached_modules(function.__module__)
    sha = hashlib.sha256()
    for module in sorted(modules):
        sha.update(f"{module}\0{remembered_sha256(_source(module))}\n".encode())
    for name in sorted(_libraries(modules)):
        sha.update(f"{name}\0{library_version(name)}\n".encode())
    return sha.hexdigest()


def plugin_hashes(values: Any) -> dict[str, str]:
    """Code of what third parties have registered (entry points in the groups ``fusetune.*``) and `values` name.

    Of each the SHA-256 of all source files of the package that it comes from.
    """
    words = set(_texts(values))
    return {f"{p.group}: {p.name}": _package_hash(p.value) for p in _plugins() if p.name in words}


@cache
def library_version(distribution: str) -> str:
    """As installed, without what says for which machine it was built (2.13.0+cpu is 2.13.0); '' for none."""
    if distribution == "python":
        return ".".join(map(str, sys.version_info[:2]))
    try:
        return version(distribution).partition("+")[0]
    except PackageNotFoundError:
        return ""


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
def _libraries(modules: frozenset[str]) -> frozenset[str]:
    """Distributions that outputs may depend on, as far as the modules' import statements name them."""
    named = {name for module in modules for name in _OUTSIDE.findall(_source(module).read_text())}
    return frozenset(part for name in named for part in LIBRARIES.get(name, ()))


@cache
def _plugins() -> tuple[Any, ...]:
    found = entry_points()
    groups = [group for group in found.groups if group.startswith(f"{PACKAGE}.")]
    return tuple(point for group in groups for point in found.select(group=group))


@cache
def _package_hash(path: str) -> str:
    package = path.partition(":")[0].partition(".")[0]
    spec = find_spec(package)
    if spec is None:
        return ""
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = [file for folder in folders for file in folder.rglob("*.py")] or [Path(str(spec.origin))]
    return hashlib.sha256("\n".join(remembered_sha256(file) for file in sorted(files)).encode()).hexdigest()


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value)


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
