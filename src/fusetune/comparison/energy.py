"""Energy counters of the machine, where it has some that may be read."""

from collections.abc import Mapping
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Joules of the processor packages (Intel's and AMD's RAPL, by Linux' powercap) and of a GPU (NVML) since it began.

    What else runs on the machine meanwhile is counted too.
    """

    def __init__(self, device: torch.device, root: Path = POWERCAP) -> None:
        self._root, self._device = root, device
        self._packages, self._gpu = _packages(root), _gpu(device)

    def joules(self) -> float | None:
        """None where the machine tells nothing."""
        now, parts = _packages(self._root), []
        for name, (begun, most) in self._packages.items():
            if name in now:
                used = now[name][0] - begun
                parts.append((used if used >= 0 else used + most) / 1e6)  # the counter starts anew at its end
        gpu = _gpu(self._device)
        if gpu is not None and self._gpu is not None:
            parts.append(gpu - self._gpu)
        return sum(parts) if parts else None


def _packages(root: Path) -> Mapping[str, tuple[int, int]]:
    """Microjoules of each package, and where its counter ends."""
    found = {}
    for zone in sorted(root.glob("*-rapl:*")):
        if zone.name.count(":") == 1:  # a package; below it stand its parts
            try:
                counter = int((zone / "energy_uj").read_text())
                found[zone.name] = counter, int((zone / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                continue  # for root only, on most machines
    return found


def _gpu(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
    except Exception:  # no library, no driver, or a card without a counter: its own errors differ by release
        return None
