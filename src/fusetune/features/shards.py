"""What is known of a store without torch, so that asking costs little: indices of its shards, and of features in it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusetune.errors import FusetuneError
from fusetune.features.key_files import read_keys
from fusetune.features.storage import Folder
from fusetune.keys import Keys

FORMAT = 2
AT_ONCE = 128  # indices that are read at once: a round trip each where the store is far away


@dataclass(frozen=True)
class Shard:
    """One finished shard of an entry; `name` without suffix, `checks` one CRC-32 a row."""

    name: str
    keys: tuple[str, ...]
    checks: tuple[int, ...]
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def index(self) -> str:
        return f"{self.name}.json"


def read_shards(folder: Folder) -> Iterator[Shard]:
    """The finished shards of an entry, by name.

    Raises:
        FusetuneError: an index that is none, or one whose shard is gone.
    """
    names = folder.names()
    files, indices = set(names), [name for name in names if name.endswith(".json")]
    contents = (c for i in range(0, len(indices), AT_ONCE) for c in folder.read(indices[i : i + AT_ONCE]))
    for index, content in zip(indices, contents, strict=True):
        try:
            record = json.loads(content)
            shard = Shard(index.removesuffix(".json"), tuple(record["keys"]), tuple(record["crc32"]), record["sha256"])
        except (ValueError, KeyError, TypeError):
            raise FusetuneError(
                f"{folder}/{index}: not the index of a shard of format {FORMAT}. Delete it and run `cache_features`."
            ) from None
        if shard.file not in files:
            raise FusetuneError(f"{folder}/{index}: its {shard.file} is gone. Delete it and run `cache_features`.")
        yield shard


def keys_of(shards: Iterable[Shard]) -> Keys:
    """Of all their rows."""
    return Keys.joined(Keys.of(shard.keys) for shard in shards)


def references(indices: Iterable[Path]) -> dict[str, Keys]:
    """By entry, the row keys that the given indices (features.arrow) name."""
    found: dict[str, list[Keys]] = {}
    for file in indices:
        try:
            record, several = read_keys(file)
            for stage in (record, *record.get("later", {}).values()):
                for mapping in (stage["keys"], *stage["views"]):
                    for name, number in mapping.items():
                        found.setdefault(stage["entries"][name], []).append(several[number])
        except (FusetuneError, KeyError, TypeError, AttributeError, IndexError):
            raise FusetuneError(f"{file}: not the index of cached features; nothing was deleted.") from None
    return {entry: Keys.joined(several) for entry, several in found.items()}
