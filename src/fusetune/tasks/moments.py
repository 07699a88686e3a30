"""Temporal grounding: a sentence, and when in a video or a sound it is true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusetune.config import check
from fusetune.tasks.locating import Locating
from fusetune.tasks.task import extent_column


@dataclass(frozen=True)
class MomentsConfig:
    """
    Attributes:
        span: the column with start and end, in seconds; of several spans any is right.
        target: the modality that is looked through: a video, a sound, a list of pictures, a sequence of features.
        duration: the column with the seconds of each sample; None: a sound's or video's own.
        metric: recall_at_1_iou_30, _50, _70 or mean_iou: what early stopping and the champion go by.
        question_type: the column that reports split results by; None: none.
    """

    span: str = "span"
    target: str = "video"
    duration: str | None = None
    metric: str = "recall_at_1_iou_50"
    question_type: str | None = None

    def __post_init__(self) -> None:
        names = (*Moments.thresholds, "mean_iou")
        check(self.metric in names, f"metric: expected one of {', '.join(names)}, found '{self.metric}'.")


class Moments(Locating):
    """R@1 at three IoUs and mean IoU, as Charades-STA (Gao et al., ICCV 2017) and QVHighlights (Lei et al., NeurIPS
    2021) report them; of a query with several moments the best overlap counts."""

    Config = MomentsConfig
    dims, noun, unit = 1, "span", "seconds"
    thresholds = {"recall_at_1_iou_30": 0.3, "recall_at_1_iou_50": 0.5, "recall_at_1_iou_70": 0.7}

    def columns(self) -> list[str]:
        return [*super().columns(), *([self.config.duration] if self.config.duration else [])]

    def measured_modalities(self) -> list[str]:
        return [] if self.config.duration else super().measured_modalities()

    def extents(self, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
        return list(columns[self.config.duration]) if self.config.duration else super().extents(columns)

    def contents(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        known = (
            self.config.duration in columns if self.config.duration else extent_column(self.config.target) in columns
        )
        return {self.config.target: self.extents(columns)} if known else {}

    def _expected(self) -> str:
        return "Expected start and end in seconds, or a list of such spans."
