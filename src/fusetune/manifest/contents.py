"""The content of a cell as a hash: the same picture, sound, text or list of numbers has the same one anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusetune.config import check
from fusetune.filehash import remembered_sha256
from fusetune.manifest.schema import MEDIA, Modality


def digest_column(name: str) -> str:
    """The column of a validated manifest with the hashes of a modality's files."""
    return f"{name}: sha256"


def with_constants(table: pa.Table, modalities: Mapping[str, Modality]) -> pa.Table:
    """With a column for each text that is the same for every sample.

    Raises:
        FusetuneError: the table has such a column already, with something else in it.
    """
    for name, modality in modalities.items():
        if modality.constant is None:
            continue
        if name in table.column_names:
            found = pc.unique(table[name]).to_pylist()
            check(
                set(found) <= {modality.constant},
                f"data.modalities.{name}.constant: the manifest has a column '{name}' with {found[:3]}. Expected none, "
                "or no `constant` here.",
            )
        else:
            table = table.append_column(name, pa.array([modality.constant] * table.num_rows, pa.string()))
    return table


def with_digests(table: pa.Table, modalities: Mapping[str, Modality]) -> pa.Table:
    """The manifest with the hashes of the files that it points to: a changed file is a changed manifest."""
    for name, modality in modalities.items():
        column = table[modality.column_of(name)]
        if modality.kind in MEDIA and names_files(column.type):
            # what can't be read was let through by a severity of the user's; whoever decodes it says what is wrong
            digests = [found.hex() if found else None for found in readable_digests(modality, column)]
            table = table.append_column(digest_column(name), pa.array(digests, pa.string()))
    return table


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def names_files(kind: pa.DataType) -> bool:
    """Whether a column of media holds paths: one a cell, or a list of them."""
    return is_text(kind) or (pa.types.is_list(kind) and is_text(kind.value_type))


def files_digest(digests: Sequence[str]) -> str:
    """Of several files, in their order, from those of each."""
    return sha256("\n".join(digests).encode()).hexdigest()


def content_digest(modality: Modality, cell: Any) -> str:
    """SHA-256 (hex) of an Arrow scalar's content, of the file's where it is a path; '' for none.

    A file that has not changed since it was last hashed is not read. Raises OSError where it can't be.
    """
    if not cell.is_valid:
        return ""
    if modality.kind in MEDIA and names_files(cell.type) and not is_text(cell.type):
        return files_digest([remembered_sha256(Path(modality.root, path)) for path in cell.as_py()])
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return _list_digest(cell.values)
    value = cell.as_py()
    if isinstance(value, str):
        return remembered_sha256(Path(modality.root, value)) if modality.kind in MEDIA else _text_digest(value)
    return sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()


def content_digests(modality: Modality, column: pa.ChunkedArray) -> Iterator[bytes | None]:
    """Of each cell of a column what `content_digest` gives, as 32 bytes; None for none. Raises as it does.

    Cost: lists of numbers and texts 1 to 2 us a row, since no cell becomes an object of its own.
    """
    kind = column.type
    for chunk in column.chunks:
        if is_list(kind) and pa.types.is_primitive(kind.value_type) and not chunk.flatten().null_count:
            yield from _of_lists(chunk)
        elif is_text(kind) and modality.kind not in MEDIA:
            yield from (None if text is None else sha256(text.encode()).digest() for text in chunk.to_pylist())
        else:
            yield from (bytes.fromhex(found) if (found := content_digest(modality, c)) else None for c in chunk)


def readable_digests(modality: Modality, column: pa.ChunkedArray) -> list[bytes | None]:
    """The same, b"" for none; None for what can't be read."""
    try:
        return [found or b"" for found in content_digests(modality, column)]
    except (OSError, ValueError):
        return [_readable(modality, cell) for cell in column]


def _readable(modality: Modality, cell: Any) -> bytes | None:
    try:
        return bytes.fromhex(content_digest(modality, cell))
    except (OSError, ValueError):
        return None


def _of_lists(chunk: Any) -> Iterator[bytes | None]:
    """Of lists of numbers, none of which is missing: `_list_digest` of each."""
    numbers = np.ascontiguousarray(chunk.flatten().to_numpy(zero_copy_only=False))
    data, size = numbers.view(np.uint8).data, numbers.itemsize
    begun = dict[int, Any]()
    start = 0
    for length in chunk.value_lengths().to_pylist():
        if length is None:
            yield None
            continue
        if length not in begun:
            begun[length] = sha256(f"{length}:{chunk.type.value_type}".encode())
        sha, stop = begun[length].copy(), start + length * size
        sha.update(data[start:stop])
        yield sha.digest()
        start = stop


def _list_digest(values: Any) -> str:
    """Of a list of numbers, of lists of numbers, or of bytes."""
    sha = sha256(f"{len(values)}:{values.type}".encode())
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        sha.update(np.asarray(values.value_lengths()).tobytes())
        values = values.flatten()
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type) or is_text(values.type):
        for item in values.to_pylist():
            data = item.encode() if isinstance(item, str) else item or b""
            sha.update(b"%d:" % len(data) + data)
    else:
        sha.update(values.to_numpy(zero_copy_only=False).tobytes())
    return sha.hexdigest()


@lru_cache(maxsize=65536)
def _text_digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()
