"""From a manifest to a filled store: what is there already is not computed again.

Cost, for S samples that are new, T tokens of width d each: S forward passes up to the frontier, S T d bytes written,
hashed twice (SHA-256 of the file, CRC-32 of each row) and synced once a shard. Decoding runs ahead of the forward pass
(in one thread, beside a GPU in processes) and writing in a thread behind it, so that the slowest sets the pace.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.offloaded import placed
from fusetune.device import keep_freed_memory
from fusetune.errors import FusetuneError
from fusetune.features.chunks import chunks
from fusetune.features.computing import Gathered, Progress
from fusetune.features.decoding import deaths_told, prepared_ahead
from fusetune.features.index import CacheSettings, Features, describe
from fusetune.features.source import Source
from fusetune.features.storage import Store

PENDING = 2  # shards that may wait to be written


def extract(
    backbone: Backbone,
    source: Source,
    frontier: Frontier,
    store: Store | Path | str,
    settings: CacheSettings,
    progress: Progress,
    device: torch.device,
) -> Features:
    """Fill the store with the features of `source` at `frontier`; rows that are there already are left alone.

    Args:
        progress: called after each batch.

    Raises:
        FusetuneError: an unreadable sample, activations that the dtype can't hold, a disk that is or will be full.
    """
    store = Store(store)
    features = describe(backbone, source, frontier, settings)
    todo = chunks(source, features, store, settings)
    if not todo:
        return features
    if settings.ray_workers:
        from fusetune.features.ray_extraction import extract_with_ray

        extract_with_ray(backbone, source, features, todo, store, settings, progress, device)
        return features
    keep_freed_memory()
    total = todo.rows
    done = written = 0
    ready = prepared_ahead(backbone, source, todo, settings, device)
    with placed(backbone, device), deaths_told(), closing(ready), ThreadPoolExecutor(1) as writer:
        waiting: deque[Future[int]] = deque()
        for chunk in todo:
            streams = Gathered(chunk.names)
            for count in streams.fill(backbone, ready, features, chunk, settings, device):
                if done == 0:
                    check_space(store, features, streams.bytes / count * total)
                done += count
                progress(done, total, written)
            waiting.append(writer.submit(streams.write, chunk, features, store, settings))
            while len(waiting) > PENDING:
                written += waiting.popleft().result()
        written += sum(future.result() for future in waiting)
    progress(done, total, written)
    return features


def check_space(store: Store, features: Features, needed: float) -> None:
    """Raise FusetuneError if the disk is too small for `needed` bytes."""
    free = store.folder(next(iter(features.entries.values()))).free()
    if free is not None and needed > free:
        raise FusetuneError(
            f"feature cache: it will take about {needed / 1e9:.3f} GB, and {free / 1e9:.3f} GB are free at {store}. "
            "Nothing was written. Free some space, set cache.dtype to float16 or int8, or move the store (globals.yml)."
        )
