"""How splits are drawn, and how few labels are left."""

from dataclasses import dataclass

from fusetune.config import check


@dataclass(frozen=True)
class SplitSettings:
    """
    Attributes:
        train, val, test: shares of the rows, as nearly as whole groups allow.
        stratify: the column whose values every split should have in the same proportions.
        seed: another seed, another split.
    """

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1
    stratify: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.train, self.val, self.test)
        whole = min(shares) > 0 and abs(sum(shares) - 1) < 1e-6
        check(whole, f"split: expected shares that add up to 1, found {shares}.")


@dataclass(frozen=True)
class FewShotSettings:
    """
    Attributes:
        label: the column with the classes.
        per_class: training rows of each class; validation and test rows stay.
        seed: another seed, other rows.
    """

    label: str
    per_class: int
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.per_class > 0, f"few_shot.per_class: expected at least 1, found {self.per_class}.")
