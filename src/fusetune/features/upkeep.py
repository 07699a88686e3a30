"""What a user does to a store: see its size, check its bytes, throw away what nothing refers to."""

from collections.abc import Iterator
from dataclasses import dataclass

from fusetune.features.shards import keys_of
from fusetune.features.storage import Store
from fusetune.features.store import Entry
from fusetune.keys import Keys

NOTHING = Keys.of(())


@dataclass(frozen=True)
class EntrySize:
    """One entry: its name, files, rows and bytes, and how many of its rows an index names."""

    name: str
    shards: int
    rows: int
    referenced: int
    bytes: int


def sizes(store: Store, named: dict[str, Keys]) -> Iterator[EntrySize]:
    """Every entry of the store."""
    for name in store.entries():
        entry = Entry.of(store, name)
        shards = list(entry.shards())
        keys = keys_of(shards)
        keys = keys[keys.numbered()[1]]
        used = int((keys.places_in(named.get(name, NOTHING)) >= 0).sum())
        yield EntrySize(name, len(shards), len(keys), used, entry.size())


def collect_garbage(store: Store, named: dict[str, Keys], delete: bool) -> tuple[int, int]:
    """Shards of which no row is named, and their bytes; deleted if `delete`."""
    count = size = 0
    for name in store.entries():
        entry, wanted = Entry.of(store, name), set(named.get(name, NOTHING))
        for shard in list(entry.shards()):
            if wanted.isdisjoint(shard.keys):
                count += 1
                size += entry.folder.size(shard.file) + entry.folder.size(shard.index)
                if delete:
                    entry.remove(shard)
    return count, size


def verify(store: Store, repair: bool) -> Iterator[str]:
    """A sentence for every damaged shard; with `repair` it is removed, so that `cache_features` makes it anew."""
    for name in store.entries():
        entry = Entry.of(store, name)
        for shard, keys in list(entry.damage()):
            several = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            yield f"{entry.folder}/{shard.file}: sample {keys[0]}{several} of {len(shard.keys)} changed on disk"
            if repair:
                entry.remove(shard)
