"""One shard's worth of samples: what is still to be computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fusetune.features.index import CacheSettings, Features
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.keys import Keys
from fusetune.on_disk import filled, slices

MOST = 2**14  # shards of an entry: each is an open file and a map of whoever reads them all


@dataclass(frozen=True)
class Chunk:
    """One shard's worth of samples for streams that are computed together.

    Attributes:
        names: the streams: one tower's, or all of them where they have met in the trunk.
        rows: of the manifest, (samples,).
        keys: of the rows in the store, the same for all streams.
        augmented: keys of the rows' views by augmented modality; {} for the samples as they are.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    keys: Keys
    augmented: Mapping[str, Keys]


@dataclass(frozen=True)
class _Missing:
    """Rows that are missing from a stream, in one view or as they are; `keys`, `augmented`: of all rows; `size`: of
    a shard."""

    names: tuple[str, ...]
    rows: np.ndarray
    keys: Keys
    augmented: Mapping[str, Keys]
    size: int


class Chunks(Sequence[Chunk]):
    """What is still to be computed; a chunk is made when it is asked for.

    Attributes:
        rows: in all of them.
    """

    def __init__(self, missing: Sequence[_Missing]) -> None:
        self.missing, self.rows = missing, sum(len(some.rows) for some in missing)
        self._ends = np.cumsum([-(-len(some.rows) // some.size) for some in missing])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = int(self._ends.searchsorted(number, side="right"))
        some = self.missing[which]
        start = (number - (self._ends[which - 1] if which else 0)) * some.size
        rows = some.rows[start : start + some.size]
        augmented = {name: keys[rows] for name, keys in some.augmented.items()}
        return Chunk(some.names, rows, some.keys[rows], augmented)


def chunks(source: Source, features: Features, store: Store, settings: CacheSettings) -> Chunks:
    """What is still to be computed, in shards; the same for everybody who asks before anybody has begun."""
    names = tuple(features.keys)
    groups = [names] if features.frontier.trunk else [(name,) for name in names]
    number, count = settings.owned()
    content = source.content_keys() if features.views else {}
    found = []
    for group in groups:
        for entry in (Entry.of(store, features.entries[name]) for name in group):
            entry.sweep()
        mappings = (features.keys, *features.views)
        keys = Keys.joined(mapping[group[0]] for mapping in mappings)  # of all views, one behind another
        first = keys.numbered()[1]  # of several with one content
        size = max(settings.shard_size, -(-len(first) // MOST))
        asked = keys if len(first) == len(keys) else keys[first]
        there = [asked.places_in(Entry.of(store, features.entries[name]).keys()) for name in group]
        wanted = [
            first[some][(_owners(asked[some], count) == number) & ~np.logical_and.reduce([t[some] >= 0 for t in there])]
            for some in slices(len(first))
        ]
        todo = filled(wanted, sum(map(len, wanted)), np.int64)
        limits = np.searchsorted(todo, np.arange(len(mappings) + 1) * len(source)).tolist()
        for view, (mapping, (begin, end)) in enumerate(zip(mappings, pairwise(limits), strict=True), start=-1):
            drawn = source.view_keys(content, view) if view >= 0 and begin < end else {}
            augmented = {name: drawn[name] for name in source.augmentations if name in drawn}
            rows = todo[begin:end] - (view + 1) * len(source) if view >= 0 else todo[begin:end]
            found.append(_Missing(group, rows, mapping[group[0]], augmented, size))
    return Chunks(found)


def _owners(keys: Keys, count: int) -> np.ndarray:
    """Which of `count` machines owns each row: each has a range of the hashes."""
    return keys.digests[:, :4].copy().view(">u4")[:, 0].astype(np.int64) * count >> 32
