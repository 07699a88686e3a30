"""Features ready for training: batches gathered from memory where they fit, from the memory map where they don't."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fusetune.features.extraction import Features
from fusetune.features.store import Entry, Rows
from fusetune.tokens import Tokens, pad

RESIDENT_SHARE = 0.5  # of the free memory that features may take


class FeatureSet:
    """The features of a manifest, by row.

    Attributes:
        frontier: where they were taken.
        resident: whether they all lie in the device's memory.
    """

    def __init__(self, features: Features, root: Path, device: torch.device) -> None:
        """Open the rows below the store's `root`; raises FusetuneError if some were never cached."""
        self.frontier, self.device = features.frontier, device
        self._rows = {name: Entry(root / folder).rows(features.keys[name]) for name, folder in features.entries.items()}
        self.bytes = sum(_bytes(rows) for rows in self._rows.values())
        self.resident = self.bytes <= RESIDENT_SHARE * free_memory(device)
        self._packed = {name: _Packed(rows, device) for name, rows in self._rows.items()} if self.resident else {}

    def __len__(self) -> int:
        return len(next(iter(self._rows.values())))

    def modalities(self) -> list[str]:
        return list(self._rows)

    def longest(self) -> dict[str, int]:
        """By modality, the largest number of tokens of a sample."""
        return {name: max(rows.lengths(), default=0) for name, rows in self._rows.items()}

    def batch(self, index: Tensor) -> dict[str, Tokens]:
        """Padded tokens of the given rows (a CPU index), float32 on the device; integer ids stay integers."""
        if self.resident:
            packed = {name: rows.gather(index) for name, rows in self._packed.items()}
        else:
            packed = {name: pad([rows[i] for i in index.tolist()]) for name, rows in self._rows.items()}
        return {name: tokens.to(self.device, torch.float32) for name, tokens in packed.items()}


class _Packed:
    """All rows of one stream in one tensor; a batch is one gather."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        lengths = torch.tensor(rows.lengths())
        self.values = torch.cat([rows[i] for i in range(len(rows))]).to(device)
        self.lengths = lengths
        self.starts = lengths.cumsum(0) - lengths

    def gather(self, index: Tensor) -> Tokens:
        lengths = self.lengths[index]
        positions = torch.arange(max(1, int(lengths.max())))
        mask = positions < lengths[:, None]  # (batch, tokens)
        where = (self.starts[index][:, None] + positions).clamp(max=max(0, len(self.values) - 1))
        device = self.values.device
        mask, where = mask.to(device, non_blocking=True), where.to(device, non_blocking=True)
        if not len(self.values):
            return Tokens(self.values.new_zeros(*mask.shape, self.values.shape[1]), mask)
        return Tokens(self.values[where] * mask.unsqueeze(-1), mask)


def batches(count: int, size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Row numbers in batches; shuffled where a generator is given."""
    order = torch.randperm(count, generator=generator) if generator else torch.arange(count)
    yield from order.split(size)


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


def _bytes(rows: Rows) -> int:
    if not len(rows):
        return 0
    sample = rows[0]
    return sum(rows.lengths()) * sample.shape[1] * sample.element_size()
