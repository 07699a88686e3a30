"""A shard in the memory map: nothing is read before it is used, and what will be used soon can be asked for early."""

import json
import mmap
import resource
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# safetensors' names; bfloat16 is unknown to numpy, so it is moved about as 16 bits and named again at the end
NUMPY = {"F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I8": "i1"}
_VIEWS = {"BF16": torch.bfloat16}
PAGE = mmap.PAGESIZE


class MappedShard:
    """The tensors of one safetensors file, mapped.

    Attributes:
        arrays: views of the map by tensor name; `values` is (tokens, width).
        offsets: (rows + 1,), where each row's tokens start.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as handle:
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        header = int.from_bytes(self._map[:8], "little")
        if header > len(self._map):
            raise ValueError("its header is cut off")
        tensors: dict[str, Any] = json.loads(self._map[8 : 8 + header])
        tensors.pop("__metadata__", None)
        self.arrays, self.kinds = {}, {}
        for name, record in tensors.items():
            begin, end = record["data_offsets"]
            dtype, shape = np.dtype(NUMPY[record["dtype"]]), record["shape"]
            flat = np.frombuffer(self._map, dtype, (end - begin) // dtype.itemsize, 8 + header + begin)
            self.arrays[name], self.kinds[name] = flat.reshape(shape), record["dtype"]
        self.offsets = self.arrays.pop("offsets")
        values = tensors["values"]["data_offsets"]
        self._begin, self._width = 8 + header + values[0], self.arrays["values"].strides[0]
        self._map.madvise(mmap.MADV_RANDOM)  # rows are asked for out of order: reading on behind one is waste

    def will_need(self, start: int, stop: int) -> None:
        """Have the system read tokens `start` to `stop` in the background."""
        if start < stop:
            begin = (self._begin + start * self._width) // PAGE * PAGE
            self._map.madvise(mmap.MADV_WILLNEED, begin, self._begin + stop * self._width - begin)

    def tensors(self, tokens: slice | np.ndarray) -> dict[str, Tensor]:
        """Copies of some tokens of what has one row a token, and of the whole of `channels`."""
        return {
            name: named(
                torch.from_numpy(np.require(array if name == "channels" else array[tokens], requirements=("O", "W"))),
                self.kinds[name],
            )
            for name, array in self.arrays.items()
        }

    def crc(self, row: int) -> int:
        """CRC-32 of one row's values as stored."""
        return zlib.crc32(np.ascontiguousarray(self.arrays["values"][self.offsets[row] : self.offsets[row + 1]]).data)


def may_map(files: int) -> None:
    """Let this process hold so many more files open, as far as the system lets it: a map keeps its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        more = soft + files
        resource.setrlimit(resource.RLIMIT_NOFILE, (more if hard == resource.RLIM_INFINITY else min(hard, more), hard))


def named(tensor: Tensor, kind: str) -> Tensor:
    """The tensor under its own dtype again."""
    return tensor.view(_VIEWS[kind]) if kind in _VIEWS else tensor
