"""One experiment: data, backbone, task and method, as the pipelines and `python -m fusetune.training` share it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from fusetune.adapters.adapter import Stream
from fusetune.adapters.trained import WEIGHTS, folders_in
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import build, digest, to_plain
from fusetune.errors import FusetuneError
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import Progress, extract
from fusetune.features.index import CacheSettings, Features
from fusetune.features.inputs import input_lengths
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.filehash import remembered_sha256
from fusetune.frontier import frontier
from fusetune.manifest.schema import SPLITS, Modality
from fusetune.plan import AdaptedModel, Plan
from fusetune.tasks import tasks
from fusetune.tasks.task import Task, content_column
from fusetune.tokens import Tokens
from fusetune.training.predicting import Split
from fusetune.training.settings import TrainSettings

PROBED = 2  # samples: enough to find the frontier


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


def task_columns(task: Task, source: Source, keys: Mapping[str, list[Any]] | None = None) -> dict[str, list[Any]]:
    """What `task.targets` needs of a table: columns of its own, and names of contents.

    Args:
        keys: of contents, by modality, where they are known; None: they are read.
    """
    columns = {name: _column(source.table, name) for name in task.columns()}
    known = source.content_keys(task.content_modalities()) if keys is None else keys
    return columns | {content_column(name): known[name] for name in task.content_modalities() if name in known}


def load_backbone(folder: str | Path, data: DataSettings) -> Backbone:
    """The backbone with the towers that the data needs, and its trunk if the data uses it."""
    backbone = Backbone.from_pretrained(folder, {name: m.kind for name, m in data.modalities.items()})
    if not data.use_trunk:
        backbone.trunk = None
    return backbone


class Experiment:
    """A method on a manifest; builds the model, knows its frontier and serves splits.

    Args:
        table: the validated manifest.
        where: the method's name, for error messages.
        lengths: by modality, the most tokens that a sample has at depth 0 (`features.inputs.input_lengths`); None: they
            are found out here, which reads every text.
    """

    def __init__(
        self,
        table: pa.Table,
        backbone: Backbone,
        data: DataSettings,
        plan: Plan,
        seed: int,
        where: str,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        self.table, self.data, self.source = table, data, Source(table, data.modalities)
        split = table["split"].to_pylist()
        self.rows = {name: [i for i, value in enumerate(split) if value == name] for name in SPLITS}
        for name, rows in self.rows.items():
            if not rows:
                raise FusetuneError(f"manifest: no row of split '{name}'; each of {', '.join(SPLITS)} needs some.")
        self.task = make_task(data.task)
        self._columns = task_columns(self.task, self.source)
        self.task.fit(self._picked(self.rows["train"]))
        torch.manual_seed(seed)
        self.model = AdaptedModel(backbone, plan, self.task, self._streams(backbone, lengths), where)
        self.frontiers: dict[int, Frontier] = {}  # by the epoch from which on
        example = self.example(PROBED)
        for epoch in self.model.stages():
            self.model.set_epoch(epoch)
            self.frontiers[epoch] = frontier(self.model, example)

    @property
    def frontier(self) -> Frontier:
        """The frontier of the whole plan, when everything in it acts."""
        return self.frontiers[max(self.frontiers)]

    def extract(
        self, store: Store | Path | str, cache: CacheSettings, progress: Progress, device: torch.device
    ) -> Features:
        """Fill the store with the features of every stage; what is there is left alone."""
        stages = {}
        for epoch, depth in self.frontiers.items():
            self.model.set_epoch(epoch)
            stages[epoch] = extract(self.model.backbone, self.source, depth, store, cache, progress, device)
        return replace(stages.pop(1), later=stages)

    def split(self, name: str, features: Features, store: Store | Path | str, device: torch.device) -> Split:
        """Features and targets of one split; training rows come in their augmented views, where they have some."""
        stages = {}
        for epoch, of_stage in {1: features, **features.later}.items():
            picked = of_stage.of_rows(self.rows[name], augmented=name == "train")
            stages[epoch] = FeatureSet(picked, store, device)
        return Split(stages, self.targets(self.rows[name]), name)

    def column(self, name: str, split: str) -> list[Any]:
        values = _column(self.table, name)
        return [values[row] for row in self.rows[split]]

    def answers(self, outputs: Tensor, split: str) -> list[dict[str, Any]]:
        """What the task decodes from a split's outputs, a row each."""
        columns = {name: self._columns[content_column(name)] for name in self.task.content_modalities()}
        contents = {name: [keys[row] for row in self.rows[split]] for name, keys in columns.items()}
        return self.task.answers(outputs, self.column("sample_id", split), contents)

    def example(self, count: int) -> dict[str, Tokens]:
        """The first training samples at depth 0, complete ones if there are any."""
        rows = self.example_rows(count)
        return self.model.backbone.prepare({name: self.source.decoded(name, rows) for name in self.data.modalities})

    def example_rows(self, count: int) -> list[int]:
        columns = [self.source.column(name).is_valid().to_pylist() for name in self.data.modalities]
        complete = [row for row in self.rows["train"] if all(column[row] for column in columns)]
        return (complete or self.rows["train"])[:count]

    def targets(self, rows: Sequence[int]) -> Tensor:
        """Targets of some rows of the manifest."""
        return self.task.targets(self._picked(rows))

    def key(self, features: Features, settings: TrainSettings) -> str:
        """Digest of all that determines training."""
        return digest(
            [
                self.model.plan,
                [remembered_sha256(Path(folder, WEIGHTS)) for folder in folders_in(to_plain(self.model.plan))],
                settings,
                without_roots(self.data),
                [[f.entries, f.keys, f.views] for f in (features, *features.later.values())],
                self.task.state(),
            ]
        )

    def _picked(self, rows: Sequence[int]) -> dict[str, Sequence[Any]]:
        return {name: [values[row] for row in rows] for name, values in self._columns.items()}

    def _streams(self, backbone: Backbone, lengths: Mapping[str, int] | None) -> dict[str, Stream]:
        names = list(self.data.modalities)
        items, widths = lengths or input_lengths(self.source, backbone), backbone.widths(names)
        return {name: Stream(widths[name], backbone.tower(name).tokens_out(items[name])) for name in names}


def _column(table: pa.Table, name: str) -> list[Any]:
    if name not in table.column_names:
        raise FusetuneError(f"data.task: the manifest has no column '{name}'. It has {', '.join(table.column_names)}.")
    return table[name].to_pylist()


def _no_name(where: str) -> str:
    raise FusetuneError(f"{where}.name: expected one of {', '.join(tasks.names())}, found none.")
