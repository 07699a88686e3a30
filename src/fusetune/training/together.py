"""The training loop of an ensemble: every member goes the way that it would have gone alone.

Each has its own order of the samples and its own random stream, stops by its own validation metric and keeps its own
best epoch; who has stopped leaves the ensemble, and the rest goes on without it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusetune.errors import FusetuneError
from fusetune.features.orders import batches
from fusetune.plan.adapted import AdaptedModel
from fusetune.training import checkpoint
from fusetune.training.ensemble import Ensemble, Values
from fusetune.training.ensemble_steps import EnsembleSteps
from fusetune.training.epochs import Epoch, stale
from fusetune.training.optimizer import TOTAL
from fusetune.training.predicting import Split, check_finite
from fusetune.training.settings import TrainSettings
from fusetune.training.steps import not_finite
from fusetune.training.zero_shot import zero_shot_metric


@dataclass
class Member:
    """
    Attributes:
        history: its epochs; `seconds` is its share of the ensemble's.
        best: values of its best epoch, by parameter name.
        before: the metric before any training, of a model that knows something by then.
        error: why it didn't get to the end, if it didn't.
    """

    history: list[Epoch] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    before: float | None = None
    error: str | None = None

    def best_metric(self) -> float:
        known = [epoch.val_metric for epoch in self.history] + ([] if self.before is None else [self.before])
        return max(known, default=-math.inf)


def train_together(
    model: AdaptedModel,
    values: Sequence[Values],
    train_split: Split,
    val_split: Split,
    settings: Sequence[TrainSettings],
    key: str,
    folder: Path,
    epoch_done: Callable[[int, Epoch], None] = lambda *_: None,
) -> list[Member]:
    """Train one model for each of `settings`, from `values`, as `loop.train` trains one.

    Args:
        model: on the device of the features.
        values: initial ones of the trained parameters, by name.
        key: digest of all that determines the run; a checkpoint in `folder` with another key is not resumed.
        epoch_done: called with a member's number and its epoch, behind the checkpoint.
    """
    before = zero_shot_metric(model, val_split, settings[0].batch_size)
    members = [Member(best={n: v.detach().clone() for n, v in own.items()}, before=before) for own in values]
    ensemble, one, active = Ensemble(model, values, settings), settings[0], list(range(len(settings)))
    first, active = _resumed(ensemble, members, active, key, folder)
    count = len(train_split.targets)
    steps_per_epoch = math.ceil(count / one.batch_size)
    taken = EnsembleSteps(ensemble, train_split, steps_per_epoch * one.epochs)
    rows = torch.tensor([len(part) / count for part in torch.arange(count).split(one.batch_size)])  # of each step
    for number in range(first, one.epochs):
        if not active:
            break
        begun = time.perf_counter()
        losses, norms = taken.epoch(number, number * steps_per_epoch)
        trained = time.perf_counter() - begun
        evaluated = _evaluated(ensemble, val_split, number + 1)
        seconds = (time.perf_counter() - begun) / len(active)
        going, epochs = [], []
        for place, number_of_member in enumerate(active):
            member, of_steps = members[number_of_member], losses[:, place]
            bad = (~of_steps.isfinite()).nonzero()
            if len(bad):
                step = number * steps_per_epoch + int(bad[0])
                member.error = not_finite(of_steps[bad[0]].item(), number, step, settings[number_of_member])
                continue
            if isinstance(evaluated[place], str):
                member.error = evaluated[place]
                continue
            metric, val_loss = evaluated[place]
            epoch = Epoch(
                number + 1,
                (of_steps @ rows).item(),
                val_loss,
                metric,
                norms[TOTAL][place].item(),
                float(ensemble.optimizer.param_groups[0]["lr"]),
                seconds,
                len(train_split.targets) * len(active) / trained,
                {site: norm[place].item() for site, norm in norms.items() if site != TOTAL},
            )
            if metric > member.best_metric():
                member.best = ensemble.member(place)
            member.history.append(epoch)
            epochs.append((number_of_member, epoch))
            if not stale(member.history, one.patience):
                going.append(place)
        if len(going) < len(active):
            active = [active[place] for place in going]
            if active:
                ensemble.keep(going)
                taken = EnsembleSteps(ensemble, train_split, steps_per_epoch * one.epochs)
        _save(ensemble, members, active, number + 1, key, folder)
        for number_of_member, epoch in epochs:
            epoch_done(number_of_member, epoch)
    return members


@torch.no_grad()
def _evaluated(ensemble: Ensemble, split: Split, epoch: int) -> list[Any]:
    """Metric and mean loss of each member, or what is wrong with its outputs."""
    outputs, losses = predict_together(ensemble, split)
    task = ensemble.model.task
    found: list[Any] = []
    for own, loss in zip(outputs, losses.tolist(), strict=True):
        try:
            check_finite(own, split, epoch)
        except FusetuneError as error:
            found.append(str(error))
            continue
        found.append((task.metrics(own, split.targets)[task.metric], loss))
    return found


@torch.no_grad()
def predict_together(ensemble: Ensemble, split: Split) -> tuple[Tensor, Tensor]:
    """Outputs of every member for all rows, as the task keeps them, (members, rows, ...), float32 on the CPU; and the
    mean losses, (members,)."""
    ensemble.model.eval()
    task, features, size = ensemble.model.task, split.features, 4 * ensemble.settings[0].batch_size
    parts, totals, weights = [], torch.zeros(len(ensemble)), task.row_weights(split.targets)
    for index, states in features.batches(batches(len(split.targets), size)):
        outputs, targets = ensemble.outputs(states, features.frontier).cpu(), split.targets[index]
        totals += torch.tensor([task.loss(own, targets).item() for own in outputs]) * weights[index].sum()
        parts.append(torch.stack([task.kept(own, targets) for own in outputs]))
    return torch.cat(parts, 1), totals / weights.sum()


def _save(
    ensemble: Ensemble, members: Sequence[Member], active: Sequence[int], epochs: int, key: str, folder: Path
) -> None:
    tensors = ensemble.tensors() if active else {}
    tensors |= {f"best.{i}.{name}": value for i, member in enumerate(members) for name, value in member.best.items()}
    state = {
        "key": key,
        "epochs": epochs,
        "active": list(active),
        "members": [{"history": [asdict(e) for e in member.history], "error": member.error} for member in members],
    }
    checkpoint.save(folder, tensors, state)


def _resumed(
    ensemble: Ensemble, members: Sequence[Member], active: list[int], key: str, folder: Path
) -> tuple[int, list[int]]:
    """Epochs that are done, and who still goes on."""
    found = checkpoint.load(folder, key)
    if found is None:
        return 0, active
    tensors, state = found
    for i, (member, record) in enumerate(zip(members, state["members"], strict=True)):
        member.history, member.error = [Epoch(**epoch) for epoch in record["history"]], record["error"]
        member.best = {name: tensors[f"best.{i}.{name}"].to(value.device) for name, value in member.best.items()}
    active = state["active"]
    if active:
        ensemble.keep(active)
        ensemble.restore({name: t for name, t in tensors.items() if name.startswith("leaf.")})
    return state["epochs"], active
