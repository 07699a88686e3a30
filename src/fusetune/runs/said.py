"""What a model says by itself, word by word: of test samples once it is trained, of a few others after every epoch."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
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


class Shown:
    """The same few validation samples, answered after every epoch.

    Args:
        folder: of the run's checkpoint, which what was said is kept beside: an interrupted run goes on with it.
    """

    def __init__(
        self, experiment: Experiment, settings: TrainSettings, evaluation: EvaluationSettings, folder: Path
    ) -> None:
        self.experiment, self.settings, self.file = experiment, settings, folder / "shown.jsonl"
        rows = experiment.rows["val"] if experiment.task.speaks else []
        count = min(evaluation.shown, len(rows))
        self.rows = sorted(random.Random(evaluation.seed).sample(list(rows), count))

    def __call__(self, epoch: int) -> None:
        """Answer them, and note what was said."""
        if not self.rows:
            return
        device = pick_device(self.settings.device)
        found = score(self.experiment.model, self.experiment.source, self.rows, self.settings.batch_size, device)
        words = [answer["prediction"] for answer in self.experiment.task.decode(found.outputs)]
        with self.file.open("a") as file:
            file.write(json.dumps({"epoch": epoch, "said": dict(zip(map(str, found.rows), words, strict=True))}) + "\n")

    def told(self) -> list[dict[str, Any]]:
        """By sample: its id, what was asked, what is right, and what was said by epoch."""
        if not self.rows or not self.file.is_file():
            return []
        source, task = self.experiment.source, self.experiment.task
        epochs = [json.loads(line) for line in self.file.read_text().splitlines()]
        columns = task_columns(task, source)
        texts = [name for name, modality in self.experiment.data.modalities.items() if modality.kind == "text"]
        return [
            {
                "sample_id": str(source.table["sample_id"][row]),
                "asked": " ".join(str(source.column(name)[row]) for name in texts),
                "right": task.truths({name: [values[row]] for name, values in columns.items()})[0],
                "said": {str(one["epoch"]): one["said"][str(row)] for one in epochs if str(row) in one["said"]},
            }
            for row in self.rows
        ]

    def pictures(self) -> list[Any]:
        """The first picture of each sample, a PIL image; None where it has none."""
        data = self.experiment.data.modalities
        name = next((name for name, modality in data.items() if modality.kind in ("image", "video")), None)
        if name is None:
            return [None] * len(self.rows)
        return [several[0] if several else None for several in self.experiment.source.decoded(name, self.rows)]
