"""Training by several processes, one a device (torch.distributed): each takes its rows of every batch.

The order of the rows, the learning rate and what is written are those of one process. Gradients are added up over the
ranks, each rank's share of the loss being its share of the batch; adapters are small, so that is one collective of one
tensor a step, after the backward pass. What is frozen never moves.

    torchrun --nproc_per_node 4 -m fusetune.runs ...     # this process is one of them: `joined`
    kedro run ... --params train.devices=4               # this one is the first and starts the others: `spawned`
"""

import logging
import os
import pickle
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.plan.adapted import AdaptedModel

logger = logging.getLogger(__name__)
WAITED = timedelta(minutes=30)  # for another rank, which may be caching features
HERE, LOOK = "127.0.0.1", 0.05
NOTICED = 2.0  # seconds
GONE = 20.0  # seconds in which the others end once the first is through


@dataclass
class Group:
    """The processes that train one model.

    Attributes:
        rank: this one's number, from 0; the first alone writes.
        size: how many.
        together: whether every rank takes part in every pass, since each holds a part of the weights (`sharded`).
    """

    rank: int = 0
    size: int = 1
    together: bool = False
    _used: Tensor | None = field(default=None, repr=False)  # which parameters get gradients, in this epoch

    def part(self, index: Tensor) -> Tensor:
        """This rank's rows of a batch; of a short one perhaps none."""
        return index.tensor_split(self.size)[self.rank] if self.size > 1 else index

    def passes(self, index: Tensor, size: int) -> list[Tensor]:
        """This rank's rows in passes of `size`; empty ones where others have more and all take part in every pass."""
        own = self.part(index)
        several = list(own.split(size)) if len(own) else []
        most = -(-len(index.tensor_split(self.size)[0]) // size) if self.together else 0
        return several + [own[:0]] * (most - len(several))

    def asked(self, part: Tensor, whole: Tensor, takes_part: bool = False) -> Tensor:
        """This rank's rows of a pass; where it has none and takes part, one of another's that counts for nothing."""
        return whole[:1] if (takes_part or self.together) and not len(part) else part

    def shares_outputs(self, model: AdaptedModel) -> bool:
        """Whether each rank needs the outputs of all: the loss is of a batch as a whole."""
        return self.size > 1 and not model.task.by_sample

    def whole(self, out: Tensor, size: int) -> Tensor:
        """All rows of a batch of `size`: those of this rank with their gradients, the others' as numbers.

        So the loss of the whole batch has in each rank the gradients of that rank's rows, and their sum is all.

        Args:
            out: of this rank's `part`, and perhaps of a row that counts for nothing.
        """
        own = self.part(torch.arange(size))
        all_ = out.new_zeros(size, *out.shape[1:])
        start = int(own[0]) if len(own) else size
        all_[start : start + len(own)] = out[: len(own)].detach()
        torch.distributed.all_reduce(all_)
        return torch.cat([all_[:start], out[: len(own)], all_[start + len(own) :]])

    def begin_epoch(self) -> None:
        """Which parameters get gradients may have changed."""
        self._used = None

    @torch.no_grad()
    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Gradients become their sums over the ranks; a parameter that has none in any rank still has none."""
        if self.size == 1:
            return
        if self._used is None:
            self._used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
            torch.distributed.all_reduce(self._used)
            self._used = self._used.cpu() > 0
        used = [p for p, any_has in zip(parameters, self._used.tolist(), strict=True) if any_has]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in used])
        torch.distributed.all_reduce(flat)
        for parameter, whole in zip(used, flat.split([p.numel() for p in used]), strict=True):
            parameter.grad = whole.view_as(parameter).to(parameter.dtype)

    def added(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        return [sum(of_ranks) for of_ranks in zip(*self._gathered(list(numbers)), strict=True)]

    def joined_rows(self, rows: Tensor | None) -> Tensor:
        """CPU rows of all ranks, one behind another; None: this one has none."""
        return torch.cat([of_rank for of_rank in self._gathered(rows) if of_rank is not None])

    def first_says(self, value: Any) -> Any:
        """What the first rank has."""
        if self.size == 1:
            return value
        said = [value]
        torch.distributed.broadcast_object_list(said)
        return said[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def _gathered(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found


ALONE = Group()


@torch.no_grad()
def check_alike(model: AdaptedModel, group: Group) -> None:
    """What isn't the base's becomes the first rank's; refused is a loss of a batch as a whole whose outputs differ in
    width from rank to rank.

    Raises:
        FusetuneError: see above.
    """
    if group.size == 1:
        return
    check(
        model.task.by_sample or not model.task.token_outputs,
        f"train.devices: {group.size} were asked for, and the loss of this task is of a batch as a whole, whose "
        "outputs are by token: each device would have them in another width. Expected 1.",
    )
    said = group.first_says({name: value.detach().cpu() for name, value in model.kept().items()})
    for name, value in model.kept().items():
        value.copy_(said[name])


@contextmanager
def joined(devices: int = 1) -> Iterator[Group]:
    """The group of which torchrun has made this process one; alone where it hasn't.

    Args:
        devices: how many the settings ask for; 1: as many as there are.

    Raises:
        FusetuneError: the number of processes is another one.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if devices > 1 and size != devices:
        raise FusetuneError(
            f"train.devices: {devices} were asked for, and this is one process of {size}. Start it by `torchrun "
            f"--nproc_per_node {devices} -m fusetune.runs ...`, or leave train.devices out."
        )
    if size == 1:
        yield ALONE
        return
    with _member(int(os.environ["RANK"]), size) as group:
        yield group


@contextmanager
def spawned(devices: int, follow: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[Group]:
    """Start the other ranks, each to run ``follow(group, *arguments)``; this process is the first.

    Raises:
        FusetuneError: a rank has ended before this one was through; what it wrote to stderr says why.
    """
    if devices == 1:
        yield ALONE
        return
    store = torch.distributed.TCPStore(HERE, 0, devices, is_master=True, wait_for_workers=False, timeout=WAITED)
    context = torch.multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // devices)
    # by a file: whoever writes more than a pipe holds to a process that has died waits for ever (multiprocessing)
    folder = tempfile.TemporaryDirectory()
    told = Path(folder.name, "arguments")
    told.write_bytes(pickle.dumps((follow, arguments)))
    others = [
        context.Process(target=_other, args=(rank, devices, store.port, threads, str(told)), daemon=True)
        for rank in range(1, devices)
    ]
    for process in others:
        process.start()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _meet(store, others)
        with _member(0, devices, store) as group:
            yield group
    except RuntimeError:  # a collective whose other side is gone
        for process in others:  # one that has just died is not known to be dead yet
            process.join(NOTICED)
        _check_alive(others)
        raise
    finally:
        torch.set_num_threads(before)
        begun = time.monotonic()
        for process in others:
            process.join(max(0.1, GONE - (time.monotonic() - begun)))
            process.terminate()
        folder.cleanup()


def _meet(store: torch.distributed.TCPStore, others: Sequence[Any]) -> None:
    """Wait until every other rank has started; one that dies on the way would be waited for in vain."""
    while not store.check([f"here {rank}" for rank in range(1, len(others) + 1)]):
        _check_alive(others)
        time.sleep(LOOK)


def _check_alive(others: Sequence[Any]) -> None:
    """Raise FusetuneError for the first process that has ended otherwise than it should."""
    ended = [(rank, process.exitcode) for rank, process in enumerate(others, 1) if process.exitcode]
    for rank, code in ended:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise FusetuneError(
            f"training: rank {rank} of {len(others) + 1} has ended ({how}), so training ends. What was trained until "
            "the last epoch is in the checkpoint: run again."
        ) from None


@contextmanager
def _member(rank: int, size: int, store: torch.distributed.TCPStore | None = None) -> Iterator[Group]:
    """This process as one of the group; they meet in `store`, or where torchrun says."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    enough = torch.cuda.is_available() and torch.cuda.device_count() >= here  # NCCL wants a GPU a rank
    backend = "cpu:gloo,cuda:nccl" if enough else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=WAITED)
    try:
        found = torch.distributed.get_world_size()
        if found != size:
            raise FusetuneError(f"training: {size} processes were started, and {found} have met.")
        yield Group(rank, size)
    finally:
        torch.distributed.destroy_process_group()


def _end_with_parent() -> None:
    """Whoever has started this process may be killed: nothing would end it then, wherever it waits."""
    parent = torch.multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _other(rank: int, size: int, port: int, threads: int, told: str) -> None:
    """What a process that was started does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        follow, arguments = pickle.loads(Path(told).read_bytes())
        store = torch.distributed.TCPStore(HERE, port, size, is_master=False, timeout=WAITED)
        store.set(f"here {rank}", "")
        with _member(rank, size, store) as group:
            follow(group, *arguments)
    except Exception as error:
        print(f"rank {rank}: {error}" if isinstance(error, FusetuneError) else traceback.format_exc(), file=sys.stderr)
        sys.exit(1)
