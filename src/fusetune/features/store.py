"""The feature store: ragged token sequences in safetensors shards, found by the content that they were made of.

Layout, below one root:

    <entry>/<shard>.safetensors   values (all tokens of the shard, width) and offsets (rows + 1)
    <entry>/<shard>.json          the keys of its rows, in order, and the SHA-256 of the file beside it

An entry is everything that has the same weights, preprocessing, depth and dtype; a row is one sample's stream, keyed by
the sample's own content. The JSON is written last and atomically: a shard without it does not exist, so a run that is
killed at any moment leaves only whole shards behind. A changed sample is one new row, not a new cache.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusetune.errors import FusetuneError

FORMAT = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Shard:
    """One finished shard of an entry."""

    file: Path
    keys: tuple[str, ...]
    sha256: str


class Entry:
    """All rows of one kind: same weights, same depth, same dtype.

    Args:
        folder: made when the first shard is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shards(self) -> Iterator[Shard]:
        """The finished shards, by name."""
        for index in sorted(self.folder.glob("*.json")):
            try:
                record = json.loads(index.read_text())
                shard = Shard(index.with_suffix(".safetensors"), tuple(record["keys"]), record["sha256"])
            except (ValueError, KeyError, TypeError):
                raise FusetuneError(f"{index}: not the index of a shard. Delete it and run `cache_features`.") from None
            if not shard.file.is_file():
                raise FusetuneError(f"{index}: its {shard.file.name} is gone. Delete it and run `cache_features`.")
            yield shard

    def keys(self) -> set[str]:
        return {key for shard in self.shards() for key in shard.keys}

    def write(self, keys: Sequence[str], rows: Sequence[Tensor]) -> Shard:
        """Add one shard; rows are (tokens_i, width) on the CPU, of one dtype.

        Raises:
            FusetuneError: the disk is full or a value is not finite; nothing half-written stays.
        """
        values = torch.cat(list(rows))
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise FusetuneError(
                f"feature cache: activations beyond what {str(values.dtype)[6:]} can hold (or NaN). Set "
                "cache.dtype to bfloat16 or float32."
            )
        lengths = torch.tensor([0, *(len(row) for row in rows)])
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        file = self.folder / f"{name}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}.tmp")
            try:
                save_file({"values": values.contiguous(), "offsets": lengths.cumsum(0)}, temporary)
                sha256 = file_sha256(temporary)
                _commit(temporary, file)
                record = {"format": FORMAT, "sha256": sha256, "keys": list(keys)}
                temporary.write_text(json.dumps(record))
                _commit(temporary, file.with_suffix(".json"))
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            if full:
                raise FusetuneError(
                    f"{self.folder}: the disk is full. Finished shards are kept; free some space, or set "
                    "cache.dtype to float16, and run again."
                ) from error
            raise
        return Shard(file, tuple(keys), sha256)

    def sweep(self) -> None:
        """Remove what a killed writer left."""
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)

    def verify(self) -> None:
        """Compare every shard with its checksum; raises FusetuneError that names the first bad file."""
        for shard in self.shards():
            if file_sha256(shard.file) != shard.sha256:
                raise FusetuneError(
                    f"{shard.file}: its bytes have changed since they were written (checksum). Delete it and "
                    f"{shard.file.with_suffix('.json').name}, then run `cache_features`: only this shard is made anew."
                )

    def rows(self, keys: Sequence[str]) -> "Rows":
        """Open the rows of the given keys, in that order; raises FusetuneError if some were never written."""
        tensors: list[Tensor] = []
        place: dict[str, tuple[int, int, int]] = {}
        wanted = set(keys)
        for shard in self.shards():
            if wanted.isdisjoint(shard.keys):
                continue
            try:
                loaded = load_file(shard.file)  # memory-mapped: nothing is read before it is used
            except SafetensorError as error:
                raise FusetuneError(f"{shard.file}: broken ({error}). Delete it and run `cache_features`.") from error
            offsets = loaded["offsets"].tolist()
            for i, key in enumerate(shard.keys):
                place[key] = (len(tensors), offsets[i], offsets[i + 1])
            tensors.append(loaded["values"])
        missing = [key for key in keys if key not in place]
        if missing:
            raise FusetuneError(
                f"{self.folder}: {len(missing)} of {len(keys)} samples are not cached. Run `cache_features` first."
            )
        return Rows(tensors, [place[key] for key in keys])


class Rows(Sequence[Tensor]):
    """Rows of an entry, by number; each access is a view of the map."""

    def __init__(self, tensors: list[Tensor], places: list[tuple[int, int, int]]) -> None:
        self._tensors, self._places = tensors, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number):
        shard, start, stop = self._places[number]
        return self._tensors[shard][start:stop]

    def lengths(self) -> list[int]:
        return [stop - start for _, start, stop in self._places]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(temporary: Path, file: Path) -> None:
    """fsync and rename: the file is there whole, or not at all."""
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    temporary.replace(file)
