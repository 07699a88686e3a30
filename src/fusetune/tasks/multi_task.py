"""Several tasks on the same samples, trained together: one head each, and what a plan places for one of them alone."""

from collections.abc import Callable, Mapping, Sequence
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
from fusetune.tokens import Tokens

METRICS = ("accuracy", "all_right")


@dataclass(frozen=True)
class MultiTaskConfig:
    """
    Attributes:
        tasks: by name, what `data.task` would say of each.
        metric: accuracy, or all_right.
        question_type: the column that reports split results by; None: none.
    """

    tasks: Mapping[str, Any]
    metric: str = "accuracy"
    question_type: str | None = None

    def __post_init__(self) -> None:
        check(len(self.tasks) > 1, f"tasks: expected at least two, found {len(self.tasks)}.")
        check(self.metric in METRICS, f"metric: expected one of {', '.join(METRICS)}, found '{self.metric}'.")


class TaskHeads(nn.Module):
    """One head a task; outputs side by side, (batch, all outputs), those of a head over tokens token by token."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    @property
    def tasks(self) -> list[str]:
        return list(self.heads)

    def apart(self, streams: Mapping[str, Mapping[str, Tokens]], entered: Mapping[str, Tensor] | None = None) -> Tensor:
        """
        Args:
            streams: by task, behind the junction, with what its own adapters have made of them.
            entered: pooled, in front of the junction.
        """
        found = []
        for name, head in self.heads.items():
            pooled = {stream: tokens.pooled() for stream, tokens in streams[name].items()}
            over_tokens = getattr(head, "takes_tokens", False)
            out = head(streams[name], pooled) if over_tokens else heard(head, pooled, entered)
            found.append(out.flatten(1))
        return torch.cat(found, -1)


class MultiTask(Task):
    """The losses add up; `accuracy` is the mean of the tasks' main metrics, `all_right` the share of samples of which
    each task's answer is right.

    What a task's outputs and targets look like is its own; here they lie flat, side by side. One of the tasks may look
    through tokens, of which batches have different numbers.
    """

    Config = MultiTaskConfig

    def __init__(self, config: MultiTaskConfig) -> None:
        from fusetune.tasks import tasks

        self.config, self.metric = config, config.metric
        self.tasks: dict[str, Task] = {}
        for name, settings in config.tasks.items():
            options = dict(settings)
            cls = tasks.get(options.pop("name", ""))
            self.tasks[name] = cls(build(cls.Config, options, f"data.task.tasks.{name}"))
            if not cls.fuses:
                raise FusetuneError(f"data.task.tasks.{name}: a task that compares streams can't share their fusion.")
            if cls.speaks or cls is MultiTask:
                raise FusetuneError(f"data.task.tasks.{name}: expected a task with a head of its own.")
            check(
                not self.tasks[name].prompts,
                f"data.task.tasks.{name}.prompts: among several tasks nobody is asked; leave it out.",
            )
        places = [name for name, task in self.tasks.items() if task.token_outputs]
        check(
            len(places) < 2,
            f"data.task.tasks: {' and '.join(places)} look through tokens; of several tasks one may.",
        )
        weighted = [
            name for name, task in self.tasks.items() if getattr(task.config, "class_weights", "none") != "none"
        ]
        self.by_sample = not weighted and all(task.by_sample for task in self.tasks.values())
        self._outputs: dict[str, int] = {}  # of each head but that over tokens
        self._targets: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}  # what those of one row are

    def columns(self) -> list[str]:
        own = [self.config.question_type] if self.config.question_type else []
        return list(dict.fromkeys([c for task in self.tasks.values() for c in task.columns()] + own))

    def measured_modalities(self) -> list[str]:
        return list(dict.fromkeys(name for task in self.tasks.values() for name in task.measured_modalities()))

    def meet_towers(self, towers: Mapping[str, Any]) -> None:
        for task in self.tasks.values():
            task.meet_towers(towers)

    def places_in(self) -> list[str]:
        return [name for task in self.tasks.values() for name in task.places_in()]

    def answers_from(self, kinds: Mapping[str, str]) -> bool:
        return all(task.answers_from(kinds) for task in self.tasks.values())

    def problems(self) -> dict[str, Callable[[Any], str | None]]:
        return {column: told for task in self.tasks.values() for column, told in task.problems().items()}

    def fit(self, columns: Mapping[str, Sequence[Any]]) -> None:
        for task in self.tasks.values():
            task.fit(columns)

    def targets(self, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """(rows, numbers): all tasks' side by side."""
        own = {name: task.targets(columns) for name, task in self.tasks.items()}
        self._targets = {name: (found.dtype, tuple(found.shape[1:])) for name, found in own.items()}
        return torch.cat([found.flatten(1) if found.ndim > 1 else found[:, None] for found in own.values()], 1)

    def known(self, columns: Mapping[str, Sequence[Any]]) -> list[bool]:
        return [all(row) for row in zip(*(task.known(columns) for task in self.tasks.values()), strict=True)]

    def head(self, widths: Mapping[str, int], make: HeadMaker) -> nn.Module:
        heads = {}
        for name, task in self.tasks.items():

            def counted(width: int, outputs: int, name: str = name) -> nn.Module:
                self._outputs[name] = outputs
                return make(width, outputs)

            heads[name] = task.head(widths, counted)
            self._outputs[name] *= task.head_times
        return TaskHeads(heads)

    def linear_parts(self) -> dict[str, LinearPart]:
        found = {}
        for name, task in self.tasks.items():
            for part in task.linear_parts().values():
                found[name] = LinearPart(part.task, part.outputs, partial(self.targets_of, name))
        return found

    def begin(self, head: nn.Module, starts: Mapping[str, Any]) -> None:
        for name, start in starts.items():
            heads: Any = head
            self.tasks[name].begin(heads.heads[name], {"": start})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = [
            self.tasks[name].loss(out, self.targets_of(name, targets))
            for name, out in self._apart(outputs)
            if out.ndim > 2 or not self.tasks[name].token_outputs  # what `kept` left of tokens has no loss
        ]
        return torch.stack(losses).sum()

    def kept(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        parts = [
            self.tasks[name].kept(out, None if targets is None else self.targets_of(name, targets)).flatten(1)
            for name, out in self._apart(outputs)
        ]
        return torch.cat(parts, -1)

    def settle(self, outputs: Tensor, targets: Tensor) -> None:
        for name, out in self._apart(outputs):
            self.tasks[name].settle(out, self.targets_of(name, targets))

    def per_sample(self, outputs: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
        return self.together(
            {
                name: self.tasks[name].per_sample(out, self.targets_of(name, targets))
                for name, out in self._apart(outputs)
            }
        )

    def together(self, own: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Scores of each sample, of all tasks, from those of each by name."""
        scores = {f"{name}_{metric}": values for name, of_task in own.items() for metric, values in of_task.items()}
        main = np.stack([scores[f"{name}_{task.metric}"] for name, task in self.tasks.items()]).astype(float)
        whole = {"accuracy": main.mean(0)}
        if np.isin(main, (0, 1)).all():
            whole["all_right"] = main.min(0)
        check(
            self.metric in whole,
            f"data.task.metric: '{self.metric}' wants tasks whose main metric is right or wrong of each sample; "
            "expected accuracy.",
        )
        return {**whole, **scores}

    def aggregates(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {
            f"{name}_{metric}": value
            for name, out in self._apart(outputs)
            for metric, value in self.tasks[name].aggregates(out, self.targets_of(name, targets)).items()
        }

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{} for _ in outputs]
        for name, out in self._apart(outputs):
            for row, decoded in zip(rows, self.tasks[name].decode(out, contents), strict=True):
                row |= {f"{name}_{key}": value for key, value in decoded.items()}
        return rows

    def probabilities(self, outputs: Tensor) -> dict[str, tuple[list[str], Tensor]]:
        return {
            f"{name}_{key}": found
            for name, out in self._apart(outputs)
            for key, found in self.tasks[name].probabilities(out).items()
        }

    def outputs_of(self, name: str, outputs: Tensor) -> Tensor:
        """Those of one task, out of all, as its head gives them."""
        return dict(self._apart(outputs))[name]

    def targets_of(self, name: str, targets: Tensor) -> Tensor:
        """Those of one task, out of all."""
        widths = {one: int(np.prod(shape)) for one, (_, shape) in self._targets.items()}
        flexible = [one for one in self.tasks if len(self._targets[one][1]) > 1]  # with more or fewer regions a row
        for one in flexible[:1]:
            widths[one] = targets.shape[1] - sum(width for other, width in widths.items() if other != one)
        dtype, shape = self._targets[name]
        own = targets.split(list(widths.values()), 1)[list(widths).index(name)].to(dtype)
        return own.unflatten(1, (-1, *shape[1:])) if len(shape) > 1 else own if shape else own[:, 0]

    def state(self) -> dict[str, Any]:
        return {name: task.state() for name, task in self.tasks.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, task in self.tasks.items():
            task.restore(state[name])

    def _apart(self, outputs: Tensor) -> list[tuple[str, Tensor]]:
        """Each task's, as its head gives them."""
        widths = dict(self._outputs)
        for name, task in self.tasks.items():
            if task.token_outputs:
                widths[name] = outputs.shape[-1] - sum(width for other, width in widths.items() if other != name)
        parts = outputs.split([widths[name] for name in self.tasks], -1)
        return [(name, task.as_head_gives(part)) for (name, task), part in zip(self.tasks.items(), parts, strict=True)]
