"""Scores of single samples for a metric that is no mean over samples: jackknife pseudo-values (Tukey 1958).

A sample's value is n times the metric less n - 1 times the metric without it. Their mean is the metric but for its
bias, which is taken out here, and their spread is that of the metric, so that whatever resamples or compares scores of
samples does the same for a correlation or an F1.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BLOCKS = 400  # of more samples, blocks are left out, not single ones


def pseudo_values(metric: Callable[[Tensor, Tensor], float], outputs: Tensor, targets: Tensor) -> np.ndarray:
    """(rows,): values whose mean is ``metric(outputs, targets)``."""
    whole, count = metric(outputs, targets), len(targets)
    blocks = torch.arange(count) % BLOCKS if count > BLOCKS else torch.arange(count)
    number = int(blocks.max()) + 1
    if number < 2:
        return np.full(count, whole)
    left_out = np.array([metric(outputs[blocks != i], targets[blocks != i]) for i in range(number)])
    values = number * whole - (number - 1) * left_out
    # a block's value stands for each of its rows, which are more than there are blocks: their mean varies as it should
    spread = (values - values.mean()) * (count / number) ** 0.5
    rows = spread[blocks.numpy()]
    return whole + rows - rows.mean()
