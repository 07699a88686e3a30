"""A student learns from a trained adapter: fewer modalities, a smaller base, fewer labels, or all of it.

The teacher is heard once: its outputs (and, where they are asked for, its pooled streams) become columns of the
manifest, and each student is an experiment of the task `distilled` on them. Of each share of labels there are two
students with the same seeds, one that is taught and one that has the labels alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.bank.artifact import Artifact
from fusetune.config import check, to_plain
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import extract
from fusetune.features.orders import batches
from fusetune.features.source import Source
from fusetune.manifest.readers.layouts import is_drawn
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.testing import tested
from fusetune.runs.workplace import Workplace
from fusetune.tasks.distilled import DistilledConfig, Shares
from fusetune.tasks.task import Task
from fusetune.training.data import DataSettings, load_backbone
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings

BATCH = 256
ALONE, TAUGHT = "alone", "taught"


@dataclass(frozen=True)
class DistilSettings:
    """
    Attributes:
        teacher: NAME@ALIAS or NAME/VERSION of a registered model, or an adapter's folder; None: this experiment's
            champion.
        method: of the student, a file of conf/*/methods.
        modalities: that the student is given; none named: all of the experiment's.
        base: of the student, a folder or a reference (data/06_models/<experiment>/base.json); None: this experiment's.
        labels: shares of the training rows whose label the student is told.
        temperature, shares: of the loss of those who are taught; see `tasks.distilled`.
        seeds: of the students.
    """

    teacher: str | None = None
    method: str = "linear_probe"
    modalities: tuple[str, ...] = ()
    base: str | None = None
    labels: tuple[float, ...] = (1.0, 0.1, 0.01)
    temperature: float = 2.0
    shares: Shares = field(default_factory=Shares)
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        check(
            bool(self.labels) and all(0 < s <= 1 for s in self.labels), f"labels: expected shares, found {self.labels}."
        )
        check(bool(self.seeds), "seeds: expected at least one.")


@dataclass(frozen=True)
class Distilled:
    """
    Attributes:
        told: JSON-ready: the teacher's metric, and of each share of labels each student's, by arm and seed.
        student: the adapter of a taught student, with most labels and the first seed.
    """

    told: dict[str, Any]
    student: Artifact


@torch.no_grad()
def heard_teacher(
    artifact: Artifact,
    model: AdaptedModel,
    table: pa.Table,
    data: DataSettings,
    work: Workplace,
    features: bool,
) -> dict[str, np.ndarray]:
    """Outputs, and pooled streams if they are wanted, of every row; from features at the teacher's frontier.

    Args:
        data: the teacher's, with the folders of this machine.
    """
    source = Source(table, data.modalities)
    cache = replace(work.cache, views=0, part="1/1")
    found = extract(model.backbone, source, artifact.frontier, work.store, cache, work.progress, work.device)
    rows, outputs, pooled = FeatureSet(found, work.store, work.device), [], []
    model.to(work.device).eval()
    hook = model.head.register_forward_pre_hook(lambda _, args: pooled.append(torch.cat(list(args[0].values()), -1)))
    try:
        for _, states in rows.batches(batches(len(source), BATCH)):
            outputs.append(model.task.kept(model(states, rows.frontier).float(), None).cpu())
    finally:
        hook.remove()
    told = {"outputs": torch.cat(outputs).numpy()}
    return told | ({"features": torch.cat(pooled).float().cpu().numpy()} if features else {})


def taught_and_alone(
    table: pa.Table,
    base: Path,
    data: DataSettings,
    plan: Plan,
    heard: Mapping[str, np.ndarray],
    teacher: Task,
    settings: DistilSettings,
    train_settings: TrainSettings,
    evaluation: EvaluationSettings,
    work: Workplace,
    tell: Callable[[str], Any] = lambda _: None,
    lengths: Mapping[str, int] | None = None,
) -> Distilled:
    """Train every student.

    Args:
        data: of the experiment; the student has some of its modalities.
        heard: what `heard_teacher` returns.
        teacher: its task, fitted: labels and scales are its own.
        tell: is told each result in a sentence.
        lengths: as `Experiment` takes them.
    """
    names = settings.modalities or tuple(data.modalities)
    unknown = [name for name in names if name not in data.modalities]
    check(
        not unknown,
        f"distil.modalities: no modality '{unknown[0] if unknown else None}'. Known: {', '.join(data.modalities)}.",
    )
    check(
        not settings.shares.of_features or any(placement.where != "head" for placement in plan.placements),
        f"distil.shares: features and relations teach what stands below the head, and '{settings.method}' places "
        "nothing there. Expected another distil.method, such as lora or adapter, or shares of labels and outputs.",
    )
    config = DistilledConfig(dict(data.task))
    table = table.append_column(config.outputs, pa.array(heard["outputs"].tolist()))
    if "features" in heard:
        table = table.append_column(config.features, pa.array(heard["features"].tolist()))
    told: dict[str, Any] = {"teacher_test": _of_teacher(teacher, table, heard["outputs"]), "labels": {}}
    student: Artifact | None = None
    for share in sorted(settings.labels, reverse=True):
        known = known_labels(table, share)
        whole = table.append_column(config.known, pa.array(known))
        labelled = whole.filter(pa.array(known))
        own: dict[str, Any] = {"rows": labelled["split"].to_pylist().count("train"), ALONE: {}, TAUGHT: {}}
        for arm, rows in ((ALONE, labelled), (TAUGHT, whole)):
            shares = settings.shares if arm == TAUGHT else Shares(labels=1.0, outputs=0.0)
            chosen = replace(
                data,
                modalities={name: data.modalities[name] for name in names},
                task={
                    "name": "distilled",
                    "task": to_plain(data.task),
                    "state": to_plain(teacher.state()),
                    "temperature": settings.temperature,
                    "shares": to_plain(shares),
                },
            )
            for seed in settings.seeds:
                experiment = Experiment(rows, load_backbone(base, chosen), chosen, plan, seed, settings.method, lengths)
                own_settings = replace(train_settings, seed=seed)
                splits, epochs = work.trained(experiment, own_settings)
                result = tested(experiment, splits, epochs, own_settings, evaluation, "student", {})
                metric = result.metrics["metric"]
                own[arm][str(seed)] = result.metrics["test"][metric]
                told |= {"metric": metric, "student_parameters": result.metrics["trainable_parameters"]}
                tell(f"{share:g} of the labels, {arm}, seed {seed}: {metric} {own[arm][str(seed)]:.3f}")
                if student is None and arm == TAUGHT:
                    student = plain_student(result.artifact, data, names)
        told["labels"][f"{share:g}"] = own
    assert student is not None  # there is a share of labels, and a seed
    return Distilled(told, student)


def _of_teacher(task: Task, table: pa.Table, outputs: np.ndarray) -> float:
    """Its metric on the test rows."""
    test = [i for i, split in enumerate(table["split"].to_pylist()) if split == "test"]
    columns = {name: table[name].take(test).to_pylist() for name in task.columns()}
    return task.metrics(torch.from_numpy(outputs[test]), task.targets(columns))[task.metric]


def known_labels(table: pa.Table, share: float) -> list[bool]:
    """Of each row, whether the student is told its label: all of validation and test, a share of the training rows,
    the same ones whatever the seed."""
    rows = zip(table["sample_id"].to_pylist(), table["split"].to_pylist(), strict=True)
    found = [split != "train" or share == 1 or is_drawn(f"label {name}", share) for name, split in rows]
    train = [k for k, split in zip(found, table["split"].to_pylist(), strict=True) if split == "train"]
    check(any(train), f"distil.labels: {share:g} of {len(train)} training rows is none. Expected a larger share.")
    return found


def plain_student(artifact: Artifact, data: DataSettings, names: Sequence[str]) -> Artifact:
    """A student as an adapter of the task itself: nothing of the teacher is needed to ask it."""
    own = replace(data, modalities={name: data.modalities[name] for name in names})
    tensors = {}
    for name, value in artifact.tensors.items():
        if not name.startswith("head.projection."):
            tensors["head." + name.removeprefix("head.head.") if name.startswith("head.head.") else name] = value
    config = {
        **artifact.config,
        "data": {**artifact.config["data"], "task": to_plain(own.task)},
        "task_state": artifact.config["task_state"]["task"],
        "kept_parameters": sum(value.numel() for value in tensors.values()),
    }
    return replace(artifact, config=config, tensors=tensors)
