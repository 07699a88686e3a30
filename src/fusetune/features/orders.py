"""The order in which rows are read: shuffled over all or by blocks, rows of about one length together."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fusetune import on_disk

WINDOW = 16  # blocks whose rows are shuffled among themselves
BUCKET = 16  # batches, among which rows of about one length are brought together


def batches(
    count: int,
    size: int,
    generator: torch.Generator | None = None,
    lengths: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
) -> Iterator[Tensor]:
    """Row numbers in batches; shuffled where a generator is given.

    Args:
        blocks: of the rows, the number of the block that each lies in; rows of `WINDOW` blocks, drawn at random, are
            shuffled among themselves, and a block is read once, from its beginning to its end.
        lengths: of the rows; the shuffled rows are sorted by length within stretches of `BUCKET` batches, so that a
            batch holds rows of about one length, and the batches are shuffled again.
    """
    if generator is None:
        order = torch.from_numpy(
            on_disk.filled((np.arange(s.start, s.stop) for s in on_disk.slices(count)), count, "i8")
        )
    else:
        order = on_disk.shuffled(count, generator)
    if generator and blocks is not None:
        turns = torch.randperm(int(blocks.max(initial=0)) + 1, generator=generator)
        window, rows = turns.argsort().numpy() // WINDOW, order.numpy()
        parts = (rows[some] for some in on_disk.slices(count))
        order = torch.from_numpy(on_disk.by_group(parts, count, lambda some: window[blocks[some]]))
    starts = range(0, count, size)
    if lengths is None:
        yield from (order[start : start + size] for start in starts)
        return
    stretches = size * BUCKET if generator else max(1, count)
    for some in on_disk.slices(count, stretches):
        stretch = order[some]
        sizes = torch.from_numpy(np.ascontiguousarray(lengths[stretch.numpy()]))
        order[some] = stretch[sizes.argsort(stable=True)]
    turns = torch.randperm(len(starts), generator=generator) if generator else torch.arange(len(starts))
    yield from (order[starts[turn] : starts[turn] + size] for turn in turns.tolist())


def padding(lengths: dict[str, np.ndarray], size: int) -> dict[str, float]:
    """By modality, the share of a random batch that is padding."""
    shares = {}
    for name, values in lengths.items():
        drawn = np.random.default_rng(0)
        few = values if len(values) <= on_disk.ROWS else values[drawn.integers(0, len(values), on_disk.ROWS)]
        order = drawn.permutation(few)
        batches_ = [order[i : i + size] for i in range(0, len(order), size)]
        padded = sum(max(1, batch.max()) * len(batch) for batch in batches_)
        shares[name] = 1 - order.sum() / max(1, padded)
    return shares
