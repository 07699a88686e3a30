"""Where to compute."""

import ctypes
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from fusetune.errors import FusetuneError

_TRIM, _MAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
KEPT, MAPPED = 1 << 30, 1 << 28  # bytes


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees, up to 1 GiB, instead of giving it back; whether it does.

    Every tensor of 32 MB or more is mapped anew otherwise, and each of its pages is a fault: of a training step on a
    CPU with batches of 40 MB that was nearly half.
    """
    try:
        allocator = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(allocator(_MAP, MAPPED) and allocator(_TRIM, KEPT))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this machine's main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = Path("/proc/meminfo").read_text()
        line = next(line for line in text.splitlines() if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return 4 * 2**30  # no such file on this system: a modest guess


def half_of(parameters: Iterable[torch.nn.Parameter]) -> torch.dtype | None:
    """The half precision that some of these are in; None: none is."""
    return next((p.dtype for p in parameters if p.dtype in (torch.float16, torch.bfloat16)), None)


def training_dtype(device: torch.device, autocast: bool) -> torch.dtype | None:
    """What a GPU multiplies in: bfloat16, or float16 (with a scaled loss) where it has none; None elsewhere."""
    if not autocast or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def extraction_dtype(device: torch.device, stored: str) -> torch.dtype | None:
    """What features are computed in on a GPU: what they are kept in anyway, where that is a short float; else None."""
    short = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.float16}
    return short.get(stored) if device.type == "cuda" else None


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU; raises FusetuneError for what isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FusetuneError(f"device: expected auto, cpu, cuda or cuda:N, found '{name}'.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise FusetuneError(f"device: '{name}' was asked for, but this machine has no GPU. Use auto or cpu.")
    return device
