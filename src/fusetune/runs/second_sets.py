"""What a trained adapter is worth on other data than those it was trained for; see `manifest.second_sets`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fusetune.bank.artifact import Artifact
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.features.changed import ChangedSource
from fusetune.features.dataset import FeatureSet
from fusetune.features.extraction import Progress, extract
from fusetune.features.index import CacheSettings
from fusetune.features.source import Source
from fusetune.features.storage import Store
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.contents import digest_column, with_constants, with_digests
from fusetune.manifest.second_sets import SecondSet
from fusetune.plan.adapted import AdaptedModel
from fusetune.training.data import (
    DataSettings,
    check_places,
    derives,
    faults_of,
    make_task,
    streams_of,
    task_columns,
    with_derived,
)
from fusetune.training.evaluation import EvaluationSettings, evaluate
from fusetune.training.predicting import Split, predict

# checks of splits, and of what training rows know: there is one split, and the adapter says what it knows
NOT_ASKED = ("split.rows", "label.classes", "label.trained", "label.every_split", "group.leakage", "content.leakage",
             "content.duplicate", "column.unused", "label.alike")  # fmt: skip
BATCH = 64


@dataclass(frozen=True)
class SecondRows:
    """The sound rows of a second set.

    Attributes:
        source: of the rows, changed as the set says.
        set_aside: how many failed a check.
        told: what failed, a line a check; and how many rows are training rows.
    """

    name: str
    source: ChangedSource
    set_aside: int
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class SecondResult:
    """
    Attributes:
        metrics: as of a test split, with intervals; see `training.evaluation.evaluate`.
        metric: the task's main one.
        rows: that were evaluated.
        left_out: rows without a target that the training knew.
        too_long: rows with more tokens than the adapter was made for, which it can't take.
        scores: (rows,), of the main metric.
        groups: of the rows.
        predictions: sample_id, the task's columns, what it decodes, score.
    """

    metrics: dict[str, Any]
    metric: str
    rows: int
    left_out: int
    too_long: int
    scores: np.ndarray
    groups: list[Any]
    predictions: pa.Table

    def plain(self) -> dict[str, Any]:
        """JSON-ready, without what belongs to single rows."""
        counts = {"rows": self.rows, "rows_left_out": self.left_out, "rows_too_long": self.too_long}
        return {"metric": self.metric, **counts, "metrics": self.metrics}


def sound_rows(
    name: str,
    chosen: SecondSet,
    read: pa.Table,
    data: DataSettings,
    settings: ValidationSettings,
    train: Source | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> SecondRows:
    """Check the rows of a second set as a manifest's are checked; those that fail are set aside, the others go on.

    Args:
        read: what the set's reader made, or the experiment's own manifest.
        train: rows that were trained on, of which a set should have none; None: nobody looks.

    Raises:
        FusetuneError: no row is left.
    """
    from fusetune.manifest.validation import validate

    where, task = f"evaluate_on.{name}", make_task(data.task)
    modalities = chosen.modalities(data.modalities, where)
    check_places(task, chosen.changes, f"{where}.changes")
    table = with_constants(chosen.table(read, modalities, task.columns(), where), modalities)
    # what stops a run elsewhere costs the row here
    severity = {check: "quarantine" for check, level in settings.severity.items() if level == "error"}
    rules = replace(
        settings, severity={**settings.severity, **severity, **dict.fromkeys(NOT_ASKED, "off")}, max_quarantined=1.0
    )
    label, problems = getattr(task.config, "label", None), task.problems()
    labels = [label] if label and label not in problems else []

    def faults_in(some: pa.Table) -> dict[tuple[str, str], list[str | None]]:
        return faults_of(task, Source(some, modalities))

    try:
        outcome = validate(table, modalities, labels, rules, progress, task.columns(), problems, faults_in)
    except FusetuneError as error:
        raise FusetuneError(f"{where}: {error}") from None
    told = [
        f"{c['rows']} rows fail {c['check']} ({c['column'] or 'row'}), e.g. {c['examples'][0]}"
        for c in outcome.report["checks"]
    ]
    aside = table.num_rows - outcome.sound.num_rows
    check(outcome.sound.num_rows > 0, f"{where}: no row is sound. {'; '.join(told)}")
    digested = {n: m for n, m in modalities.items() if digest_column(n) not in outcome.sound.column_names}
    streams = modalities if derives(task) else streams_of(data) | modalities
    source = ChangedSource(with_digests(outcome.sound, digested), streams, chosen.changes, f"{where}.changes")
    seen = 0 if train is None else _shared(train, source)
    if seen:
        told.append(f"{seen} rows are the same as training rows: what is measured on them is no generalisation")
    return SecondRows(name, source, aside, tuple(told))


def evaluate_on(
    artifact: Artifact,
    model: AdaptedModel,
    rows: SecondRows,
    store: Store,
    cache: CacheSettings,
    evaluation: EvaluationSettings,
    device: torch.device,
    progress: Progress = lambda *_: None,
) -> SecondResult:
    """Metrics of one adapter on a second set; features at its frontier are cached like any others.

    Args:
        model: that the artifact was built into.
    """
    task = model.task
    if derives(task):  # its answers are a stream, in the words of this very model
        own = rows.source
        table, streams = with_derived(task, own.table, own.modalities), streams_of(artifact.data()) | own.modalities
        rows = replace(rows, source=ChangedSource(table, streams, own.changes))
    table = rows.source.table
    columns = task_columns(task, rows.source)
    known = [i for i, takes in enumerate(task.known(columns)) if takes]
    check(bool(known), f"evaluate_on.{rows.name}: no row has a target that the training knew.")
    settings = replace(cache, views=0, part="1/1")
    some = _part(rows, known)
    features = extract(model.backbone, some, artifact.frontier, store, settings, device=device, progress=progress)
    fitting = _fitting(model, FeatureSet(features, store, device))
    check(bool(fitting), f"evaluate_on.{rows.name}: every row has more tokens than the adapter was made for.")
    too_long = len(known) - len(fitting)
    if too_long:
        known = [known[i] for i in fitting]
        features = features.of_rows(fitting, augmented=False)
    picked = {name: [values[i] for i in known] for name, values in columns.items()}
    split = Split({1: FeatureSet(features, store, device)}, task.targets(picked), rows.name)
    outputs, _ = predict(model.to(device), split, BATCH)
    kind, groups = getattr(task.config, "question_type", None), table["group_id"].take(known).to_pylist()
    kinds = picked[kind] if kind else None
    scores = task.per_sample(outputs, split.targets)[task.metric]
    ids = table["sample_id"].take(known).to_pylist()
    decoded = task.answers(outputs, ids, task.contents(picked))
    told = {name: picked[name] for name in task.columns()} | {n: [row[n] for row in decoded] for n in decoded[0]}
    return SecondResult(
        evaluate(task, outputs, split.targets, evaluation, kinds, groups),
        task.metric,
        len(known),
        table.num_rows - len(known) - too_long,
        too_long,
        scores,
        groups,
        pa.table({"sample_id": ids, **told, "score": scores.tolist()}),
    )


def _shared(train: Source, rows: Source) -> int:
    """Rows that are the same as a training row in every modality."""
    names = list(train.modalities)
    keys = train.content_keys()
    seen = set(zip(*(keys[name] for name in names), strict=True))
    own = Source(rows.table, rows.modalities).content_keys()  # as they were before any change
    return sum(row in seen for row in zip(*(own[name] for name in names), strict=True))


def _part(rows: SecondRows, picked: Sequence[int]) -> ChangedSource:
    return ChangedSource(rows.source.table.take(list(picked)), rows.source.modalities, rows.source.changes)


def _fitting(model: AdaptedModel, features: FeatureSet) -> list[int]:
    """The rows that the model can take: some adapters are made for so many tokens and no more."""
    count = len(features)
    if not any(getattr(module, "bounded", False) for module in model.modules()):
        return list(range(count))
    fits = np.ones(count, bool)
    lengths_of = features.lengths()
    for name in model.streams:
        lengths = lengths_of[name]
        most, tower = model.streams[name].max_tokens, model.backbone.tower(name)
        deep = features.frontier.towers[name] > 0
        fits &= (lengths if deep else np.array([tower.tokens_out(int(n)) for n in lengths])) <= most
    return np.flatnonzero(fits).tolist()
