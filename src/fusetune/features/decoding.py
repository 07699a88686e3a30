"""Samples decoded ahead of the model: by processes where it is fast, by threads of this process otherwise.

Cost of a sample: read, decoded, resized once; then from a process two copies of its tokens, into shared memory and into
the batch. Threads of one process wait for one another (Python's lock, and every large tensor is mapped anew, for which
the system stops them all), processes don't; a part of `PART` samples is what one of them takes at a time.
"""

import logging
import multiprocessing
import pickle
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fusetune.backbones.backbone import Backbone
from fusetune.device import cores
from fusetune.errors import FusetuneError, SampleError
from fusetune.features.ahead import ahead, threads_beside
from fusetune.features.chunks import Chunk
from fusetune.features.index import CacheSettings
from fusetune.features.source import Source
from fusetune.keys import Keys
from fusetune.tokens import Tokens, joined

logger = logging.getLogger(__name__)
PART = 16  # samples
AHEAD = 2  # parts that each process may be ahead
SHARED = Path("/dev/shm")  # where processes leave what they have decoded
Prepared = dict[str, Tokens]


class Part(NamedTuple):
    """Samples of a chunk, as places in it, from `start` to `stop`."""

    chunk: int
    start: int
    stop: int


class Preparing(Dataset):
    """Parts as the towers take them; a sample that can't be read is an error that is handed on."""

    def __init__(self, backbone: Backbone, source: Source, chunks: Sequence[Chunk], parts: Sequence[Part]) -> None:
        self.backbone, self.source, self.chunks, self.parts = backbone, source, chunks, parts
        self._last: tuple[int, Chunk] | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def attempted(self, number: int) -> Prepared | Exception:
        """A part, or what is wrong with one of its samples."""
        try:
            return self._prepared(self.parts[number])
        except Exception as error:
            return error

    def _prepared(self, part: Part) -> Prepared:
        chunk, places = self._chunk(part.chunk), slice(part.start, part.stop)
        keys = {name: of_view[places] for name, of_view in chunk.augmented.items()}
        return prepared_rows(self.backbone, self.source, chunk.names, chunk.rows[places], keys)

    def _chunk(self, number: int) -> Chunk:
        last = self._last  # of any thread: each looks at its own
        if last is None or last[0] != number:
            self._last = last = number, self.chunks[number]
        return last[1]

    def __getitem__(self, number: int) -> Prepared | Exception:
        found = self.attempted(number)
        return _portable(found) if isinstance(found, Exception) else found


def prepared_rows(
    backbone: Backbone,
    source: Source,
    names: Sequence[str],
    rows: np.ndarray,
    keys: Mapping[str, Keys] | None = None,
) -> Prepared:
    """Some rows as the towers take them.

    Args:
        keys: of the rows' views, by augmented modality.

    Raises:
        FusetuneError: an unreadable sample.
    """
    views, numbers = keys or {}, rows.tolist()
    try:
        return backbone.prepare({name: source.decoded(name, numbers, views.get(name)) for name in names})
    except SampleError as error:
        column = source.modalities[error.modality].column_of(error.modality)
        raise FusetuneError(f"row {numbers[error.number]}, column '{column}': {error.fault}") from None


def decoders(settings: CacheSettings, device: torch.device) -> int:
    """Processes that may decode: what `cache.decoders` says; of itself none beside a CPU, whose cores the model needs,
    and one a core but one beside a GPU."""
    possible = "fork" in multiprocessing.get_all_start_methods() and not multiprocessing.current_process().daemon
    if settings.decoders is None:
        return cores() - 1 if possible and device.type == "cuda" else 0
    return settings.decoders if possible else 0


def prepared_ahead(
    backbone: Backbone, source: Source, chunks: Sequence[Chunk], settings: CacheSettings, device: torch.device
) -> Generator[Prepared, None, None]:
    """Each batch of each chunk, in order, made ready ahead of its time.

    Processes are forked at the first call: before this one has threads at work.

    Raises:
        FusetuneError: an unreadable sample.
    """
    for found in attempted_ahead(backbone, source, chunks, settings, device):
        if isinstance(found, Exception):
            raise found
        yield found


def attempted_ahead(
    backbone: Backbone, source: Source, chunks: Sequence[Chunk], settings: CacheSettings, device: torch.device
) -> Generator[Prepared | Exception, None, None]:
    """The same; in place of a batch with a sample that can't be read, what is wrong with it."""
    several, threads = decoders(settings, device), threads_beside(device)
    size = PART if several or threads > 1 else settings.batch_size
    parts = [
        [Part(number, start, min(start + size, batch.stop)) for start in range(batch.start, batch.stop, size)]
        for number, chunk in enumerate(chunks)
        for batch in batches(chunk, settings.batch_size)
    ]
    work = Preparing(backbone, source, chunks, [part for of_batch in parts for part in of_batch])
    if not work.parts:
        return
    ready = _by_processes(work, several) if several else None
    if ready is None:
        depth = 2 if threads == 1 else threads + len(parts[0])
        ready = ahead(work.attempted, range(len(work)), depth, threads)
    for of_batch in parts:
        yield _batch([next(ready) for _ in of_batch])


def _batch(parts: Sequence[Prepared | Exception]) -> Prepared | Exception:
    sound = [part for part in parts if not isinstance(part, Exception)]
    if len(sound) < len(parts):
        return next(part for part in parts if isinstance(part, Exception))
    return {name: joined([part[name] for part in sound]) for name in sound[0]} if len(sound) > 1 else sound[0]


def batches(chunk: Chunk, size: int) -> list[range]:
    """Places in the chunk, batch by batch."""
    return [range(i, min(i + size, len(chunk.rows))) for i in range(0, len(chunk.rows), size)]


def _by_processes(work: Preparing, several: int) -> Iterator[Prepared | Exception] | None:
    """None where shared memory has no room for what they would be ahead (containers often have 64 MB of it)."""
    wanted = min(several, len(work) - 1)
    if not wanted:
        return None
    first = work.attempted(0)
    if isinstance(first, Exception):  # nobody knows how much room the others need
        return None
    each = AHEAD * sum(tokens.values.nbytes + tokens.mask.nbytes for tokens in first.values())
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else None
    several = wanted if free is None else min(wanted, int(free / 2 / each))
    if several < wanted:
        logger.warning(
            "cache.decoders: %s instead of %d processes; each is %.0f MB ahead, and %s has %.0f MB free",
            several or "threads", wanted, each / 1e6, SHARED, (free or 0) / 1e6,
        )  # fmt: skip
    return _loaded(work, first, several) if several else None


def _loaded(work: Preparing, first: Prepared, several: int) -> Iterator[Prepared | Exception]:
    yield first
    loader = DataLoader(
        work, batch_size=None, sampler=range(1, len(work)), num_workers=several, prefetch_factor=AHEAD,
        multiprocessing_context="fork", collate_fn=_as_it_is,
    )  # fmt: skip
    yield from loader


@contextmanager
def deaths_told(
    setting: str = "cache.decoders", kept: str = "What was written stays, and a run goes on from it"
) -> Iterator[None]:
    """A process that decodes and is killed ends what is done in here with one sentence, wherever this one is just then.

    Args:
        setting: that says how many there are.
        kept: what isn't lost, in words.

    Raises:
        FusetuneError: see above.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise FusetuneError(
            f"{setting}: a process that decodes was killed ({str(error).strip()}): by the system for want of "
            f"memory, or by a file that its decoder can't stand. {kept}; with fewer of them, or {setting}: 0, it takes "
            "less."
        ) from None


def _as_it_is(found: Any) -> Any:
    return found


def _portable(error: Exception) -> Exception:
    """An exception as another process can read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
