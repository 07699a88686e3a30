"""Jobs as tasks of a Ray cluster, each with the memory and the share of a GPU that it needs; one that dies costs itself
alone. Cells are written where the comparison lies, so all machines have to see that folder and the store."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fusetune.cluster import cluster
from fusetune.comparison.jobs import Job, Place, Shared
from fusetune.comparison.pool import LOOK, Heard, work_off
from fusetune.config import check
from fusetune.features.storage import Store

LEAST = 0.05  # of a GPU: more than 20 small jobs on one only wait for each other


def run_jobs_with_ray(shared: Shared, jobs: Sequence[Job], device: torch.device, heard: Heard) -> None:
    """Run all jobs, the longest first; returns when each has ended. As `pool.run_jobs` otherwise.

    Args:
        device: of whose kind a job asks for a share.

    Raises:
        FusetuneError: see `cluster`; or no machine has the GPU, or the memory, that a job asks for.
    """
    if not jobs:
        return
    with cluster("compare.ray", shared.store) as ray:
        from ray.util.queue import Queue

        needs = [_needs(job, device) for job in jobs]
        _check_room(ray, jobs, needs)
        said = Queue()
        at = ray.put(_seen_from_anywhere(shared))
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i].seconds)
        task = ray.remote(_run)
        threads = 1 if device.type == "cpu" else torch.get_num_threads()
        running = {
            task.options(**needs[i], max_retries=0).remote(at, jobs[i], i, device.type, threads, said): i for i in order
        }
        left = {i: set(job.places()) for i, job in enumerate(jobs)}  # of which nothing final has been heard
        while running:
            done, _ = ray.wait(list(running), timeout=LOOK)
            for number, kind, place, details in _waiting(said):
                if kind in ("cell", "failed"):
                    left[number] -= {place} if place is not None else set(left[number])
                heard(jobs[number], kind, place, details)
            for reference in done:
                number = running.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    why = str(error).strip().splitlines()[0]
                    for place in sorted(left[number]):
                        heard(jobs[number], "failed", place, (f"its process has ended: {why}",))
                heard(jobs[number], "ended", None, ())


def _needs(job: Job, device: torch.device) -> dict[str, Any]:
    """What a job asks Ray for."""
    if device.type != "cuda":
        return {"num_cpus": 1, "memory": job.memory}
    whole = torch.cuda.get_device_properties(device).total_memory
    return {"num_cpus": 1, "num_gpus": min(1.0, max(LEAST, round(job.memory / whole + 0.005, 2)))}


def _check_room(ray: Any, jobs: Sequence[Job], needs: Sequence[dict[str, Any]]) -> None:
    """Ray would wait for ever for a machine that isn't there."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for job, need in zip(jobs, needs, strict=True):
        asked = {"GPU": need.get("num_gpus", 0), "memory": need.get("memory", 0)}
        fits = any(all(machine.get(name, 0) >= value for name, value in asked.items()) for machine in machines)
        most = {name: max((machine.get(name, 0) for machine in machines), default=0) for name in asked}
        check(
            fits,
            f"compare.ray: '{job.name}' asks for {asked['GPU']:g} of a GPU and {asked['memory'] / 1e9:.1f} GB, and no "
            f"machine of the cluster has that (at most {most['GPU']:g} GPUs, {most['memory'] / 1e9:.1f} GB).",
        )


def _seen_from_anywhere(shared: Shared) -> Shared:
    """With whole paths, for processes that work in another folder."""
    roots = {n: replace(m, root=str(Path(m.root).resolve())) for n, m in shared.data.modalities.items()}
    return replace(
        shared,
        base=Path(shared.base).resolve(),
        data=replace(shared.data, modalities=roots),
        store=str(Store(shared.store).absolute()),
        folder=shared.folder.resolve(),
    )


def _waiting(said: Any) -> list[tuple[int, str, Place | None, tuple[Any, ...]]]:
    return said.get_nowait_batch(said.qsize())


def _run(shared: Shared, job: Job, number: int, kind: str, threads: int, said: Any) -> None:
    """What a task does."""
    device = torch.device("cuda" if kind == "cuda" else "cpu")  # Ray shows a task its own GPU

    def tell(kind: str, place: Place | None, *details: Any) -> None:
        said.put((number, kind, place, details))

    tell("started", None, f"{device} of {os.uname().nodename}, process {os.getpid()}")
    work_off(shared, job, device, threads, 1, tell)
