"""Where shards lie: a local folder, or any URL that fsspec knows (`s3://`, `gs://`, `memory://` ...).

Both give the same promise: a file appears under its name whole or not at all.
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from fusetune.scratch import scratch


class Folder(ABC):
    """One flat folder of files."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the files, sorted; [] where there is no folder yet."""

    @abstractmethod
    def read(self, names: list[str]) -> list[bytes]:
        """The contents of files, in the order of their names."""

    @abstractmethod
    def local(self, name: str, sha256: str) -> Path:
        """A local file with the content of `name`, to be memory-mapped; `sha256` tells copies of it apart."""

    @abstractmethod
    def scratch(self, name: str) -> Path:
        """Where to write a file before it is committed."""

    @abstractmethod
    def commit(self, scratch: Path, name: str) -> None:
        """Make a written file appear under its name, durably and at once; `scratch` is gone afterwards."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file; none there is fine."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that can still be written; None where nobody knows (object stores)."""


class LocalFolder(Folder):
    """A folder of this machine's file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.is_file())
        except FileNotFoundError:
            return []

    def read(self, names: list[str]) -> list[bytes]:
        return [(self.path / name).read_bytes() for name in names]

    def local(self, name: str, sha256: str) -> Path:
        return self.path / name

    def scratch(self, name: str) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        return scratch(self.path / name)

    def commit(self, scratch: Path, name: str) -> None:
        _sync(scratch)
        scratch.replace(self.path / name)
        _sync(self.path)  # the name itself

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def free(self) -> int | None:
        import shutil

        there = next(p for p in (self.path, *self.path.parents) if p.exists())
        return shutil.disk_usage(there).free


class RemoteFolder(Folder):
    """A folder at a URL. What is read is copied once to this machine's cache (`$XDG_CACHE_HOME/fusetune/shards`)."""

    def __init__(self, filesystem: Any, path: str, url: str) -> None:
        self.filesystem, self.path, self.url = filesystem, path.rstrip("/"), url
        self.cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fusetune" / "shards"

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        self.filesystem.invalidate_cache()  # other machines write too
        if not self.filesystem.isdir(self.path):
            return []
        found = self.filesystem.ls(self.path, detail=True)
        return sorted(item["name"].rsplit("/", 1)[-1] for item in found if item["type"] == "file")

    def read(self, names: list[str]) -> list[bytes]:
        if not names:
            return []
        paths = [f"{self.path}/{name}" for name in names]
        found = self.filesystem.cat(paths)  # at once, where the store can
        contents = found if isinstance(found, dict) else {paths[0]: found}
        return [contents[self.filesystem._strip_protocol(path)] for path in paths]

    def local(self, name: str, sha256: str) -> Path:
        file = self.cache / sha256[:2] / sha256
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = scratch(file)
            try:
                self.filesystem.get_file(f"{self.path}/{name}", str(temporary))
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
        return file

    def scratch(self, name: str) -> Path:
        self.cache.mkdir(parents=True, exist_ok=True)
        return scratch(self.cache / name)

    def commit(self, scratch: Path, name: str) -> None:
        self.filesystem.makedirs(self.path, exist_ok=True)
        self.filesystem.put_file(str(scratch), f"{self.path}/{name}")  # an object is visible when it is complete
        scratch.unlink()

    def remove(self, name: str) -> None:
        if self.filesystem.exists(f"{self.path}/{name}"):
            self.filesystem.rm_file(f"{self.path}/{name}")

    def size(self, name: str) -> int:
        return self.filesystem.size(f"{self.path}/{name}")

    def free(self) -> int | None:
        return None


class Store:
    """A feature store: one folder an entry, below a local path or a URL.

    Args:
        root: a path, `file://...`, or any URL of fsspec's; credentials are fsspec's own business (environment).
    """

    def __init__(self, root: "str | Path | Store") -> None:
        self.root = str(root)
        self._filesystem: Any = None
        if "://" in self.root and not self.root.startswith(("file://", "local://")):
            import fsspec

            self._filesystem, self._path = fsspec.core.url_to_fs(self.root)
        else:
            self._path = self.root.removeprefix("file://").removeprefix("local://")

    def __str__(self) -> str:
        return self.root

    @property
    def is_local(self) -> bool:
        return self._filesystem is None

    def absolute(self) -> "Store":
        """The same store, for a process that works in another folder."""
        return Store(Path(self._path).resolve()) if self.is_local else self

    def folder(self, entry: str) -> Folder:
        if self.is_local:
            return LocalFolder(Path(self._path, entry))
        path = f"{self._path.rstrip('/')}/{entry}"
        return RemoteFolder(self._filesystem, path, f"{self.root.rstrip('/')}/{entry}")

    def entries(self) -> list[str]:
        """Names of the entries, sorted."""
        if self.is_local:
            root = Path(self._path)
            return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        self._filesystem.invalidate_cache()
        if not self._filesystem.isdir(self._path):
            return []
        found = self._filesystem.ls(self._path, detail=True)
        return sorted(item["name"].rstrip("/").rsplit("/", 1)[-1] for item in found if item["type"] == "directory")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
