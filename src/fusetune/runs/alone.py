"""What each modality brings when nothing else is given."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from fusetune.backbones.backbone import Frontier
from fusetune.features.index import Features
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.workplace import Workplace
from fusetune.training.data import DataSettings, load_backbone, make_task
from fusetune.training.mixing import mix
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings


def unimodal_metrics(
    table: pa.Table,
    base: Path,
    data: DataSettings,
    plan: Plan,
    settings: TrainSettings,
    work: Workplace,
    lengths: Mapping[str, int] | None = None,
) -> tuple[dict[str, float], Features]:
    """The test metric of `plan` when one modality is given and no other, for each; {} where the task compares two,
    and where the model answers in words: nothing would be trained.

    Also returns what was cached for it, all modalities in one.
    """
    found: dict[str, float] = {}
    used = Features(Frontier({}), {}, {})
    task = make_task(data.task)
    if not task.fuses or task.speaks:
        return found, used
    for name in data.modalities:
        if not task.answers_from({name: data.modalities[name].kind}):
            continue  # nothing to look through
        alone = data.alone(name)
        experiment = Experiment(table, load_backbone(base, alone), alone, plan, settings.seed, f"{name} alone", lengths)
        experiment.begin(work.store, work.cache, work.progress)
        splits, features = work.splits(experiment)
        work.fitted(experiment, settings, splits, features)
        mix(experiment.model, splits["val"], settings)
        outputs, _ = predict(experiment.model, splits["test"], settings.batch_size)
        found[name] = experiment.task.metrics(outputs, splits["test"].targets)[experiment.task.metric]
        used = used.joined(features)
    return found, used
