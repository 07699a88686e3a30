"""Work done ahead of its time by a thread: decoding while the backbone runs, reading while the adapter trains."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from fusetune.device import cores

MOST = 12  # threads; more wait for one another
Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int, threads: int = 1) -> Iterator[Result]:
    """``map(function, items)``, in order, with up to `depth` results made before they are asked for."""
    pool = ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1) if threads > 1 else None)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def threads_beside(device: torch.device) -> int:
    """That may work ahead: one on a CPU, whose cores the model needs itself; most cores beside a GPU."""
    return 1 if device.type == "cpu" else max(1, min(MOST, cores() - 1))


def delayed(items: Iterable[Item], notice: Callable[[Item], None], depth: int) -> Iterator[Item]:
    """The items, each announced by `notice` when it is still `depth` items away."""
    coming: deque[Item] = deque()
    for item in items:
        notice(item)
        coming.append(item)
        if len(coming) > depth:
            yield coming.popleft()
    yield from coming
