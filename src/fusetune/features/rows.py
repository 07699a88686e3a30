"""Rows of an entry of the store, opened where they lie.

Cost: reading the index of every shard once, and 60 bytes a row from then on, whatever a row holds; of many rows they
are on disk.
"""

import errno
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune import on_disk
from fusetune.errors import FusetuneError
from fusetune.features.codecs import decode
from fusetune.features.mapping import NUMPY, MappedShard, may_map, named
from fusetune.features.shards import read_shards
from fusetune.features.storage import Folder
from fusetune.keys import Keys


class Rows(Sequence[Tensor]):
    """Rows of an entry, by number, as they were before the codec; (tokens, width) each.

    Args:
        folder: of the entry.
        keys: of the rows that are wanted, in their order.

    Attributes:
        maps: the shards that they lie in.
        files: of these shards, in words.
        shard, row, start, length: by row, its shard's number, its own there, its first token there, and how many it
            has.
        coded: whether values have to be decoded (int8).
        kind, memory_dtype: safetensors' name of the stored dtype, and what numpy moves it about as.

    Raises:
        FusetuneError: some were never written, a shard can't be read, or there are too many.
    """

    def __init__(self, folder: Folder, keys: Keys) -> None:
        self.keys = keys
        shards: list[tuple[str, str, int]] = []
        checks: list[np.ndarray] = []

        def known() -> Iterator[Keys]:
            for shard in read_shards(folder):
                shards.append((shard.file, shard.sha256, len(shard.keys)))
                checks.append(np.array(shard.checks, np.uint32))
                yield Keys.of(shard.keys)

        places = keys.places_in(Keys.joined(known()))
        some_of = list(on_disk.slices(len(keys)))
        if missing := sum(int((places[some] < 0).sum()) for some in some_of):
            raise FusetuneError(
                f"{folder}: {missing} of {len(keys)} samples are not cached. Run `cache_features` first."
            )
        begins = np.cumsum([0, *(count for _, _, count in shards)])
        all_checks = on_disk.filled(checks, int(begins[-1]), np.uint32)
        is_used = np.zeros(len(shards), bool)
        for some in some_of:
            is_used[np.searchsorted(begins, places[some], side="right") - 1] = True
        used = np.flatnonzero(is_used)
        self.files = [f"{folder}/{shards[number][0]}" for number in used]
        self.maps = list(_mapped(folder, [shards[number][:2] for number in used]))
        first = np.cumsum([0, *(len(mapped.offsets) - 1 for mapped in self.maps)])
        sizes = on_disk.filled((np.diff(mapped.offsets) for mapped in self.maps), int(first[-1]), np.int64)
        starts = on_disk.filled((mapped.offsets[:-1] for mapped in self.maps), int(first[-1]), np.int64)
        kinds = np.uint32, np.int32, np.int32, np.int64, np.int64
        self.checks, self.shard, self.row, self.start, self.length = (on_disk.array(len(keys), k) for k in kinds)
        for some in some_of:
            place = places[some]
            owner = np.searchsorted(begins, place, side="right") - 1
            self.checks[some], self.row[some] = all_checks[place], place - begins[owner]
            self.shard[some] = np.searchsorted(used, owner)
            where = first[self.shard[some]] + self.row[some]
            self.start[some], self.length[some] = starts[where], sizes[where]
        self.coded = bool(self.maps) and "scales" in self.maps[0].arrays
        self.kind = self.maps[0].kinds["values"] if self.maps else "F32"
        self.memory_dtype = torch.from_numpy(np.empty(0, NUMPY[self.kind])).dtype

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: Any) -> Any:
        mapped = self.maps[self.shard[number]]
        start = int(self.start[number])
        return decode(mapped.tensors(slice(start, start + int(self.length[number]))))

    def width(self) -> int:
        """Of a token."""
        return self.maps[0].arrays["values"].shape[1] if self.maps else 1

    def packed(self) -> Tensor:
        """All tokens of all rows, in order, and a last one of zeros: (tokens + 1, width). int8 comes as float16."""
        ends = self.length.cumsum()
        # int8 comes off the map as float32; half of that holds all that is in it
        dtype = torch.float16 if self.coded else self.memory_dtype
        out = named(torch.zeros(int(self.length.sum()) + 1, self.width(), dtype=dtype), self.kind)
        for mine, values in self.parts():
            out[torch.from_numpy(_ranges((ends - self.length)[mine], self.length[mine]))] = values.to(out.dtype)
        return out

    def parts(self, most: int | None = None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """All rows, shard by shard, at most so many at once: their numbers, and their tokens one behind another."""
        order = self.shard.argsort(kind="stable")
        limits = np.searchsorted(self.shard[order], np.arange(len(self.maps) + 1)).tolist()
        for number, mapped in enumerate(self.maps):
            first, behind = limits[number : number + 2]
            for begin in range(first, behind, most or max(1, behind - first)):
                mine = order[begin : min(behind, begin + most) if most else behind]
                yield mine, decode(mapped.tensors(_ranges(self.start[mine], self.length[mine])))

    def verify(self) -> None:
        """Read every row and compare it with its checksum; raises FusetuneError that names file and sample."""
        for some in on_disk.slices(len(self)):
            rows = zip(*(own[some].tolist() for own in (self.shard, self.row, self.checks)), strict=True)
            for number, (shard, row, check) in enumerate(rows, some.start):
                if self.maps[shard].crc(row) != check:
                    raise FusetuneError(broken(self.files[shard], f"sample {self.keys[number]} has changed"))


def broken(file: str, what: str) -> str:
    """What to say of a shard that isn't as it was written."""
    return (
        f"{file}: {what}, its bytes are not those that were written. `python -m fusetune.features verify --repair` "
        "removes this shard; then `cache_features` makes it anew, and nothing else."
    )


def _mapped(folder: Folder, shards: Sequence[tuple[str, str]]) -> Iterator[MappedShard]:
    may_map(len(shards))
    for name, sha256 in shards:
        file = folder.local(name, sha256)
        try:
            yield MappedShard(file)
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise FusetuneError(
                    f"{folder}: {len(shards)} shards are more files than this system lets one process open "
                    f"({error.strerror}). Raise its limit (ulimit -n, vm.max_map_count), or cache in larger shards: "
                    "cache.shard_size=8192."
                ) from None
            raise FusetuneError(broken(f"{folder}/{name}", str(error))) from error


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each, one after another."""
    ends = lengths.cumsum()
    return np.arange(int(lengths.sum())) + np.repeat(starts - (ends - lengths), lengths)
