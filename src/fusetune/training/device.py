"""Where to compute."""

import torch

from fusetune.errors import FusetuneError


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
