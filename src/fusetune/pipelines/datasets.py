"""Catalog types: a table, a folder that `save_pretrained` writes, a feature index, and handles to folders.

Each says which content it holds (`content`), so that a run can tell whether anything has changed.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NewType

from kedro.io import AbstractDataset, DatasetError

from fusetune.pipelines.hashing import content_hash
from fusetune.scratch import scratch

# what `kedro viz` shows of a dataset: it goes by the names of these types
JSONPreview = NewType("JSONPreview", str)
TablePreview = NewType("TablePreview", dict)
ImagePreview = NewType("ImagePreview", str)  # a PNG, base64
PREVIEWED, CHARACTERS = 20, 60  # rows of a table, and characters of a cell


class _PathDataset(AbstractDataset):
    """A dataset of one path; relative paths are made absolute by Kedro, from the project's root."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self.path = Path(filepath)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self.path)}

    def _exists(self) -> bool:
        return self.path.exists()

    def content(self) -> str | None:
        """SHA-256 of what is there; None where there is nothing, or nothing whole."""
        return content_hash(self.path) if self.path.exists() else None

    def _missing(self) -> DatasetError:
        return DatasetError(f"{self.path} is not there. Run the pipeline that makes it, or `dvc pull`.")


class TableDataset(_PathDataset):
    """A Parquet file as a pyarrow Table, mapped where it is large; written atomically."""

    def load(self) -> Any:
        from fusetune.on_disk import read_parquet

        if not self.path.is_file():
            raise self._missing()
        return read_parquet(self.path)

    def save(self, data: Any) -> None:
        from fusetune.on_disk import write_parquet

        _atomically(self.path, lambda temporary: write_parquet(data, temporary))

    def preview(self) -> TablePreview:
        import pyarrow.parquet as pq

        batches = pq.ParquetFile(self.path).iter_batches(PREVIEWED)
        return _table(next((batch.to_pylist() for batch in batches), []))


class JSONDataset(_PathDataset):
    """A JSON file, indented, keys in their own order; written atomically, so `dvc metrics` never sees half of it."""

    def load(self) -> Any:
        if not self.path.is_file():
            raise self._missing()
        return json.loads(self.path.read_text())

    def save(self, data: Any) -> None:
        text = json.dumps(data, indent=2) + "\n"
        _atomically(self.path, lambda temporary: temporary.write_text(text))

    def preview(self) -> JSONPreview:
        return JSONPreview(self.path.read_text())


class TextDataset(_PathDataset):
    """A text file, written atomically."""

    def load(self) -> str:
        if not self.path.is_file():
            raise self._missing()
        return self.path.read_text()

    def save(self, data: str) -> None:
        _atomically(self.path, lambda temporary: temporary.write_text(data))


class CSVDataset(_PathDataset):
    """A list of rows (dicts) as CSV: what `dvc plots` draws."""

    def load(self) -> Any:
        import csv

        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def save(self, data: Any) -> None:
        import csv

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(data[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(data)

        _atomically(self.path, write)

    def preview(self) -> TablePreview:
        return _table(self.load()[:PREVIEWED])


class PretrainedDataset(_PathDataset):
    """A folder that an object writes with `save_pretrained`; loading gives the path, whoever needs it reads it."""

    def load(self) -> Path:
        if not self.path.is_dir():
            raise self._missing()
        return self.path

    def save(self, data: Any) -> None:
        temporary, old = (scratch(self.path.with_name(f".{self.path.name}{part}")) for part in ("", ".old"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            data.save_pretrained(temporary)
            if self.path.exists():
                self.path.rename(old)
            temporary.rename(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


class FiguresDataset(PretrainedDataset):
    """A folder of PNGs; one of them is its preview."""

    def preview(self, figure: str = "") -> ImagePreview:
        """
        Args:
            figure: its name; by default, or where there is none of that name, the first.
        """
        import base64

        files = sorted(self.load().glob("*.png"))
        shown = next((file for file in files if file.stem == figure), files[0])
        return ImagePreview(base64.b64encode(shown.read_bytes()).decode())


class BaseDataset(_PathDataset):
    """An experiment's reference to its frozen base, which lies under its own fingerprint and is shared by all.

    Loading gives the base's folder; saving takes one. Its content is that of the base, wherever it was found.
    """

    def load(self) -> Path:
        from fusetune.backbones.bases import opened

        if not self.path.is_file():
            raise self._missing()
        return Path(opened(self.path))

    def save(self, data: Path) -> None:
        from fusetune.backbones.bases import reference

        text = json.dumps(reference(Path(data), self.path), indent=2) + "\n"
        _atomically(self.path, lambda temporary: temporary.write_text(text))

    def content(self) -> str | None:
        from fusetune.backbones.bases import INDEX
        from fusetune.config import digest
        from fusetune.errors import FusetuneError

        try:
            folder = self.load()
        except (DatasetError, FusetuneError):
            return None
        files = (part for part in sorted(folder.iterdir()) if part.name != INDEX)
        return digest([folder.name, [content_hash(part) for part in files]])  # its name is its fingerprint


class FeaturesDataset(_PathDataset):
    """The index of cached features; its content counts as missing when a shard is.

    Args:
        store: the feature store that the index points into.
    """

    def __init__(self, *, filepath: str, store: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self.store = store
        if "://" not in store and not Path(store).is_absolute():  # Kedro resolves `filepath` alone
            data = next(p for p in self.path.parents if p.name == "data")
            self.store = str(data.parent / store)

    def load(self) -> Any:
        from fusetune.features.index import Features

        if not self.path.is_file():
            raise self._missing()
        return Features.load(self.path)

    def save(self, data: Any) -> None:
        _atomically(self.path, data.save)

    def content(self) -> str | None:
        """None where a row that the index names is in no shard any more."""
        from fusetune.errors import FusetuneError
        from fusetune.features.shards import keys_of, read_shards, references
        from fusetune.features.storage import Store

        if not self.path.is_file():
            return None
        store = Store(self.store)
        try:
            for entry, named in references([self.path]).items():
                if (named.places_in(keys_of(read_shards(store.folder(entry)))) < 0).any():
                    return None
        except FusetuneError:  # of another version, or not whole
            return None
        return content_hash(self.path)


class HandleDataset(_PathDataset):
    """A folder that nodes work in (a content-addressed store, checkpoints): loading makes it and gives its path.

    It has no content of its own: what is in it never makes a node run again. A URL is given as it is.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self.url = filepath if "://" in filepath else None

    def load(self) -> Path | str:
        if self.url:
            return self.url
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    def save(self, data: Any) -> None:
        raise DatasetError(f"{self.path}: a handle is written by the nodes that hold it, not by the catalog.")

    def content(self) -> str | None:
        return ""


def _table(rows: list[dict[str, Any]]) -> TablePreview:
    """Rows as pandas splits them; what is long is cut, bytes are counted."""

    def told(value: Any) -> Any:
        if isinstance(value, bytes):
            return f"{len(value):,} bytes"
        if value is None or isinstance(value, int | float):
            return value
        text = str(value)
        return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 3]}..."

    cells = [[told(value) for value in row.values()] for row in rows]
    return TablePreview({"index": list(range(len(rows))), "columns": list(rows[0]) if rows else [], "data": cells})


def _atomically(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = scratch(path.with_name(f".{path.name}"))
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
