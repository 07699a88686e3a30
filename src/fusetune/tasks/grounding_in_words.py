"""Visual grounding by a model that speaks: the box is its answer, written as its family writes boxes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.config import check
from fusetune.tasks.box_words import FORMATS, OF_MODELS, box_words
from fusetune.tasks.generation import Generation, GenerationConfig
from fusetune.tasks.grounding import Grounding, GroundingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundingInWordsConfig(GenerationConfig):
    """
    Attributes:
        box: the column with the box, in pixels of the picture as it is; of several the first is what is to be said, and
            any is right.
        format: of that column: xyxy or xywh.
        target: the modality of the pictures.
        words: how a box is written: shares, thousandths, pixels or locations; None: as the model's family writes it.
        answer: the column that is made of it.
    """

    answer: str = "box in words"
    max_answer_tokens: int = 48
    box: str = "box"
    format: str = "xyxy"
    target: str = "image"
    words: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        GroundingConfig(self.box, self.format, self.target)
        check(
            self.words in (None, *FORMATS),
            f"words: expected one of {', '.join(FORMATS)}, or none, found '{self.words}'.",
        )


class GroundingInWords(Generation):
    """What the model says is read as a box again: `accuracy_at_50` and `mean_iou` of what it says by itself, and
    `boxes`, the share of answers in which there is one. Corners that the model can't see are written as the edge of
    what it sees."""

    Config = GroundingInWordsConfig
    config: GroundingInWordsConfig

    def __init__(self, config: GroundingInWordsConfig) -> None:
        super().__init__(config)
        self.grounding = Grounding(GroundingConfig(config.box, config.format, config.target))
        self._written, self._size = config.words or "shares", (1000, 1000)

    @property
    def region_column(self) -> str:
        return self.config.box

    def meet_towers(self, towers: Mapping[str, Any]) -> None:
        """Know what the model sees of a picture, and how its family writes boxes."""
        check(self.config.target in towers, f"data.task.target: no modality '{self.config.target}'.")
        self.grounding.meet_towers(towers)
        tower = towers[self.config.target]
        self._size = tower.seen_size()
        self._written = self.config.words or OF_MODELS.get(tower.model_type, "shares")

    def places_in(self) -> list[str]:
        return [self.config.target]

    def measured_modalities(self) -> list[str]:
        return [self.config.target]

    def columns(self) -> list[str]:
        return [name for name in (self.config.box, self.config.question_type) if name]

    def problems(self) -> dict[str, Callable[[Any], str | None]]:
        return {}

    def faults(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
        return self.grounding.faults(columns)

    def derived(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The boxes in words; None where there is none, or none that makes sense."""
        known = [row for row, sound in enumerate(self.grounding.known(columns)) if sound]
        found: list[str | None] = [None] * len(columns[self.config.box])
        boxes = self.grounding.targets({name: [values[row] for row in known] for name, values in columns.items()})
        cut = ((boxes[:, 0] < 0) | (boxes[:, 0] > 1)).any(1).sum().item() if known else 0
        if cut:
            logger.warning(
                "%d of %d boxes reach beyond what the model sees; the part that it sees is said", cut, len(known)
            )
        for row, box in zip(known, boxes[:, 0].clamp(0, 1).tolist(), strict=True):
            found[row] = box_words(self._written).write(box, self._size)
        return {self.config.answer: found}

    def truths(self, columns: Mapping[str, Sequence[Any]]) -> list[list[str]]:
        return [[text] for text in columns[self.config.answer]]

    def per_sample(self, outputs: Tensor, targets: Any) -> dict[str, np.ndarray]:
        found = super().per_sample(outputs, targets)
        if outputs.ndim != 2:
            return found
        said = [self._read(text) for text in self._texts(outputs)]
        true = [[self._read(text) for text in several] for several in self._true(targets)]
        nowhere = [-1.0] * 4  # meets no box
        regions = torch.tensor([box or nowhere for box in said])
        right = torch.tensor([[box or nowhere for box in several[:1]] for several in true])
        overlaps = self.grounding.per_sample(regions, right)
        boxes = np.array([box is not None for box in said], dtype=np.float64)
        return {**{name: overlaps[name] for name in ("accuracy_at_50", "mean_iou")}, "boxes": boxes, **found}

    def decode(self, outputs: Tensor, contents: Mapping[str, Sequence[Any]] | None = None) -> list[dict[str, Any]]:
        rows = super().decode(outputs, contents)
        if outputs.ndim != 2:
            return rows
        said = [self._read(row["prediction"]) for row in rows]
        regions = torch.tensor([box or [torch.nan] * 4 for box in said])
        boxes = self.grounding.decode(regions, contents)
        return [row | box for row, box in zip(rows, boxes, strict=True)]

    def _read(self, text: str) -> list[float] | None:
        return box_words(self._written).read(text, self._size)
