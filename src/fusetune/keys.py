"""Keys of rows in the store: SHA-256s of contents, 32 bytes each, where a list of their hex digits takes 120.

Cost of looking `rows` of them up among others: each is read once and compared once; what main memory holds meanwhile
is a table of some `TOGETHER` whose first digits are alike, however many there are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fusetune import on_disk

BYTES = 32
NONE = bytes(BYTES)  # of a sample that isn't there, whose key is ''
ZEROS, AT_ONCE = NONE.hex(), 65536
TOGETHER = 2**19  # keys that are compared at once


class Keys(Sequence[str]):
    """Hex digits of SHA-256s, or '' where there is none, held in 32 bytes a row; on disk where they are many.

    Args:
        digests: (rows, 32), uint8.
    """

    def __init__(self, digests: np.ndarray) -> None:
        self.digests = np.ascontiguousarray(digests, np.uint8).reshape(-1, BYTES)

    @classmethod
    def of(cls, keys: Iterable[str]) -> "Keys":
        """Raises ValueError for what is neither a SHA-256 in hex nor ''."""
        if isinstance(keys, Keys):
            return keys
        rows = iter(keys)
        return cls.joined(_parsed(some) for some in iter(lambda: list(islice(rows, AT_ONCE)), []))

    @classmethod
    def of_bytes(cls, digests: Iterable[bytes]) -> "Keys":
        """Of 32 bytes each."""
        rows = iter(digests)
        some = iter(lambda: list(islice(rows, AT_ONCE)), [])
        return cls.joined(cls(np.frombuffer(b"".join(part), np.uint8)) for part in some)

    @classmethod
    def of_texts(cls, texts: Iterable[Any]) -> "Keys":
        """Of what each is as text; '' for None."""
        return cls.of_bytes(NONE if text is None else hashlib.sha256(str(text).encode()).digest() for text in texts)

    @classmethod
    def joined(cls, several: Iterable["Keys"]) -> "Keys":
        """One after another."""
        parts, size = [], 0
        coming = (keys.digests for keys in several)
        for part in coming:
            parts.append(part)
            size += part.nbytes
            if len(parts) > 1 and size > on_disk.KEPT:
                return cls(on_disk.gathered(parts, coming, (BYTES,), np.uint8))
        return cls(parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, BYTES), np.uint8)]))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all of them, in order."""
        return hashlib.sha256(self.digests.data).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, which: Any) -> Any:
        """A key by its number; `Keys` by a slice or several numbers."""
        if isinstance(which, int | np.integer):
            digest = self.digests[which].tobytes()
            return "" if digest == NONE else digest.hex()
        if isinstance(which, slice):
            return Keys(self.digests[which])
        return Keys(on_disk.picked(self.digests, np.asarray(which, np.int64)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return len(self) == len(other) and all(
                np.array_equal(self.digests[some], other.digests[some]) for some in on_disk.slices(len(self))
            )
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def numbered(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of each (rows,) among the distinct ones, as they appear, and the first row of each of those."""
        first = on_disk.array(len(self), np.int64)  # the first row that has the same key
        for [rows] in _alike(self):
            number = self._arrow(rows).dictionary_encode().indices.to_numpy()
            begun = np.empty(int(number.max(initial=-1)) + 1, np.int64)
            begun[number[::-1]] = rows[::-1]  # of several, the last that is written stays
            first[rows] = begun[number]
        distinct, count = on_disk.array(len(self), np.int64), 0
        place = on_disk.array(len(self), np.int64)  # by row that is the first of its kind: its number
        for some in on_disk.slices(len(self)):
            new = np.flatnonzero(first[some] == np.arange(some.start, some.stop)) + some.start
            distinct[count : count + len(new)], place[new] = new, np.arange(count, count + len(new))
            count += len(new)
        for some in on_disk.slices(len(self)):
            first[some] = place[first[some]]
        return first, distinct[:count]

    def places_in(self, others: "Keys") -> np.ndarray:
        """Where each of these is among `others` (rows,); -1 where it isn't."""
        found = on_disk.array(len(self), np.int64)
        for rows, known in _alike(self, others):
            place = pc.index_in(self._arrow(rows), value_set=others._arrow(known)).fill_null(-1).to_numpy()
            found[rows] = np.where(place < 0, -1, known[place]) if len(known) else -1
        return found

    def sorted(self) -> Iterator[np.ndarray]:
        """Rows in ascending order of their keys, some at a time."""
        for [rows] in _alike(self):
            words = self.digests[rows].view(">u8")
            yield rows[np.lexsort(words.T[::-1])]

    def _arrow(self, rows: np.ndarray) -> pa.Array:
        return pa.Array.from_buffers(pa.binary(BYTES), len(rows), [None, pa.py_buffer(self.digests[rows])])


class ReadableKeys(Sequence[Any]):
    """Keys of rows of which some can't be read: None in their place.

    Args:
        unread: their numbers, in ascending order.
    """

    def __init__(self, keys: Keys, unread: Sequence[int] | np.ndarray) -> None:
        self.keys, self.unread = keys, np.asarray(unread, np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, which: Any) -> Any:
        """A key, or None, by its number; `ReadableKeys` by a slice."""
        if isinstance(which, slice):
            begin, stop, _ = which.indices(len(self))
            own = self.unread[np.searchsorted(self.unread, begin) : np.searchsorted(self.unread, stop)]
            return ReadableKeys(self.keys[begin:stop], own - begin)
        at = np.searchsorted(self.unread, which)
        return None if at < len(self.unread) and self.unread[at] == which else self.keys[which]


def _parsed(keys: Sequence[str]) -> Keys:
    odd = next((key for key in keys if key and len(key) != 2 * BYTES), None)
    if odd is not None:
        raise ValueError(f"expected a SHA-256 in hex, found '{odd}'")
    data = bytes.fromhex("".join(key or ZEROS for key in keys))
    if len(data) != BYTES * len(keys):  # it takes white space for nothing
        raise ValueError("expected SHA-256s in hex, found some with white space in them")
    return Keys(np.frombuffer(data, np.uint8))


def _alike(*several: Keys) -> Iterator[list[np.ndarray]]:
    """The rows of each whose keys begin alike, some at a time: equal ones come together, and all come once."""
    count = 1
    while max(map(len, several)) > count * TOGETHER and count < 2**15:
        count *= 2
    owners = [on_disk.filled((_bucket(keys.digests[s], count) for s in on_disk.slices(len(keys))), len(keys), np.int16)
              for keys in several]  # fmt: skip
    for number in range(count):
        yield [
            np.concatenate([np.flatnonzero(own[s] == number) + s.start for s in on_disk.slices(len(own))] or [_NO_ROWS])
            for own in owners
        ]


def _bucket(digests: np.ndarray, count: int) -> np.ndarray:
    return (digests[:, 0].astype(np.int64) * 256 + digests[:, 1]) * count >> 16


_NO_ROWS = np.empty(0, np.int64)
