"""SHA-256 of files, remembered by size, time of change and inode: an unchanged file is not read twice."""

import atexit
import hashlib
import os
import sqlite3
import time
from functools import cache
from pathlib import Path

SETTLED = 0.1  # seconds: a file that has just been written may change again within one tick of its clock
MOST = 500_000  # files; more than that, and those that are gone are forgotten
_new: dict[str, tuple[int, int, int, str]] = {}


def remembered_sha256(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises OSError where there is none."""
    name, stat = os.fspath(path), os.stat(path)
    seen = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    known = _new.get(name) or _known().get(name)
    if known and tuple(known[:3]) == seen:
        return known[3]
    with open(path, "rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - stat.st_mtime > SETTLED:
        _new[name] = (*seen, value)
    return value


@cache
def _known() -> dict[str, tuple[int, int, int, str]]:
    atexit.register(remember)
    try:
        with _open() as memory:
            return {row[0]: row[1:] for row in memory.execute("SELECT path, size, mtime, inode, sha256 FROM files")}
    except (OSError, sqlite3.Error):
        return {}


def remember() -> None:
    """Keep what was learned, for the next process."""
    if not _new:
        return
    try:
        with _open() as memory:
            rows = [(path, *known) for path, known in _new.items()]
            if len(_known()) > MOST:
                gone = [(path,) for path in _known() if not os.path.exists(path)]
                memory.executemany("DELETE FROM files WHERE path = ?", gone)
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
        _known().update(_new)
        _new.clear()
    except (OSError, sqlite3.Error):
        return  # a read-only or full disk costs us the memory, not the run


def _open() -> sqlite3.Connection:
    file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fusetune" / "files.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(file, timeout=10)
    memory.execute(
        "CREATE TABLE IF NOT EXISTS files"
        " (path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, inode INTEGER, sha256 TEXT)"
    )
    return memory
