"""Node functions of `compare`: its methods on other data."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.pipelines.evaluate.nodes import SecondSets, files_of_sets

logger = logging.getLogger(__name__)


def compare_on_second_sets(
    comparison: Mapping[str, Any],
    folder: Path,
    manifest: Any,
    base: Path,
    store: Path,
    evaluate_on: Mapping[str, Any],
    data: Mapping[str, Any],
    validate: Mapping[str, Any],
    cache: Mapping[str, Any],
    evaluate: Mapping[str, Any],
) -> dict[str, Any]:
    """By set and variant; {} where no set is named."""
    if not evaluate_on:
        return {}
    from fusetune.comparison.record import opened
    from fusetune.comparison.second_sets import on_second_sets
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.features.index import CacheSettings
    from fusetune.features.storage import Store
    from fusetune.pipelines.progress import ExtractionProgress
    from fusetune.pipelines.tracking import log_metrics, metric_name
    from fusetune.training.data import DataSettings, load_backbone
    from fusetune.training.evaluation import EvaluationSettings

    settings, chosen = build(CacheSettings, cache, "cache"), build(DataSettings, data, "data")
    sets = SecondSets(manifest, evaluate_on, validate).rows(chosen)

    def tell(name: str, variant: str, numbers: Mapping[str, Any]) -> None:
        logger.info("%s on %s: %.3f (%.3f to %.3f)", variant, name, *(numbers[k] for k in ("mean", "low", "high")))

    with ExtractionProgress() as progress:
        found = on_second_sets(
            opened(comparison, folder),
            list(sets.values()),
            load_backbone(base, chosen),
            base,
            Store(store),
            settings,
            build(EvaluationSettings, evaluate, "evaluate"),
            pick_device(settings.device),
            progress,
            tell,
        )
    log_metrics({metric_name(f"{n}.{v}"): one["mean"] for n, own in found.items() for v, one in own.items()})
    return found


def _outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return files_of_sets(inputs["params:evaluate_on"], inputs["params:data"])


compare_on_second_sets.outside = _outside  # type: ignore[attr-defined]
