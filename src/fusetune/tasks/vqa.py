"""A question about a picture, answered out of a closed set (as VQAv2 is commonly evaluated)."""

from dataclasses import dataclass

from fusetune.tasks.classification import Classification


@dataclass(frozen=True)
class VQAConfig:
    """
    Attributes:
        label: the manifest column that holds the answer.
        question_type: the column that groups the questions in the report.
    """

    label: str = "answer"
    question_type: str | None = None


class VQA(Classification):
    """Classification over answers; the report splits accuracy by the type of the question."""

    Config = VQAConfig  # type: ignore[assignment]
    config: VQAConfig  # type: ignore[assignment]

    def __init__(self, config: VQAConfig) -> None:
        super().__init__(config)  # type: ignore[arg-type]

    def columns(self) -> list[str]:
        return [self.config.label, *([self.config.question_type] if self.config.question_type else [])]
