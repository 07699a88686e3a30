"""Where experiments are trained: the store that features are in, a folder for checkpoints, a device."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fusetune.features.extraction import Progress
from fusetune.features.index import CacheSettings, Features
from fusetune.features.storage import Store
from fusetune.runs.experiment import Experiment
from fusetune.training.epochs import Epoch, Reporter
from fusetune.training.loop import train
from fusetune.training.predicting import Split
from fusetune.training.settings import TrainSettings


@dataclass(frozen=True)
class Workplace:
    """
    Attributes:
        store: of features.
        cache: how they are made.
        checkpoints: a folder; what a run leaves there is gone when it has come to its end.
        progress: is told of what is extracted.
    """

    store: Store
    cache: CacheSettings
    checkpoints: Path
    progress: Progress
    device: torch.device

    def splits(self, experiment: Experiment) -> tuple[dict[str, Split], Features]:
        """Each split by name, from features that are extracted where they aren't there."""
        features = experiment.extract(self.store, self.cache, self.progress, self.device)
        return experiment.splits(features, self.store, self.device), features

    def trained(self, experiment: Experiment, settings: TrainSettings) -> tuple[Mapping[str, Split], list[Epoch]]:
        """An experiment from its beginning to its end."""
        experiment.begin(self.store, self.cache, self.progress)
        splits, features = self.splits(experiment)
        return splits, self.fitted(experiment, settings, splits, features)

    def fitted(
        self, experiment: Experiment, settings: TrainSettings, splits: Mapping[str, Split], features: Features
    ) -> list[Epoch]:
        """Trained on features that are there already."""
        key = experiment.key(features, settings)
        folder = self.checkpoints / key[:16]
        epochs = train(experiment.model, splits["train"], splits["val"], settings, key, folder, Reporter())
        shutil.rmtree(folder, ignore_errors=True)
        return epochs
