"""One number or several: intensity of a sentiment, valence and arousal, a price."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.tasks.class_metrics import mean_ranks
from fusetune.tasks.joined_head import JoinedHead
from fusetune.tasks.pseudo_values import pseudo_values
from fusetune.tasks.task import HeadMaker, LinearPart, Task, finite_rows

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}
METRICS = ("r2", "pearson", "spearman", "negative_mae")
SPAN = 3  # of a sentiment, from -3 to 3


@dataclass(frozen=True)
class RegressionConfig:
    """
    Attributes:
        label: the column with the number; or
        labels: several of them.
        loss: mse, mae or huber, of standardised targets.
        metric: r2, pearson, spearman or negative_mae: what early stopping and the champion go by. Of several numbers
            it is the mean of theirs.
        sentiment: report what the field reports of an intensity from -3 to 3 (CMU-MOSI, MOSEI) too: Acc-2 and F1 of
            negative against positive, without zeros, and Acc-7 of rounded values.
    """

    label: str | None = None
    labels: tuple[str, ...] = ()
    loss: str = "mse"
    metric: str = "r2"
    sentiment: bool = False

    def __post_init__(self) -> None:
        check(bool(self.label) != bool(self.labels), "regression: expected one of label and labels.")
        check(self.loss in LOSSES, f"loss: expected one of {', '.join(LOSSES)}, found '{self.loss}'.")
        check(self.metric in METRICS, f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")
        check(not self.sentiment or bool(self.label), "sentiment: it goes with one label.")


class Regression(Task):
    """Outputs are standardised by the training rows; metrics and answers are in the data's own units."""

    Config = RegressionConfig
    targets_by_row = True
    plain = "numbers"

    def __init__(self, config: RegressionConfig) -> None:
        self.config = config
        self.metric = config.metric
        self.mean: list[float] = []
        self.std: list[float] = []

    def columns(self) -> list[str]:
        return [self.config.label] if self.config.label else list(self.config.labels)

    def problems(self) -> dict[str, Callable[[Any], str | None]]:
        return dict.fromkeys(self.columns(), number_problem)

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        values = self.targets(columns).double()
        spread = values.std(0) if len(values) > 1 else torch.zeros(values.shape[1])
        for name, one in zip(self.columns(), spread.tolist(), strict=True):
            check(one > 0, f"column '{name}': all training rows have the same value; there is nothing to learn.")
        self.mean, self.std = values.mean(0).tolist(), spread.tolist()

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """(rows, numbers), float32."""
        for name in self.columns():
            for row, value in enumerate(columns[name]):
                problem = "no value" if value is None else number_problem(value)
                if problem:
                    raise FusetuneError(f"column '{name}', row {row}: {problem}. Expected a finite number.")
        return torch.tensor(
            [[float(v) for v in columns[name]] for name in self.columns()], dtype=torch.float64
        ).T.float()

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        rows = zip(*(columns[name] for name in self.columns()), strict=True)
        return [all(value is not None and number_problem(value) is None for value in row) for row in rows]

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        return JoinedHead(widths, len(self.columns()), make)

    def linear_parts(self) -> dict[str, LinearPart]:
        return {"": LinearPart(self, len(self.columns()))}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[self.config.loss](outputs, self.standardised(targets).to(outputs))

    def standardised(self, targets: Tensor) -> Tensor:
        """Targets as outputs are."""
        return (targets - targets.new_tensor(self.mean)) / targets.new_tensor(self.std)

    def values(self, outputs: Tensor) -> Tensor:
        """Outputs in the data's own units, (rows, numbers)."""
        return outputs.double() * torch.tensor(self.std, dtype=torch.float64) + torch.tensor(
            self.mean, dtype=torch.float64
        )

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        values, wanted = self.values(outputs.cpu()), targets.double().cpu()
        away = (values - wanted).abs()
        variance = (wanted - wanted.mean(0)).square().mean(0).clamp(min=1e-12)
        found = {
            "r2": (1 - away.square() / variance).mean(1).numpy(),
            "negative_mae": -away.mean(1).numpy(),
        }
        correlations = {"pearson": _pearson, "spearman": _spearman}
        if self.metric in correlations:
            found[self.metric] = pseudo_values(correlations[self.metric], values, wanted)
        return found

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        values, wanted = self.values(outputs.cpu()), targets.double().cpu()
        away, spread = values - wanted, (wanted - wanted.mean(0)).square().mean(0).clamp(min=1e-12)
        return {
            "r2": float((1 - away.square().mean(0) / spread).mean()),
            "negative_mae": -float(away.abs().mean()),
            **self._correlations(values, wanted),
            **self._others(values, wanted),
        }

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        values, wanted = self.values(outputs.cpu()), targets.double().cpu()
        found = self._correlations(values, wanted)
        found.pop(self.metric, None)  # which stands among the samples' scores
        return found | self._others(values, wanted)

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        names = ["value"] if self.config.label else [f"value_{name}" for name in self.config.labels]
        rows = zip(self.values(outputs.cpu()).tolist(), finite_rows(outputs).tolist(), strict=True)
        return [dict(zip(names, row if finite else [None] * len(names), strict=True)) for row, finite in rows]

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean, self.std = list(state["mean"]), list(state["std"])

    def _correlations(self, values: Tensor, wanted: Tensor) -> dict[str, float]:
        return {"pearson": _pearson(values, wanted), "spearman": _spearman(values, wanted)}

    def _others(self, values: Tensor, wanted: Tensor) -> dict[str, float]:
        away = (values - wanted).abs()
        found = {"mae": float(away.mean()), "rmse": float(away.square().mean(0).sqrt().mean())}
        return found | (_sentiment(values[:, 0], wanted[:, 0]) if self.config.sentiment else {})


def number_problem(value: Any) -> str | None:
    """Why a cell is no number; None for one that is, or is missing."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"{str(value)[:60]!r} is no number"
    return None if np.isfinite(number) else f"{number} is no finite number"


def _pearson(values: Tensor, wanted: Tensor) -> float:
    """Mean over columns; 0 where one side doesn't vary."""
    a, b = values - values.mean(0), wanted - wanted.mean(0)
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return float(torch.where(scale > 1e-12, (a * b).sum(0) / scale.clamp(min=1e-12), torch.zeros_like(scale)).mean())


def _spearman(values: Tensor, wanted: Tensor) -> float:
    return _pearson(_ranks(values), _ranks(wanted))


def _ranks(values: Tensor) -> Tensor:
    return torch.stack([mean_ranks(column) for column in values.T], 1)


def _sentiment(values: Tensor, wanted: Tensor) -> dict[str, float]:
    polar = wanted != 0
    positive, truth = values[polar] > 0, wanted[polar] > 0
    right = positive == truth
    weighted = 0.0
    for side in (True, False):
        both = ((positive == side) & (truth == side)).sum()
        share = (truth == side).double().mean()
        weighted += float(share * 2 * both / ((positive == side).sum() + (truth == side).sum()).clamp(min=1))
    sevenths = values.clamp(-SPAN, SPAN).round() == wanted.clamp(-SPAN, SPAN).round()
    return {
        "acc_2": float(right.double().mean()) if len(right) else 0.0,
        "f1_2": weighted,
        "acc_7": float(sevenths.double().mean()),
    }
