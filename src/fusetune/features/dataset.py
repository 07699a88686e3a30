"""Features ready for training: minibatches gathered from device memory, from main memory or from the memory map.

Cost of an epoch over N samples of T tokens x d values: N T d bytes are read once. Resident on the device that is one
gather at the device's bandwidth; from main memory a copy and a transfer; from the map a copy from the page cache, or
the disk's own rate the first time: it is told of the next batches early, and reads them while the model works. For a
GPU several threads gather them into pinned memory meanwhile.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune import on_disk
from fusetune.device import free_memory, keep_freed_memory
from fusetune.features.ahead import ahead, delayed, threads_beside
from fusetune.features.gathered import Gathered, is_large, means_of
from fusetune.features.index import Features
from fusetune.features.mapping import named
from fusetune.features.means import Means
from fusetune.features.orders import padding
from fusetune.features.rows import Rows
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.keys import Keys
from fusetune.tokens import Tokens, pad

SHARE = 0.5  # of the free memory that features may take
AHEAD = 2  # batches gathered before they are needed
NOTICE = 8  # batches before which the disk is told


class FeatureSet:
    """The features of a manifest, by row.

    Args:
        means: the mean of a row's tokens is all that is asked for; it is taken once, where there is room for it.

    Attributes:
        frontier: where they were taken.
        views: how many augmented views of each row there are; 0 where the rows are as they are.
        bytes: of all rows, as they are kept in memory.
        placement: where they are kept, and why, in words.
    """

    def __init__(
        self, features: Features, store: Store | Path | str, device: torch.device, means: bool = False
    ) -> None:
        """Open the rows; raises FusetuneError if some were never cached or, where all are read, if one has changed."""
        keep_freed_memory()
        store = Store(store)
        self.frontier, self.device, self.views = features.frontier, device, len(features.views)
        mappings = features.views or [features.keys]
        self.count = len(next(iter(features.keys.values())))
        self._rows: dict[str, Rows] = {}
        self._where: dict[str, np.ndarray] = {}  # by modality (views * rows): number of the distinct row
        for name, entry in features.entries.items():
            keys = Keys.joined(mapping[name] for mapping in mappings)
            self._where[name], distinct = keys.numbered()
            self._rows[name] = Entry.of(store, entry).rows(keys if len(distinct) == len(keys) else keys[distinct])
        self._kept: Mapping[str, Rows | Means] = self._means() or self._rows if means else self._rows
        self.bytes = sum(map(_memory, self._kept.values()))
        place = self._place()
        if place is not None:  # every byte will be read now, so a look at the checksums costs little
            for rows in self._rows.values():
                rows.verify()
        self._packed = {} if place is None else {n: _Packed(rows, place) for n, rows in self._kept.items()}
        self.resident = bool(self._packed) and place == device

    def __len__(self) -> int:
        return self.count

    def modalities(self) -> list[str]:
        return list(self._rows)

    def lengths(self) -> dict[str, np.ndarray]:
        """By modality, the tokens of each row (of its first view)."""
        return {name: on_disk.picked(rows.length, self._where[name][: self.count]) for name, rows in self._kept.items()}

    def blocks(self) -> np.ndarray:
        """The shard that each row (of its first view) lies in, of the stream with the most bytes."""
        name = max(self._rows, key=lambda name: _memory(self._rows[name]))
        return on_disk.picked(self._rows[name].shard, self._where[name][: self.count])

    def ragged_lengths(self) -> np.ndarray:
        """Tokens by row of the modality whose random batches hold the largest share of padding."""
        lengths = self.lengths()
        shares = padding(lengths, 64)
        return lengths[max(shares, key=lambda name: shares[name])]

    def batch(self, index: Tensor, view: int = 0, by_parts: bool = False) -> dict[str, Tokens]:
        """Padded tokens of the given rows (a CPU index), float32 on the device; integer ids stay integers.

        Args:
            by_parts: a large batch on a CPU is `Gathered`: cast a sample at a time by whoever reads it.
        """
        return self._arrived(self._gathered(index, view, by_parts and self.device.type == "cpu"))

    def fixed_batch(self, index: Tensor, view: Tensor) -> dict[str, Tokens]:
        """The same, of resident features by an index and a view on the device, padded to the longest row of all.

        Nothing of it is read by the CPU, so that it can be recorded and replayed.
        """
        place = index + (view % self.views * self.count if self.views else 0)
        found = {n: packed.padded(self._there[n][place], packed.longest) for n, packed in self._packed.items()}
        return self._arrived(found)

    @cached_property
    def _there(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(where).to(self.device) for name, where in self._where.items()}

    def fixed_length_costs(self, size: int) -> float:
        """Times the tokens of random batches of `size` rows that batches padded to the longest row of all have."""
        lengths = self.lengths()
        random = sum(
            v.sum() / max(1e-9, 1 - share)
            for v, share in zip(lengths.values(), padding(lengths, size).values(), strict=True)
        )
        fixed = sum(max(1, values.max(initial=0)) * len(values) for values in lengths.values())
        return float(fixed / max(1, random))

    def batches(
        self, indices: Iterable[Tensor], view: int = 0, by_parts: bool = False
    ) -> Iterator[tuple[Tensor, dict[str, Tokens]]]:
        """Each index with its batch, gathered ahead of time where that takes a copy; `by_parts` as `batch` has it."""
        if self.resident:
            for index in indices:
                yield index, self.batch(index, view, by_parts)
            return
        coming = indices if self._packed else delayed(indices, lambda index: self._will_need(index, view), NOTICE)
        if self.device.type == "cpu":  # the model needs all cores itself; a thread beside it made batches half as fast
            for index in coming:
                yield index, self.batch(index, view, by_parts)
            return
        threads = threads_beside(self.device)
        for index, tokens in ahead(
            lambda index: (index, self._gathered(index, view)), coming, AHEAD + threads, threads
        ):
            yield index, self._arrived(tokens)

    def _distinct(self, name: str, index: Tensor, view: int) -> np.ndarray:
        """The numbers of the distinct rows behind rows of a view."""
        return self._where[name][index.numpy() + (view % self.views if self.views else 0) * self.count]

    def _gathered(self, index: Tensor, view: int, by_parts: bool = False) -> dict[str, Tokens]:
        pinned = self.device.type == "cuda"
        found = {}
        for name, rows in self._rows.items():
            which = self._distinct(name, index, view)
            packed = self._packed.get(name)
            if by_parts and is_large(self._kept[name], which):
                found[name] = packed.by_parts(torch.from_numpy(which)) if packed else Gathered.of(gather(rows, which))
                continue
            tokens = packed.gather(torch.from_numpy(which), pinned) if packed else gather(rows, which, pinned)
            if pinned and tokens.values.device.type == "cpu" and not tokens.values.is_pinned():
                tokens = Tokens(tokens.values.pin_memory(), tokens.mask.pin_memory())  # decoded from int8
            found[name] = tokens
        return found

    def _arrived(self, streams: dict[str, Tokens]) -> dict[str, Tokens]:
        """On the device, and cast there: half the bytes to move."""
        return {name: t.to(self.device).to(self.device, torch.float32) for name, t in streams.items()}

    def _will_need(self, index: Tensor, view: int) -> None:
        for name, rows in self._rows.items():
            for row in self._distinct(name, index, view):
                start = int(rows.start[row])
                rows.maps[rows.shard[row]].will_need(start, start + int(rows.length[row]))

    def _means(self) -> dict[str, Rows | Means]:
        """Of all rows; those of one token are their own. {} where main memory has no room for them."""
        found = {name: Means(rows) if rows.length.max(initial=0) > 1 else rows for name, rows in self._rows.items()}
        return found if sum(map(_memory, found.values())) <= SHARE * free_memory(torch.device("cpu")) else {}

    def _place(self) -> torch.device | None:
        """The device where the rows fit into its free memory, else main memory, else None: the map."""
        what = "means of features" if any(isinstance(rows, Means) for rows in self._kept.values()) else "features"
        size = f"{self.bytes / 1e9:.2f} GB of {what}"
        for place in dict.fromkeys((self.device, torch.device("cpu"))):
            free = free_memory(place)
            if self.bytes <= SHARE * free:
                self.placement = f"{size} resident in {place.type} memory, {free / 1e9:.1f} GB of which are free"
                return place
        self.placement = f"{size} read from the memory map: more than {SHARE:.0%} of what is free"
        return None


class _Packed:
    """All rows of one stream in one tensor, and a last token of zeros for padding; a batch is one gather."""

    def __init__(self, rows: Rows | Means, device: torch.device) -> None:
        self.values = rows.packed().to(device)
        self.counts = torch.from_numpy(rows.length)
        self.lengths = self.counts.to(device)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.longest = max(1, int(self.counts.max())) if len(self.counts) else 1

    def gather(self, index: Tensor, pinned: bool = False) -> Tokens:
        """Rows by a CPU index, padded to the longest of them; from main memory into pinned memory, if asked."""
        device, tokens = self.values.device, max(1, int(self.counts[index].max()))
        return self.padded(index.to(device, non_blocking=True), tokens, pinned and device.type == "cpu")

    def by_parts(self, index: Tensor) -> Tokens:
        """Rows by a CPU index, as `Gathered`."""
        lengths = self.counts[index]
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        return Gathered(self.values, self.starts[index].tolist(), lengths.tolist(), mask, self._means[index])

    @cached_property
    def _means(self) -> Tensor:
        return means_of(self.values, self.starts.tolist(), self.counts.tolist())

    def padded(self, index: Tensor, tokens: int, pinned: bool = False) -> Tokens:
        """Rows by an index on their device, padded to so many tokens."""
        positions = torch.arange(tokens, device=index.device)
        mask = positions < self.lengths[index][:, None]  # (batch, tokens)
        where = torch.where(mask, self.starts[index][:, None] + positions, len(self.values) - 1)
        # several times as fast on a CPU as an index of two dimensions
        shape = where.numel(), self.values.shape[1]
        out = torch.empty(shape, dtype=self.values.dtype, pin_memory=True) if pinned else None
        found = torch.index_select(self.values, 0, where.flatten(), out=out)
        return Tokens(found.unflatten(0, where.shape), mask)


def gather(rows: Rows, which: np.ndarray, pinned: bool = False) -> Tokens:
    """Rows of the memory map as a padded batch on the CPU, each copied once, straight into its place."""
    if rows.coded:
        return pad([rows[i] for i in which])
    lengths = rows.length[which]
    arrays = [mapped.arrays["values"] for mapped in rows.maps]
    shape = len(which), max(1, int(lengths.max(initial=0))), arrays[0].shape[1]
    # numpy asks for huge pages, torch doesn't: half the time of a gather went into faults of small ones
    empty = torch.empty(shape, dtype=rows.memory_dtype, pin_memory=True) if pinned else None
    out: Any = np.empty(shape, arrays[0].dtype) if empty is None else empty.numpy()
    for place, (shard, start, length) in enumerate(
        zip(rows.shard[which].tolist(), rows.start[which].tolist(), lengths.tolist(), strict=True)
    ):
        out[place, :length] = arrays[shard][start : start + length]
        out[place, length:] = 0
    mask = torch.arange(shape[1]) < torch.from_numpy(lengths)[:, None]
    return Tokens(named(torch.from_numpy(out), rows.kind), mask)


def _memory(rows: Rows | Means) -> int:
    return int(rows.length.sum()) * rows.width() * (2 if rows.coded else rows.memory_dtype.itemsize)
