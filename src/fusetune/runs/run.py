"""A whole training run: loop, test, artifact, report. Kedro's nodes and `python -m fusetune.runs` call this."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.device import pick_device
from fusetune.features.dataset import FeatureSet
from fusetune.features.index import Features
from fusetune.features.orders import padding
from fusetune.features.storage import Store
from fusetune.runs.experiment import Experiment
from fusetune.runs.located import located
from fusetune.runs.ranks import ranks
from fusetune.runs.said import Shown
from fusetune.runs.testing import TrainingResult, tested
from fusetune.training.distributed import Group
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.loop import train
from fusetune.training.predicting import Split
from fusetune.training.settings import TrainSettings

logger = logging.getLogger(__name__)
WORTH_BUCKETS = 0.25  # share of padding from which we say so


def train_and_test(
    experiment: Experiment,
    features: Features,
    store: Store | Path | str,
    settings: TrainSettings,
    evaluation: EvaluationSettings,
    checkpoints: Path,
    reporter: Reporter,
    method: str,
    unimodal: Mapping[str, float],
    plain: Mapping[str, float] | None = None,
    group: Group | None = None,
) -> TrainingResult:
    """Train, evaluate on the test split, and put everything that a user keeps into one result.

    Args:
        group: whose first this process is; None: it starts the others itself, where `settings.devices` asks for them.
    """
    model, splits = experiment.model, experiment.splits(features, store, pick_device(settings.device))
    for text in (*model.resolved, *_told(splits["train"].features, settings)):
        logger.info("%s: %s", method, text)
    key = experiment.key(features, settings)
    folder = checkpoints / key[:16]
    shown = Shown(experiment, settings, evaluation, folder, reporter)
    several = ranks(experiment, features, store, settings, evaluation, checkpoints, method)

    def test() -> TrainingResult:
        return tested(experiment, splits, epochs, settings, evaluation, method, unimodal, plain)

    with several if group is None else nullcontext(group) as group:
        epochs = train(model, splits["train"], splits["val"], settings, key, folder, reporter, shown, group)
        result = test() if group.together else None
    result = result or test()
    if told := shown.told():
        result = replace(result, metrics={**result.metrics, "shown": told}, pictures=shown.pictures())
    if curve := shown.by_epoch():
        result = replace(result, metrics={**result.metrics, "said_by_epoch": curve})
    shutil.rmtree(folder, ignore_errors=True)
    return replace(
        result, scores=_scores(experiment, splits["val"], result), located=located(experiment, result.outputs)
    )


def _told(features: FeatureSet, settings: TrainSettings) -> Iterator[str]:
    """What a user may want to know of the training features."""
    yield features.placement
    shares = padding(features.lengths(), settings.batch_size)
    name = max(shares, key=lambda modality: shares[modality])
    if shares[name] > WORTH_BUCKETS and not settings.length_buckets:
        yield f"{shares[name]:.0%} of a batch of '{name}' is padding; train.length_buckets=true would spare most of it"


def _scores(experiment: Experiment, val: Split, result: TrainingResult) -> pa.Table:
    task, of_test = experiment.task, result.predictions["score"].to_pylist()
    of_val = task.per_sample(result.validated, val.targets)[task.metric].tolist()
    columns: dict[str, list[Any]] = {
        "split": ["val"] * len(of_val) + ["test"] * len(of_test),
        "score": of_val + of_test,
    }
    for name in dict.fromkeys(["sample_id", "group_id", *task.columns()]):
        columns[name] = experiment.column(name, "val") + experiment.column(name, "test")
    return pa.table(columns)
