"""Where to compute."""

from collections.abc import Iterable

import torch

from fusetune.errors import FusetuneError


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
