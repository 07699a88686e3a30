"""A file of a record and of keys that it names by number: Arrow, a batch of 32-byte values for each, mapped to read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.errors import FusetuneError
from fusetune.keys import BYTES, Keys

RECORD = b"fusetune"


def write_keys(file: Path, record: Any, several: Sequence[Keys]) -> None:
    """
    Args:
        record: JSON-ready.
    """
    schema = pa.schema([pa.field("key", pa.binary(BYTES))], {RECORD: json.dumps(record).encode()})
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(str(file), schema) as writer:
        for keys in several:
            column = pa.Array.from_buffers(pa.binary(BYTES), len(keys), [None, pa.py_buffer(keys.digests)])
            writer.write_batch(pa.record_batch([column], schema))


def read_keys(file: Path) -> tuple[Any, list[Keys]]:
    """The record and the keys; raises FusetuneError for another kind of file."""
    try:
        with pa.memory_map(str(file)) as mapped:
            opened = pa.ipc.open_file(mapped)
            record = json.loads((opened.schema.metadata or {})[RECORD])
            batches = [opened.get_batch(number).column(0) for number in range(opened.num_record_batches)]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise FusetuneError(f"{file}: not the index of cached features ({error}).") from None
    return record, [_keys(column) for column in batches]


def _keys(column: pa.Array) -> Keys:
    begin, size = column.offset * BYTES, len(column) * BYTES
    return Keys(np.frombuffer(column.buffers()[1], np.uint8, size, begin) if size else np.empty(0, np.uint8))
