"""Jobs in processes of their own, as many at a time as workers and memory allow; one that dies costs itself alone."""

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from fusetune.comparison.jobs import Job, Place, Shared, Tell, told
from fusetune.comparison.work import run_job
from fusetune.config import check
from fusetune.device import cores, free_memory, pick_device

PRELOADED = ["fusetune.comparison.work", "transformers.modeling_utils", "torch._dynamo"]  # what every job will need
LOOK = 0.5  # seconds between two looks at the processes, at most
Heard = Callable[[Job, str, Place | None, tuple[Any, ...]], None]  # job, kind, place, details


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    pipe: Connection
    device: torch.device
    open: set[Place] = field(default_factory=set)  # of which nothing final has been heard


def devices(workers: int, name: str) -> list[torch.device]:
    """Where each worker computes: by default one a GPU, else one a core."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        count = torch.cuda.device_count()
        return [torch.device("cuda", i % count) for i in range(workers or count)]
    device = pick_device(name)
    return [device] * (workers or (cores() if device.type == "cpu" else 1))


def run_jobs(shared: Shared, jobs: Sequence[Job], places: Sequence[torch.device], heard: Heard) -> None:
    """Run all jobs, the longest first; returns when each has ended.

    A job waits until the memory that it may take is free beside that of the others; one that is too large for the
    share runs alone.

    Args:
        heard: told of ``started``, ``epoch``, ``cell``, ``failed``, ``trial``, ``note`` and ``ended``.
    """
    if not jobs:
        return
    check(bool(places), "compare.workers: expected at least one.")
    context = _context()
    threads = max(1, torch.get_num_threads() // len(places))
    waiting = sorted(jobs, key=lambda job: -job.seconds)
    budget = {place: shared.settings.memory * free_memory(place) for place in set(places)}
    running: list[_Running] = []
    try:
        while waiting or running:
            for place in _free(places, running):
                taken = sum(r.job.memory for r in running if r.device == place)
                fitting = (j for j in waiting if taken + j.memory <= budget[place] or not taken)
                job = next(fitting, None)
                if job is not None:
                    waiting.remove(job)
                    running.append(_started(context, shared, job, place, threads, len(places)))
                    heard(job, "started", None, (str(place),))
            wait([r.pipe for r in running], timeout=LOOK)
            for one in list(running):
                if not _listened(one, heard):
                    running.remove(one)
                    heard(one.job, "ended", None, ())
    finally:
        for one in running:  # only where this process itself is to end
            one.process.terminate()
        for one in running:
            one.process.join(5)


def _context() -> Any:
    """Processes that are forked from one that has loaded torch already; where there are none, spawned."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _free(places: Sequence[torch.device], running: Sequence[_Running]) -> list[torch.device]:
    left = list(places)
    for one in running:
        left.remove(one.device)
    return left


def _started(context: Any, shared: Shared, job: Job, device: torch.device, threads: int, workers: int) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(shared, job, device, threads, workers, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Running(job, process, ours, device, set(job.places()))


def _listened(one: _Running, heard: Heard) -> bool:
    """Whether the process goes on, after all that it has said was passed on."""
    try:
        while one.pipe.poll():
            kind, place, details = one.pipe.recv()
            if kind in ("cell", "failed"):
                one.open -= {place} if place is not None else one.open.copy()
            heard(one.job, kind, place, details)
        return True
    except (EOFError, ConnectionResetError):  # it has ended
        one.process.join()
    code = one.process.exitcode or 0
    if code:
        why = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        much = " The system was perhaps out of memory: lower compare.workers or train.batch_size." if code == -9 else ""
        for place in sorted(one.open):
            heard(one.job, "failed", place, (f"its process ended with {why}.{much}",))
    return False


def _main(shared: Shared, job: Job, device: torch.device, threads: int, workers: int, pipe: Connection) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it

    def tell(kind: str, place: Place | None, *details: Any) -> None:
        try:
            pipe.send((kind, place, details))
        except BrokenPipeError:  # nobody is there any more
            os._exit(1)

    work_off(shared, job, device, threads, workers, tell)
    pipe.close()


def work_off(shared: Shared, job: Job, device: torch.device, threads: int, workers: int, tell: Tell) -> None:
    """Run a job in this process; what it raises is told."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", "There is a performance drop")  # vmap over attention: slower, and measured
    begun = time.perf_counter()
    try:
        run_job(shared, job, device, workers, tell)
    except Exception as error:
        tell("failed", None, told(error))
    tell("note", None, f"{job.name}: {time.perf_counter() - begun:.0f} s")
