"""One experiment: data, backbone, task and method, as the pipelines and `python -m fusetune.runs` share it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fusetune.adapters.adapter import Stream
from fusetune.adapters.trained import WEIGHTS, folders_in
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import check, digest, to_plain
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import Progress, extract
from fusetune.features.index import CacheSettings, Features
from fusetune.features.inputs import input_lengths
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.filehash import remembered_sha256
from fusetune.manifest.schema import SPLITS
from fusetune.on_disk import AT_ONCE, slices, taken
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.cost import Choice, choose, weigh
from fusetune.plan.frontier import frontier
from fusetune.plan.plan import Plan
from fusetune.runs.linear_start import find_directions, find_starts
from fusetune.tokens import Tokens
from fusetune.training.data import DataSettings, TaskRows, without_roots
from fusetune.training.predicting import Split
from fusetune.training.settings import TrainSettings
from fusetune.training.zero_shot import starts_trained

PROBED = 2  # samples: enough to find the frontier


class Experiment(TaskRows):
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
        super().__init__(table, data, backbone)
        torch.manual_seed(seed)
        self.model = AdaptedModel(backbone, plan, self.task, self._streams(backbone, lengths), where)
        self.starts: dict[str, str] = {}  # digests
        self.begun_with: CacheSettings | None = None
        self.frontiers: dict[int, Frontier] = {}  # by the epoch from which on
        example = self.example(PROBED)
        for epoch in self.model.stages():
            self.model.set_epoch(epoch)
            self.frontiers[epoch] = frontier(self.model, example)
        check(
            not self.task.speaks or self.model.trainable_count() > 0,
            f"{where}: it trains nothing, since the head that answers in words is the model's own. Expected a method "
            "with a placement below the head (lora, adapter, prefix ...).",
        )

    @property
    def frontier(self) -> Frontier:
        """The frontier of the whole plan, when everything in it acts."""
        return self.frontiers[max(self.frontiers)]

    def begin(self, store: Store | Path | str, cache: CacheSettings, progress: Progress) -> None:
        """Let the head start from linear models of the frozen streams; see `training.linear_start`.

        A retrieval that starts in the towers' own space has no use for them; a classification by prompts has both.
        """
        self.begun_with = cache
        head: Any = self.model.head
        if starts_trained(self.model) and not self.task.prompt_texts():
            return
        self.model.detach()
        try:
            if self.task.prompt_texts():
                head.name(find_directions(self.task, self.model.backbone, store, cache))
            starts = find_starts(self, self.model.backbone, store, cache, progress)
        finally:
            self.model.attach()
        self.task.begin(self.model.head, starts)
        self.starts = {name: start.digest() for name, start in starts.items()}

    def cut(self, epoch: int, store: Store | Path | str, cache: CacheSettings, device: torch.device) -> Choice:
        """Where the features of a stage are cached, and why; the model is left in this stage."""
        self.model.set_epoch(epoch)
        reached, backbone = self.frontiers[epoch], self.model.backbone
        place = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
        self.model.to(place)  # an extraction may have taken a part of it to a GPU
        example = {name: tokens.to(place) for name, tokens in self.example(PROBED).items()}
        rows = len(self.source)
        costs, _ = weigh(backbone, self.model, reached, example, rows, self.distinct(), cache, device.type)
        return choose(costs, cache.cut, rows, Store(store).folder("").free())

    def distinct(self) -> dict[str, int]:
        """By stream, the contents among its samples."""
        return {name: len(keys.numbered()[1]) for name, keys in self.source.content_keys().items()}

    def extract(
        self, store: Store | Path | str, cache: CacheSettings, progress: Progress, device: torch.device
    ) -> Features:
        """Fill the store with the features of every stage, where it pays; what is there is left alone."""
        stages = {}
        for epoch in self.frontiers:
            depths = self.cut(epoch, store, cache, device).cut.depths
            stages[epoch] = extract(self.model.backbone, self.source, depths, store, cache, progress, device)
        return replace(stages.pop(1), later=stages)

    def split(self, name: str, features: Features, store: Store | Path | str, device: torch.device) -> Split:
        """Features and targets of one split; training rows come in their augmented views, where they have some."""
        stages = {}
        for epoch, of_stage in {1: features, **features.later}.items():
            picked = of_stage.of_rows(self.rows[name], augmented=name == "train")
            top = of_stage.frontier == self.model.backbone.full_depth(list(picked.entries))
            stages[epoch] = FeatureSet(picked, store, device, means=top and self.model.reads_means())
        return Split(stages, self.targets(self.rows[name]), name)

    def splits(
        self,
        features: Features,
        store: Store | Path | str,
        device: torch.device,
        names: Sequence[str] = SPLITS,
    ) -> dict[str, Split]:
        """Some splits by name; see `split`."""
        return {name: self.split(name, features, store, device) for name in names}

    def answers(self, outputs: Tensor, rows: np.ndarray) -> list[dict[str, Any]]:
        """What the task decodes from outputs of some rows of the manifest, a row each."""
        names = taken(self.table["sample_id"], rows).to_pylist()
        return self.task.answers(outputs, names, self.task.contents(self.columns_of(rows)))

    def example(self, count: int) -> dict[str, Tokens]:
        """The first training samples at depth 0, complete ones if there are any."""
        rows = self.example_rows(count)
        return self.model.backbone.prepare({name: self.source.decoded(name, rows) for name in self.source.modalities})

    def example_rows(self, count: int) -> list[int]:
        columns, complete = [self.source.column(name) for name in self.data.modalities], list[int]()
        for some in slices(len(self.rows["train"]), AT_ONCE):
            rows = self.rows["train"][some]
            there = np.logical_and.reduce([taken(column, rows).is_valid().to_numpy() for column in columns])
            complete += rows[there][: count - len(complete)].tolist()
            if len(complete) == count:
                break
        return complete or self.rows["train"][:count].tolist()

    def key(self, features: Features, settings: TrainSettings) -> str:
        """Digest of all that determines training, the rows of each split and their targets included."""
        return digest(
            [
                self.model.plan,
                [remembered_sha256(Path(folder, WEIGHTS)) for folder in folders_in(to_plain(self.model.plan))],
                replace(settings, devices=1, fsdp=False, graph=True),  # how the same steps are computed
                without_roots(self.data),
                [[f.entries, f.fingerprints()] for f in (features, *features.later.values())],
                self.task.state(),
                self.starts,
                self.rows_digest,
            ]
        )

    def _streams(self, backbone: Backbone, lengths: Mapping[str, int] | None) -> dict[str, Stream]:
        names, source = list(self.data.modalities), Source(self.table, self.data.modalities)
        items, widths = lengths or input_lengths(source, backbone), backbone.widths(names)
        return {name: Stream(widths[name], backbone.tower(name).tokens_out(items[name])) for name in names}
