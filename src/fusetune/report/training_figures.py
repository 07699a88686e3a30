"""The figures of a trained method: learning curve, what it is compared with, gates, confusions."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fusetune.comparison.details import one_by_one
from fusetune.report.figures import Figures, answers, compared, confusion_matrix, distributions, learning_curve
from fusetune.report.located_figures import figure_of
from fusetune.report.rollout_figure import strips
from fusetune.report.segment_figures import labels_on_a_line
from fusetune.runs.testing import TrainingResult


def training_figures(result: TrainingResult) -> Figures:
    """PNGs by name; each is drawn when it is written."""
    metrics, method, predictions = result.metrics, result.metrics["method"], result.predictions
    test, name = metrics["test"], metrics["metric"]
    bars = {method: test[name]} | {f"{m} alone": value for m, value in metrics["unimodal"].items()}
    if "before_training" in metrics:
        bars["before any training"] = metrics["before_training"]
    bars |= {f"plain: {m}": value for m, value in metrics["plain"].items()}
    bars |= {f"{method}, on '{group}'": value for group, value in test.get("by_group", {}).items()}
    low, high, on_test = test[f"{name}_low"], test[f"{name}_high"], f"{method} on the test split"
    figures: dict[str, Callable[[], Any]] = {
        "learning_curve": partial(learning_curve, result.curve, name, method),
        "test_metrics": partial(compared, bars, low, high, name, on_test),
    }
    if result.observed:
        title = f"{method}: what the gates did on the test split"
        gates = {name: values.numpy() for name, values in result.observed.items()}
        figures["gates"] = partial(distributions, gates, title)
    if metrics.get("shown"):
        figures["answers"] = partial(
            answers, metrics["shown"], result.pictures, f"{method}: what was said after epochs"
        )
    if result.located:
        figures["located"] = partial(figure_of, result.located, f"{method}: test samples")
    if result.rollouts:
        shown, numbers = result.rollouts.strips, result.rollouts.numbers
        figures["rollouts"] = partial(strips, shown, numbers, f"{method} in its world")
    if "prediction" in predictions.column_names and "said" not in metrics:
        targets, found = (predictions[n].to_pylist() for n in (metrics["target_columns"][0], "prediction"))
        if isinstance(found[0], list):  # a label for each segment
            ids = [str(name) for name in predictions["sample_id"].to_pylist()]
            figures["segments"] = partial(labels_on_a_line, ids, targets, found, on_test)
        figures["confusion_matrix"] = partial(confusion_matrix, one_by_one(targets), one_by_one(found), on_test)
    return Figures(figures)
