"""Whether a challenger is better than the champion, when that is asked again and again on the same samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.comparison.statistics import Difference, difference


def spent(number: int, confidence: float) -> float:
    """The one-sided error that challenge `number` (from 1) may make.

    All that there may ever be add up to (1 - confidence) / 2, that of a single interval: 1/2 + 1/6 + 1/12 + ... = 1
    (alpha spending; Foster & Stine 2008, section 2). So the margin grows with every challenge.
    """
    return (1 - confidence) / 2 / (number * (number + 1))


def challenged(
    own: np.ndarray, held: np.ndarray, groups: Sequence[Any] | None, number: int, confidence: float
) -> Difference:
    """The paired difference on the same samples, whose interval is wide enough for challenge `number`.

    Args:
        own, held: scores by sample of the challenger and of the champion.
        groups: of the samples, which vary together; None: each its own.
    """
    level = 1 - 2 * spent(number, confidence)
    return difference(("challenger", own[None]), ("champion", held[None]), groups, level)
