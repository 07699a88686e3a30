"""From a manifest to a filled store: what is there already is not computed again.

Cost, for S samples that are new, T tokens of width d each: S forward passes up to the frontier, S T d bytes written,
hashed twice (SHA-256 of the file, CRC-32 of each row) and synced once a shard. Decoding runs in one thread ahead of the
forward pass and writing in one behind it, so that the slowest of the three sets the pace.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.device import extraction_dtype
from fusetune.errors import FusetuneError
from fusetune.features.ahead import ahead
from fusetune.features.index import CacheSettings, Features, describe, stored_dtype
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.tokens import Tokens

Progress = Callable[[int, int, int], None]  # samples done, samples, bytes written
PENDING = 2  # shards that may wait to be written


@dataclass(frozen=True)
class Chunk:
    """One shard's worth of samples for streams that are computed together.

    Attributes:
        names: the streams: one tower's, or all of them where they have met in the trunk.
        rows: of the manifest.
        keys: of the rows in the store, the same for all streams.
        augmented: keys of the rows' views by augmented modality; {} for the samples as they are.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    keys: tuple[str, ...]
    augmented: Mapping[str, tuple[str, ...]]


def chunks(source: Source, features: Features, store: Store, settings: CacheSettings) -> list[Chunk]:
    """What is still to be computed, in shards; the same for everybody who asks before anybody has begun."""
    names = tuple(features.keys)
    groups = [names] if features.frontier.trunk else [(name,) for name in names]
    number, count = settings.owned()
    content = source.content_keys() if features.views else {}
    found = []
    for group in groups:
        for entry in (Entry.of(store, features.entries[name]) for name in group):
            entry.sweep()
        done = set.intersection(*(Entry.of(store, features.entries[name]).keys() for name in group))
        for view, mapping in enumerate((features.keys, *features.views), start=-1):
            todo = []
            for row, key in enumerate(mapping[group[0]]):
                if key not in done and _owner(key, count) == number:
                    done.add(key)
                    todo.append(row)
            drawn = source.view_keys(content, view) if view >= 0 and todo else {}
            for start in range(0, len(todo), settings.shard_size):
                rows = tuple(todo[start : start + settings.shard_size])
                augmented = {n: tuple(drawn[n][row] for row in rows) for n in source.augmentations if n in drawn}
                found.append(Chunk(group, rows, tuple(mapping[group[0]][row] for row in rows), augmented))
    return found


def extract(
    backbone: Backbone,
    source: Source,
    frontier: Frontier,
    store: Store | Path | str,
    settings: CacheSettings,
    progress: Progress,
    device: torch.device,
) -> Features:
    """Fill the store with the features of `source` at `frontier`; rows that are there already are left alone.

    Args:
        progress: called after each batch.

    Raises:
        FusetuneError: an unreadable sample, activations that the dtype can't hold, a disk that is or will be full.
    """
    store = Store(store)
    features = describe(backbone, source, frontier, settings)
    todo = chunks(source, features, store, settings)
    if not todo:
        return features
    if settings.ray_workers:
        from fusetune.features.ray_extraction import extract_with_ray

        extract_with_ray(backbone, source, features, todo, store, settings, progress, device)
        return features
    backbone = backbone.to(device)
    total = sum(len(chunk.rows) for chunk in todo)
    done = written = 0
    with ThreadPoolExecutor(1) as writer:
        waiting: deque[Future[int]] = deque()
        for chunk in todo:
            streams = _Gathered(chunk.names)
            for count in streams.fill(backbone, source, features, chunk, settings, device):
                if done == 0:
                    check_space(store, features, streams.bytes / count * total)
                done += count
                progress(done, total, written)
            waiting.append(writer.submit(streams.write, chunk, features, store, settings))
            while len(waiting) > PENDING:
                written += waiting.popleft().result()
        written += sum(future.result() for future in waiting)
    progress(done, total, written)
    return features


def extract_chunk(
    backbone: Backbone, source: Source, features: Features, chunk: Chunk, store: Store, settings: CacheSettings, device
) -> int:
    """Compute and write one chunk; returns the bytes written."""
    streams = _Gathered(chunk.names)
    for _ in streams.fill(backbone, source, features, chunk, settings, device):
        pass
    return streams.write(chunk, features, store, settings)


def check_space(store: Store, features: Features, needed: float) -> None:
    """Raise FusetuneError if the disk is too small for `needed` bytes."""
    free = store.folder(next(iter(features.entries.values()))).free()
    if free is not None and needed > free:
        raise FusetuneError(
            f"feature cache: it will take about {needed / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free at {store}. "
            "Nothing was written. Free some space, set cache.dtype to float16 or int8, or move the store (globals.yml)."
        )


class _Gathered:
    """The real tokens of a chunk's streams, packed, on the CPU."""

    def __init__(self, names: Sequence[str]) -> None:
        self.values: dict[str, list[Tensor]] = {name: [] for name in names}
        self.lengths: dict[str, list[Tensor]] = {name: [] for name in names}
        self.bytes = 0

    def fill(
        self, backbone: Backbone, source: Source, features: Features, chunk: Chunk, settings: CacheSettings, device
    ) -> Iterator[int]:
        """Compute the chunk batch by batch; yields the number of samples of each."""
        for count, streams in _advance(backbone, source, chunk, features.frontier, settings, device):
            self._add(streams, features.frontier, settings)
            yield count

    def _add(self, streams: Mapping[str, Tokens], frontier: Frontier, settings: CacheSettings) -> None:
        for name, tokens in streams.items():
            values, dtype = tokens.values[tokens.mask], stored_dtype(frontier, name, settings)
            if dtype in ("float16", "bfloat16"):  # on the device: half the bytes to bring home
                values = values.to(getattr(torch, dtype))
            self.values[name].append(values.cpu())
            self.lengths[name].append(tokens.mask.sum(1).cpu())
            self.bytes += values.numel() * (1 if dtype == "int8" else values.element_size())

    def write(self, chunk: Chunk, features: Features, store: Store, settings: CacheSettings) -> int:
        size = 0
        for name in chunk.names:
            entry = Entry.of(store, features.entries[name])
            values, lengths = torch.cat(self.values.pop(name)), torch.cat(self.lengths[name])
            shard = entry.write(chunk.keys, values, lengths, stored_dtype(features.frontier, name, settings))
            size += entry.folder.size(shard.file)
        return size


@torch.no_grad()
def _advance(
    backbone: Backbone, source: Source, chunk: Chunk, frontier: Frontier, settings: CacheSettings, device
) -> Iterator[tuple[int, dict[str, Tokens]]]:
    """The chunk's streams at the frontier, batch by batch, with the number of samples of each."""

    def prepared(places: Sequence[int]) -> dict[str, Tokens]:
        rows = [chunk.rows[i] for i in places]
        samples = {}
        for name in chunk.names:
            keys = chunk.augmented.get(name)
            samples[name] = source.decoded(name, rows, keys and [keys[i] for i in places])
        return backbone.prepare(samples)

    batch_size, dtype = settings.batch_size, extraction_dtype(device, settings.dtype)
    places = [range(i, min(i + batch_size, len(chunk.rows))) for i in range(0, len(chunk.rows), batch_size)]
    ground = Frontier(dict.fromkeys(chunk.names, 0))
    towers = Frontier({name: frontier.towers[name] for name in chunk.names}, frontier.trunk)
    for some, streams in zip(places, ahead(prepared, places, 2), strict=True):
        at_device = {name: tokens.to(device) for name, tokens in streams.items()}
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            reached = backbone.advance(at_device, ground, towers)
        yield len(some), reached


def _owner(key: str, count: int) -> int:
    """Which of `count` machines owns a row: each has a range of the hashes."""
    return int(key[:8] or "0", 16) * count >> 32
