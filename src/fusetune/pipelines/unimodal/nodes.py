"""Node functions of `unimodal`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def test_each_alone(
    manifest: Any,
    base: Path,
    lengths: Mapping[str, int],
    store: Path,
    checkpoints: Path,
    data: Mapping[str, Any],
    cache: Mapping[str, Any],
    train: Mapping[str, Any],
    late_fusion: Mapping[str, Any],
) -> tuple[dict[str, float], Any]:
    """Test metric of the `late_fusion` method with one modality and nothing else, by modality; and its features."""
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.features.index import CacheSettings
    from fusetune.features.storage import Store
    from fusetune.pipelines.progress import ExtractionProgress
    from fusetune.plan.plan import Plan
    from fusetune.runs.alone import unimodal_metrics
    from fusetune.runs.workplace import Workplace
    from fusetune.training.data import DataSettings
    from fusetune.training.settings import of_method

    settings = of_method(train, late_fusion, "late_fusion")
    device = pick_device(settings.device)
    with ExtractionProgress() as progress:
        metrics, features = unimodal_metrics(
            manifest,
            base,
            build(DataSettings, data, "data"),
            build(Plan, late_fusion, "late_fusion"),
            settings,
            Workplace(Store(store), build(CacheSettings, cache, "cache"), checkpoints, progress, device),
            lengths,
        )
    logger.info("each modality alone: %s", ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    return metrics, features


def plain_baselines(manifest: Any, data: Mapping[str, Any]) -> dict[str, float]:
    """What scikit-learn reaches on the raw inputs; see `training.baselines`."""
    from fusetune.config import build
    from fusetune.pipelines.tracking import log_metrics
    from fusetune.runs.baselines import metric_key
    from fusetune.runs.baselines import plain_baselines as found_by
    from fusetune.training.data import DataSettings, TaskRows

    found = found_by(TaskRows(manifest, build(DataSettings, data, "data")))
    logger.info("plain baselines: %s", ", ".join(f"{name} {value:.3f}" for name, value in found.items()) or "none")
    log_metrics({f"plain_{metric_key(name)}": value for name, value in found.items()})
    return found
