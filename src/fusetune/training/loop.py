"""The one training loop."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.errors import FusetuneError
from fusetune.features.dataset import FeatureSet, batches
from fusetune.plan import AdaptedModel
from fusetune.schedule import warmup_cosine
from fusetune.training import checkpoint
from fusetune.training.settings import TrainSettings


@dataclass(frozen=True)
class Epoch:
    """What an epoch showed; `seconds` covers training and validation, `samples_per_second` training alone."""

    number: int
    train_loss: float
    val_loss: float
    val_metric: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    samples_per_second: float


@dataclass(frozen=True)
class Split:
    """Features and targets of one split; targets are one a row."""

    features: FeatureSet
    targets: Tensor


class Reporter:
    """What wants to know how training goes; every method may be overridden, none does anything here."""

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
        FusetuneError: the loss is no number any more; the best epoch before stays in the checkpoint.
    """
    device = train_split.features.device
    model.to(device)
    trainable = model.trainable()
    names = {parameter: name for name, parameter in trainable.items()}
    optimizer = _optimizer(trainable, settings)
    steps_per_epoch = math.ceil(len(train_split.targets) / settings.batch_size)
    steps = steps_per_epoch * settings.epochs
    history, best = _resume(model, optimizer, names, key, folder)
    best_metric = max((epoch.val_metric for epoch in history), default=-math.inf)
    reporter.started(settings, steps, len(history) * steps_per_epoch)
    try:
        for number in range(len(history), settings.epochs):
            if _stale(history, settings.patience):
                break
            begun = time.perf_counter()
            step = number * steps_per_epoch
            losses, norms = _train_epoch(model, train_split, optimizer, settings, number, step, steps, reporter)
            trained = time.perf_counter() - begun
            outputs, val_loss = predict(model, val_split, settings.batch_size)
            metric = model.task.metrics(outputs, val_split.targets)[model.task.metric]
            epoch = Epoch(
                number + 1,
                sum(losses) / len(losses),
                val_loss,
                metric,
                sum(norms) / len(norms),
                optimizer.param_groups[0]["lr"],
                time.perf_counter() - begun,
                len(train_split.targets) / trained,
            )
            history.append(epoch)
            if metric > best_metric:
                best_metric, best = metric, {name: p.detach().clone() for name, p in trainable.items()}
            tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in trainable.items()}
            tensors |= {f"best.{name}": value for name, value in best.items()}
            tensors |= checkpoint.optimizer_tensors(optimizer, names)
            checkpoint.save(folder, tensors, {"key": key, "history": [asdict(e) for e in history]})
            reporter.epoch(epoch, metric >= best_metric)
            after_epoch(number + 1)
    finally:
        reporter.ended()
    _assign(trainable, best)
    return history


def predict(model: AdaptedModel, split: Split, batch_size: int) -> tuple[Tensor, float]:
    """Outputs of all rows, float32 on the CPU, and the mean loss."""
    model.eval()
    outputs, total = [], 0.0
    with torch.no_grad():
        for index, states in split.features.batches(batches(len(split.targets), 4 * batch_size)):
            out = model(states, split.features.frontier).float()
            total += model.task.loss(out, split.targets[index].to(out.device)).item() * len(index)
            outputs.append(out.cpu())
    return torch.cat(outputs), total / len(split.targets)


def _train_epoch(
    model: AdaptedModel,
    split: Split,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    number: int,
    step: int,
    steps: int,
    reporter: Reporter,
) -> tuple[list[float], list[float]]:
    device = split.features.device
    torch.manual_seed(settings.seed * 100_003 + number)
    order = torch.Generator().manual_seed(settings.seed * 100_003 + number)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    autocast = settings.autocast and device.type == "cuda"
    model.train()
    losses, norms = [], []
    lengths = split.features.ragged_lengths() if settings.length_buckets else None
    indices = batches(len(split.targets), settings.batch_size, order, lengths)
    for index, states in split.features.batches(indices, view=number):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * warmup_cosine(step, steps, settings.warmup)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            out = model(states, split.features.frontier)
        loss = model.task.loss(out.float(), split.targets[index].to(device))
        value = loss.item()
        if not math.isfinite(value):
            raise FusetuneError(
                f"training: the loss is {value} in epoch {number + 1}, step {step + 1}. The best epoch so far is kept "
                f"in the checkpoint; lower train.learning_rate (now {settings.learning_rate}) and run again."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(parameters, settings.clip).item())
        optimizer.step()
        step += 1
        for adapter in model.adapters():
            adapter.on_step(step)
        losses.append(value)
        reporter.step(step, steps, value)
    return losses, norms


def _optimizer(trainable: dict[str, nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable.items():
        rate = settings.base_learning_rate if name.startswith("backbone.") else settings.learning_rate
        decay = settings.weight_decay if parameter.ndim > 1 and not name.endswith("bias_row") else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    )


def _stale(history: list[Epoch], patience: int) -> bool:
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
    _assign(trainable, {name: tensors[f"model.{name}"] for name in trainable})
    checkpoint.restore_optimizer(optimizer, names, tensors)
    best = {name: tensors[f"best.{name}"].to(p.device) for name, p in trainable.items()}
    return [Epoch(**epoch) for epoch in state["history"]], best


@torch.no_grad()
def _assign(trainable: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in trainable.items():
        parameter.copy_(values[name])
