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
from fusetune.training.epochs import Reporter
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
    rows = experiment.rows["test"].tolist()
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
    metrics = evaluate(
        experiment.task,
        found.outputs,
        experiment.task.truths(experiment.columns_of([rows[place] for place in asked])),
        evaluation,
        [kinds[place] for place in asked] if kinds else None,
        [groups[place] for place in asked],
    )
    for place, row in zip(asked, experiment.task.decode(found.outputs), strict=True):
        words[place] = row["prediction"]
    return {"samples": len(asked), **metrics}, words


class Shown:
    """The same few validation samples, answered after every epoch, and more of them every so many epochs.

    Args:
        folder: of the run's checkpoint, which what was said is kept beside: an interrupted run goes on with it.
        reporter: is told how much was right.
        noting: whether what was said is kept; one of several processes that answer the same does.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrainSettings,
        evaluation: EvaluationSettings,
        folder: Path,
        reporter: Reporter,
        noting: bool = True,
    ) -> None:
        self.noting = noting
        self.experiment, self.settings, self.file = experiment, settings, folder / "shown.jsonl"
        self.evaluation, self.reporter = evaluation, reporter
        rows = experiment.rows["val"].tolist() if experiment.task.speaks else []
        self.rows, self.watched = (
            sorted(random.Random(evaluation.seed).sample(rows, min(count, len(rows))))
            for count in (evaluation.shown, evaluation.watched)
        )

    def __call__(self, epoch: int) -> None:
        """Answer them, and note what was said."""
        task = self.experiment.task
        noted: dict[str, Any] = {"epoch": epoch}
        if self.rows:
            found = self._answered(self.rows)
            words = [answer["prediction"] for answer in task.decode(found.outputs)]
            noted["said"] = dict(zip(map(str, found.rows), words, strict=True))
        if self.watched and epoch % self.evaluation.every == 0:
            found = self._answered(self.watched)
            truths = task.truths(self.experiment.columns_of(found.rows))
            right = {name: float(each.mean()) for name, each in task.per_sample(found.outputs, truths).items()}
            noted["right"] = right
            self.reporter.said(epoch, right)
        if len(noted) > 1 and self.noting:
            with self.file.open("a") as file:
                file.write(json.dumps(noted) + "\n")

    def _answered(self, rows: Sequence[int]) -> Any:
        device = pick_device(self.settings.device)
        return score(self.experiment.model, self.experiment.source, rows, self.settings.batch_size, device)

    def by_epoch(self) -> list[dict[str, float]]:
        """How much of what is watched was right, after which epoch."""
        return [{"epoch": one["epoch"], **one["right"]} for one in self._noted() if "right" in one]

    def _noted(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.is_file() else []

    def told(self) -> list[dict[str, Any]]:
        """By sample: its id, what was asked, what is right, and what was said by epoch."""
        epochs = [one for one in self._noted() if "said" in one]
        if not epochs:
            return []
        source, task = self.experiment.source, self.experiment.task
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
