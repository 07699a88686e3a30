"""What a trained model says by itself, word by word, of test samples."""

import random
from collections.abc import Sequence
from typing import Any

from fusetune.bank.scoring import score
from fusetune.device import pick_device
from fusetune.runs.experiment import Experiment
from fusetune.training.data import task_columns
from fusetune.training.evaluation import EvaluationSettings, evaluate
from fusetune.training.settings import TrainSettings


def said(
    experiment: Experiment,
    kinds: Sequence[str] | None,
    groups: Sequence[Any],
    settings: TrainSettings,
    evaluation: EvaluationSettings,
) -> tuple[dict[str, Any], list[str | None]]:
    """Metrics of what was said, and the words of each test row; None where it wasn't asked.

    Args:
        kinds, groups: of all test rows, as `evaluate` takes them.
    """
    rows = experiment.rows["test"]
    count = min(evaluation.answered, len(rows))
    places = sorted(random.Random(evaluation.seed).sample(range(len(rows)), count))
    words: list[str | None] = [None] * len(rows)
    if not places:
        return {}, words
    device = pick_device(settings.device)
    picked = [rows[place] for place in places]
    found = score(experiment.model, experiment.source, picked, settings.batch_size, device)
    known = set(found.rows)
    asked = [place for place in places if rows[place] in known]
    columns = task_columns(experiment.task, experiment.source)
    metrics = evaluate(
        experiment.task,
        found.outputs,
        experiment.task.truths({n: [c[rows[place]] for place in asked] for n, c in columns.items()}),
        evaluation,
        [kinds[place] for place in asked] if kinds else None,
        [groups[place] for place in asked],
    )
    for place, row in zip(asked, experiment.task.decode(found.outputs), strict=True):
        words[place] = row["prediction"]
    return {"samples": len(asked), **metrics}, words
