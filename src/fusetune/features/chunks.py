"""One shard's worth of samples: what is still to be computed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusetune.features.index import CacheSettings, Features
from fusetune.features.keys import Keys
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.features.store import Entry


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
        mappings = (features.keys, *features.views)
        keys = Keys.joined(mapping[group[0]] for mapping in mappings)  # of all views, one behind another
        first = keys.numbered()[1]  # of several with one content
        first = first[_owners(keys[first], count) == number]
        there = [keys[first].places_in(Entry.of(store, features.entries[name]).keys()) >= 0 for name in group]
        views, places = np.divmod(first[~np.logical_and.reduce(there)], len(source))
        for view, mapping in enumerate(mappings, start=-1):
            todo = places[views == view + 1]
            drawn = source.view_keys(content, view) if view >= 0 and len(todo) else {}
            for start in range(0, len(todo), settings.shard_size):
                rows = todo[start : start + settings.shard_size]
                augmented = {n: drawn[n][rows] for n in source.augmentations if n in drawn}
                found.append(Chunk(group, rows, mapping[group[0]][rows], augmented))
    return found


def _owners(keys: Keys, count: int) -> np.ndarray:
    """Which of `count` machines owns each row: each has a range of the hashes."""
    return keys.digests[:, :4].copy().view(">u4")[:, 0].astype(np.int64) * count >> 32
