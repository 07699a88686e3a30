"""Extraction over many machines with Ray Data (extra ``ray``): the same chunks, written by whoever is free."""

from typing import Any

import torch

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.offloaded import placed
from fusetune.cluster import cluster
from fusetune.errors import FusetuneError
from fusetune.features.chunks import Chunks
from fusetune.features.computing import Progress, extract_chunk
from fusetune.features.index import CacheSettings, Features
from fusetune.features.source import Source
from fusetune.features.storage import Store


def extract_with_ray(
    backbone: Backbone,
    source: Source,
    features: Features,
    todo: Chunks,
    store: Store,
    settings: CacheSettings,
    progress: Progress,
    device: torch.device,
) -> None:
    """Compute and write all chunks in `settings.ray_workers` processes of the cluster, or of one started here.

    Which worker takes which chunk has no influence on what is written: a shard is one chunk, and the number of threads
    behind a matrix product, on which its last bit may depend, is this process's.

    Raises:
        FusetuneError: Ray is not installed, the cluster is too small, or the store can't be seen from other processes.
    """
    with cluster("cache.ray_workers", store) as ray:
        import ray.data

        try:
            kind = "GPU" if device.type == "cuda" else "CPU"
            there = int(ray.cluster_resources().get(kind, 0))
            if settings.ray_workers > there:  # Ray would wait for ever
                raise FusetuneError(
                    f"cache.ray_workers: {settings.ray_workers} were asked for, and the cluster has {there} {kind}s."
                )
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.verbose_stats_logs = False
            job = ray.put((backbone.cpu(), source, features, todo, store.absolute(), settings, str(device)))
            numbers = ray.data.from_items([{"chunk": i} for i in range(len(todo))], override_num_blocks=len(todo))
            written = numbers.map_batches(
                _Worker,
                fn_constructor_args=(job, torch.get_num_threads()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=settings.ray_workers),
                num_cpus=0 if kind == "GPU" else 1,
                num_gpus=1 if kind == "GPU" else 0,
            )
            done = size = 0
            total = todo.rows
            for row in written.iter_rows():
                done, size = done + int(row["rows"]), size + int(row["bytes"])
                progress(done, total, size)
        except ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            raise (FusetuneError(str(error.cause)) if isinstance(cause, FusetuneError) else error) from None


class _Worker:
    """An actor with a backbone of its own."""

    def __init__(self, job: Any, threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        self.backbone, self.source, self.features, self.todo, self.store, self.settings, device = ray.get(job)
        self.device = torch.device("cuda" if device.startswith("cuda") else device)  # Ray shows a worker its own GPU
        self._placed = placed(self.backbone, self.device)
        self._placed.__enter__()  # as long as this process lives

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        chunk = self.todo[int(batch["chunk"][0])]
        size = extract_chunk(self.backbone, self.source, self.features, chunk, self.store, self.settings, self.device)
        return {"rows": [len(chunk.rows)], "bytes": [size]}
