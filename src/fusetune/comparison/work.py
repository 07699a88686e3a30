"""A job: the seeds of a variant, in one process; seeds, and rates, that can be are trained as one batched model."""

import resource
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fusetune.comparison.attention import attention_maps, interaction_maps
from fusetune.comparison.cells import write_cell
from fusetune.comparison.energy import Meter
from fusetune.comparison.in_turn import in_turn
from fusetune.comparison.jobs import Job, Place, Shared, Tell, told
from fusetune.comparison.measures import Conditions, calibration
from fusetune.comparison.variants import Variant
from fusetune.config import digest, to_plain
from fusetune.runs.experiment import Experiment
from fusetune.runs.testing import tested
from fusetune.training.ensemble import refusal
from fusetune.training.epochs import Epoch, Reporter
from fusetune.training.loop import assign, train
from fusetune.training.predicting import Split
from fusetune.training.settings import TrainSettings
from fusetune.training.together import train_together

PROBED = 8  # samples on which members are compared with themselves alone
# FLOPs of a training step from which one member alone keeps the device busy, and more of them gain nothing
BUSY = {"cpu": 2e8, "cuda": 5e12}


def run_job(shared: Shared, job: Job, device: torch.device, workers: int, tell: Tell) -> None:
    """Train the job's seeds and write their cells; a seed that fails is told of, and the others go on.

    Args:
        workers: jobs that run at the same time: they share the machine's energy.
    """
    variants = [part.variant for part in job.parts]
    if variants[0].search:
        from fusetune.comparison.search import search

        variants = [variants[0].found(search(shared, variants[0], device, tell))]
    _Members(shared, variants, device, workers, tell).run(job)


class _Members:
    """Variants of one plan with their seeds; conditions of the test samples are computed once for all of them."""

    def __init__(
        self, shared: Shared, variants: Sequence[Variant], device: torch.device, workers: int, tell: Tell
    ) -> None:
        self.shared, self.device, self.workers, self.tell = shared, device, workers, tell
        self.variants = {variant.name: variant for variant in variants}
        self.conditions: Conditions | None = None
        self.answers: dict[str, float] = {}

    def run(self, job: Job) -> None:
        shared, everybody = self.shared, [(name, seed) for name, v in self.variants.items() for seed in v.seeds]
        opened = {name: self._experiment((name, variant.seeds[0])) for name, variant in self.variants.items()}
        experiment = next(iter(opened.values()))
        features = experiment.extract(shared.store, shared.cache, lambda *_: None, self.device)
        keys = {(n, seed): shared.key(opened[n], features, self.variants[n], seed) for n, seed in everybody}
        done = [place for place in everybody if shared.cell(keys[place]).is_dir()]
        for place in done:
            shutil.rmtree(self._checkpoint(keys[place]), ignore_errors=True)  # of a run that was killed right behind it
        for place in set(done) & set(job.places()):
            self.tell("cell", place, str(shared.cell(keys[place])))
        wanted = [place for place in job.places() if place not in done]
        if not wanted:
            return
        splits = experiment.splits(features, shared.store, self.device)
        members = wanted  # or, where a run was killed while all trained together, all: their checkpoint goes on
        if self._checkpoint(digest([keys[place] for place in everybody])).is_dir():
            members = everybody
        values, reason = self._together(experiment, splits, members, job.flops)
        how = reason or f"one of {len(members)} that were trained together"
        meter, share = Meter(self.device), 1 if reason else len(members)
        trained = (
            self._one_by_one(wanted, keys, splits)
            if reason
            else self._as_one(members, keys, splits, experiment, values)
        )
        for place, one, epochs in trained:
            if place not in wanted:
                continue
            joules = meter.joules()
            joules = joules and joules / share / self.workers
            self._write(shared.cell(keys[place]), one, splits, epochs, place, how, joules)
            meter = meter if share > 1 else Meter(self.device)

    def _experiment(self, place: Place) -> Experiment:
        return self.shared.experiment(self.variants[place[0]], place[1])

    def _settings(self, place: Place) -> TrainSettings:
        return self.shared.training(self.variants[place[0]], place[1], str(self.device))

    def _together(
        self, experiment: Experiment, splits: Mapping[str, Split], members: Sequence[Place], flops: float
    ) -> tuple[list[dict[str, torch.Tensor]], str]:
        """Initial values of each member, and why they are trained one by one; '' where they are not."""
        if len(members) < 2 or not self.shared.settings.batch_seeds:
            return [], "trained alone"
        if flops > BUSY[self.device.type]:
            return [], f"one by one: a step of {flops / 1e6:.0f} MFLOP keeps the device busy"
        values = []
        for place in members:
            trainable = self._experiment(place).model.trainable()
            values.append({name: p.detach().to(self.device, copy=True) for name, p in trainable.items()})
        model, train_split = experiment.model.to(self.device), splits["train"]
        index = torch.arange(min(PROBED, len(train_split.targets)))
        settings, first = [self._settings(place) for place in members], train_split.features
        targets = train_split.targets[index].to(self.device)
        reason = refusal(model, values, settings, first.batch(index), first.frontier, targets)
        return values, f"one by one: {reason}" if reason else ""

    def _as_one(self, places, keys, splits, experiment, values) -> Iterator[tuple[Place, Experiment, list[Epoch]]]:
        key = digest([keys[place] for place in places])
        folder = self._checkpoint(key)
        members = train_together(
            experiment.model,
            values,
            splits["train"],
            splits["val"],
            [self._settings(place) for place in places],
            key,
            folder,
            lambda member, epoch: self.tell("epoch", places[member], epoch.number, epoch.val_metric),
        )
        for place, member in zip(places, members, strict=True):
            if member.error:
                self.tell("failed", place, member.error)
                continue
            one = self._experiment(place)
            one.model.to(self.device)
            one.model.set_epoch(one.model.stages()[-1])
            assign(one.model, member.best)
            yield place, one, member.history
        shutil.rmtree(folder, ignore_errors=True)

    def _one_by_one(self, places, keys, splits) -> Iterator[tuple[Place, Experiment, list[Epoch]]]:
        for place in places:
            key = keys[place]
            folder, settings = self._checkpoint(key), self._settings(place)
            try:
                one = self._experiment(place)
                reporter = _Teller(place, self.tell)
                epochs = train(one.model, splits["train"], splits["val"], settings, key, folder, reporter)
            except Exception as error:  # the others don't fail with it
                self.tell("failed", place, told(error))
                continue
            yield place, one, epochs
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
        place: Place,
        how: str,
        joules: float | None,
    ) -> None:
        shared, variant = self.shared, self.variants[place[0]]
        result = tested(experiment, splits, epochs, self._settings(place), shared.evaluation, variant.method, {})
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
            "continual": in_turn(shared, variant, place[1], self.device),
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
        self.tell("cell", place, str(folder))


class _Teller(Reporter):
    def __init__(self, place: Place, tell: Tell) -> None:
        self.place, self.tell = place, tell

    def epoch(self, epoch: Epoch, best: bool) -> None:
        self.tell("epoch", self.place, epoch.number, epoch.val_metric)


def _peak(device: torch.device) -> int:
    """Bytes: the most that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
