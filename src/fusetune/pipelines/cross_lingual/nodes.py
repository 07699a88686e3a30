"""Node functions of `cross_lingual`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.config import check
from fusetune.pipelines.cache_features.nodes import trained_before

logger = logging.getLogger(__name__)


def make_cross_lingual(methods: Sequence[str]):
    """The node function that asks in other languages than it was trained in."""

    def ask_in_other_languages(
        manifest: Any,
        base: Path,
        store: Path,
        checkpoints: Path,
        cross_lingual: Mapping[str, Any],
        data: Mapping[str, Any],
        cache: Mapping[str, Any],
        train: Mapping[str, Any],
        evaluate: Mapping[str, Any],
        *settings: Any,
    ) -> tuple[dict[str, Any], Any, Any]:
        """What is reached in each language, a figure of it, and an adapter of each."""
        from fusetune.config import build
        from fusetune.device import pick_device
        from fusetune.features.index import CacheSettings
        from fusetune.features.storage import Store
        from fusetune.pipelines.progress import ExtractionProgress
        from fusetune.pipelines.tracking import describe, log_dict, log_figures, log_metrics
        from fusetune.plan.plan import Plan
        from fusetune.report.cross_lingual_figure import by_language
        from fusetune.report.figures import Figures
        from fusetune.runs.cross_lingual import Speakers, text_of
        from fusetune.runs.cross_lingual import cross_lingual as asked
        from fusetune.runs.language_rows import CrossLingualSettings, Languages
        from fusetune.runs.workplace import Workplace
        from fusetune.training.data import DataSettings
        from fusetune.training.evaluation import EvaluationSettings
        from fusetune.training.settings import of_method

        chosen = build(CrossLingualSettings, cross_lingual, "cross_lingual")
        known = dict(zip(methods, settings, strict=True))
        check(chosen.method in known, f"cross_lingual.method: no method '{chosen.method}'. Known: {', '.join(known)}.")
        text, own = text_of(build(DataSettings, data, "data"), chosen)
        method = known[chosen.method]
        with ExtractionProgress() as progress:
            device, caching = pick_device(train.get("device", "auto")), build(CacheSettings, cache, "cache")
            speakers = Speakers(
                Languages(manifest, chosen, text), base, own, build(Plan, method, chosen.method),
                of_method(train, method, chosen.method), build(EvaluationSettings, evaluate, "evaluate"),
                Workplace(Store(store), caching, checkpoints, progress, device),
            )  # fmt: skip
            told, adapters = asked(speakers, lambda words: logger.info("cross_lingual: %s", words))
        logger.info("cross_lingual: %s", sentence(told))
        describe(f"cross_lingual {chosen.method}", sentence(told), method=chosen.method, metric=told["metric"])
        log_dict(told, "cross_lingual.json")
        log_metrics(
            {
                f"{language}_{arm.replace(' ', '_')}": value
                for language, arms in means(told).items()
                for arm, value in arms.items()
            }
        )
        log_figures(figures := Figures({"cross_lingual": lambda: by_language(told)}))
        return told, figures, adapters

    ask_in_other_languages.outside = trained_before  # type: ignore[attr-defined]
    return ask_in_other_languages


def means(told: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By language and arm, over seeds; the best plain model among them."""
    from statistics import mean

    found: dict[str, dict[str, float]] = {}
    for language, own in told["languages"].items():
        found[language] = {arm: mean(seeds.values()) for arm, seeds in own.items() if arm != "plain" and seeds}
        if own["plain"]:
            found[language]["plain"] = max(own["plain"].values())
    return found


def sentence(told: Mapping[str, Any]) -> str:
    """'accuracy, labels in en: de 0.60 bare, 0.66 by its adapter, 0.80 by labels of its own, ...'"""
    parts = [
        f"{language} {', '.join(f'{arm} {value:.3f}' for arm, value in arms.items())}"
        for language, arms in means(told).items()
    ]
    return f"{told['metric']}, labels in {told['source']}: {'; '.join(parts)}"
