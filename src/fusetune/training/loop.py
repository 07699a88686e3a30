"""The one training loop."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.features.dataset import batches
from fusetune.plan import AdaptedModel
from fusetune.schedule import warmup_cosine
from fusetune.training import checkpoint
from fusetune.training.missing import with_dropped_modalities
from fusetune.training.optimizer import TOTAL, clip, gradient_norms, make_optimizer
from fusetune.training.predicting import Split, predict
from fusetune.training.settings import TrainSettings


@dataclass(frozen=True)
class Epoch:
    """What an epoch showed; `seconds` covers training and validation, `samples_per_second` training alone.

    `gradient_norm` and, by site, `gradient_norms` are means over the steps, before clipping.
    """

    number: int
    train_loss: float
    val_loss: float
    val_metric: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    samples_per_second: float
    gradient_norms: Mapping[str, float] = field(default_factory=dict)


class Reporter:
    """What wants to know how training goes; every method may be overridden, none does anything here."""

    def stage(self, text: str) -> None: ...
    def started(self, settings: TrainSettings, steps: int, resumed_at: int) -> None: ...
    def step(self, done: int, steps: int, loss: float) -> None: ...
    def epoch(self, epoch: Epoch, best: bool) -> None: ...
    def ended(self) -> None: ...


def train(
    model: AdaptedModel,
    train_split: Split,
    val_split: Split,
    settings: TrainSettings,
    key: str,
    folder: Path,
    reporter: Reporter,
    after_epoch: Callable[[int], None] = lambda _: None,
) -> list[Epoch]:
    """Train what is trainable in `model`; at the end it holds the weights of the best epoch.

    The result depends on the arguments alone, not on whether the run was interrupted: order and random numbers follow
    from seed and epoch, the learning rate from the step, and everything else is in the checkpoint.

    Args:
        key: digest of all that determines the run; a checkpoint with another key is not resumed.
        folder: of the checkpoint, written after each epoch.
        after_epoch: called behind each checkpoint (tests kill the run there).

    Raises:
        FusetuneError: the loss is no number any more; the best epoch before stays in the checkpoint. Or fewer epochs
            than the plan's last stage begins with.
    """
    device = train_split.features.device
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
    history, best = _resume(model, optimizer, names, key, folder)
    best_metric = max((epoch.val_metric for epoch in history[last_stage - 1 :]), default=-math.inf)
    reporter.started(settings, steps, len(history) * steps_per_epoch)
    try:
        for number in range(len(history), settings.epochs):
            if stale(history[last_stage - 1 :], settings.patience):
                break
            model.set_epoch(number + 1)
            if number and number + 1 in model.stages():
                reporter.stage(_moved(model, train_split, number + 1, history[-1]))
            begun = time.perf_counter()
            step = number * steps_per_epoch
            losses, norms = _train_epoch(model, train_split, optimizer, settings, number, step, steps, reporter)
            trained = time.perf_counter() - begun
            outputs, val_loss = predict(model, val_split, settings.batch_size, number + 1)
            metric = model.task.metrics(outputs, val_split.targets)[model.task.metric]
            epoch = Epoch(
                number + 1,
                sum(losses) / len(losses),
                val_loss,
                metric,
                norms.pop(TOTAL),
                optimizer.param_groups[0]["lr"],
                time.perf_counter() - begun,
                len(train_split.targets) / trained,
                norms,
            )
            history.append(epoch)
            if metric > best_metric and number + 1 >= last_stage:
                best_metric, best = metric, {name: p.detach().clone() for name, p in trainable.items()}
            tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in trainable.items()}
            tensors |= {f"best.{name}": value for name, value in best.items()}
            tensors |= checkpoint.optimizer_tensors(optimizer, names)
            for i, adapter in enumerate(model.adapters()):
                tensors |= {f"adapter.{i}.{name}": value for name, value in adapter.training_state().items()}
            checkpoint.save(folder, tensors, {"key": key, "history": [asdict(e) for e in history]})
            reporter.epoch(epoch, metric >= best_metric)
            after_epoch(number + 1)
    finally:
        reporter.ended()
    model.set_epoch(max(last_stage, len(history)))
    assign(model, best)
    return history


def _train_epoch(
    model: AdaptedModel,
    split: Split,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    number: int,
    step: int,
    steps: int,
    reporter: Reporter,
) -> tuple[list[float], dict[str, float]]:
    features = split.at(number + 1)
    device = features.device
    torch.manual_seed(epoch_seed(settings, number))
    order = torch.Generator().manual_seed(epoch_seed(settings, number))
    autocast = settings.autocast and device.type == "cuda"
    model.train()
    losses: list[float] = []
    norms: dict[str, float] = {}
    lengths = features.ragged_lengths() if settings.length_buckets else None
    indices = batches(len(split.targets), settings.batch_size, order, lengths)
    parts = -(-len(split.targets) // settings.batch_size)  # batches of an epoch
    optimizer.zero_grad(set_to_none=True)
    first = step
    for part, (index, states) in enumerate(features.batches(indices, view=number)):
        if settings.modality_dropout:
            states = with_dropped_modalities(states, settings.modality_dropout)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            out = model(states, features.frontier)
        loss = model.task.loss(out.float(), split.targets[index].to(device))
        value = loss.item()
        if not math.isfinite(value):
            raise FusetuneError(not_finite(value, number, step, settings))
        losses.append(value)
        penalty = model.penalty()
        whole = loss if penalty is None else loss + penalty
        rest = parts - part // settings.accumulate * settings.accumulate  # batches from this step's first on
        (whole / min(settings.accumulate, rest)).backward()
        if (part + 1) % settings.accumulate and part + 1 < parts:
            continue
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * warmup_cosine(step, steps, settings.warmup)
        for site, norm in _step(optimizer, settings.clip).items():
            norms[site] = norms.get(site, 0.0) + norm
        step += 1
        for adapter in model.adapters():
            adapter.on_step(step)
        optimizer.zero_grad(set_to_none=True)
        reporter.step(step, steps, value)
    return losses, {site: total / (step - first) for site, total in norms.items()}


def _step(optimizer: torch.optim.Optimizer, largest: float) -> dict[str, float]:
    """One clipped step; returns the gradient's norms before clipping, by site and in all."""
    norms = gradient_norms(optimizer)
    norms[TOTAL] = clip(optimizer, norms, largest)
    optimizer.step()
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))


def _moved(model: AdaptedModel, split: Split, epoch: int, before: Epoch) -> str:
    held, now = split.at(epoch - 1), split.at(epoch)
    active = {p for adapter in model.adapters() if adapter.active for p in adapter.trained()}
    return (
        f"epoch {epoch}: {sum(p.numel() for p in active):,} parameters below the head are trained now, the frontier "
        f"moves from ({held.frontier}) to ({now.frontier}); until here {before.samples_per_second:.0f} samples/s"
    )


def not_finite(loss: float, number: int, step: int, settings: TrainSettings) -> str:
    """What to say of a loss that is no number, in an epoch and step from 0."""
    return (
        f"training: the loss is {loss} in epoch {number + 1}, step {step + 1}. The best epoch so far is kept "
        f"in the checkpoint; lower train.learning_rate (now {settings.learning_rate}) and run again."
    )


def epoch_seed(settings: TrainSettings, number: int) -> int:
    """Of order and random numbers in an epoch, from 0."""
    return settings.seed * 100_003 + number


def stale(history: list[Epoch], patience: int) -> bool:
    if len(history) <= patience:
        return False
    best = max(range(len(history)), key=lambda i: history[i].val_metric)
    return len(history) - 1 - best >= patience


def _resume(
    model: AdaptedModel, optimizer: Any, names: dict[nn.Parameter, str], key: str, folder: Path
) -> tuple[list[Epoch], dict[str, Tensor]]:
    found = checkpoint.load(folder, key)
    if found is None:
        return [], {name: p.detach().clone() for p, name in names.items()}
    tensors, state = found
    trainable = {name: p for p, name in names.items()}
    assign(model, {name: tensors[f"model.{name}"] for name in trainable})
    checkpoint.restore_optimizer(optimizer, names, tensors)
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
