"""Node functions of `cache_features`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def open_experiment(
    manifest: Any,
    base: Path,
    lengths: Mapping[str, int],
    data: Mapping[str, Any],
    method: Mapping[str, Any],
    name: str,
    seed: int = 0,
) -> Any:
    """Model, frontier and splits of one method."""
    from fusetune.config import build
    from fusetune.plan.plan import Plan
    from fusetune.runs.experiment import Experiment
    from fusetune.training.data import DataSettings, load_backbone

    settings = build(DataSettings, data, "data")
    backbone, plan = load_backbone(base, settings), build(Plan, method, name)
    return Experiment(manifest, backbone, settings, plan, seed, name, lengths)


def cache_features_of(name: str):
    """The node function that caches the features of method `name`."""

    def cache_features(
        manifest: Any,
        base: Path,
        lengths: Mapping[str, int],
        store: Path,
        data: Mapping[str, Any],
        cache: Mapping[str, Any],
        method: Mapping[str, Any],
    ) -> Any:
        from fusetune.backbones.backbone import Frontier
        from fusetune.config import build
        from fusetune.device import pick_device
        from fusetune.errors import FusetuneError
        from fusetune.features.index import CacheSettings, Features
        from fusetune.pipelines.progress import ExtractionProgress
        from fusetune.pipelines.tracking import log_tags

        settings = build(CacheSettings, cache, "cache")
        try:
            experiment = open_experiment(manifest, base, lengths, data, method, name)
        except FusetuneError as error:  # it doesn't fit these data: the other methods do without it
            logger.warning("%s: nothing is cached, it does not fit: %s", name, error)
            return Features(Frontier({}), {}, {})
        for epoch, depths in experiment.frontiers.items():
            logger.info("%s: frontier at %s%s", name, depths, f" from epoch {epoch} on" if epoch > 1 else "")
        log_tags({"frontier": str(experiment.frontier)})
        with ExtractionProgress() as progress:
            features = experiment.extract(store, settings, progress, pick_device(settings.device))
        logger.info("%s: cached at %s", name, features.frontier)
        return features

    cache_features.outside = trained_before  # type: ignore[attr-defined]
    return cache_features


def trained_before(inputs: Mapping[str, Any]) -> dict[str, str | None]:
    """Contents of the trained adapters that a node's methods are made of."""
    from fusetune.adapters.trained import folders_in
    from fusetune.pipelines.hashing import content_hash

    folders = folders_in([value for name, value in inputs.items() if name.startswith("params:")])
    return {folder: content_hash(Path(folder)) if Path(folder).is_dir() else None for folder in folders}
