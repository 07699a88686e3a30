"""What an epoch showed, who is told of it, and when there have been enough of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    def said(self, epoch: int, right: Mapping[str, float]) -> None: ...
    def ended(self) -> None: ...


def counted(history: list[Epoch], last_stage: int) -> list[Epoch]:
    """The epochs that the best one is chosen from: those in which everything of the plan acts."""
    return [epoch for epoch in history if epoch.number >= last_stage]


def stale(history: list[Epoch], patience: int) -> bool:
    if len(history) <= patience:
        return False
    best = max(range(len(history)), key=lambda i: history[i].val_metric)
    return len(history) - 1 - best >= patience
