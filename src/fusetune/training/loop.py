"""The one training loop."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.config import check
from fusetune.device import training_dtype
from fusetune.plan.adapted import AdaptedModel
from fusetune.training import checkpoint
from fusetune.training.distributed import ALONE, Group, check_alike
from fusetune.training.epochs import Epoch, Reporter, counted, stale
from fusetune.training.optimizer import TOTAL, make_optimizer
from fusetune.training.predicting import Split, predict
from fusetune.training.recomputing import recomputed
from fusetune.training.settings import TrainSettings
from fusetune.training.sharded import shard
from fusetune.training.steps import Steps
from fusetune.training.zero_shot import zero_shot_metric

logger = logging.getLogger(__name__)


def train(
    model: AdaptedModel,
    train_split: Split,
    val_split: Split,
    settings: TrainSettings,
    key: str,
    folder: Path,
    reporter: Reporter,
    after_epoch: Callable[[int], None] = lambda _: None,
    group: Group = ALONE,
) -> list[Epoch]:
    """Train what is trainable in `model`; at the end it holds the weights of the best epoch.

    The result depends on the arguments alone, not on whether the run was interrupted: order and random numbers follow
    from seed and epoch, the learning rate from the step, and everything else is in the checkpoint.

    Args:
        key: digest of all that determines the run; a checkpoint with another key is not resumed.
        folder: of the checkpoint, written after each epoch.
        after_epoch: called behind each checkpoint, by the first rank, or by every one where they act `together` (tests
            kill the run there).
        group: the ranks that train this model together, each calling this with the same arguments; the first writes.

    Raises:
        FusetuneError: the loss is no number any more; the best epoch before stays in the checkpoint. Or fewer epochs
            than the plan's last stage begins with.
    """
    if settings.devices > group.size:
        logger.warning("train.devices: %d were asked for; here one process trains", settings.devices)
    device = train_split.features.device
    if settings.fsdp:
        shard(model, group, device)
    model.to(device)
    trainable = model.trainable()
    names = {parameter: name for name, parameter in trainable.items()}
    optimizer = make_optimizer(model, settings)
    last_stage = model.stages()[-1]
    check(
        last_stage <= settings.epochs,
        f"train.epochs: the plan switches something on in epoch {last_stage}, found {settings.epochs} epochs.",
    )
    steps_per_epoch = math.ceil(len(train_split.targets) / settings.batch_size / settings.accumulate)
    steps = steps_per_epoch * settings.epochs
    for adapter in model.adapters():
        adapter.on_start(steps)
    scaler = torch.amp.GradScaler(device.type, enabled=training_dtype(device, settings.autocast) == torch.float16)
    check_alike(model, group)
    history, best = _resume(model, optimizer, scaler, names, key, folder, group)
    before = zero_shot_metric(model, val_split, settings.batch_size)
    best_metric = max((epoch.val_metric for epoch in counted(history, last_stage)), default=-math.inf)
    best_metric = best_metric if before is None else max(best_metric, before)
    taken = Steps(model, train_split, optimizer, scaler, settings, steps, reporter, group)
    reporter.started(settings, steps, len(history) * steps_per_epoch)
    try:
        for number in range(len(history), settings.epochs):
            if stale(counted(history, last_stage), settings.patience):
                break
            model.set_epoch(number + 1)
            if number and number + 1 in model.stages():
                reporter.stage(_moved(model, train_split, number + 1, history[-1]))
            begun = time.perf_counter()
            with recomputed(model, settings.gradient_checkpointing):
                loss, norms = taken.epoch(number, number * steps_per_epoch)
            trained = time.perf_counter() - begun
            outputs, val_loss = predict(model, val_split, settings.batch_size, number + 1, group=group)
            metric = model.task.metrics(outputs, val_split.targets)[model.task.metric]
            epoch = Epoch(
                number + 1,
                loss,
                val_loss,
                metric,
                norms.pop(TOTAL),
                float(optimizer.param_groups[0]["lr"]),
                time.perf_counter() - begun,
                len(train_split.targets) / trained,
                norms,
            )
            history.append(epoch)
            if metric > best_metric and number + 1 >= last_stage:
                best_metric, best = metric, {name: p.detach().clone() for name, p in trainable.items()}
            if not group.rank:
                state = {"key": key, "history": [asdict(e) for e in history], "scaler": scaler.state_dict()}
                checkpoint.save(folder, _tensors(model, optimizer, names, best), state)
                reporter.epoch(epoch, metric >= best_metric)
            if not group.rank or group.together:
                after_epoch(number + 1)
    finally:
        reporter.ended()
    model.set_epoch(max(last_stage, len(history)))
    assign(model, best)
    return history


def _tensors(
    model: AdaptedModel, optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], best: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All that a checkpoint holds, by name."""
    tensors: dict[str, Tensor] = {f"model.{name}": p for p, name in names.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors |= checkpoint.optimizer_tensors(optimizer, names)
    for i, adapter in enumerate(model.adapters()):
        tensors |= {f"adapter.{i}.{name}": value for name, value in adapter.training_state().items()}
    return tensors


def _moved(model: AdaptedModel, split: Split, epoch: int, before: Epoch) -> str:
    held, now = split.at(epoch - 1), split.at(epoch)
    active = {p for adapter in model.adapters() if adapter.active for p in adapter.trained()}
    return (
        f"epoch {epoch}: {sum(p.numel() for p in active):,} parameters below the head are trained now, the frontier "
        f"moves from ({held.frontier}) to ({now.frontier}); until here {before.samples_per_second:.0f} samples/s"
    )


def _resume(
    model: AdaptedModel,
    optimizer: Any,
    scaler: Any,
    names: dict[nn.Parameter, str],
    key: str,
    folder: Path,
    group: Group,
) -> tuple[list[Epoch], dict[str, Tensor]]:
    found = group.first_says(None if group.rank else checkpoint.load(folder, key))
    if found is None:
        return [], {name: p.detach().clone() for p, name in names.items()}
    tensors, state = found
    trainable = {name: p for p, name in names.items()}
    assign(model, {name: tensors[f"model.{name}"] for name in trainable})
    checkpoint.restore_optimizer(optimizer, names, tensors)
    scaler.load_state_dict(state["scaler"])
    best = {name: tensors[f"best.{name}"].to(p.device) for name, p in trainable.items()}
    for i, adapter in enumerate(model.adapters()):
        prefix = f"adapter.{i}."
        adapter.restore_training_state({n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)})
    return [Epoch(**epoch) for epoch in state["history"]], best


@torch.no_grad()
def assign(model: AdaptedModel, values: Mapping[str, Tensor]) -> None:
    """Put values into the model's trained parameters."""
    for name, parameter in model.trainable().items():
        parameter.copy_(values[name])
