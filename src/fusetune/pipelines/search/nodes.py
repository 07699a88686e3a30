"""Node functions of `search`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.pipelines.cache_features.nodes import trained_before

logger = logging.getLogger(__name__)


def make_search(methods: Sequence[str]):
    """The node function that looks for a plan."""

    def search_placements(
        manifest: Any,
        base: Path,
        lengths: Mapping[str, int],
        store: Path,
        checkpoints: Path,
        search: Mapping[str, Any],
        data: Mapping[str, Any],
        cache: Mapping[str, Any],
        train: Mapping[str, Any],
        evaluate: Mapping[str, Any],
        *settings: Any,
    ) -> tuple[dict[str, Any], str, Any]:
        """What was drawn and what it came to, the best as a method's file, and a figure."""
        import yaml

        from fusetune.config import build
        from fusetune.device import pick_device
        from fusetune.features.index import CacheSettings
        from fusetune.features.storage import Store
        from fusetune.pipelines.progress import ExtractionProgress
        from fusetune.pipelines.tracking import describe, log_dict, log_figures
        from fusetune.report.figures import Figures
        from fusetune.report.searched_figure import front, sensitivity
        from fusetune.runs.placement_search import Ground, SearchSettings
        from fusetune.runs.placement_search import search as searched
        from fusetune.runs.workplace import Workplace
        from fusetune.training.data import DataSettings
        from fusetune.training.evaluation import EvaluationSettings

        with ExtractionProgress() as progress:
            device, caching = pick_device(train.get("device", "auto")), build(CacheSettings, cache, "cache")
            work = Workplace(Store(store), caching, checkpoints, progress, device)
            ground = Ground(
                manifest, base, build(DataSettings, data, "data"), dict(zip(methods, settings, strict=True)), train,
                build(EvaluationSettings, evaluate, "evaluate"), work, lengths,
            )  # fmt: skip
            told = searched(
                ground, build(SearchSettings, search, "search"), lambda text: logger.info("search: %s", text)
            )
        logger.info("search: %s", told["verdict"])
        describe("search", told["verdict"], metric=told["metric"])
        log_dict(told, "search.json")
        text = f"# {told['verdict']}\n" + yaml.safe_dump({"found": told["best"]["method"]}, sort_keys=False)
        drawn = {"searched": lambda: front(told)}
        if told["sensitivity"]:
            drawn["sensitivity"] = lambda: sensitivity(told)
        log_figures(figures := Figures(drawn))
        return told, text, figures

    search_placements.outside = trained_before  # type: ignore[attr-defined]
    return search_placements
