"""Node functions of `train_<method>`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.pipelines.cache_features.nodes import open_experiment, trained_before

logger = logging.getLogger(__name__)


def train_method(name: str):
    """The node function that trains and evaluates method `name`."""

    def train_and_evaluate(
        manifest: Any,
        base: Path,
        lengths: Mapping[str, int],
        store: Path,
        checkpoints: Path,
        features: Any,
        unimodal: Mapping[str, float],
        baselines: Mapping[str, float],
        data: Mapping[str, Any],
        train: Mapping[str, Any],
        evaluate: Mapping[str, Any],
        cache: Mapping[str, Any],
        method: Mapping[str, Any],
    ) -> tuple[Any, Any, Any, Any, Any, Any]:
        """Returns the artifact, the metrics, the curve, the predictions, the scores and the figures."""
        from fusetune.config import build
        from fusetune.features.index import CacheSettings
        from fusetune.pipelines.progress import ExtractionProgress
        from fusetune.pipelines.tracking import TrainingReporter, describe, log_metrics
        from fusetune.report.training_figures import training_figures
        from fusetune.runs.run import train_and_test
        from fusetune.training.evaluation import EvaluationSettings
        from fusetune.training.settings import of_method

        settings = of_method(train, method, name)
        experiment = open_experiment(manifest, base, lengths, data, method, name, settings.seed)
        with ExtractionProgress() as progress:
            experiment.begin(store, build(CacheSettings, cache, "cache"), progress)
        reporter = TrainingReporter(name, experiment.task.metric)
        result = train_and_test(
            experiment,
            features,
            store,
            settings,
            build(EvaluationSettings, evaluate, "evaluate"),
            checkpoints,
            reporter,
            name,
            unimodal,
            baselines,
        )
        metric = result.metrics["metric"]
        shown = f"{result.metrics['test'][metric]:.3f} {name}"  # a list cuts names short: the number first
        describe(shown, f"{name}: {result.sentence()}", method=name, metric=metric, task=data["task"]["name"])
        log_metrics(result.scalars())
        logger.info("%s: %s", name, result.sentence())
        figures = training_figures(result)
        return result.artifact, result.metrics, result.curve, result.predictions, result.scores, figures

    train_and_evaluate.outside = trained_before  # type: ignore[attr-defined]
    return train_and_evaluate


def register_method(name: str):
    """The node function that registers the adapter of method `name`."""

    def register_adapter(
        adapter: Path,
        metrics: Mapping[str, Any],
        predictions: Any,
        scores: Any,
        figures: Path,
        base: Path,
        manifest: Any,
        experiment: str,
        register: Mapping[str, Any],
        evaluate: Mapping[str, Any],
        serve: Mapping[str, Any],
        data: Mapping[str, Any],
    ) -> dict[str, Any]:
        from fusetune.pipelines.registry import RegisterSettings
        from fusetune.pipelines.train.registration import Trained, register_version

        trained = Trained(name, adapter, metrics, predictions, scores, figures, base, manifest, experiment, data)
        return register_version(trained, RegisterSettings(**register), evaluate, serve)

    return register_adapter
