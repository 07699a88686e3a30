"""Test samples of a task that asks where or when, with what is right and what was answered: to be looked at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fusetune.runs.experiment import Experiment
from fusetune.tasks.locating import Locating, extent_numbers, regions_of

SHOWN = 12


@dataclass(frozen=True)
class Located:
    """
    Attributes:
        asked: the texts of the sample; of one without any, its name.
        extent: of what was looked through: width and height in pixels, or seconds.
        right: regions in its units, (begin ..., end ...).
        answer: likewise.
        overlap: the answer's IoU with the best of them.
        picture: a PIL image; None where time was looked through.
    """

    asked: str
    extent: Sequence[float]
    right: Sequence[Sequence[float]]
    answer: Sequence[float]
    overlap: float
    picture: Any = None


def located(experiment: Experiment, outputs: Tensor) -> list[Located]:
    """Evenly spread over the test split; [] for a task that asks something else. Of several tasks, that of the one."""
    whole: Any = experiment.task
    several, rows = getattr(whole, "tasks", {"": whole}), experiment.rows["test"].tolist()
    name, task = next(((name, one) for name, one in several.items() if isinstance(one, Locating)), ("", None))
    if task is None:
        return []
    own, targets = outputs, experiment.targets(rows)
    if name:
        own, targets = whole.outputs_of(name, outputs), whole.targets_of(name, targets)
    picked = [i * len(rows) // SHOWN for i in range(SHOWN)] if len(rows) > SHOWN else list(range(len(rows)))
    chosen = [rows[i] for i in picked]
    target, texts = task.config.target, [n for n, m in experiment.data.modalities.items() if m.kind == "text"]
    answers = experiment.answers(outputs, experiment.rows["test"])
    overlaps = task.per_sample(own, targets)["mean_iou"]
    cells = experiment.column(task.region_column, "test")
    extents = task.contents(experiment.columns_of(rows)).get(target) or [None] * len(rows)
    asked = {name: experiment.source.decoded(name, chosen) for name in texts}
    pictures = experiment.source.decoded(target, chosen) if task.dims == 2 else [None] * len(chosen)
    ids, found = experiment.column("sample_id", "test"), []
    for place, i in enumerate(picked):
        answer, extent = answers[i][f"{name}_{task.noun}" if name else task.noun], extents[i]
        if answer is not None and extent is not None:
            right = [task.corners(region) for region in regions_of(cells[i])]
            words = " ".join(str(column[place] or "") for column in asked.values()) or ids[i]
            shown = pictures[place]
            picture = shown[0] if shown else None
            found.append(Located(words, extent_numbers(extent), right, answer, float(overlaps[i]), picture))
    return found
