"""What has a place for each row and may have more of them than main memory has room for: arrays and tables in files.

Small ones are in memory. A large one is a file without a name, mapped: the system keeps of it what it has room for, and
writes the rest out; it is gone when nobody holds it. Nothing that works on them may make a copy of a whole one.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from fusetune.errors import FusetuneError

RowNumbers = Sequence[int] | np.ndarray
KEPT = 16 * 2**20  # bytes up to which it is in memory
SOME = 64 * 2**20  # bytes that are worked on at once
ROWS = 2**18  # and rows
GROUP = 2**20  # rows of a group of a Parquet file
AT_ONCE = 2**14  # of which Python has objects at once


def place() -> Path:
    """The folder of such files: TMPDIR where it is set, else the user's cache; /tmp is main memory on many systems."""
    if given := os.environ.get("TMPDIR"):
        return Path(given)
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "fusetune")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())


def array(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array with nothing in it yet; raises FusetuneError where the disk has no room for it."""
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size <= KEPT:
        return np.empty(shape, dtype)
    with _file(size) as file:
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later kills whoever writes to the map
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)


def full(count: int, value: Any, dtype: Any) -> np.ndarray:
    """The same in every place."""
    found = array(count, dtype)
    found[:] = value
    return found


def filled(parts: Iterable[np.ndarray], count: int, dtype: Any) -> np.ndarray:
    """One behind another, in an array of so many places."""
    found, begin = array(count, dtype), 0
    for part in parts:
        found[begin : begin + len(part)] = part
        begin += len(part)
    return found


def gathered(held: list[np.ndarray], coming: Iterable[np.ndarray], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Rows of this shape, nobody knows how many: those that are held (the list is emptied), and those that come."""
    with _file(sum(part.nbytes for part in held)) as file:
        while held:
            file.write(held.pop(0).data)
        for part in coming:
            file.write(np.ascontiguousarray(part, dtype).data)
        file.flush()
        return np.memmap(file, dtype, "r+").reshape(-1, *shape)


def picked(whole: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows of an array, in their order."""
    if whole[:1].nbytes * len(rows) <= KEPT:
        return np.asarray(whole[rows])
    found = array((len(rows), *whole.shape[1:]), whole.dtype)
    for some in slices(len(rows)):
        found[some] = whole[rows[some]]
    return found


def slices(count: int, size: int | None = None) -> Iterator[slice]:
    """Of so many rows, those that are worked on at once."""
    step = size or ROWS
    return (slice(begin, min(begin + step, count)) for begin in range(0, count, step))


def part(whole: Any, some: slice) -> Any:
    """Rows of a table or a column, where they lie."""
    return whole.slice(some.start, some.stop - some.start)


def by_group(parts: Iterable[np.ndarray], count: int, group: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Numbers below `count`, each once, those of the first group first; in a group they stay as they come.

    Args:
        parts: all of them, some at a time.
        group: of some numbers, the number of each one's group.
    """
    sizes = np.zeros(0, np.int64)
    for some in slices(count):
        own = np.bincount(group(np.arange(some.start, some.stop)), minlength=len(sizes))
        own[: len(sizes)] += sizes
        sizes = own
    free, found = sizes.cumsum() - sizes, array(count, np.int64)  # the next free place of each
    for numbers in parts:
        own = group(numbers)
        turn, sizes = own.argsort(kind="stable"), np.bincount(own, minlength=len(free))
        begins = sizes.cumsum() - sizes
        found[(free - begins)[own[turn]] + np.arange(len(own))] = numbers[turn]
        free += sizes
    return found


class Growing:
    """A table that batches are written to one by one; from the moment on when they are large, in a file."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self._held, self._size = schema, list[pa.RecordBatch](), 0
        self._open = ExitStack()
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Raises FusetuneError for a full disk."""
        self._held.append(batch)
        self._size += batch.nbytes
        if self._size <= KEPT:
            return
        if self._file is None:
            self._file = self._open.enter_context(_file(self._size))
            self._writer = pa.ipc.new_file(self._file, self.schema)
        with _full(self._size):
            while self._held:
                self._writer.write_batch(self._held.pop(0))

    def table(self) -> pa.Table:
        """All that was written; nothing more can be."""
        if self._file is None:
            return pa.Table.from_batches(self._held, self.schema)
        with self._open, _full(self._size):
            self._writer.close()
            self._file.flush()
            # the map of a file that has no name: by its number, which Linux and macOS have a path for
            with pa.memory_map(f"/dev/fd/{self._file.fileno()}") as mapped:
                return pa.ipc.open_file(mapped).read_all()


def table(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Batches as a table; see `Growing`."""
    found = Growing(schema)
    for batch in batches:
        found.write(batch)
    return found.table()


def filtered(whole: pa.Table, kept: np.ndarray) -> pa.Table:
    """The rows of a table that are to be kept."""

    def batches() -> Iterator[pa.RecordBatch]:
        for some in slices(whole.num_rows, at_once(whole.nbytes, whole.num_rows)):
            yield from part(whole, some).filter(pa.array(kept[some])).combine_chunks().to_batches()

    return table(batches(), whole.schema)


def taken(column: pa.ChunkedArray, rows: RowNumbers) -> pa.ChunkedArray:
    """Some rows of a column; `ChunkedArray.take` copies all chunks first, 10 ms where there are a million rows."""
    wanted = np.asarray(rows, np.int64)
    ends = np.cumsum([len(chunk) for chunk in column.chunks], dtype=np.int64)
    owner = ends.searchsorted(wanted, side="right")
    begins = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(wanted)]
    pieces = []
    for begin, end in pairwise(begins):
        if begin < end:
            chunk = column.chunk(int(owner[begin]))
            pieces.append(chunk.take(pa.array(wanted[begin:end] - (ends[owner[begin]] - len(chunk)))))
    return pa.chunked_array(pieces, column.type)


def rows_of(whole: pa.Table, rows: RowNumbers) -> pa.Table:
    """Some rows of a table, in their order."""
    wanted = np.asarray(rows, np.int64)
    pieces = (
        pa.table([taken(column, wanted[some]) for column in whole.columns], whole.schema)
        for some in slices(len(wanted), at_once(whole.nbytes, whole.num_rows))
    )
    return table((batch for piece in pieces for batch in piece.combine_chunks().to_batches()), whole.schema)


class Cells(Sequence[Any]):
    """Cells of a column as Python's values, made when they are asked for.

    Args:
        rows: which; None: all.
    """

    def __init__(self, column: pa.ChunkedArray, rows: np.ndarray | None = None) -> None:
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.column) if self.rows is None else len(self.rows)

    def __getitem__(self, which: Any) -> Any:
        if isinstance(which, slice):
            return Cells(self.column, np.arange(len(self))[which] if self.rows is None else self.rows[which])
        return self.column[int(which if self.rows is None else self.rows[which])].as_py()

    def __iter__(self) -> Iterator[Any]:
        for some in slices(len(self), AT_ONCE):
            if self.rows is None:
                yield from part(self.column, some).to_pylist()
            else:
                yield from taken(self.column, self.rows[some]).to_pylist()

    def digest(self) -> str:
        """SHA-256 (hex) of all of them, in order."""
        sha = hashlib.sha256()
        for some in slices(len(self), AT_ONCE):
            sha.update(json.dumps(list(self[some]), default=str).encode())
        return sha.hexdigest()


def shuffled(count: int, generator: Any = None) -> Any:
    """The numbers below `count` in an order drawn by torch, a tensor (count,)."""
    import torch

    return torch.randperm(count, generator=generator, out=torch.from_numpy(array(count, np.int64)))


def column(parts: Iterable[pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    """One behind another as a column."""
    schema = pa.schema([pa.field("", kind)])
    return table((pa.record_batch([part], schema) for part in parts), schema).column(0)


def read_parquet(file: Path, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as a table, read group by group."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        schema, groups = opened.schema_arrow, opened.metadata
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])

        def read() -> Iterator[pa.RecordBatch]:
            for number in range(opened.num_row_groups):  # of all at once, it would keep those that are behind
                group = groups.row_group(number)
                step = at_once(group.total_byte_size, group.num_rows)
                yield from opened.iter_batches(step, row_groups=[number], columns=columns)

        return table(read(), schema)


def write_parquet(whole: pa.Table, file: Path) -> None:
    """A table as a Parquet file, in groups that can be read one by one."""
    import pyarrow.parquet as pq

    group = max(1, at_once(whole.nbytes, whole.num_rows, GROUP))
    pq.write_table(whole, file, compression="zstd", row_group_size=group)


def at_once(size: int, rows: int, most: int = ROWS) -> int:
    """Of so many rows of so many bytes, how many are worked on at once."""
    return max(1, min(most, SOME * rows // max(1, size)))


@contextmanager
def _file(size: int) -> Iterator[IO[bytes]]:
    with _full(size), tempfile.TemporaryFile(dir=place(), prefix="fusetune-") as file:
        yield file


@contextmanager
def _full(size: int) -> Iterator[None]:
    """Raises FusetuneError for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FusetuneError(
            f"{place()}: the disk is full; {size / 1e9:.2f} GB or more were asked for, of rows that main memory has no "
            "room for. Free some space, or name another folder in TMPDIR."
        ) from None
