"""What is to be said of a trained model, by its test split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from fusetune import on_disk
from fusetune.bank.artifact import Artifact
from fusetune.bank.card import card
from fusetune.bank.predictions import joined_lines
from fusetune.device import pick_device
from fusetune.runs.baselines import best_of, metric_key
from fusetune.runs.experiment import Experiment
from fusetune.runs.located import Located
from fusetune.runs.rollouts import RolledOut, rolled_out, success
from fusetune.runs.said import said
from fusetune.tasks.joined_head import joined_heads
from fusetune.training.epochs import Epoch, counted
from fusetune.training.evaluation import EvaluationSettings, evaluate
from fusetune.training.mixing import linear_models_alone, mix
from fusetune.training.predicting import Split, predict
from fusetune.training.settings import TrainSettings
from fusetune.training.zero_shot import before_training


@dataclass(frozen=True)
class TrainingResult:
    """
    Attributes:
        artifact: the adapter.
        metrics: of the test split, JSON-ready and the same in every run of the same inputs (no times).
        curve: one row an epoch, likewise.
        predictions: sample_id, target, what the task decodes, and whether it is right.
        observed: what adapters showed of the test split (gates), (rows, columns) by name.
        outputs: of the test split, (rows, ...), as the task decodes them.
        epochs: with times.
        validated: outputs of the validation split.
        pictures: of the samples in `metrics["shown"]`.
        located: test samples of a task that asks where or when.
        rollouts: episodes of a task that says what to do, in its world.
        scores: of each validation and test sample, with its group and its targets: what decides who is better; None
            where nobody asks.
    """

    artifact: Artifact
    metrics: dict[str, Any]
    curve: list[dict[str, Any]]
    predictions: pa.Table
    observed: Mapping[str, Tensor]
    epochs: list[Epoch]
    outputs: Tensor
    validated: Tensor
    scores: pa.Table | None = None
    pictures: Sequence[Any] = ()
    located: Sequence[Located] = ()
    rollouts: RolledOut | None = None

    def scalars(self) -> dict[str, float]:
        """The metrics that are single numbers, for a tracker."""
        flat = {f"test_{name}": v for name, v in self.metrics["test"].items() if isinstance(v, float)}
        flat |= {f"test_only_{name}": value for name, value in self.metrics["unimodal"].items()}
        if "before_training" in self.metrics:
            flat["test_before_training"] = self.metrics["before_training"]
        if "linear_models" in self.metrics:
            flat["test_linear_models"] = self.metrics["linear_models"]
        flat |= {f"test_plain_{metric_key(name)}": value for name, value in self.metrics["plain"].items()}
        flat |= {f"test_said_{name}": v for name, v in self.metrics.get("said", {}).items() if isinstance(v, float)}
        flat |= {f"{name}": float(v) for name, v in self.metrics.items() if isinstance(v, int)}
        for name, means in self.metrics.get("observed", {}).items():
            flat |= {f"{name}_{i}" if len(means) > 1 else name: value for i, value in enumerate(means)}
        flat |= {f"overlap_{name}": value for name, value in self.metrics.get("overlap", {}).items()}
        flat |= {f"align_{m}_{k}": v for m, p in self.metrics.get("align", {}).items() for k, v in p.items()}
        flat["train_seconds"] = sum(epoch.seconds for epoch in self.epochs)
        return flat

    def sentence(self) -> str:
        test, name = self.metrics["test"], self.metrics["metric"]
        told = [f"{m} alone {value:.3f}" for m, value in self.metrics["unimodal"].items()]
        if "linear_models" in self.metrics:
            told.append(f"linear models of all {self.metrics['linear_models']:.3f}")
        if "before_training" in self.metrics:
            kept = "" if self.metrics["best_epoch"] else ", which no epoch beats on validation: it is kept as it was"
            told.append(f"before any training {self.metrics['before_training']:.3f}{kept}")
        if acted := self.metrics.get("rolled_out"):
            told.append(f"rolled out: {success(acted)}")
        if spoken := self.metrics.get("said"):
            closest = ", ".join(f"{m} {spoken[m]:.3f}" for m in ("exact_match", "token_f1", "rouge_l", "cider_d"))
            told.append(f"word by word on {spoken['samples']} samples: {closest}")
        plain = ", ".join(f"{m} {value:.3f}" for m, value in self.metrics["plain"].items())
        return (
            f"test {name} {test[name]:.3f} ({test[name + '_low']:.3f} to {test[name + '_high']:.3f}), "
            f"{self.metrics['trainable_parameters']:,} trainable parameters"
            + (f"; {', '.join(told)}" if told else "")
            + (f"; plain baselines: {plain}" if plain else "")
            + below(test[name], self.metrics["plain"])
        )


def below(value: float, plain: Mapping[str, float]) -> str:
    """What to say of a result that a plain baseline beats; '' where none does."""
    best = best_of(plain)
    if best is None or value >= best[1]:
        return ""
    return f". BELOW what {best[0]} reaches without any of this, {best[1]:.3f}: look for another base"


def tested(
    experiment: Experiment,
    splits: Mapping[str, Split],
    epochs: list[Epoch],
    settings: TrainSettings,
    evaluation: EvaluationSettings,
    method: str,
    unimodal: Mapping[str, float],
    plain: Mapping[str, float] | None = None,
) -> TrainingResult:
    """What is to be said of a trained model, by the test split; what only training needs is dropped from it."""
    model, task = experiment.model, experiment.task
    trainable = model.trainable_count()
    model.fold()
    mix(model, splits["val"], settings)
    validated, _ = predict(model, splits["val"], settings.batch_size)
    task.settle(validated, splits["val"].targets)
    parts: dict[str, list[Tensor]] = {}
    outputs, _ = predict(model, splits["test"], settings.batch_size, observed=parts)
    observed = {name: torch.cat(several) for name, several in parts.items()}
    kind = getattr(task.config, "question_type", None)
    kinds, groups = experiment.column(kind, "test") if kind else None, experiment.column("group_id", "test")
    reached = max(counted(epochs, model.stages()[-1]), key=lambda e: e.val_metric)
    test = evaluate(task, outputs, splits["test"].targets, evaluation, kinds, groups)
    metrics: dict[str, Any] = {
        "method": method,
        "metric": task.metric,
        "target_columns": task.columns(),
        "test": test,
        "validation": task.metrics(validated, splits["val"].targets)[task.metric],
        "unimodal": dict(unimodal),
        "plain": dict(plain or {}),
        "trainable_parameters": trainable,
        "kept_parameters": sum(tensor.numel() for tensor in model.kept().values()),
        "base_parameters": model.base_count(),
        "best_epoch": reached.number,
        "train_samples": len(splits["train"].targets),
        "test_samples": len(splits["test"].targets),
        "seed": settings.seed,
    }
    batch = settings.batch_size
    rollouts = rolled_out(
        model,
        experiment.data.modalities,
        evaluation.rollouts,
        evaluation.confidence,
        batch,
        pick_device(settings.device),
    )
    if rollouts:
        metrics["rolled_out"] = dict(rollouts.numbers)
        metrics["test"] = {**test, **rollouts.flat()}
    words: list[str | None] | None = None
    if task.speaks:
        metrics["said"], words = said(experiment, kinds, groups, settings, evaluation)
    if observed:
        metrics["observed"] = {name: values.nanmean(0).tolist() for name, values in observed.items()}
    if joined_heads(model.head):
        with linear_models_alone(model):
            before, _ = predict(model, splits["test"], settings.batch_size)
        metrics["linear_models"] = task.metrics(before, splits["test"].targets)[task.metric]
    if probes := model.backbone.probes():
        metrics["align"] = {name: dict(found) for name, found in probes.items()}
    if model.apart:
        metrics["overlap"] = model.apart.overlap()
    metrics |= before_training(model, splits["val"], splits["test"], reached.val_metric, settings.batch_size)
    curve = [
        {"epoch": e.number, "train_loss": e.train_loss, "val_loss": e.val_loss, "val_metric": e.val_metric}
        for e in epochs
    ]
    told = card(method, metrics, experiment.data, model)
    return TrainingResult(
        Artifact.of(model, experiment.data, method, told, experiment.frontier),
        metrics,
        curve,
        _predictions(experiment, outputs, splits["test"], observed, words),
        observed,
        epochs,
        outputs,
        validated,
        rollouts=rollouts,
    )


def _predictions(
    experiment: Experiment,
    outputs: Any,
    test: Split,
    observed: Mapping[str, Tensor],
    words: list[str | None] | None,
) -> pa.Table:
    """A line for each test row."""
    task, table, truths = experiment.task, experiment.table, experiment.task.columns()
    scores = task.per_sample(outputs, test.targets)[task.metric]

    def lines(some: slice) -> pa.Table:
        rows = experiment.rows["test"][some]
        columns: dict[str, Any] = {n: on_disk.taken(table[n], rows).to_pylist() for n in ("sample_id", *truths)}
        if words is not None:
            columns["prediction"] = words[some]
        decoded = experiment.answers(outputs[some], rows)
        for name in decoded[0]:  # an answer that is called as the truth is (a box) doesn't take its place
            columns[f"predicted_{name}" if name in truths else name] = [row[name] for row in decoded]
        for name, values in observed.items():
            columns[name] = (values[some, 0] if values.shape[1] == 1 else values[some]).tolist()
        return pa.table({**columns, "score": scores[some].tolist()})

    return joined_lines(task, len(outputs), lines)
