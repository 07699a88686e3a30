"""Several tasks on the same samples, trained together: one head each, and what a plan places for one of them alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.tasks.joined_head import heard
from fusetune.tasks.task import HeadMaker, LinearPart, Task


@dataclass(frozen=True)
class MultiTaskConfig:
    """
    Attributes:
        tasks: by name, what `data.task` would say of each.
    """

    tasks: Mapping[str, Any]

    def __post_init__(self) -> None:
        check(len(self.tasks) > 1, f"tasks: expected at least two, found {len(self.tasks)}.")


class TaskHeads(nn.Module):
    """One head a task; outputs side by side, (batch, all outputs)."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    @property
    def tasks(self) -> list[str]:
        return list(self.heads)

    def forward(self, pooled: Mapping[str, Tensor], entered: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.apart(dict.fromkeys(self.heads, pooled), entered)

    def apart(self, pooled: Mapping[str, Mapping[str, Tensor]], entered: Mapping[str, Tensor] | None = None) -> Tensor:
        """The same with the streams that each task's own adapters have made."""
        return torch.cat([heard(head, pooled[name], entered) for name, head in self.heads.items()], -1)


class MultiTask(Task):
    """The losses add up; `accuracy` is the mean of the tasks' main metrics. Each has a class in every row."""

    metric = "accuracy"
    Config = MultiTaskConfig

    def __init__(self, config: MultiTaskConfig) -> None:
        from fusetune.tasks import tasks

        self.config = config
        self.tasks: dict[str, Task] = {}
        for name, settings in config.tasks.items():
            options = dict(settings)
            cls = tasks.get(options.pop("name", ""))
            self.tasks[name] = cls(build(cls.Config, options, f"data.task.tasks.{name}"))
            if not cls.fuses:
                raise FusetuneError(f"data.task.tasks.{name}: a task that compares streams can't share their fusion.")
            if cls.plain != "classes":
                raise FusetuneError(
                    f"data.task.tasks.{name}: several tasks are of classes; this one is of {cls.plain}."
                )
            check(
                not self.tasks[name].prompts,
                f"data.task.tasks.{name}.prompts: among several tasks nobody is asked; leave it out.",
            )
        self._outputs: dict[str, int] = {}

    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for task in self.tasks.values() for column in task.columns()))

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        for task in self.tasks.values():
            task.fit(columns)

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        return torch.stack([task.targets(columns) for task in self.tasks.values()], 1)  # (rows, tasks)

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        return [all(row) for row in zip(*(task.known(columns) for task in self.tasks.values()), strict=True)]

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        heads = {}
        for name, task in self.tasks.items():

            def counted(width: int, outputs: int, name: str = name) -> nn.Module:
                self._outputs[name] = outputs
                return make(width, outputs)

            heads[name] = task.head(widths, counted)
        return TaskHeads(heads)

    def linear_parts(self) -> dict[str, LinearPart]:
        found = {}
        for i, (name, task) in enumerate(self.tasks.items()):
            for part in task.linear_parts().values():
                found[name] = LinearPart(part.task, part.outputs, partial(_column, i))
        return found

    def begin(self, head: nn.Module, starts: Mapping[str, Any]) -> None:
        for name, start in starts.items():
            heads: Any = head
            self.tasks[name].begin(heads.heads[name], {"": start})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = [task.loss(out, targets[:, i]) for i, (task, out) in enumerate(self._apart(outputs))]
        return torch.stack(losses).sum()

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        scores: dict[str, np.ndarray] = {}
        for i, (name, (task, out)) in enumerate(zip(self.tasks, self._apart(outputs), strict=True)):
            scores |= {f"{name}_{metric}": v for metric, v in task.per_sample(out, targets[:, i]).items()}
        main = [scores[f"{name}_{task.metric}"] for name, task in self.tasks.items()]
        return {"accuracy": np.mean(main, axis=0), **scores}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[str]] | None = None) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{} for _ in outputs]
        for name, (task, out) in zip(self.tasks, self._apart(outputs), strict=True):
            for row, decoded in zip(rows, task.decode(out), strict=True):
                row |= {f"{name}_{key}": value for key, value in decoded.items()}
        return rows

    def probabilities(self, outputs: Tensor) -> dict[str, tuple[list[str], Tensor]]:
        return {
            f"{name}_{key}": found
            for name, (task, out) in zip(self.tasks, self._apart(outputs), strict=True)
            for key, found in task.probabilities(out).items()
        }

    def state(self) -> dict[str, Any]:
        return {name: task.state() for name, task in self.tasks.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, task in self.tasks.items():
            task.restore(state[name])

    def _apart(self, outputs: Tensor) -> list[tuple[Task, Tensor]]:
        parts = outputs.split(list(self._outputs.values()), -1)
        return list(zip(self.tasks.values(), parts, strict=True))


def _column(number: int, targets: Tensor) -> Tensor:
    return targets[:, number]
