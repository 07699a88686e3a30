"""One experiment trained by several processes: what each of them does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from fusetune.config import check
from fusetune.device import pick_device
from fusetune.features.index import CacheSettings, Features
from fusetune.features.storage import Store
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.said import Shown
from fusetune.runs.testing import tested
from fusetune.training.data import DataSettings, load_backbone
from fusetune.training.distributed import ALONE, Group, spawned
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.loop import train
from fusetune.training.settings import TrainSettings


@dataclass(frozen=True)
class Recipe:
    """What another process needs to make the same experiment, and to train it.

    Attributes:
        base: the frozen backbone's folder.
        store: of features, which are there already.
        cache: how; None: the head doesn't begin with linear models.
    """

    table: pa.Table
    base: str
    data: DataSettings
    plan: Plan
    features: Features
    store: Store
    cache: CacheSettings | None
    settings: TrainSettings
    evaluation: EvaluationSettings
    checkpoints: Path
    name: str


@contextmanager
def ranks(
    experiment: Experiment,
    features: Features,
    store: Store | Path | str,
    settings: TrainSettings,
    evaluation: EvaluationSettings,
    checkpoints: Path,
    name: str,
) -> Iterator[Group]:
    """The group that trains an experiment, of which this process is the first: as many as `settings.devices`.

    Raises:
        FusetuneError: other processes can't see the store, or load the base; see also `spawned`.
    """
    if settings.devices == 1:
        yield ALONE
        return
    base, place = experiment.model.backbone.folder, Store(store)
    check(base is not None, "train.devices: expected a base that lies in a folder; other processes load it.")
    check(not str(place).startswith("memory://"), f"train.devices: no other process sees the store {place}.")
    recipe = Recipe(
        experiment.given,
        str(base),
        experiment.data,
        experiment.model.plan,
        features,
        place.absolute(),
        experiment.begun_with,
        replace(settings, devices=1),
        evaluation,
        checkpoints,
        name,
    )
    with spawned(settings.devices, follow, (recipe,)) as group:
        yield group


def follow(group: Group, recipe: Recipe) -> None:
    """What a process that was started does: make the same experiment, and take part."""
    backbone, settings = load_backbone(recipe.base, recipe.data), recipe.settings
    experiment = Experiment(recipe.table, backbone, recipe.data, recipe.plan, settings.seed, recipe.name)
    if recipe.cache:
        experiment.begin(recipe.store, recipe.cache, lambda *_: None)
    take_part(
        experiment,
        recipe.features,
        recipe.store,
        settings,
        recipe.evaluation,
        recipe.checkpoints,
        recipe.name,
        group,
    )


def take_part(
    experiment: Experiment,
    features: Features,
    store: Store | Path | str,
    settings: TrainSettings,
    evaluation: EvaluationSettings,
    checkpoints: Path,
    method: str,
    group: Group,
) -> None:
    """What a rank behind the first does: train, and leave the result to the first.

    Where each holds a part of the base, it takes part in what the first answers, too.
    """
    splits, key = experiment.splits(features, store, pick_device(settings.device)), experiment.key(features, settings)
    folder = checkpoints / key[:16]
    shown = Shown(experiment, settings, evaluation, folder, Reporter(), noting=False)
    epochs = train(experiment.model, splits["train"], splits["val"], settings, key, folder, Reporter(), shown, group)
    if group.together:
        tested(experiment, splits, epochs, settings, evaluation, method, {})
