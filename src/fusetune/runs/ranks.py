"""One experiment trained by several processes: what each of them does."""

from collections.abc import Callable, Iterator
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
from fusetune.training.data import DataSettings, load_backbone
from fusetune.training.distributed import ALONE, Group, spawned
from fusetune.training.epochs import Epoch, Reporter
from fusetune.training.loop import train
from fusetune.training.predicting import Split
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
    checkpoints: Path
    name: str

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        features: Features,
        store: Store | Path | str,
        settings: TrainSettings,
        checkpoints: Path,
        name: str,
    ) -> "Recipe":
        """Raises FusetuneError where other processes can't see the store, or load the base."""
        base, place = experiment.model.backbone.folder, Store(store)
        check(base is not None, "train.devices: expected a base that lies in a folder; other processes load it.")
        check(not str(place).startswith("memory://"), f"train.devices: no other process sees the store {place}.")
        settings, cache = replace(settings, devices=1), experiment.begun_with
        data, plan = experiment.data, experiment.model.plan
        return cls(
            experiment.given, str(base), data, plan, features, place.absolute(), cache, settings, checkpoints, name
        )


@contextmanager
def ranks(
    experiment: Experiment,
    features: Features,
    store: Store | Path | str,
    settings: TrainSettings,
    checkpoints: Path,
    name: str,
) -> Iterator[Group]:
    """The group that trains an experiment, of which this process is the first: as many as `settings.devices`."""
    if settings.devices == 1:
        yield ALONE
        return
    recipe = Recipe.of(experiment, features, store, settings, checkpoints, name)
    with spawned(settings.devices, follow, (recipe,)) as group:
        yield group


def follow(group: Group, recipe: Recipe) -> None:
    """What a rank behind the first does: make the same experiment, and train it."""
    backbone, settings = load_backbone(recipe.base, recipe.data), recipe.settings
    experiment = Experiment(recipe.table, backbone, recipe.data, recipe.plan, settings.seed, recipe.name)
    if recipe.cache:
        experiment.begin(recipe.store, recipe.cache, lambda *_: None)
    splits = splits_of(experiment, recipe.features, recipe.store, settings)
    fitted(experiment, splits, recipe.features, settings, recipe.checkpoints, Reporter(), group)


def splits_of(
    experiment: Experiment, features: Features, store: Store | Path | str, settings: TrainSettings
) -> dict[str, Split]:
    """Each split by name, on the device of the settings."""
    device = pick_device(settings.device)
    return {name: experiment.split(name, features, store, device) for name in ("train", "val", "test")}


def fitted(
    experiment: Experiment,
    splits: dict[str, Split],
    features: Features,
    settings: TrainSettings,
    checkpoints: Path,
    reporter: Reporter,
    group: Group,
    after_epoch: Callable[[int], None] = lambda _: None,
) -> list[Epoch]:
    """Trained, alone or as one of a group."""
    key = experiment.key(features, settings)
    folder = checkpoints / key[:16]
    return train(experiment.model, splits["train"], splits["val"], settings, key, folder, reporter, after_epoch, group)
