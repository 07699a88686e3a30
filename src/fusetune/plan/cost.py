"""Where caching pays: the frontier says where it is allowed, cost says where features are really cached.

For S samples that are read R times (epochs x seeds x methods) from a cut c at or below the frontier f:

    seconds(c) = S [ T(c) + R (T(f) - T(c) + A) + b(c) / write + R b(c) / read ],   T = FLOPs / rate + operations / n

T(d): of a sample's forward pass up to d, frozen; A: of what lies above f, forward and backward, whatever the cut;
b(c): bytes of a sample there; n: operations a second that Python launches, in batches of 64 samples, which is most of a
small model's time. A cut that the disk can't hold is none. The rates below are a CPU's or a GPU's order of magnitude,
the same on every machine, so that the same conf has the same cut everywhere; what depends on them is a choice between
cuts that differ manifold. For the same reason a method's cut doesn't depend on the methods that it is compared with:
one more of them would otherwise move the others' cuts, and their results would have to be computed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import check
from fusetune.features.codecs import bytes_per_value
from fusetune.features.index import CUTS, CacheSettings, stored_dtype
from fusetune.tokens import Tokens

RATES = {"cpu": 5e10, "cuda": 5e13}  # FLOPs a second
LAUNCH = 9e-6  # seconds beside its arithmetic that an operation takes
BATCH = 64  # samples of a batch, in which an operation is launched once
READ, WRITE = 2e9, 2e8  # bytes a second: from memory or a map of it; to disk, hashed and synced
TRAINED = 2  # forward passes that a trained one costs: through frozen weights gradients go back once
TRAINED_LAUNCHES = 3  # the same of operations, the optimizer's among them
WORTH = 0.8  # of the frontier's seconds: what costs more than this is no reason to leave it
PAYS = 1.1  # times faster than from the inputs: for less, bytes count
LESS, MORE = 0.5, 1.05  # such a frontier is left for a cut of half its bytes, and hardly more seconds


@dataclass(frozen=True)
class CutCost:
    """
    Attributes:
        name: inputs, encoder (in front of a connector), towers (at their tops, or as far up as is allowed), frontier.
        depths: where that is.
        bytes: of a sample there, on disk.
        below: FLOPs of a sample's forward pass up to there.
        launches: operations of a batch's forward pass up to there.
        seconds: of all readings, as the model above has it.
        faster: times, against an epoch from the inputs, of arithmetic and what launches it.
    """

    name: str
    depths: Frontier
    bytes: int
    below: int
    launches: int
    seconds: float
    faster: float

    def __str__(self) -> str:
        return f"{self.name} ({self.depths}): {self.bytes / 1e6:.3g} MB a sample, {self.faster:.2f}x faster"


@dataclass(frozen=True)
class Choice:
    """The cut that was chosen, all that it was chosen from, and why, in words."""

    cut: CutCost
    costs: Sequence[CutCost]
    why: str

    def __str__(self) -> str:
        return f"{'; '.join(map(str, self.costs))}. Cached at: {self.cut.name}, {self.why}"


class Launches(TorchDispatchMode):
    """Counts the operations that are launched while it lasts, those of a backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def cuts(backbone: Backbone, frontier: Frontier) -> dict[str, Frontier]:
    """By name, from the inputs upwards, where features may be cached; what is the same stands once, as the deepest."""
    inputs = Frontier(dict.fromkeys(frontier.towers, 0))
    connectors = {name: int(len(getattr(backbone.tower(name), "connector", ())) > 0) for name in frontier.towers}
    encoder = {n: min(k, backbone.tower(n).depth - connectors[n]) for n, k in frontier.towers.items()}
    found = {"frontier": frontier}
    for name, depths in (("towers", Frontier(frontier.towers)), ("encoder", Frontier(encoder)), ("inputs", inputs)):
        if depths not in found.values():
            found[name] = depths
    return dict(reversed(found.items()))


def weigh(
    backbone: Backbone,
    run: Callable[[Mapping[str, Tokens], Frontier], Any],
    frontier: Frontier,
    example: Mapping[str, Tokens],
    rows: int,
    distinct: Mapping[str, int],
    cache: CacheSettings,
    device: str = "cpu",
) -> tuple[list[CutCost], dict[str, Tokens]]:
    """The cost of each cut, and the example's states at the frontier.

    Args:
        run: the rest of the pass, from a frontier to the outputs.
        example: a few samples at depth 0.
        rows: samples.
        distinct: by stream, contents among them: below the trunk what is the same is stored once.
    """
    count = len(next(iter(example.values())).mask)
    names, rate = list(example), RATES[device]
    at, states, below, before = Frontier(dict.fromkeys(names, 0)), dict(example), 0, 0
    measured: list[tuple[str, Frontier, int, int, int, float]] = []

    def seconds(flops: int, launched: int) -> float:
        return flops / rate + launched * LAUNCH / BATCH

    for name, depths in cuts(backbone, frontier).items():
        with torch.no_grad(), Launches() as launches, FlopCounterMode(display=False) as counter:
            states = backbone.advance(states, at, depths)
        at, below = depths, below + counter.get_total_flops() // count
        before += launches.count
        stored = dict.fromkeys(names, rows) if depths.trunk else distinct
        size = sum(sample_bytes(states[n], depths, n, cache) * stored[n] / rows for n in names)
        measured.append((name, depths, int(size), below, before, seconds(below, before)))
    with Launches() as launches, FlopCounterMode(display=False) as counter:
        run(states, at)
    above = seconds(TRAINED * counter.get_total_flops() // count, TRAINED_LAUNCHES * launches.count)
    whole, found = seconds(below, before) + above, []
    for name, depths, size, flops, launched, spent in measured:
        again = whole - spent
        total = rows * (spent + size / WRITE + cache.readings * (again + size / READ))
        found.append(CutCost(name, depths, size, flops, launched, total, whole / again))
    return found, states


def choose(costs: Sequence[CutCost], order: str, rows: int, free: int | None) -> Choice:
    """The cut to cache at.

    Args:
        order: auto, or a cut's name, which is taken whatever it costs; one that is the same as a deeper one is that.
        free: bytes on the disk; None: nobody knows.

    Raises:
        FusetuneError: no cut fits.
    """
    named = {cost.name: cost for cost in costs}
    if order != "auto":
        cost = next(named[name] for name in CUTS[CUTS.index(order) :] if name in named)
        return Choice(cost, costs, "as ordered by cache.cut")
    fits = [cost for cost in costs if free is None or cost.bytes * rows <= free]
    least = min(costs, key=lambda cost: cost.bytes)
    check(
        bool(fits),
        f"feature cache: no cut fits the disk: the least is {least} and takes {least.bytes * rows / 1e9:.1f} GB, "
        f"{(free or 0) / 1e9:.1f} GB are free. Free some space, or move the store (globals.yml).",
    )
    best, top = min(fits, key=lambda cost: cost.seconds), costs[-1]
    if top not in fits:
        return Choice(best, costs, f"the cheapest that fits: at the frontier {top.bytes * rows / 1e9:.1f} GB don't")
    if best.seconds < WORTH * top.seconds:
        return Choice(best, costs, f"{top.seconds / best.seconds:.1f} times cheaper than the frontier, bytes included")
    if top.faster < PAYS:
        told = "caching hardly pays: nearly all arithmetic lies above the frontier"
        small = min(fits, key=lambda cost: cost.bytes)
        if small.bytes < LESS * top.bytes and small.seconds < MORE * top.seconds:
            return Choice(small, costs, f"which is small; {told}")
        return Choice(top, costs, f"though {told}")
    return Choice(top, costs, "the frontier")


def sample_bytes(tokens: Tokens, depths: Frontier, name: str, cache: CacheSettings) -> float:
    """Of one sample of a stream on disk, at the mean length of these."""
    dtype = stored_dtype(depths, name, cache)
    size = tokens.values.element_size() if dtype == "as prepared" else bytes_per_value(dtype)
    real = tokens.mask.numel() if tokens.mask.is_meta else int(tokens.mask.sum())
    return real / len(tokens.mask) * tokens.width * size
