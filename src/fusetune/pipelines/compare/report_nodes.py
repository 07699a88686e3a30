"""Node functions of `compare`: what is said of it. A change here trains nothing anew."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def report_comparison(
    comparison: Mapping[str, Any],
    folder: Path,
    manifest: Any,
    unimodal: Mapping[str, float],
    baselines: Mapping[str, float],
    elsewhere: Mapping[str, Any],
    experiment: str,
    data: Mapping[str, Any],
    evaluate: Mapping[str, Any],
) -> tuple[Any, Any, Any, str, Any, Any]:
    """Returns the metrics, the summary, the table, the page, the figures and the winner's adapter."""
    import pyarrow.compute as pc

    from fusetune.bank.artifact import Artifact
    from fusetune.comparison.record import opened
    from fusetune.comparison.summary import summarize
    from fusetune.config import build
    from fusetune.features.source import Source
    from fusetune.pipelines.tracking import describe, log_metrics, metric_name
    from fusetune.report.comparison_figures import comparison_figures
    from fusetune.report.comparison_page import comparison_page
    from fusetune.training.data import DataSettings, make_task
    from fusetune.training.evaluation import EvaluationSettings

    found = opened(comparison, folder)
    splits, groups = manifest["split"].to_pylist(), manifest["group_id"].to_pylist()
    of_test = [group for group, split in zip(groups, splits, strict=True) if split == "test"]
    summary = summarize(found, of_test, unimodal, build(EvaluationSettings, evaluate, "evaluate"), baselines, elsewhere)
    label = comparison["scaling"]["path"].rpartition(".")[2].replace("_", " ") or "size"
    table = manifest.filter(pc.equal(manifest["split"], "test"))
    samples = partial(_samples, Source(table, build(DataSettings, data, "data").modalities), make_task(data["task"]))
    page = comparison_page(summary, found, f"{experiment}: methods compared", label, samples)
    for sentence in summary.sentences:
        logger.info("%s", sentence)
    name = summary.winner[0]
    shown = f"{summary.rows[name]['mean']:.3f} {name}, of {len(summary.rows)} compared"
    described = "\n".join(f"- {sentence}" for sentence in summary.sentences)
    describe(shown, described, winner=name, metric=summary.metric, task=data["task"]["name"])
    log_metrics({f"{summary.metric}_{metric_name(name)}": row["mean"] for name, row in summary.rows.items()})
    winner = Artifact.from_pretrained(summary.winner[1])
    metrics, figures = summary.flat(), comparison_figures(summary, found, label)
    return metrics, summary.plain(), _table(summary), page, figures, winner


def _samples(source: Any, task: Any, found: Any, look: Any) -> str:
    """Test samples with the answers of variants."""
    from fusetune.comparison.examples import examples
    from fusetune.report.sample_cards import sample_section

    config = getattr(task, "config", None)
    kind_of_question, separator = (getattr(config, name, None) for name in ("question_type", "separator"))
    truths = [name for name in task.columns() if name != kind_of_question]
    asked = (task.corners, task.config.target) if getattr(task, "dims", 0) == 2 else ()
    return sample_section(examples(found, truths, separator=separator), source, look, *asked)


def log_report(summary: Mapping[str, Any], page: str, figures: Path) -> dict[str, Any]:
    """The page and its figures as artifacts of the MLflow run."""
    from fusetune.pipelines.tracking import active_run, log_dict, log_text

    run = active_run()
    if run:
        import mlflow

        log_text(page, "comparison.html")
        log_dict(summary, "comparison.json")
        mlflow.log_artifacts(str(figures), "figures")
    return {"run_id": run.info.run_id if run else None, "winner": summary["winner"]}


def _table(summary: Any) -> list[dict[str, Any]]:
    """One row a variant, for `dvc plots`."""
    measured = ("validation", "mean", "low", "high", "deviation", "seeds")
    told = (*measured, "trainable_parameters", "train_seconds", "ece", "overhead")
    return [{"method": name, **{key: row[key] for key in told}} for name, row in summary.rows.items()]
