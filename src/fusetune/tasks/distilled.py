"""Another task, learned from a teacher as well as from labels, or where there are none.

- outputs: the Kullback-Leibler divergence of softened probabilities (Hinton et al. 2015, arXiv 1503.02531), binary for
  labels of which several may hold, squared distance for numbers.
- features: squared distance of a linear projection of the student's streams to the teacher's, standardised (FitNets,
  Romero et al. 2015, arXiv 1412.6550).
- relations: Huber distance of the distances between samples of a batch, each in units of their mean, of the same two
  (relational knowledge distillation, Park et al., CVPR 2019).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.tasks.joined_head import heard
from fusetune.tasks.task import HeadMaker, LinearPart, Task

TAUGHT = ("classes", "labels", "numbers")  # what a task may predict (`Task.plain`) to be taught


@dataclass(frozen=True)
class Shares:
    """What each part counts in the loss.

    Attributes:
        labels: the task's own loss, of the rows whose label is known.
        outputs, features, relations: what the module says.
    """

    labels: float = 0.5
    outputs: float = 0.5
    features: float = 0.0
    relations: float = 0.0

    def __post_init__(self) -> None:
        shares = [self.labels, self.outputs, self.features, self.relations]
        check(min(shares) >= 0 and max(shares) > 0, f"shares: expected numbers from 0, not all 0, found {shares}.")

    @property
    def of_features(self) -> bool:
        return self.features > 0 or self.relations > 0


@dataclass(frozen=True)
class DistilledConfig:
    """
    Attributes:
        task: what `data.task` would say without a teacher.
        state: of the teacher's task: the labels and scales that its outputs are of; None: they are found as usual.
        outputs: the column with the teacher's outputs of each row.
        features: the column with its pooled streams.
        known: the column that says whether a row's label is known to the student.
        temperature: by which logits are divided.
        shares: of the parts of the loss.
    """

    task: Mapping[str, Any]
    state: Mapping[str, Any] | None = None
    outputs: str = "teacher: outputs"
    features: str = "teacher: features"
    known: str = "teacher: label known"
    temperature: float = 2.0
    shares: Shares = field(default_factory=Shares)

    def __post_init__(self) -> None:
        check(self.temperature > 0, f"temperature: expected a positive number, found {self.temperature}.")


class TaughtHead(nn.Module):
    """The task's own head, and beside its outputs a projection of all streams, for the loss alone."""

    def __init__(self, head: nn.Module, widths: Mapping[str, int], features: int) -> None:
        super().__init__()
        self.head, self.widths = head, dict(widths)
        self.projection = nn.Linear(sum(widths.values()), features) if features else None

    def forward(self, pooled: Mapping[str, Tensor], entered: Mapping[str, Tensor] | None = None) -> Tensor:
        outputs = heard(self.head, pooled, entered)
        if self.projection is None:
            return outputs
        one = next(iter(pooled.values()))
        parts = [pooled[n] if n in pooled else one.new_zeros(len(one), width) for n, width in self.widths.items()]
        return torch.cat([outputs, self.projection(torch.cat(parts, -1))], -1)

    @property
    def shares(self) -> Any:
        """By which `joined_head.heard` knows that it takes the streams in front of the junction, too."""
        return getattr(self.head, "shares", None)


class Distilled(Task):
    """Metrics and answers are the task's own, the labels of validation and test are known, and the head that is kept is
    the task's.

    Targets are (rows, 1 + own targets + outputs [+ features]): whether the label is known, then what is to be learned.
    """

    Config = DistilledConfig
    by_sample = False  # the mean over those whose label is known, and relations between samples

    def __init__(self, config: DistilledConfig) -> None:
        from fusetune.tasks import tasks

        options = dict(config.task)
        cls = tasks.get(options.pop("name", ""))
        self.config = config
        self.task: Task = cls(build(cls.Config, options, "data.task.task"))
        check(
            self.task.plain in TAUGHT and self.task.fuses and not self.task.prompts,
            f"data.task: a student learns classes, labels or numbers from a teacher, without prompts; "
            f"'{config.task.get('name')}' asks for something else.",
        )
        self._own, self._outputs, self._features = 1, 1, 0
        self._mean: list[float] = []
        self._std: list[float] = []

    @property
    def metric(self) -> str:  # type: ignore[override]
        return self.task.metric

    @property
    def plain(self) -> str | None:  # type: ignore[override]
        return self.task.plain

    @property
    def labels(self) -> Any:
        return self.task.labels  # type: ignore[attr-defined]

    def columns(self) -> list[str]:
        taught = [self.config.outputs, self.config.known]
        if self.config.shares.of_features:
            taught.append(self.config.features)
        return [*self.task.columns(), *taught]

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        taught = [cell is not None for cell in columns[self.config.outputs]]
        return [a and b for a, b in zip(self.task.known(columns), taught, strict=True)]

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """The labels are the teacher's, where its state is given."""
        if self.config.state is None:
            self.task.fit(columns)
        else:
            self.task.restore(self.config.state)
        self._outputs = len(columns[self.config.outputs][0])
        if self.config.shares.of_features:
            values = torch.tensor(columns[self.config.features], dtype=torch.float64)
            self._features = values.shape[1]
            self._mean, self._std = values.mean(0).tolist(), values.std(0).clamp(min=1e-6).tolist()

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        own = self.task.targets(columns).float().reshape(len(columns[self.config.known]), -1)
        self._own = own.shape[1]
        parts = [torch.tensor([[float(value)] for value in columns[self.config.known]]), own]
        for row, cell in enumerate(columns[self.config.outputs]):
            if cell is None or len(cell) != self._outputs:
                raise FusetuneError(
                    f"column '{self.config.outputs}', row {row}: expected the teacher's {self._outputs} outputs."
                )
        parts.append(torch.tensor(columns[self.config.outputs]).float())
        if self.config.shares.of_features:
            features = torch.tensor(columns[self.config.features], dtype=torch.float64)
            parts.append(((features - torch.tensor(self._mean)) / torch.tensor(self._std)).float())
        return torch.cat(parts, 1)

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        return TaughtHead(self.task.head(widths, make), widths, self._features)

    def linear_parts(self) -> dict[str, LinearPart]:
        """Of the task's outputs: linear models learn from the teacher, too."""
        return {"": LinearPart(self, self._outputs)} if self.task.linear_parts() else {}

    def begin(self, head: nn.Module, starts: Mapping[str, Any]) -> None:
        self.task.begin(head.head, starts)  # type: ignore[arg-type]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known, own, taught, features = self._apart(targets.to(outputs))
        shares, said = self.config.shares, outputs[:, : self._outputs]
        loss = said.sum() * 0.0
        if shares.labels and known.any():
            loss = loss + shares.labels * self.task.loss(said[known], own[known]) * known.float().mean()
        if shares.outputs:
            loss = loss + shares.outputs * self._softened(said, taught)
        projected = outputs[:, self._outputs :]
        if projected.shape[1] and shares.features:
            loss = loss + shares.features * F.mse_loss(projected, features)
        if projected.shape[1] and shares.relations:
            loss = loss + shares.relations * F.smooth_l1_loss(_distances(projected), _distances(features))
        return loss

    def kept(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        del targets
        return outputs[:, : self._outputs]

    def settle(self, outputs: Tensor, targets: Tensor) -> None:
        self.task.settle(self.kept(outputs, None), self._own_of(targets))

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        return self.task.per_sample(self.kept(outputs, None), self._own_of(targets))

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return self.task.metrics(self.kept(outputs, None), self._own_of(targets))

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return self.task.aggregates(self.kept(outputs, None), self._own_of(targets))

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
        return self.task.decode(self.kept(outputs, None), contents)

    def probabilities(self, outputs: Tensor) -> dict[str, tuple[list[str], Tensor]]:
        return self.task.probabilities(self.kept(outputs, None))

    def state(self) -> dict[str, Any]:
        return {"task": self.task.state(), "outputs": self._outputs, "features": self._features}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.task.restore(state["task"])
        self._outputs, self._features = int(state["outputs"]), int(state["features"])

    def _softened(self, said: Tensor, taught: Tensor) -> Tensor:
        """From the teacher's outputs; times the temperature's square, so that gradients keep their size."""
        t = self.config.temperature
        if self.task.plain == "classes":
            wanted, found = (taught / t).log_softmax(-1), (said / t).log_softmax(-1)
            return F.kl_div(found, wanted, log_target=True, reduction="batchmean") * t**2
        if self.task.plain == "labels":
            return F.binary_cross_entropy_with_logits(said / t, (taught / t).sigmoid()) * t**2
        return F.mse_loss(said, taught)

    def _own_of(self, targets: Tensor) -> Tensor:
        return self._apart(targets)[1]

    def _apart(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which labels are known, the task's own targets, the teacher's outputs and features."""
        known, own, taught, features = targets.split(
            [1, self._own, self._outputs, targets.shape[1] - 1 - self._own - self._outputs], 1
        )
        return known[:, 0] > 0.5, own[:, 0].long() if self.task.plain == "classes" else own, taught, features


def _distances(values: Tensor) -> Tensor:
    """(pairs,) between rows, in units of their mean."""
    found = torch.cdist(values, values)[torch.triu(torch.ones(len(values), len(values)), 1).bool()]
    return found / found.mean().clamp(min=1e-9) if len(found) else values.sum(1)[:0]
