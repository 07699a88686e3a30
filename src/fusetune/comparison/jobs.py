"""What the jobs of a comparison are, and what all of them have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.comparison.settings import CompareSettings
from fusetune.comparison.variants import Variant
from fusetune.config import build, digest
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings, Features
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.training.data import DataSettings, load_backbone
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings, of_method

Place = tuple[str, int]  # a variant's name and a seed
Tell = Callable[..., None]  # (kind, place or None, details): epoch, cell, failed, trial, note


@dataclass(frozen=True)
class Shared:
    """What all jobs of a comparison have in common.

    Attributes:
        table: the validated manifest.
        base: the frozen backbone's folder.
        train: the common settings of training.
        folder: of cells, searches and checkpoints.
        code: digest of the code that makes a cell.
        origin: digest of the data, of the base, and of how features are cached.
        lengths: of inputs; see `training.experiment.Experiment`.
    """

    table: pa.Table
    base: Path
    data: DataSettings
    train: Mapping[str, Any]
    cache: CacheSettings
    evaluation: EvaluationSettings
    settings: CompareSettings
    store: Path | str
    folder: Path
    code: str
    origin: str = ""
    lengths: Mapping[str, int] | None = None

    def experiment(self, variant: Variant, seed: int) -> Experiment:
        """On a backbone of its own; raises FusetuneError where the variant doesn't fit the data or the base."""
        plan, backbone = build(Plan, variant.settings, variant.method), load_backbone(self.base, self.data)
        found = Experiment(self.table, backbone, self.data, plan, seed, variant.name, self.lengths)
        if variant.share < 1:
            rows = found.rows["train"]
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).numpy()
            found.rows["train"] = np.sort(rows[order[: max(1, round(variant.share * len(rows)))]])
        found.begin(self.store, self.cache, lambda *_: None)
        return found

    def training(self, variant: Variant, seed: int, device: str = "auto") -> TrainSettings:
        settings = of_method(self.train, variant.settings, variant.method)
        return replace(settings, seed=seed, device=device, devices=1, fsdp=False)

    def key(self, experiment: Experiment, features: Features, variant: Variant, seed: int) -> str:
        """Of a cell: digest of all that determines it."""
        return digest(
            [
                self.code,
                experiment.key(features, self.training(variant, seed)),
                variant.share,
                self.settings.robustness,
                self.evaluation,
                self.settings.continual if self.in_turn(variant) else None,
                experiment.column("sample_id", "test"),
            ]
        )

    def in_turn(self, variant: Variant) -> bool:
        """Whether its cells hold what it forgets of tasks in turn; see `comparison.in_turn`."""
        return bool(self.settings.continual.ways) and variant.compared

    def cell(self, key: str) -> Path:
        return self.folder / "cells" / key[:32]


@dataclass(frozen=True)
class Part:
    """A variant, and those of its seeds that are still to be trained."""

    variant: Variant
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """
    Attributes:
        parts: one variant, or several that differ in their rates alone and are trained as one batched model.
        memory: bytes that it may take.
        flops: of a training step of one seed.
        seconds: a guess at how long it takes, for the order and the time left.
        epochs: of each seed, at most.
    """

    parts: tuple[Part, ...]
    memory: int
    flops: float
    seconds: float
    epochs: int

    @property
    def name(self) -> str:
        return "; ".join(part.variant.name for part in self.parts)

    def places(self) -> list[Place]:
        return [(part.variant.name, seed) for part in self.parts for seed in part.seeds]


def told(error: BaseException) -> str:
    """An error as a row of a table holds it."""
    if isinstance(error, FusetuneError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"
