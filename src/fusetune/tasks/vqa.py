"""A question about a picture, answered out of a closed set (as VQAv2 is commonly evaluated)."""

from dataclasses import dataclass

from fusetune.tasks.classification import Classification, ClassificationConfig


@dataclass(frozen=True)
class VQAConfig(ClassificationConfig):
    """
    Attributes:
        label: the manifest column that holds the answer.
        metric: as for a classification, but accuracy where none is named, as is usual for questions.
        question_type: the column that groups the questions in the report.
    """

    label: str = "answer"
    question_type: str | None = None


class VQA(Classification):
    """Classification over answers; the report splits accuracy by the type of the question."""

    Config = VQAConfig
    skewed_metric = "accuracy"
    config: VQAConfig

    def __init__(self, config: VQAConfig) -> None:
        super().__init__(config)

    def columns(self) -> list[str]:
        return [self.config.label, *([self.config.question_type] if self.config.question_type else [])]
