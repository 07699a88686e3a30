"""Visual grounding: a phrase, and the box of what it means in a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusetune.config import check
from fusetune.tasks.locating import Locating

FORMATS = ("xyxy", "xywh")


@dataclass(frozen=True)
class GroundingConfig:
    """
    Attributes:
        box: the column with the box, in pixels of the picture as it is (not as a model sees it); of several boxes any
            is right.
        format: xyxy (left, top, right, bottom) or xywh (left, top, width, height, as COCO has it).
        target: the modality that is looked through, of pictures, one a sample.
        metric: accuracy_at_50 or mean_iou: what early stopping and the champion go by.
        question_type: the column that reports split results by; None: none.
    """

    box: str = "box"
    format: str = "xyxy"
    target: str = "image"
    metric: str = "accuracy_at_50"
    question_type: str | None = None

    def __post_init__(self) -> None:
        check(self.format in FORMATS, f"format: expected one of {', '.join(FORMATS)}, found '{self.format}'.")
        names = (*Grounding.thresholds, "mean_iou")
        check(self.metric in names, f"metric: expected one of {', '.join(names)}, found '{self.metric}'.")


class Grounding(Locating):
    """`accuracy_at_50` is the field's Acc@0.5: the share of boxes with an IoU of at least 0.5 (Kazemzadeh et al., EMNLP
    2014; Yu et al., ECCV 2016). Answers are (left, top, right, bottom) in pixels, whatever `format` the truth has."""

    Config = GroundingConfig
    dims, noun, unit = 2, "box", "pixels"
    thresholds = {"accuracy_at_50": 0.5}

    def places_in(self) -> list[str]:
        return [self.config.target]

    def corners(self, region: Sequence[float]) -> list[float]:
        if self.config.format == "xyxy":
            return list(region)
        left, top, width, height = region
        return [left, top, left + width, top + height]

    def _expected(self) -> str:
        if self.config.format == "xywh":
            return "Expected left, top, width, height in pixels of the picture."
        return "Expected left, top, right, bottom in pixels of the picture; COCO's boxes are data.task.format: xywh."
