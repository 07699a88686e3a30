"""The one learning-rate schedule."""

import math


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak rate at `step` of `steps`: a linear rise over the share `warmup`, then half a cosine to 0."""
    rise = warmup * steps
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise)))
