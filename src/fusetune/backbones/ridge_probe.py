"""How much a linear model finds in numbers: ridge regression in closed form, to compare two views of one input."""

import torch
from torch import Tensor

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)


def ridge_score(train: Tensor, train_targets: Tensor, val: Tensor, val_targets: Tensor) -> float:
    """Score on validation rows of a linear model fitted to training rows, the best of `STRENGTHS`.

    Args:
        train, val: (rows, numbers).
        train_targets, val_targets: (rows,) class numbers, for which the score is the accuracy of the largest output; or
            floats, (rows,) or (rows, targets), for which it is the coefficient of determination.
    """
    classes = not train_targets.is_floating_point()
    wanted = torch.nn.functional.one_hot(train_targets).double() if classes else _columns(train_targets)
    center, spread = train.double().mean(0), train.double().std(0).clamp(min=1e-6)
    rows, others = (train.double() - center) / spread, (val.double() - center) / spread
    mean = wanted.mean(0)
    vectors, values, right = torch.linalg.svd(rows, full_matrices=False)
    found = []
    for strength in STRENGTHS:
        weights = right.T @ ((values / (values**2 + strength))[:, None] * (vectors.T @ (wanted - mean)))
        out = others @ weights + mean
        if classes:
            found.append((out.argmax(1) == val_targets).double().mean().item())
        else:
            true = _columns(val_targets)
            residual = (out - true).square().sum()
            found.append((1 - residual / (true - true.mean(0)).square().sum().clamp(min=1e-12)).item())
    return max(found)


def _columns(values: Tensor) -> Tensor:
    return values.double().reshape(len(values), -1)
