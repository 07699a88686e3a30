"""What is known of a store without torch, so that asking costs little: indices of its shards, and of features in it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusetune.errors import FusetuneError
from fusetune.features.storage import Folder

FORMAT = 2


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
    for index, content in zip(indices, folder.read(indices), strict=True):
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


def references(indices: Iterable[Path]) -> dict[str, set[str]]:
    """By entry, the row keys that the given features.json files name."""
    found: dict[str, set[str]] = {}
    for file in indices:
        try:
            record = json.loads(file.read_text())
            for stage in (record, *record.get("later", {}).values()):
                for mapping in (stage["keys"], *stage["views"]):
                    for name, keys in mapping.items():
                        found.setdefault(stage["entries"][name], set()).update(keys)
        except (ValueError, KeyError, TypeError):
            raise FusetuneError(f"{file}: not the index of cached features; nothing was deleted.") from None
    return found
