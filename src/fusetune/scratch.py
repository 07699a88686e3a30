"""Names of half-written files: whose they are, so that nobody else's is taken for one that was left behind."""

import hashlib
import os
import secrets
import socket
import time
from functools import cache
from pathlib import Path

ABANDONED = 3600  # seconds after which a half-written file of another machine's is nobody's any more


def scratch(path: Path) -> Path:
    """A name beside `path`, to be written to and then renamed: ``<name>.<machine>-<process>-<token>.tmp``."""
    return path.with_name(f"{path.name}.{machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_abandoned(path: Path) -> bool:
    """Whether whoever was writing this scratch file is gone: a process is asked for on its own machine alone.

    On any other machine, and in any other container, its number means nothing: there age decides.
    """
    parts = path.name.split(".")[-2].split("-")
    if len(parts) == 3 and parts[0] == machine():
        return not _alive(parts[1])
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False  # it has just got its name


@cache
def machine() -> str:
    """This machine, its present boot and this space of process numbers, as 12 hexadecimal digits."""
    known = [socket.gethostname()]
    try:
        known += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        known.append("")  # not Linux: the name of the machine must do
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:12]


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
