"""One shard's worth of samples: what is still to be computed, and how it is computed and written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.device import extraction_dtype
from fusetune.features.ahead import ahead, threads_beside
from fusetune.features.index import CacheSettings, Features, stored_dtype
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.tokens import Tokens, joined

PART = 16  # samples
Progress = Callable[[int, int, int], None]  # samples done, samples, bytes written


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


def extract_chunk(
    backbone: Backbone, source: Source, features: Features, chunk: Chunk, store: Store, settings: CacheSettings, device
) -> int:
    """Compute and write one chunk; returns the bytes written."""
    streams = Gathered(chunk.names)
    for _ in streams.fill(backbone, source, features, chunk, settings, device):
        pass
    return streams.write(chunk, features, store, settings)


class Gathered:
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
    for some, streams in zip(places, prepared_ahead(prepared, places, threads_beside(device)), strict=True):
        at_device = {name: tokens.to(device) for name, tokens in streams.items()}
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            reached = backbone.advance(at_device, ground, towers)
        yield len(some), reached


def prepared_ahead(
    prepared: Callable[[Sequence[int]], dict[str, Tokens]], batches: Sequence[Sequence[int]], threads: int
) -> Iterator[dict[str, Tokens]]:
    """Each batch made ready ahead of its time, by several threads in parts of `PART` samples.

    A thread's large allocations are mapped by the system one by one, for which all threads of a process wait.
    """
    if threads == 1:
        yield from ahead(prepared, batches, 2)
        return
    parts = [[batch[i : i + PART] for i in range(0, len(batch), PART)] for batch in batches]
    depth = threads + len(parts[0]) if parts else threads
    ready = ahead(prepared, [part for of_batch in parts for part in of_batch], depth, threads)
    for of_batch in parts:
        streams = [next(ready) for _ in of_batch]
        yield {name: joined([part[name] for part in streams]) for name in streams[0]}


def _owner(key: str, count: int) -> int:
    """Which of `count` machines owns a row: each has a range of the hashes."""
    return int(key[:8] or "0", 16) * count >> 32
