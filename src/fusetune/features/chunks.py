"""One shard's worth of samples: what is still to be computed."""

from collections.abc import Mapping
from dataclasses import dataclass

from fusetune.features.index import CacheSettings, Features
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.features.store import Entry


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


def _owner(key: str, count: int) -> int:
    """Which of `count` machines owns a row: each has a range of the hashes."""
    return int(key[:8] or "0", 16) * count >> 32
