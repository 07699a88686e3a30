"""Keys of rows in the store: SHA-256s of contents, 32 bytes each, where a list of their hex digits takes 120."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BYTES = 32
NONE = bytes(BYTES)  # of a sample that isn't there, whose key is ''
ZEROS, AT_ONCE = NONE.hex(), 65536


class Keys(Sequence[str]):
    """Hex digits of SHA-256s, or '' where there is none, held in 32 bytes a row.

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
        data, rows = bytearray(), iter(keys)
        while some := list(islice(rows, AT_ONCE)):
            odd = next((key for key in some if key and len(key) != 2 * BYTES), None)
            if odd is not None:
                raise ValueError(f"expected a SHA-256 in hex, found '{odd}'")
            data += bytes.fromhex("".join(key or ZEROS for key in some))
            if len(data) % BYTES:  # it takes white space for nothing
                raise ValueError("expected SHA-256s in hex, found some with white space in them")
        return cls(np.frombuffer(data, np.uint8))

    @classmethod
    def joined(cls, several: Iterable["Keys"]) -> "Keys":
        """One after another."""
        parts = [keys.digests for keys in several]
        return cls(parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, BYTES), np.uint8)]))

    @classmethod
    def from_hex(cls, text: str) -> "Keys":
        """What `hex` gave."""
        return cls(np.frombuffer(bytes.fromhex(text), np.uint8))

    def hex(self) -> str:
        """All of them in one text, 64 digits each."""
        return self.digests.tobytes().hex()

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
        return Keys(self.digests[which if isinstance(which, slice) else np.asarray(which, np.int64)])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return np.array_equal(self.digests, other.digests)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def numbered(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of each (rows,) among the distinct ones, as they appear, and the first row of each of those."""
        numbers = self._arrow().dictionary_encode().indices.to_numpy().astype(np.int64)
        pa.default_memory_pool().release_unused()  # a table as large as the keys
        first = np.empty(int(numbers.max(initial=-1)) + 1, np.int64)
        first[numbers[::-1]] = np.arange(len(self))[::-1]  # of several, the last that is written stays
        return numbers, first

    def places_in(self, others: "Keys") -> np.ndarray:
        """Where each of these is among `others` (rows,); -1 where it isn't."""
        found = pc.index_in(self._arrow(), value_set=others._arrow()).fill_null(-1).to_numpy().astype(np.int64)
        pa.default_memory_pool().release_unused()
        return found

    def _arrow(self) -> pa.Array:
        return pa.Array.from_buffers(pa.binary(BYTES), len(self), [None, pa.py_buffer(self.digests)])
