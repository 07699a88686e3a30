"""One task after another on one backbone: what is learned, what is forgotten, what helps.

R[i][j] is the test metric of task j after task i has been learned, with task j's own head. Of T tasks in order:

    average     mean_j R[T][j]
    forgetting  mean_{j<T} (max_{j<=i<=T} R[i][j] - R[T][j])      (Chaudhry et al., ECCV 2018)
    backward    mean_{j<T} (R[T][j] - R[j][j])                    (Lopez-Paz and Ranzato, NeurIPS 2017)
    forward     mean_{j>1} (R[j][j] - what task j reaches by adapters of its own)

The ways: `apart`, adapters for each task (nothing is forgotten, and everything is kept); `shared`, one set of adapters
that goes on from task to task; `orthogonal`, adapters for each whose subspaces keep away from earlier ones, added up
(O-LoRA, Wang et al., EMNLP 2023); `merged`, those that were trained apart, added up with equal shares.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.adapters.orthogonality import Orthogonal
from fusetune.bank.artifact import Artifact
from fusetune.bank.merging import MergeSettings
from fusetune.bank.task_vectors import merge
from fusetune.config import check
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import extract
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.testing import tested
from fusetune.runs.workplace import Workplace
from fusetune.training.data import DataSettings, TaskRows, load_backbone
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.loop import train
from fusetune.training.predicting import Split, predict
from fusetune.training.settings import TrainSettings

BATCH = 256


@dataclass(frozen=True)
class TurnSettings:
    """
    Attributes:
        tasks: in order, by name: what `data.task` would say of each; none named: the tasks of a `multi_task`.
        ways: some of apart, shared, orthogonal, merged.
        orthogonal_weight: of the penalty.
    """

    tasks: Mapping[str, Any] = field(default_factory=dict)
    ways: tuple[str, ...] = ()
    orthogonal_weight: float = 1.0

    def __post_init__(self) -> None:
        unknown = [way for way in self.ways if way not in WAYS]
        check(not unknown, f"continual.ways: expected some of {', '.join(WAYS)}, found {', '.join(unknown)}.")

    def of_each(self, data: DataSettings) -> dict[str, DataSettings]:
        """The data with one task each, in order; raises FusetuneError where there is nothing to take in turn."""
        tasks = self.tasks or data.task.get("tasks") or {}
        check(
            len(tasks) > 1,
            "continual.tasks: expected at least two, each as data.task would be, or a data.task of name multi_task.",
        )
        return {name: replace(data, task=dict(task)) for name, task in tasks.items()}


@dataclass(frozen=True)
class ContinualSettings(TurnSettings):
    """
    Attributes:
        method: a file of conf/*/methods.
        seeds: of each way.
    """

    ways: tuple[str, ...] = ("apart", "shared", "orthogonal", "merged")
    method: str = "lora"
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.ways), f"continual.ways: expected some of {', '.join(WAYS)}, found none.")
        check(bool(self.seeds), "continual.seeds: expected at least one.")


@dataclass
class Learner:
    """Tasks on one manifest and one base, learned and tested.

    Attributes:
        data: of each task, by name, in order.
    """

    table: pa.Table
    base: Path
    data: Mapping[str, DataSettings]
    plan: Plan
    train: TrainSettings
    evaluation: EvaluationSettings
    work: Workplace
    lengths: Mapping[str, int] | None = None

    def apart(self, seed: int) -> "Apart":
        """An adapter of each task, learned from nothing, with its test metric."""
        return {name: self.learned(name, seed) for name in self.data}

    def learned(
        self, name: str, seed: int, start: Artifact | None = None, orthogonal: Orthogonal | None = None
    ) -> tuple[Artifact, float]:
        """An adapter of a task and its test metric.

        Args:
            start: whose adapters this one goes on from; its head stays its own.
        """
        plan, settings = replace(self.plan, orthogonal=orthogonal), replace(self.train, seed=seed)
        backbone = load_backbone(self.base, self.data[name])
        experiment = Experiment(self.table, backbone, self.data[name], plan, seed, name, self.lengths)
        work = self.work
        experiment.begin(work.store, work.cache, work.progress)
        if start is not None:
            _take_over(experiment, start)
        splits, features = work.splits(experiment)
        key = experiment.key(features, settings)
        with _folder(work.checkpoints) as folder:  # its own: a checkpoint's key doesn't know `start`
            epochs = train(experiment.model, splits["train"], splits["val"], settings, key, folder, Reporter())
        result = tested(experiment, splits, epochs, settings, self.evaluation, name, {})
        return result.artifact, float(result.metrics["test"][result.metrics["metric"]])

    def tested(self, name: str, artifact: Artifact) -> float:
        """The test metric of an adapter on its task."""
        model = artifact.build(self.base)
        rows = TaskRows(self.table, self.data[name], model.backbone)
        source, work = rows.source, self.work
        found = extract(
            model.backbone, source, artifact.frontier, work.store, replace(work.cache, views=0, part="1/1"),
            work.progress, work.device,
        )  # fmt: skip
        picked = found.of_rows(rows.rows["test"], augmented=False)
        targets = model.task.targets(rows.columns_of(rows.rows["test"]))
        split = Split({1: FeatureSet(picked, work.store, work.device)}, targets, "test")
        outputs, _ = predict(model.to(work.device), split, BATCH)
        return float(model.task.metrics(outputs, targets)[model.task.metric])


Table = list[list[float | None]]  # R: a row a stage, a column a task; None before a task is learned
Apart = Mapping[str, tuple[Artifact, float]]


def _apart(learner: Learner, seed: int, apart: Apart, weight: float) -> Table:
    del learner, seed, weight
    scores = [score for _, score in apart.values()]
    return [[score if j <= i else None for j, score in enumerate(scores)] for i in range(len(scores))]


def _shared(learner: Learner, seed: int, apart: Apart, weight: float) -> Table:
    del weight
    names, heads, table = list(apart), {}, []
    latest: Artifact | None = None
    for i, name in enumerate(names):
        latest, own = learner.learned(name, seed, latest) if latest else apart[name]  # the first begins like any
        heads[name] = latest
        row: list[float | None] = [learner.tested(n, _with_adapters(heads[n], latest)) for n in names[:i]]
        table.append([*row, own, *[None] * (len(names) - i - 1)])
    return table


def _orthogonal(learner: Learner, seed: int, apart: Apart, weight: float) -> Table:
    made: dict[str, Artifact] = {}
    with TemporaryDirectory() as root:
        for name in apart:
            folders = tuple(str(Path(root, other)) for other in made)
            away = Orthogonal(folders, weight) if folders else None  # the first has nothing to keep away from
            made[name] = (learner.learned(name, seed, orthogonal=away) if away else apart[name])[0]
            made[name].save_pretrained(Path(root, name))
    return _added(learner, made, [1.0] * len(made))


def _merged(learner: Learner, seed: int, apart: Apart, weight: float) -> Table:
    del seed, weight
    return _added(learner, {name: artifact for name, (artifact, _) in apart.items()}, None)


WAYS: dict[str, Callable[[Learner, int, Apart, float], Table]] = {
    "apart": _apart,
    "shared": _shared,
    "orthogonal": _orthogonal,
    "merged": _merged,
}


def _added(learner: Learner, made: Mapping[str, Artifact], weights: Sequence[float] | None) -> Table:
    """After each stage the changes of all adapters so far, added up, under each task's own head."""
    names, table = list(made), []
    for i in range(len(names)):
        several = {name: made[name] for name in names[: i + 1]}
        shares = list(weights[: i + 1]) if weights else [1 / (i + 1)] * (i + 1)
        whole = merge(several, shares, learner.base, MergeSettings()).artifacts
        row: list[float | None] = [learner.tested(name, whole[name]) for name in several]
        table.append([*row, *[None] * (len(names) - i - 1)])
    return table


def continual(learner: Learner, settings: ContinualSettings, tell: Callable[[str], Any] = lambda _: None) -> dict:
    """JSON-ready: by way and seed, R and what follows from it."""
    found: dict[str, Any] = {"tasks": list(learner.data), "method": settings.method, "ways": {}}
    for seed in settings.seeds:
        apart = learner.apart(seed)
        for way in settings.ways:
            one = in_one_way(learner, way, seed, apart, settings.orthogonal_weight)
            found["ways"].setdefault(way, {})[str(seed)] = one
            tell(f"{way}, seed {seed}: average {one['average']:.3f}, forgetting {one['forgetting']:.3f}")
    return found


def in_one_way(learner: Learner, way: str, seed: int, apart: Apart, orthogonal_weight: float) -> dict[str, Any]:
    """R (`after`), what follows from it, and the bytes of what is kept; raises FusetuneError where the learner's method
    can't go that way.

    Args:
        apart: the tasks' own adapters of this seed.
    """
    table = WAYS[way](learner, seed, apart, orthogonal_weight)
    sizes = [artifact.bytes for artifact, _ in apart.values()]
    kept = sum(sizes) if way in ("apart", "orthogonal") else max(sizes)
    return {"after": table, "bytes": kept, **measures(table, [score for _, score in apart.values()])}


def measures(table: Table, single: Sequence[float]) -> dict[str, float]:
    """What the module says of R; `single`: of each task by adapters of its own."""
    last, count = table[-1], len(table)
    seen = [[row[j] for row in table[j:]] for j in range(count)]  # of each task, from when it was learned
    earlier = range(count - 1)

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values)) if values else 0.0

    return {
        "average": mean([value for value in last if value is not None]),
        "forgetting": mean([max(v for v in seen[j] if v is not None) - (last[j] or 0.0) for j in earlier]),
        "backward": mean([(last[j] or 0.0) - (seen[j][0] or 0.0) for j in earlier]),
        "forward": mean([(table[j][j] or 0.0) - single[j] for j in range(1, count)]),
    }


def _take_over(experiment: Experiment, start: Artifact) -> None:
    """Put another adapter's trained tensors in place of the first ones, its head's left out."""
    kept = experiment.model.kept()
    with torch.no_grad():
        for name, value in start.tensors.items():
            if not name.startswith("head."):
                check(name in kept, f"continual: '{name}' of the task before has no place in the next one's adapters.")
                kept[name].copy_(value)


def _with_adapters(head: Artifact, latest: Artifact) -> Artifact:
    """A task's head on the adapters that came later."""
    later = {name: value for name, value in latest.tensors.items() if not name.startswith("head.")}
    return replace(head, tensors={**head.tensors, **later})


@contextmanager
def _folder(checkpoints: Path) -> Iterator[Path]:
    checkpoints.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=checkpoints) as folder:
        yield Path(folder)
