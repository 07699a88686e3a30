"""How much the loss would change by an adapter in each block: a cheap guide to where one may pay.

A bottleneck that begins as nothing has a gradient all the same. Behind a head that has been trained on the frozen
streams, its squared norm, added up over batches, says how far the first step of that block's change would go (after He
et al., "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", ICCV 2023, arXiv 2303.08566). One probe and a few
batches, nothing else is trained; what several blocks reach together it can't know.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch

from fusetune.config import build
from fusetune.features.orders import batches
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.workplace import Workplace
from fusetune.training.losses import batch_losses
from fusetune.training.settings import TrainSettings

WIDTH, BATCH, BATCHES = 16, 32, 8
ENOUGH = 0.8  # share of a stack's sensitivity that its chosen upper blocks hold
HEAD = {"where": "head", "adapter": "linear"}


def sensitivities(
    make: Callable[[Plan, int, str], Experiment], work: Workplace, stacks: Mapping[str, int], settings: TrainSettings
) -> dict[str, list[float]]:
    """By stack, each block's share of the whole, from the bottom up.

    Args:
        make: an experiment of a plan, by a seed and a name.
        work: where the probe is trained.
        stacks: how many blocks each has.
        settings: of the probe.

    Raises:
        FusetuneError: a stack in which no bottleneck fits.
    """
    places = [(name, block) for name, depth in stacks.items() for block in range(depth)]
    probe = make(build(Plan, {"placements": [HEAD]}, "probe"), settings.seed, "probe")
    work.trained(probe, settings)
    placed = [_bottleneck(name, block) for name, block in places]
    experiment = make(build(Plan, {"placements": [*placed, HEAD]}, "guide"), settings.seed, "guide")
    model: Any = experiment.model.to(work.device)
    splits, _ = work.splits(experiment)
    model.load_state_dict({**model.state_dict(), **_of_head(probe)})
    train, found = splits["train"], torch.zeros(len(places), dtype=torch.float64)
    model.eval()  # dropout would add its own noise
    drawn = batches(len(train.targets), BATCH, torch.Generator().manual_seed(settings.seed))
    for index, states in train.features.batches(islice(drawn, BATCHES)):
        model.zero_grad()
        batch_losses(model, states, train.features.frontier, train.targets[index])[1].backward()
        for place, adapter in enumerate(model.blocks):
            norms = [p.grad.double().square().sum() for p in adapter.trained() if p.grad is not None]
            found[place] += torch.stack(norms).sum().cpu() if norms else 0.0
    shares = (found / found.sum().clamp(min=1e-30)).tolist()
    model.detach()
    return {name: [share for (one, _), share in zip(places, shares, strict=True) if one == name] for name in stacks}


def upper_blocks(shares: Mapping[str, list[float]]) -> dict[str, int]:
    """Of each stack, how many of its upper blocks hold most of its sensitivity; the most sensitive stack first."""
    counts = {}
    for name in sorted(shares, key=lambda name: -sum(shares[name])):
        own, whole = 0.0, sum(shares[name])
        for count, share in enumerate(reversed(shares[name]), start=1):
            own += share
            if own >= ENOUGH * whole:
                counts[name] = count
                break
    return counts


def _bottleneck(name: str, block: int) -> dict[str, Any]:
    blocks = {"take": "explicit", "explicit": {name: [block]}}
    return {"where": "trunk" if name == "trunk" else "towers", "adapter": "bottleneck", "blocks": blocks,
            "config": {"bottleneck_dim": WIDTH}}  # fmt: skip


def _of_head(experiment: Experiment) -> dict[str, torch.Tensor]:
    return {name: value for name, value in experiment.model.state_dict().items() if name.startswith("head.")}
