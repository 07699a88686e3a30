"""Means of rows: for what reads no more of a stream than the mean of its tokens, the frozen part ends behind it.

Cost: one pass over the rows, shard by shard, in bounded memory; from then on d values a row and epoch instead of T d.
"""

import numpy as np
import torch
from torch import Tensor

from fusetune.features.rows import Rows

SOME = 256  # rows in memory at once


class Means:
    """Rows of one token each, the mean of those of `rows`, in float32; a row without tokens has none here either.

    Attributes:
        length, shard: as of `Rows`.
    """

    coded, memory_dtype = False, torch.float32

    def __init__(self, rows: Rows) -> None:
        self.rows, self.shard = rows, rows.shard
        self.length = (rows.length > 0).astype(np.int64)

    def width(self) -> int:
        """Of a row."""
        return self.rows.width()

    def packed(self) -> Tensor:
        """The means of the rows that have tokens, in order, and a last one of zeros: (rows + 1, width)."""
        places = torch.from_numpy(self.length.cumsum() - 1)
        out = torch.zeros(int(self.length.sum()) + 1, self.width())
        for mine, values in self.rows.parts(SOME):
            real = mine[self.length[mine] > 0]
            if not len(real):
                continue
            lengths = torch.from_numpy(self.rows.length[real])
            out[places[torch.from_numpy(real)]] = torch.segment_reduce(values.float(), "mean", lengths=lengths)
        return out
