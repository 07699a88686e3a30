"""From a manifest to a filled store: what is there already is not computed again."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import check, digest
from fusetune.features.store import DTYPES, Entry
from fusetune.manifest.decoders import decode
from fusetune.manifest.schema import Modality
from fusetune.tokens import Tokens

Progress = Callable[[int, int, int], None]  # samples done, samples, bytes written


@dataclass(frozen=True)
class CacheSettings:
    """
    Attributes:
        dtype: of activations on disk; depth 0 is kept as it is.
        batch_size: samples per pass over the backbone.
        shard_size: samples per shard.
        device: auto, cpu, cuda or cuda:N.
    """

    dtype: str = "float16"
    batch_size: int = 128
    shard_size: int = 512
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self.dtype in DTYPES, f"dtype: expected one of {', '.join(DTYPES)}, found '{self.dtype}'.")
        check(self.batch_size > 0, f"batch_size: expected a positive number, found {self.batch_size}.")
        check(self.shard_size > 0, f"shard_size: expected a positive number, found {self.shard_size}.")


class Source:
    """A manifest's samples, decoded on demand.

    Args:
        table: the manifest.
        modalities: by name; the order is the order of the streams.
    """

    def __init__(self, table: pa.Table, modalities: Mapping[str, Modality]) -> None:
        self.table, self.modalities = table, dict(modalities)
        for name, modality in modalities.items():
            column = modality.column_of(name)
            check(
                column in table.column_names,
                f"modality '{name}': the manifest has no column '{column}'. It has {', '.join(table.column_names)}.",
            )

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table[self.modalities[name].column_of(name)]

    def content_keys(self) -> dict[str, list[str]]:
        """By modality, the SHA-256 of each sample's own content; '' where the sample has none."""
        return {name: [_content(cell) for cell in self.column(name).to_pylist()] for name in self.modalities}

    def decoded(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """By modality, the decoded samples of the given rows; None where a modality is missing."""
        index = pa.array(rows)
        samples = {}
        for name, modality in self.modalities.items():
            cells = self.column(name).take(index).to_pylist()
            samples[name] = [
                None if cell is None else decode(modality.kind, cell, f"row {row}, column '{modality.column_of(name)}'")
                for row, cell in zip(rows, cells, strict=True)
            ]
        return samples

    def most_items(self) -> dict[str, int]:
        """By modality, the largest number of pictures, points or vectors of a sample (1 for text, counted later)."""
        longest = {}
        for name in self.modalities:
            column = self.column(name)
            listed = pa.types.is_list(column.type) and self.modalities[name].kind != "vector"
            longest[name] = (
                max((len(cell) for cell in column.to_pylist() if cell is not None), default=1) if listed else 1
            )
        return longest


@dataclass(frozen=True)
class Features:
    """Which rows of which entries are the features of a manifest at a frontier.

    Attributes:
        frontier: where they were taken.
        entries: entry folder by modality, relative to the store's root.
        keys: row keys by modality, in the manifest's order.
    """

    frontier: Frontier
    entries: Mapping[str, str]
    keys: Mapping[str, Sequence[str]]

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "frontier": {"towers": dict(self.frontier.towers), "trunk": self.frontier.trunk},
            "entries": dict(self.entries),
            "keys": {name: list(keys) for name, keys in self.keys.items()},
        }
        file.write_text(json.dumps(record))

    @classmethod
    def load(cls, file: Path) -> "Features":
        record = json.loads(file.read_text())
        return cls(Frontier(**record["frontier"]), record["entries"], record["keys"])


def extract(
    backbone: Backbone,
    source: Source,
    frontier: Frontier,
    root: Path,
    settings: CacheSettings,
    progress: Progress,
    device: torch.device,
) -> Features:
    """Fill the store with the features of `source` at `frontier`; rows that are there already are left alone.

    Args:
        root: the store's folder.
        progress: called after each batch.

    Raises:
        FusetuneError: an unreadable sample, activations that the dtype can't hold, a full disk.
    """
    features = describe(backbone, source, frontier, settings)
    entries = {name: Entry(root / folder) for name, folder in features.entries.items()}
    for entry in entries.values():
        entry.sweep()
    present = {name: entry.keys() for name, entry in entries.items()}
    todo, seen = [], set()
    for row in range(len(source)):
        ids = tuple(keys[row] for keys in features.keys.values())
        if ids not in seen and any(keys[row] not in present[name] for name, keys in features.keys.items()):
            seen.add(ids)
            todo.append(row)
    written = done = 0
    backbone = backbone.to(device)
    for shard in _chunks(todo, settings.shard_size):
        gathered: dict[str, list[torch.Tensor]] = {name: [] for name in entries}
        for rows in _chunks(shard, settings.batch_size):
            for name, tokens in _advance(backbone, source, rows, frontier, device).items():
                gathered[name] += [row.cpu() for row in _as_stored(tokens, frontier, name, settings).ragged()]
            done += len(rows)
            progress(done, len(todo), written)
        for name, entry in entries.items():
            fresh = {}
            for row, values in zip(shard, gathered[name], strict=True):
                if features.keys[name][row] not in present[name]:
                    fresh[features.keys[name][row]] = values
            if fresh:
                written += entry.write(list(fresh), list(fresh.values())).file.stat().st_size
                present[name].update(fresh)
        progress(done, len(todo), written)
    return features


def describe(backbone: Backbone, source: Source, frontier: Frontier, settings: CacheSettings) -> Features:
    """Name the entries and rows without computing any: base weights, preprocessing, depth, dtype, content."""
    names = list(source.modalities)
    content = source.content_keys()
    entries, keys = {}, {}
    for name in names:
        tower = backbone.tower(name)
        meets = frontier.trunk > 0  # above the trunk's first block a stream depends on all the others
        identity = {
            "base": backbone.fingerprint(names) if meets else tower.fingerprint(),
            "streams": names if meets else [name],
            "depth": [frontier.trunk, "trunk"] if meets else [frontier.towers[name], "tower"],
            "dtype": settings.dtype if frontier.towers[name] or meets else "as prepared",
        }
        label = f"trunk{frontier.trunk}" if meets else f"depth{frontier.towers[name]}"
        entries[name] = f"{name}-{label}-{digest([name, identity])[:16]}"
        if meets:
            keys[name] = [digest(list(row)) for row in zip(*(content[n] for n in names), strict=True)]
        else:
            keys[name] = content[name]
    return Features(frontier, entries, keys)


@torch.no_grad()
def _advance(backbone, source: Source, rows: Sequence[int], frontier: Frontier, device) -> dict[str, Tokens]:
    samples = source.decoded(rows)
    streams = {name: tokens.to(device) for name, tokens in backbone.prepare(samples).items()}
    return backbone.advance(streams, Frontier(dict.fromkeys(streams, 0)), frontier)


def _as_stored(tokens: Tokens, frontier: Frontier, name: str, settings: CacheSettings) -> Tokens:
    if frontier.trunk == 0 and frontier.towers[name] == 0:
        return tokens
    return Tokens(tokens.values.to(DTYPES[settings.dtype]), tokens.mask)


def _content(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return _text_digest(cell)
    sha = hashlib.sha256()
    _feed(sha, cell)
    return sha.hexdigest()


@lru_cache(maxsize=65536)
def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _feed(sha: Any, cell: Any) -> None:
    if isinstance(cell, bytes):
        sha.update(b"b%d:" % len(cell) + cell)
    elif isinstance(cell, list):
        sha.update(b"l%d:" % len(cell))
        for item in cell:
            _feed(sha, item)
    else:
        sha.update(repr(cell).encode() + b";")


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
