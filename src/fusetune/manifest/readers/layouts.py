"""What readers of published layouts share: JSON that is there, rows that become a manifest, a restricted unpickler."""

import hashlib
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest.schema import SPLITS

# all that numpy's own pickles name, in its old and its new modules
_NUMPY = {
    (module, name)
    for root in ("numpy.core", "numpy._core")
    for module, name in ((f"{root}.multiarray", "_reconstruct"), (f"{root}.multiarray", "scalar"),
                         (f"{root}.numeric", "_frombuffer"))
}  # fmt: skip
_ADMITTED = _NUMPY | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _NumpyUnpickler(pickle.Unpickler):
    """Admits numpy arrays and plain containers; anything else that a pickle names could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_pickle(file: Path) -> Any:
    """Numpy arrays in plain containers; raises FusetuneError for a file that holds, or would run, anything else."""
    try:
        return _NumpyUnpickler(io.BytesIO(there(file).read_bytes()), encoding="latin1").load()
    except Exception as error:  # a broken pickle raises whatever its bytes lead to
        raise FusetuneError(
            f"{file}: refused ({type(error).__name__}: {error}). Expected a pickle of numpy arrays in dicts and lists, "
            "as published; nothing in it was run."
        ) from None


def read_json(file: Path) -> Any:
    """Raises FusetuneError for a file that is not there or holds no JSON."""
    try:
        return json.loads(there(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FusetuneError(f"{file}: no JSON ({error}).") from None


def there(file: Path) -> Path:
    """The path, if there is a file; raises FusetuneError that says where it was looked for."""
    if not file.is_file():
        raise FusetuneError(f"{file} is not there. The reader's own page says what to download and how to lay it out.")
    return file


def field(record: Mapping[str, Any], name: str, where: str) -> Any:
    """A key that the layout promises; raises FusetuneError that names those that are there."""
    if name not in record:
        raise FusetuneError(f"{where}: expected a key '{name}', found {', '.join(map(str, record))}.")
    return record[name]


def is_drawn(name: str, share: float) -> bool:
    """Whether a name is among the `share` of all names that is drawn; the same on any machine."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < share


@dataclass(frozen=True)
class FileSettings:
    """
    Attributes:
        file: as published.
    """

    file: str


def one_file(settings: Mapping[str, Any]) -> list[str]:
    """`sources` of a reader with `FileSettings`."""
    return [str(settings.get("file"))]


def manifest(rows: Sequence[Mapping[str, Any]], where: str) -> pa.Table:
    """Rows with the same keys as a manifest; arrays become lists of float32."""
    if not rows:
        raise FusetuneError(f"{where}: no sample was found.")
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if any(isinstance(value, np.ndarray) for value in values):
            columns[name] = ragged([None if v is None else np.asarray(v, np.float32) for v in values])
        else:
            columns[name] = pa.array(values)
    return pa.table(columns)


def check_samples(samples: Mapping[str, int]) -> None:
    """Raise FusetuneError unless a setting `samples` has a positive count for each split."""
    check(
        set(samples) == set(SPLITS) and min(samples.values()) > 0,
        f"samples: expected a positive count for train, val and test, found {dict(samples)}.",
    )


def ragged(arrays: Sequence[np.ndarray | None]) -> pa.Array:
    """(tokens_i, width) or (width,) arrays as a column of lists; None stays missing."""
    dimensions = next(array.ndim for array in arrays if array is not None)
    kind = pa.list_(pa.float32()) if dimensions == 1 else pa.list_(pa.list_(pa.float32()))
    return pa.array([None if array is None else array.tolist() for array in arrays], kind)
