"""The feature store: ragged token sequences in safetensors shards, found by the content that they were made of.

Layout, below one root:

    <entry>/<shard>.safetensors   values (all tokens of the shard, width), offsets (rows + 1), and what the codec adds
    <entry>/<shard>.json          the keys of its rows, in order, a CRC-32 each, and the SHA-256 of the file beside it

An entry is everything that has the same weights, preprocessing, depth and dtype; a row is one sample's stream, keyed by
the sample's own content. The JSON is written last and atomically: a shard without it does not exist, so a run that is
killed at any moment leaves only whole shards behind, and writers on several machines need no lock. A changed sample is
one new row, not a new cache.
"""

import errno
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from fusetune.errors import FusetuneError
from fusetune.features.codecs import decode, encode
from fusetune.features.mapping import NUMPY, MappedShard
from fusetune.features.shards import FORMAT, Shard, read_shards
from fusetune.features.storage import Folder, LocalFolder, Store
from fusetune.scratch import is_abandoned


class Entry:
    """All rows of one kind: same weights, same depth, same dtype.

    Args:
        folder: made when the first shard is written.
    """

    def __init__(self, folder: Folder | Path) -> None:
        self.folder = LocalFolder(folder) if isinstance(folder, Path) else folder

    @classmethod
    def of(cls, store: Store, name: str) -> "Entry":
        return cls(store.folder(name))

    def shards(self) -> Iterator[Shard]:
        """The finished shards, by name."""
        return read_shards(self.folder)

    def keys(self) -> set[str]:
        return {key for shard in self.shards() for key in shard.keys}

    def write(self, keys: Sequence[str], values: Tensor, lengths: Tensor, dtype: str = "as prepared") -> Shard:
        """Add one shard.

        Args:
            keys: one a row.
            values: all tokens of all rows, (tokens, width), on the CPU.
            lengths: tokens of each row, (rows,).
            dtype: a name in `codecs.CODECS`.

        Raises:
            FusetuneError: the disk is full or a value is not finite; nothing half-written stays.
        """
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.long().cumsum(0)])
        tensors = {**encode(values, dtype), "offsets": offsets}
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        scratch = self.folder.scratch(name)
        try:
            data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
            scratch.write_bytes(data)
            stored, limits = tensors["values"], offsets.tolist()
            checks = [zlib.crc32(_raw(stored[a:b])) for a, b in pairwise(limits)]
            shard = Shard(name, tuple(keys), tuple(checks), hashlib.sha256(data).hexdigest())
            self.folder.commit(scratch, shard.file)
            record = {"format": FORMAT, "sha256": shard.sha256, "keys": shard.keys, "crc32": shard.checks}
            scratch.write_text(json.dumps(record))
            self.folder.commit(scratch, shard.index)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise FusetuneError(
                    f"{self.folder}: the disk is full. Finished shards are kept; free some space, or set "
                    "cache.dtype to float16 or int8, and run again."
                ) from error
            raise
        finally:
            scratch.unlink(missing_ok=True)
        return shard

    def sweep(self) -> None:
        """Remove what killed writers left: files of processes that are gone, here or long ago elsewhere."""
        if not isinstance(self.folder, LocalFolder):
            return  # an object is there whole or not at all
        for name in self.folder.names():
            if name.endswith(".tmp") and is_abandoned(self.folder.path / name):
                (self.folder.path / name).unlink(missing_ok=True)

    def remove(self, shard: Shard) -> None:
        """Delete a shard; its index goes first, so that it is never half there."""
        self.folder.remove(shard.index)
        self.folder.remove(shard.file)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.folder.size(name) for name in self.folder.names())

    def damage(self) -> Iterator[tuple[Shard, list[str]]]:
        """Every shard whose bytes aren't those that were written, with the keys of the rows that are broken."""
        for shard in self.shards():
            file = self.folder.local(shard.file, shard.sha256)
            if file_sha256(file) != shard.sha256:
                yield shard, broken_rows(file, shard)

    def rows(self, keys: Sequence[str]) -> "Rows":
        """Open the rows of the given keys, in that order; raises FusetuneError if some were never written."""
        maps: list[MappedShard] = []
        shards: list[Shard] = []
        place: dict[str, tuple[int, int]] = {}
        wanted = set(keys)
        for shard in self.shards():
            if wanted.isdisjoint(shard.keys):
                continue
            file = self.folder.local(shard.file, shard.sha256)
            try:
                mapped = MappedShard(file)
            except (ValueError, KeyError, OSError) as error:
                raise FusetuneError(_broken(f"{self.folder}/{shard.file}", str(error))) from error
            for i, key in enumerate(shard.keys):
                place[key] = (len(maps), i)
            maps.append(mapped)
            shards.append(shard)
        missing = [key for key in keys if key not in place]
        if missing:
            raise FusetuneError(
                f"{self.folder}: {len(missing)} of {len(keys)} samples are not cached. Run `cache_features` first."
            )
        return Rows(str(self.folder), maps, shards, [place[key] for key in keys])


class Rows(Sequence[Tensor]):
    """Rows of an entry, by number, as they were before the codec; (tokens, width) each.

    Attributes:
        maps: the shards that they lie in.
        shard, start, length: by row, its shard's number, its first token there, and how many it has.
        coded: whether values have to be decoded (int8).
        kind, memory_dtype: safetensors' name of the stored dtype, and what numpy moves it about as.
    """

    def __init__(
        self, folder: str, maps: list[MappedShard], shards: list[Shard], places: list[tuple[int, int]]
    ) -> None:
        self.folder, self.maps, self.shards, self.places = folder, maps, shards, places
        self.coded = bool(maps) and "scales" in maps[0].arrays
        self.kind = maps[0].kinds["values"] if maps else "F32"
        self.memory_dtype = torch.from_numpy(np.empty(0, NUMPY[self.kind])).dtype
        numbers = np.array([number for number, _ in places], dtype=np.int64)
        rows = np.array([row for _, row in places], dtype=np.int64)
        self.shard, self.start = numbers, np.zeros(len(places), dtype=np.int64)
        self.length = np.zeros(len(places), dtype=np.int64)
        for number, mapped in enumerate(maps):
            mine = numbers == number
            self.start[mine] = mapped.offsets[rows[mine]]
            self.length[mine] = mapped.offsets[rows[mine] + 1] - self.start[mine]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: Any) -> Any:
        mapped = self.maps[self.shard[number]]
        start = int(self.start[number])
        return decode(mapped.tensors(start, start + int(self.length[number])))

    def verify(self) -> None:
        """Read every row and compare it with its checksum; raises FusetuneError that names file and sample."""
        for number, row in self.places:
            shard = self.shards[number]
            if self.maps[number].crc(row) != shard.checks[row]:
                raise FusetuneError(_broken(f"{self.folder}/{shard.file}", f"sample {shard.keys[row]} has changed"))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def broken_rows(file: Path, shard: Shard) -> list[str]:
    """Keys of the rows whose values have changed; all of them where the file itself can't be read."""
    try:
        mapped = MappedShard(file)
        found = [mapped.crc(i) for i in range(len(shard.keys))]
    except (ValueError, KeyError, OSError, IndexError):
        return list(shard.keys)
    broken = [key for key, check, is_ in zip(shard.keys, shard.checks, found, strict=True) if check != is_]
    return broken or list(shard.keys)  # header or offsets: nothing in it can be trusted


def _broken(file: str, what: str) -> str:
    return (
        f"{file}: {what}, its bytes are not those that were written. `python -m fusetune.features verify --repair` "
        "removes this shard; then `cache_features` makes it anew, and nothing else."
    )


def _raw(tensor: Tensor) -> Any:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
