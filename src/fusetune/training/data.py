"""The data of an experiment: a manifest's rows by split, and the targets that a task makes of them."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from fusetune import on_disk
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.tower import fingerprint
from fusetune.config import build, check, to_plain
from fusetune.errors import FusetuneError
from fusetune.features.composing import FittingRows
from fusetune.features.source import Source
from fusetune.manifest.augmentations import moves
from fusetune.manifest.schema import SPLITS, Modality
from fusetune.on_disk import Cells, RowNumbers
from fusetune.tasks import tasks
from fusetune.tasks.task import Task, content_column, extent_column

ANSWER = "answer"  # the stream of answers, for tasks that answer in words


@dataclass(frozen=True)
class DataSettings:
    """
    Attributes:
        modalities: the streams, in order.
        task: name in the registry of tasks, and its settings.
        use_trunk: whether the streams meet in the backbone's trunk, where it has one.
    """

    modalities: Mapping[str, Modality]
    task: Mapping[str, Any] = field(default_factory=dict)
    use_trunk: bool = True

    def __post_init__(self) -> None:
        taken = ANSWER in self.modalities and self.task.get("name") == "generation"
        check(not taken, f"data.modalities.{ANSWER}: this is the name of the answers; expected another one.")

    def alone(self, name: str) -> "DataSettings":
        """One modality and no other; what is asked of a dual encoder's other side (`prompts`) stays where it is."""
        asked = make_task(self.task).prompts
        task = {k: v for k, v in self.task.items() if k != "prompts" or (asked and asked.modality == name)}
        return replace(self, modalities={name: self.modalities[name]}, task=task)


def without_roots(data: DataSettings) -> dict[str, Any]:
    """JSON-ready, without the folders that media files lie in: where they are is the machine's business."""
    plain = to_plain(data)
    for modality in plain["modalities"].values():
        del modality["root"]
    return plain


def with_roots(data: DataSettings, here: Mapping[str, Any], given: Mapping[str, str] | None = None) -> DataSettings:
    """An adapter's data with the folders of this machine.

    Args:
        here: `data` of the experiment in conf, whose modalities say where their files are.
        given: folders by modality, which go before it.
    """
    known = {name: (m or {}).get("root") for name, m in (here.get("modalities") or {}).items()} | dict(given or {})
    found = {name: replace(m, root=known.get(name) or ".") for name, m in data.modalities.items()}
    return replace(data, modalities=found)


def make_task(settings: Mapping[str, Any], where: str = "data.task") -> Task:
    """A task from ``{name: ..., <its settings>}``."""
    options = dict(settings)
    cls = tasks.get(options.pop("name", None) or _no_name(where))
    return cls(build(cls.Config, options, where))


def task_columns(task: Task, source: Source, keys: Mapping[str, Sequence[Any]] | None = None) -> dict[str, list[Any]]:
    """What `task.targets` needs of a table: columns of its own, and names of contents.

    Args:
        keys: of contents, by modality, where they are known; None: they are read.
    """
    own = _own_columns(task, source, keys)
    return own | task.derived(own)


def _own_columns(task: Task, source: Source, keys: Mapping[str, Sequence[Any]] | None = None) -> dict[str, list[Any]]:
    """The same without what the task makes of them."""
    return {name: _cells(source.table, name).to_pylist() for name in task.columns()} | sample_columns(
        task, source, keys
    )


def sample_columns(task: Task, source: Source, keys: Mapping[str, Sequence[Any]] | None = None) -> dict[str, list[Any]]:
    """What `task.targets` and `task.contents` need to know of samples themselves; `keys` as `task_columns` has it."""
    known = source.content_keys(task.content_modalities()) if keys is None else keys
    contents = {content_column(name): list(known[name]) for name in task.content_modalities() if name in known}
    measured = [name for name in task.measured_modalities() if name in source.modalities]
    return contents | {extent_column(name): source.extents(name) for name in measured}


def told_of_rows(task: Task, table: pa.Table, samples: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """What the task needs to know of all rows beside its columns: of samples, and what it makes of columns.

    Args:
        samples: what `sample_columns` says.
    """
    if not derives(task):
        return dict(samples)
    columns = columns_of_rows(task.columns(), table, np.arange(table.num_rows), samples)
    return {**samples, **task.derived(columns)}


def columns_of_rows(
    names: Sequence[str], table: pa.Table, rows: RowNumbers, told: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """What a task needs to know of some rows; cells are made when they are asked for.

    Args:
        names: of the task's columns.
        told: of all rows, beside them.
    """
    rows = np.asarray(rows, np.int64)
    cells = {name: Cells(_cells(table, name), rows) for name in names}
    return cells | {name: [values[row] for row in rows] for name, values in told.items()}


def targets_by_parts(task: Task, rows: np.ndarray, targets: Callable[[np.ndarray], Any]) -> Any:
    """Targets of some rows, of many of them some at a time where each row's depends on that row alone."""
    if not task.targets_by_row or len(rows) <= on_disk.ROWS:
        return targets(rows)
    found: np.ndarray | None = None
    for some in on_disk.slices(len(rows)):
        try:
            part = targets(rows[some]).numpy()
        except FusetuneError:
            targets(rows)  # whose error names the row among all
            raise
        found = on_disk.array((len(rows), *part.shape[1:]), part.dtype) if found is None else found
        found[some] = part
    return torch.from_numpy(found)


def faults_of(task: Task, source: Source) -> dict[tuple[str, str], list[str | None]]:
    """By column and check, of each row why its target can't be one, in words; columns that aren't there are others'
    business."""
    if any(name not in source.table.column_names for name in task.columns()):
        return {}
    found: dict[tuple[str, str], list[str | None]] = {}
    columns = _own_columns(task, source)
    for one in getattr(task, "tasks", {"": task}).values():
        column = getattr(one, "region_column", "")
        found |= {(column, name): told for name, told in one.faults(columns).items()}
    return found


def derives(task: Task) -> bool:
    """Whether a task makes columns of others."""
    return type(task).derived is not Task.derived


def check_places(task: Task, changes: Mapping[str, Mapping[str, Any]], where: str, behind: str = "") -> None:
    """Raise FusetuneError where what a task asks for are places in a modality, and a change would move them."""
    for name in task.places_in():
        check(
            not moves(changes.get(name, {})),
            f"{where}.{name}{behind}: what is asked for are places in '{name}', and these would move. Leave it out.",
        )


def with_derived(task: Task, table: pa.Table, modalities: Mapping[str, Modality]) -> pa.Table:
    """With the columns that a task makes of others: answers in words are a stream."""
    if not derives(task):
        return table
    for name, values in task.derived(_own_columns(task, Source(table, modalities))).items():
        check(name not in table.column_names, f"data.task: the manifest has a column '{name}'; its name is taken.")
        table = table.append_column(name, pa.array(values, pa.string()))
    return table


def load_backbone(folder: str | Path, data: DataSettings) -> Backbone:
    """The backbone with the towers that the data needs, and its trunk if the data uses it."""
    backbone = Backbone.from_pretrained(folder, {name: m.kind for name, m in data.modalities.items()})
    check(
        data.use_trunk or not backbone.origin,
        "data.use_trunk: expected true: the streams of a composite model meet in its language blocks.",
    )
    if not data.use_trunk:
        backbone.trunk = None
    return answering(backbone, data)


def answering(backbone: Backbone, data: DataSettings) -> Backbone:
    """With a stream of answers, where the task wants them in words."""
    task: Any = make_task(data.task)
    return backbone.take_answers(ANSWER, task.config.max_answer_tokens) if task.speaks else backbone


def streams_of(data: DataSettings) -> dict[str, Modality]:
    """The modalities, and the answers where the task wants them in words and has them."""
    task: Any = make_task(data.task)
    return dict(data.modalities) | ({ANSWER: Modality("text", task.config.answer)} if task.speaks else {})


def meet(task: Task, backbone: Backbone) -> None:
    """Let a task know the words in which it answers, and the encoder that it looks through."""
    if task.speaks:
        task.meet(backbone.tower(ANSWER))  # type: ignore[attr-defined]
    task.meet_towers(dict(backbone.towers.items()))


class TaskRows:
    """A manifest's rows by split, and the task, fitted to the training rows.

    Args:
        table: the validated manifest; it stays as it was in `given`.
        backbone: of a task that answers in words, whose words they are; its answers are a stream then.
    """

    def __init__(self, table: pa.Table, data: DataSettings, backbone: Backbone | None = None) -> None:
        self.task = make_task(data.task)
        if backbone is not None:
            meet(self.task, backbone)
        check_places(self.task, {n: m.augment for n, m in data.modalities.items()}, "data.modalities", ".augment")
        self.given, self.data = table, data
        self.table = with_derived(self.task, table, data.modalities)
        self.source = Source(self.table, streams_of(data))
        self.rows = {name: rows_in(table["split"], name) for name in SPLITS}
        for name, rows in self.rows.items():
            if not len(rows):
                raise FusetuneError(f"manifest: no row of split '{name}'; each of {', '.join(SPLITS)} needs some.")
        self._told = told_of_rows(self.task, self.table, sample_columns(self.task, self.source))
        self.task.fit(self.columns_of(self.rows["train"]))

    def column(self, name: str, split: str) -> list[Any]:
        return list(Cells(_cells(self.table, name), self.rows[split]))

    def targets(self, rows: RowNumbers) -> Tensor:
        """Targets of some rows of the manifest."""
        return targets_by_parts(
            self.task, np.asarray(rows, np.int64), lambda some: self.task.targets(self.columns_of(some))
        )

    def of(self, task: Task) -> "TaskRows":
        """The same rows, for one of the tasks that `task` has several of."""
        other = copy(self)
        other.task = task
        return other

    @cached_property
    def rows_digest(self) -> str:
        """SHA-256 (hex) of which rows are in which split, and of their targets."""
        rows = {name: torch.from_numpy(rows) for name, rows in self.rows.items()}
        return fingerprint(rows | {f"targets of {name}": self.targets(rows) for name, rows in self.rows.items()})

    def columns_of(self, rows: RowNumbers) -> dict[str, Sequence[Any]]:
        """What the task needs to know of some rows."""
        return columns_of_rows(self.task.columns(), self.table, rows, self._told)


def fitting_rows(table: pa.Table, data: DataSettings, more: pa.Table | None = None) -> FittingRows:
    """What small towers of a base are fitted to.

    Args:
        more: rows without labels, of the same columns.
    """
    own = TaskRows(table, data)
    unlabelled = Source(more, data.modalities) if more is not None and more.num_rows else None
    part = own.task.linear_parts().get("")
    return FittingRows(own.source, own.rows["train"], own.rows["val"], part, own.targets, unlabelled)


def rows_in(column: pa.ChunkedArray, split: str) -> np.ndarray:
    """The rows of a split, in ascending order."""
    found, parts, begin = 0, [], 0
    for chunk in column.chunks:
        parts.append(np.flatnonzero(pc.fill_null(pc.equal(chunk, split), False).to_numpy(zero_copy_only=False)) + begin)
        begin, found = begin + len(chunk), found + len(parts[-1])
    return on_disk.filled(parts, found, np.int64)


def _cells(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise FusetuneError(f"data.task: the manifest has no column '{name}'. It has {', '.join(table.column_names)}.")
    return table[name]


def _no_name(where: str) -> str:
    raise FusetuneError(f"{where}.name: expected one of {', '.join(tasks.names())}, found none.")
