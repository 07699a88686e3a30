"""A manifest's samples: their contents' hashes, and the samples themselves, decoded on demand."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusetune.config import canonical, check, digest
from fusetune.errors import FusetuneError
from fusetune.keys import NONE, Keys, ReadableKeys
from fusetune.manifest.augmentations import make_augmentation
from fusetune.manifest.contents import (
    content_digest,
    content_digests,
    digest_column,
    files_digest,
    names_files,
    with_constants,
)
from fusetune.manifest.decoders import decoded, vectors
from fusetune.manifest.extents import Extent, extent_of_cell
from fusetune.manifest.files import read_media
from fusetune.manifest.headers import duration
from fusetune.manifest.schema import MEDIA, Modality
from fusetune.on_disk import AT_ONCE, Cells, slices, taken


class Source:
    """Samples of a manifest.

    Args:
        table: the manifest.
        modalities: by name; the order is the order of the streams.
    """

    def __init__(self, table: pa.Table, modalities: Mapping[str, Modality]) -> None:
        self.table = table = with_constants(table, modalities)
        self.modalities = dict(modalities)
        self._keys: dict[str, Keys] = {}  # of contents as they were last hashed
        self.augmentations = {}
        for name, modality in modalities.items():
            column = modality.column_of(name)
            check(
                column in table.column_names,
                f"modality '{name}': the manifest has no column '{column}'. It has {', '.join(table.column_names)}.",
            )
            if modality.augment:
                where = f"data.modalities.{name}.augment"
                self.augmentations[name] = make_augmentation(modality.augment, modality.kind, where)

    def __len__(self) -> int:
        return self.table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table[self.modalities[name].column_of(name)]

    def digest(self, columns: Sequence[str] = ()) -> str:
        """SHA-256 (hex) of the data: every sample's id and split, its own content, and the given columns."""
        named = [name for name in ("sample_id", "split", *columns) if name in self.table.column_names]
        sha = hashlib.sha256(b"[")
        for part in _listed({name: Cells(self.table[name]) for name in named}):
            sha.update(part)
        sha.update(b",")
        for part in _listed(self.content_keys()):
            sha.update(part)
        sha.update(b"]")
        return sha.hexdigest()

    def content_keys(self, names: Sequence[str] | None = None) -> dict[str, Keys]:
        """By modality, the SHA-256 of each sample's own content; '' where the sample has none.

        A file that has not changed since it was last hashed is not read.

        Args:
            names: of the modalities; None: all.
        """
        asked = [name for name in (self.modalities if names is None else names) if name in self.modalities]
        for name in asked:
            if name not in self._keys or self._in_files(name):
                self._keys[name] = self._hashed(name)
        return {name: self._keys[name] for name in asked}

    def _in_files(self, name: str) -> bool:
        known = digest_column(name) in self.table.column_names
        return self.modalities[name].kind in MEDIA and names_files(self.column(name).type) and not known

    def _hashed(self, name: str) -> Keys:
        row, modality = -1, self.modalities[name]
        if digest_column(name) in self.table.column_names:
            return Keys.of(digest or "" for digest in Cells(self.table[digest_column(name)]))

        def found() -> Iterator[bytes]:
            nonlocal row
            for row, sha in enumerate(content_digests(modality, self.column(name))):  # noqa: B007
                yield sha or NONE

        try:
            return Keys.of_bytes(found())
        except OSError as error:
            raise self._unread(name, row + 1, self.column(name)[row + 1], error) from None

    def readable_keys(self) -> dict[str, Keys | ReadableKeys]:
        """The same, with None in place of what can't be read."""
        return {name: self._readable(name) for name in self.modalities}

    def _readable(self, name: str) -> Keys | ReadableKeys:
        try:
            return self.content_keys([name])[name]
        except (FusetuneError, ValueError):
            unread: list[int] = []
        return ReadableKeys(Keys.of(self._one_after_another(name, unread)), unread)

    def _one_after_another(self, name: str, unread: list[int]) -> Iterator[str]:
        """Keys of all rows, '' for those that are noted in `unread`."""
        for row, cell in enumerate(self.column(name)):
            try:
                yield self._content(name, row, cell)
            except (FusetuneError, ValueError):
                unread.append(row)
                yield ""

    def view_keys(self, content: Mapping[str, Keys], view: int) -> dict[str, Keys]:
        """Keys of the training samples' augmented view number `view`; of everything else, its content key."""
        keys = dict(content)
        for name in self.augmentations:
            train = [split == "train" for split in self.table["split"].to_pylist()]
            settings = self.modalities[name].augment
            keys[name] = Keys.of(
                digest([key, settings, view]) if key and is_train else key
                for key, is_train in zip(content[name], train, strict=True)
            )
        return keys

    def decoded(self, name: str, rows: Sequence[int], keys: Sequence[str] | None = None) -> list[Any]:
        """The decoded samples of some rows; None where the modality is missing.

        Args:
            keys: of these rows' views; the samples are augmented, each by its own generator. None: as they are.
        """
        modality = self.modalities[name]
        cells = taken(self.column(name), rows)
        samples = vectors(cells) if modality.kind == "vector" else None
        samples = self._one_by_one(name, rows, cells) if samples is None else samples
        if keys is None:
            return samples
        return [
            sample if sample is None else self.augmentations[name](sample, np.random.default_rng(int(key[:16], 16)))
            for sample, key in zip(samples, keys, strict=True)
        ]

    def _one_by_one(self, name: str, rows: Sequence[int], cells: pa.ChunkedArray) -> list[Any]:
        modality, samples = self.modalities[name], []
        for row, cell in zip(rows, cells.to_pylist(), strict=True):
            where = f"row {row}, column '{modality.column_of(name)}'"
            if cell is not None and modality.kind in MEDIA:
                cell = self._unchanged(name, row, read_media(modality.root, cell, where), where)
            samples.append(None if cell is None else decoded(modality, cell, where))
        return samples

    def longest_sound(self, name: str) -> int:
        """The row of an audio modality whose sound lasts longest."""
        seconds = self.seconds(name)
        return max(range(len(self)), key=lambda row: seconds[row])

    def seconds(self, name: str) -> list[float]:
        """Of each row of an audio modality, by the files' headers; 0 where it has none."""
        seconds = [0.0] * len(self)
        for row, cell in enumerate(self.column(name).to_pylist()):
            if cell is not None:
                where = f"row {row}, column '{self.modalities[name].column_of(name)}'"
                seconds[row] = duration(
                    Path(self.modalities[name].root, cell) if isinstance(cell, str) else cell, where
                )
        return seconds

    def extents(self, name: str) -> list[Extent | None]:
        """How large each sample is, by the headers of media; None where it isn't there or can't be read."""
        found: list[Extent | None] = []
        for row, cell in enumerate(self.column(name).to_pylist()):
            where = f"row {row}, column '{self.modalities[name].column_of(name)}'"
            try:
                found.append(None if cell is None else extent_of_cell(self.modalities[name], cell, where))
            except (FusetuneError, OSError):
                found.append(None)
        return found

    def most_items(self) -> dict[str, int]:
        """By modality, the largest number of pictures, points or vectors of a sample (1 for text and media)."""
        longest = {}
        for name, modality in self.modalities.items():
            listed = pa.types.is_list(self.column(name).type) and modality.kind != "vector"
            longest[name] = int(self.items(name).max(initial=1)) if listed else 1
        return longest

    def items(self, name: str) -> np.ndarray:
        """Pictures, points or vectors of each sample; 0 where it has none, 1 for one medium or text."""
        column = self.column(name)
        if not (pa.types.is_list(column.type) and self.modalities[name].kind != "vector"):
            return column.is_valid().cast(pa.int64()).to_numpy()
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)

    def _unchanged(self, name: str, row: int, data: Any, where: str) -> Any:
        """Raises FusetuneError for a file that has changed since validation: its features would get another's name."""
        if digest_column(name) in self.table.column_names:
            shas = [hashlib.sha256(item).hexdigest() for item in (data if isinstance(data, list) else [data])]
            found, known = (
                files_digest(shas) if isinstance(data, list) else shas[0],
                self.table[digest_column(name)][row].as_py(),
            )
            if found != known:
                raise FusetuneError(f"{where}: the file has changed since validation. Run the `validate` pipeline.")
        return data

    def _content(self, name: str, row: int, cell: Any) -> str:
        modality = self.modalities[name]
        if digest_column(name) in self.table.column_names:
            return self.table[digest_column(name)][row].as_py() or ""
        try:
            return content_digest(modality, cell)
        except OSError as error:
            raise self._unread(name, row, cell, error) from None

    def _unread(self, name: str, row: int, cell: Any, error: OSError) -> FusetuneError:
        modality = self.modalities[name]
        path = error.filename or Path(modality.root, str(cell.as_py()))
        return FusetuneError(
            f"row {row}, column '{modality.column_of(name)}': the file {path} can't be read ({error.strerror}). "
            f"Expected a path below data.modalities.{name}.root."
        )


def listed_digest(several: Mapping[str, Sequence[Any]]) -> str:
    """`config.digest` of lists by name, of which some rows are in memory at a time."""
    sha = hashlib.sha256()
    for part in _listed(several):
        sha.update(part)
    return sha.hexdigest()


def _listed(several: Mapping[str, Sequence[Any]]) -> Iterator[bytes]:
    """Lists by name as `config.canonical` writes them, some rows at a time."""
    for place, name in enumerate(sorted(several)):
        yield f"{',' if place else '{'}{json.dumps(name)}:[".encode()
        for some in slices(len(several[name]), AT_ONCE):
            yield f"{',' if some.start else ''}{canonical(list(several[name][some]))[1:-1]}".encode()
        yield b"]"
    yield b"}" if several else b"{}"
