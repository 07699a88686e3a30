"""A job: the seeds of one variant, in one process. Seeds that can be are trained as one batched model."""

import logging
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from fusetune.comparison.attention import attention_maps, interaction_maps
from fusetune.comparison.cells import write_cell
from fusetune.comparison.energy import Meter
from fusetune.comparison.measures import Conditions, calibration
from fusetune.comparison.settings import CompareSettings
from fusetune.comparison.variants import Variant
from fusetune.config import build, digest, to_plain
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings, Features
from fusetune.plan import Plan
from fusetune.training.ensemble import assign, refusal
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.experiment import DataSettings, Experiment, load_backbone
from fusetune.training.loop import Epoch, Reporter, Split, train
from fusetune.training.run import tested
from fusetune.training.settings import TrainSettings, of_method
from fusetune.training.together import train_together

logger = logging.getLogger(__name__)
PROBED = 8  # samples on which members are compared with themselves alone
# FLOPs of a training step from which one member alone keeps the device busy, and more of them gain nothing
BUSY = {"cpu": 2e8, "cuda": 5e12}
Tell = Callable[..., None]  # (kind, seed or None, details): epoch, cell, failed, trial, note


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

    def experiment(self, variant: Variant, seed: int) -> Experiment:
        """On a backbone of its own; raises FusetuneError where the variant doesn't fit the data or the base."""
        plan, backbone = build(Plan, variant.settings, variant.method), load_backbone(self.base, self.data)
        found = Experiment(self.table, backbone, self.data, plan, seed, variant.name)
        if variant.share < 1:
            rows = found.rows["train"]
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
            found.rows["train"] = sorted(rows[i] for i in order[: max(1, round(variant.share * len(rows)))])
        return found

    def training(self, variant: Variant, seed: int, device: str = "auto") -> TrainSettings:
        return replace(of_method(self.train, variant.settings, variant.method), seed=seed, device=device)

    def key(self, experiment: Experiment, features: Features, variant: Variant, seed: int) -> str:
        """Of a cell: digest of all that determines it."""
        return digest(
            [
                self.code,
                experiment.key(features, self.training(variant, seed)),
                variant.share,
                self.settings.robustness,
                self.evaluation,
                experiment.column("sample_id", "test"),
            ]
        )

    def cell(self, key: str) -> Path:
        return self.folder / "cells" / key[:32]


@dataclass(frozen=True)
class Job:
    """
    Attributes:
        seeds: that are still to be trained.
        memory: bytes that it may take.
        flops: of a training step of one member.
        seconds: a guess at how long it takes, for the order and the time left.
        epochs: of each seed, at most.
    """

    variant: Variant
    seeds: tuple[int, ...]
    memory: int
    flops: float
    seconds: float
    epochs: int


def run_job(shared: Shared, job: Job, device: torch.device, workers: int, tell: Tell) -> None:
    """Train the job's seeds and write their cells; a seed that fails is told of, and the others go on.

    Args:
        workers: jobs that run at the same time: they share the machine's energy.
    """
    variant = job.variant
    if variant.search:
        from fusetune.comparison.search import search

        variant = variant.found(search(shared, variant, device, tell))
    _Seeds(shared, variant, device, workers, tell).run(job)


class _Seeds:
    """The seeds of a variant; conditions of the test samples are computed once for all of them."""

    def __init__(self, shared: Shared, variant: Variant, device: torch.device, workers: int, tell: Tell) -> None:
        self.shared, self.variant, self.device, self.workers, self.tell = shared, variant, device, workers, tell
        self.conditions: Conditions | None = None
        self.answers: dict[str, float] = {}

    def run(self, job: Job) -> None:
        shared, variant = self.shared, self.variant
        experiment = shared.experiment(variant, job.seeds[0])
        features = experiment.extract(shared.store, shared.cache, lambda *_: None, self.device)
        keys = {seed: shared.key(experiment, features, variant, seed) for seed in variant.seeds}
        done = [seed for seed in variant.seeds if shared.cell(keys[seed]).is_dir()]
        for seed in done:
            shutil.rmtree(self._checkpoint(keys[seed]), ignore_errors=True)  # of a run that was killed right behind it
        for seed in set(done) & set(job.seeds):
            self.tell("cell", seed, str(shared.cell(keys[seed])))
        seeds = [seed for seed in job.seeds if seed not in done]
        if not seeds:
            return
        splits = {n: experiment.split(n, features, shared.store, self.device) for n in ("train", "val", "test")}
        members = seeds  # or, where a run was killed while they trained together, all of them: its checkpoint goes on
        if self._checkpoint(digest([keys[seed] for seed in variant.seeds])).is_dir():
            members = list(variant.seeds)
        values, reason = self._together(experiment, splits, members, job.flops)
        how = reason or f"one of {len(members)} that were trained together"
        meter, share = Meter(self.device), 1 if reason else len(members)
        trained = (
            self._one_by_one(seeds, keys, splits) if reason else self._as_one(members, keys, splits, experiment, values)
        )
        for seed, one, epochs in trained:
            if seed not in seeds:
                continue
            joules = meter.joules()
            self._write(
                shared.cell(keys[seed]), one, splits, epochs, seed, how, joules and joules / share / self.workers
            )
            meter = meter if share > 1 else Meter(self.device)

    def _together(
        self, experiment: Experiment, splits: Mapping[str, Split], seeds: Sequence[int], flops: float
    ) -> tuple[list[dict[str, torch.Tensor]], str]:
        """Initial values of each seed, and why the seeds are trained one by one; '' where they are not."""
        shared, variant = self.shared, self.variant
        if len(seeds) < 2 or not shared.settings.batch_seeds:
            return [], "trained alone"
        if flops > BUSY[self.device.type]:
            return [], f"one by one: a step of {flops / 1e6:.0f} MFLOP keeps the device busy"
        values = []
        for seed in seeds:
            trainable = shared.experiment(variant, seed).model.trainable()
            values.append({name: p.detach().to(self.device, copy=True) for name, p in trainable.items()})
        model, train_split = experiment.model.to(self.device), splits["train"]
        index = torch.arange(min(PROBED, len(train_split.targets)))
        settings = [shared.training(variant, seed, str(self.device)) for seed in seeds]
        first = train_split.features
        targets = train_split.targets[index].to(self.device)
        reason = refusal(model, values, settings, first.batch(index), first.frontier, targets)
        return values, f"one by one: {reason}" if reason else ""

    def _as_one(self, seeds, keys, splits, experiment, values) -> Iterator[tuple[int, Experiment, list[Epoch]]]:
        settings = [self.shared.training(self.variant, seed, str(self.device)) for seed in seeds]
        key = digest([keys[seed] for seed in seeds])
        folder = self._checkpoint(key)
        members = train_together(
            experiment.model,
            values,
            splits["train"],
            splits["val"],
            settings,
            key,
            folder,
            lambda member, epoch: self.tell("epoch", seeds[member], epoch.number, epoch.val_metric),
        )
        for seed, member in zip(seeds, members, strict=True):
            if member.error:
                self.tell("failed", seed, member.error)
                continue
            one = self.shared.experiment(self.variant, seed)
            one.model.to(self.device)
            one.model.set_epoch(one.model.stages()[-1])
            assign(one.model, member.best)
            yield seed, one, member.history
        shutil.rmtree(folder, ignore_errors=True)

    def _one_by_one(self, seeds, keys, splits) -> Iterator[tuple[int, Experiment, list[Epoch]]]:
        for seed in seeds:
            folder = self._checkpoint(keys[seed])
            settings = self.shared.training(self.variant, seed, str(self.device))
            try:
                one = self.shared.experiment(self.variant, seed)
                reporter = _Teller(seed, self.tell)
                epochs = train(one.model, splits["train"], splits["val"], settings, keys[seed], folder, reporter)
            except Exception as error:  # the other seeds don't fail with it
                self.tell("failed", seed, told(error))
                continue
            yield seed, one, epochs
            shutil.rmtree(folder, ignore_errors=True)

    def _checkpoint(self, key: str) -> Path:
        return self.shared.folder / "checkpoints" / key[:16]

    @torch.no_grad()
    def _write(
        self,
        folder: Path,
        experiment: Experiment,
        splits: Mapping[str, Split],
        epochs: list[Epoch],
        seed: int,
        how: str,
        joules: float | None,
    ) -> None:
        shared, variant = self.shared, self.variant
        settings = shared.training(variant, seed, str(self.device))
        result = tested(experiment, splits, epochs, settings, shared.evaluation, variant.method, {})
        if self.conditions is None:
            self.conditions = Conditions(experiment, shared.settings.robustness, self.device)
            self.answers = self.conditions.answer_times(experiment.model)
        whole = self.conditions.all[0].states
        results = {
            "metrics": result.metrics,
            "curve": result.curve,
            "calibration": calibration(experiment.task, result.outputs, splits["test"].targets),
            "conditions": self.conditions.metrics(experiment.model),
            "attention": attention_maps(experiment.model, whole, self.conditions.start),
            "interactions": interaction_maps(experiment.model, whole, self.conditions.start),
            "settings": to_plain(variant.settings),
            "changed": to_plain(variant.changed),
            "share": variant.share,
        }
        cost = {
            "train_seconds": sum(epoch.seconds for epoch in epochs),
            "epochs": len(epochs),
            "how": how,
            "peak_bytes": _peak(self.device),
            "joules": joules,
            **self.answers,
        }
        write_cell(folder, results, cost, result.predictions, result.artifact)
        self.tell("cell", seed, str(folder))


class _Teller(Reporter):
    def __init__(self, seed: int, tell: Tell) -> None:
        self.seed, self.tell = seed, tell

    def epoch(self, epoch: Epoch, best: bool) -> None:
        self.tell("epoch", self.seed, epoch.number, epoch.val_metric)


def told(error: BaseException) -> str:
    """An error as a row of a table holds it."""
    if isinstance(error, FusetuneError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"


def _peak(device: torch.device) -> int:
    """Bytes: the most that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
