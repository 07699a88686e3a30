"""The one training loop."""

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
from fusetune.errors import FusetuneError
from fusetune.features.dataset import batches
from fusetune.plan.adapted import AdaptedModel
from fusetune.schedule import warmup_cosine
from fusetune.training import checkpoint
from fusetune.training.data import ANSWER
from fusetune.training.epochs import Epoch, Reporter, counted, stale
from fusetune.training.missing import with_dropped_modalities
from fusetune.training.optimizer import TOTAL, clip, gradient_norms, make_optimizer
from fusetune.training.predicting import Split, predict
from fusetune.training.recomputing import recomputed
from fusetune.training.settings import TrainSettings
from fusetune.training.zero_shot import zero_shot_metric

LOOKED_AT = {
    "cuda": 20
}  # steps after which losses are read; reading one waits for the device, a CPU has nothing to wait


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
    scaler = torch.amp.GradScaler(device.type, enabled=training_dtype(device, settings.autocast) == torch.float16)
    history, best = _resume(model, optimizer, scaler, names, key, folder)
    before = zero_shot_metric(model, val_split, settings.batch_size)
    best_metric = max((epoch.val_metric for epoch in counted(history, last_stage)), default=-math.inf)
    best_metric = best_metric if before is None else max(best_metric, before)
    reporter.started(settings, steps, len(history) * steps_per_epoch)
    try:
        for number in range(len(history), settings.epochs):
            if stale(counted(history, last_stage), settings.patience):
                break
            model.set_epoch(number + 1)
            if number and number + 1 in model.stages():
                reporter.stage(_moved(model, train_split, number + 1, history[-1]))
            begun = time.perf_counter()
            step = number * steps_per_epoch
            with recomputed(model, settings.gradient_checkpointing):
                loss, norms = _train_epoch(
                    model, train_split, optimizer, scaler, settings, number, step, steps, reporter
                )
            trained = time.perf_counter() - begun
            outputs, val_loss = predict(model, val_split, settings.batch_size, number + 1)
            metric = model.task.metrics(outputs, val_split.targets)[model.task.metric]
            epoch = Epoch(
                number + 1,
                loss,
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
            state = {"key": key, "history": [asdict(e) for e in history], "scaler": scaler.state_dict()}
            checkpoint.save(folder, tensors, state)
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
    scaler: torch.amp.GradScaler,
    settings: TrainSettings,
    number: int,
    step: int,
    steps: int,
    reporter: Reporter,
) -> tuple[float, dict[str, float]]:
    """Mean loss of a sample (of a token, where the model answers in words), and mean norms of the gradient by site.

    On a GPU nothing is waited for within `LOOKED_AT` steps: losses and norms stay there until they are read together.
    """
    features = split.at(number + 1)
    device = features.device
    torch.manual_seed(epoch_seed(settings, number))
    order = torch.Generator().manual_seed(epoch_seed(settings, number))
    dtype = training_dtype(device, settings.autocast)
    model.train()
    lengths = features.ragged_lengths() if settings.length_buckets else None
    indices = list(batches(len(split.targets), settings.batch_size, order, lengths))
    weights = model.task.row_weights(split.targets)  # of rows: 1, or their tokens
    shares = [weights[index].sum().item() for index in indices]
    several = settings.accumulate
    of_step = [sum(shares[i : i + several]) for i in range(0, len(shares), several)]  # what is behind each step
    targets, losses, sums = split.targets.to(device), _Losses(number, step, settings), dict[str, Tensor]()
    optimizer.zero_grad(set_to_none=True)
    first = step
    for part, (index, states) in enumerate(features.batches(indices, view=number)):
        if settings.modality_dropout:
            states = with_dropped_modalities(states, settings.modality_dropout, always=(ANSWER,))
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            out = model(states, features.frontier)
        loss = model.task.loss(out.float(), targets[index.to(device, non_blocking=True)])
        losses.add(loss.detach(), shares[part])
        penalty = model.penalty()
        whole = loss if penalty is None else loss + penalty
        scaler.scale(whole * (shares[part] / of_step[part // several])).backward()
        if (part + 1) % several and part + 1 < len(shares):
            continue
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * warmup_cosine(step, steps, settings.warmup)
        for site, norm in _step(optimizer, scaler, settings.clip).items():
            sums[site] = sums[site] + norm if site in sums else norm
        step += 1
        for adapter in model.adapters():
            adapter.on_step(step)
        optimizer.zero_grad(set_to_none=True)
        if (step - first) % LOOKED_AT.get(device.type, 1) == 0 or part + 1 == len(shares):
            reporter.step(step, steps, losses.read())
    return losses.mean(), {site: (total / (step - first)).item() for site, total in sums.items()}


class _Losses:
    """Losses by batch, on the device until they are read."""

    def __init__(self, number: int, step: int, settings: TrainSettings) -> None:
        self.number, self.step, self.settings = number, step, settings
        self._waiting: list[Tensor] = []
        self._shares: list[float] = []
        self._read: list[float] = []

    def add(self, loss: Tensor, share: float) -> None:
        self._waiting.append(loss)
        self._shares.append(share)

    def read(self) -> float:
        """The last one; raises FusetuneError for one that is no number."""
        found = torch.stack(self._waiting).tolist()
        self._waiting.clear()
        for i, value in enumerate(found, start=len(self._read)):
            if not math.isfinite(value):
                at = self.step + i // self.settings.accumulate
                raise FusetuneError(not_finite(value, self.number, at, self.settings))
        self._read += found
        return found[-1]

    def mean(self) -> float:
        """Of a sample, or of a token of its answer."""
        return sum(v * n for v, n in zip(self._read, self._shares, strict=True)) / sum(self._shares)


def _step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, largest: float) -> dict[str, Tensor]:
    """One clipped step; returns the gradient's norms before clipping, by site and in all, on the device.

    With a scaled loss a step whose gradients overflow is left out, and the scale gets smaller.
    """
    scaler.unscale_(optimizer)
    norms = gradient_norms(optimizer)
    norms[TOTAL] = clip(optimizer, norms, largest)
    scaler.step(optimizer)
    scaler.update()
    if scaler.is_enabled():
        return {site: norm.nan_to_num(0.0, 0.0) for site, norm in norms.items()}
    return norms


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


def _resume(
    model: AdaptedModel, optimizer: Any, scaler: Any, names: dict[nn.Parameter, str], key: str, folder: Path
) -> tuple[list[Epoch], dict[str, Tensor]]:
    found = checkpoint.load(folder, key)
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
