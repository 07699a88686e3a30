"""Node functions of `continual`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.config import check
from fusetune.pipelines.cache_features.nodes import trained_before

logger = logging.getLogger(__name__)


def make_continual(methods: Sequence[str]):
    """The node function that learns task after task."""

    def learn_in_turn(
        manifest: Any,
        base: Path,
        lengths: Mapping[str, int],
        store: Path,
        checkpoints: Path,
        continual: Mapping[str, Any],
        data: Mapping[str, Any],
        cache: Mapping[str, Any],
        train: Mapping[str, Any],
        evaluate: Mapping[str, Any],
        *settings: Any,
    ) -> tuple[dict[str, Any], Any]:
        """What each way reaches after each task, and a figure of it."""
        from fusetune.config import build
        from fusetune.device import pick_device
        from fusetune.features.index import CacheSettings
        from fusetune.features.storage import Store
        from fusetune.pipelines.progress import ExtractionProgress
        from fusetune.pipelines.tracking import describe, log_dict, log_figures, log_metrics
        from fusetune.plan.plan import Plan
        from fusetune.report.continual_figure import over_tasks
        from fusetune.report.figures import Figures
        from fusetune.runs.continual import ContinualSettings, Learner
        from fusetune.runs.continual import continual as learned
        from fusetune.runs.workplace import Workplace
        from fusetune.training.data import DataSettings
        from fusetune.training.evaluation import EvaluationSettings
        from fusetune.training.settings import of_method

        chosen, known = build(ContinualSettings, continual, "continual"), dict(zip(methods, settings, strict=True))
        check(chosen.method in known, f"continual.method: no method '{chosen.method}'. Known: {', '.join(known)}.")
        own, method = build(DataSettings, data, "data"), known[chosen.method]
        by_name = chosen.of_each(own)
        with ExtractionProgress() as progress:
            device, caching = pick_device(train.get("device", "auto")), build(CacheSettings, cache, "cache")
            work = Workplace(Store(store), caching, checkpoints, progress, device)
            learner = Learner(
                manifest, base, by_name, build(Plan, method, chosen.method), of_method(train, method, chosen.method),
                build(EvaluationSettings, evaluate, "evaluate"), work, lengths,
            )  # fmt: skip
            found = learned(learner, chosen, lambda text: logger.info("continual: %s", text))
        text = "; ".join(
            f"{way}: " + ", ".join(f"{name} {value:.3f}" for name, value in one.items())
            for way, one in means(found).items()
        )
        logger.info("continual: %s", text)
        describe(f"continual {chosen.method}", text, method=chosen.method)
        log_dict(found, "continual.json")
        log_metrics({f"{way}_{name}": value for way, one in means(found).items() for name, value in one.items()})
        log_figures(figures := Figures({"continual": lambda: over_tasks(found)}))
        return found, figures

    learn_in_turn.outside = trained_before  # type: ignore[attr-defined]
    return learn_in_turn


def means(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Over seeds, of each way what follows from its table."""
    from statistics import mean

    names = ("average", "forgetting", "backward", "forward")
    return {
        way: {name: mean(one[name] for one in seeds.values()) for name in names} for way, seeds in found["ways"].items()
    }
