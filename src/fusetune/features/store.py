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
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fusetune.errors import FusetuneError
from fusetune.features.codecs import encode
from fusetune.features.mapping import MappedShard
from fusetune.features.rows import Rows
from fusetune.features.shards import FORMAT, Shard, keys_of, read_shards
from fusetune.features.storage import Folder, LocalFolder, Store
from fusetune.keys import Keys
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

    def keys(self) -> Keys:
        """Of all rows that are there."""
        return keys_of(self.shards())

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

    def rows(self, keys: Iterable[str]) -> Rows:
        """Open the rows of the given keys, in that order; raises FusetuneError if some were never written."""
        return Rows(self.folder, Keys.of(keys))


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


def _raw(tensor: Tensor) -> Any:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
