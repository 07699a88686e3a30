"""Where a comparison of two streams starts: a common space that is linear in both, found in closed form.

Canonical correlation analysis with a ridge on both sides (Vinod 1976; Hardoon, Szedmak and Shawe-Taylor 2004), each
canonical direction weighted by its correlation. The ridge is the one whose scores of out-of-fold rows have the least
contrastive loss, so that a space that only remembers its rows isn't taken.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusetune.tasks.joined_head import LinearStart, standardised
from fusetune.tasks.linear_models import folds_of, minimised, statistics

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # times the mean variance of a stream's channels
MOST_ROWS = 20_000
MOST_DIRECTIONS = 1024  # principal ones of each stream
COMPARED = 2048  # rows of a fold that are compared with one another
FIRST_SCALE = math.log(20.0)  # log of what cosines are multiplied by, where its search begins


class _Side(NamedTuple):
    """Principal directions of a stream, (width, directions), and their variances."""

    directions: Tensor
    variances: Tensor
    ridge: float  # that counts as 1


def fit_space(
    pooled: Mapping[str, Tensor],
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    outputs: int,
    groups: Sequence[Any],
    seed: int = 0,
) -> LinearStart:
    """The space as a `LinearStart`: `weight` of each stream is its way into it.

    Args:
        pooled: training rows of the two streams, (rows, width); a row of zeros lacks the modality and isn't used.
        targets: (rows, ...), as the task has them.
        loss: contrastive, of (rows, 2, outputs) and targets.
        outputs: width of the space; what the streams don't fill is 0.
        groups: of rows that never stand in two folds.
    """
    torch.manual_seed(seed)
    complete = torch.stack([(values != 0).any(1) for values in pooled.values()]).all(0).nonzero().squeeze(1)
    rows = complete[torch.randperm(len(complete))[:MOST_ROWS].sort().values]
    found = {name: statistics(values[rows].double()) for name, values in pooled.items()}
    x = [standardised(values[rows].double(), *found[name]) for name, values in pooled.items()]
    targets = targets[rows]
    folds = folds_of(targets, [groups[row] for row in rows.tolist()])
    held: dict[float, list[Tensor]] = {ridge: [] for ridge in RIDGES}
    wanted = []
    for fold in folds.unique():
        seen, other = folds != fold, (folds == fold).nonzero().squeeze(1)[:COMPARED]
        wanted.append(targets[other])
        for ridge, ways in zip(RIDGES, _spaces([part[seen] for part in x], RIDGES, outputs), strict=True):
            sides = [F.normalize(part[other] @ way.T, dim=-1) for part, way in zip(x, ways, strict=True)]
            held[ridge].append(torch.stack(sides, 1))
    losses = {ridge: _least(parts, wanted, loss) for ridge, parts in held.items()}
    best = min(losses, key=lambda ridge: losses[ridge])
    (ways,) = _spaces(x, (best,), outputs)
    names = list(pooled)
    return LinearStart(
        {name: found[name][0].float() for name in names},
        {name: found[name][1].float() for name in names},
        {name: way.float() for name, way in zip(names, ways, strict=True)},
        {name: torch.zeros(outputs) for name in names},
        torch.zeros(outputs),
        dict.fromkeys(names, 1.0),
        dict.fromkeys([*names, ""], losses[best]),
    )


def compared(space: Any, pooled: Mapping[str, Tensor]) -> Tensor:
    """(rows, 2, outputs): both streams in the space, unit length.

    Args:
        space: what has `mean`, `std` and `weight` by stream: a `LinearStart`, or the head that knows one.
        pooled: the two streams, (rows, width), in the order of the answer.
    """
    sides = [
        standardised(values, space.mean[name], space.std[name]) @ space.weight[name].T
        for name, values in pooled.items()
    ]
    return F.normalize(torch.stack(sides, 1), dim=-1)


def _spaces(x: Sequence[Tensor], ridges: Sequence[float], outputs: int) -> list[list[Tensor]]:
    """For each ridge both ways into the space, (outputs, width)."""
    one, other = (_side(part) for part in x)
    met = one.directions.T @ (x[0].T @ x[1] / len(x[0])) @ other.directions
    spaces = []
    for ridge in ridges:
        first, second = ((side.variances + ridge * side.ridge).rsqrt() for side in (one, other))
        left, correlations, right = torch.linalg.svd(first[:, None] * met * second, full_matrices=False)
        weight = correlations[:outputs].sqrt()
        ways = [
            ((side.directions * by[:, None].T) @ turned[:, :outputs] * weight).T
            for side, by, turned in ((one, first, left), (other, second, right.T))
        ]
        spaces.append([F.pad(way, (0, 0, 0, outputs - len(way))) for way in ways])
    return spaces


def _side(x: Tensor) -> _Side:
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))
    ridge = max(variances.mean().item(), 1e-12)
    return _Side(directions[:, -MOST_DIRECTIONS:], variances[-MOST_DIRECTIONS:].clamp(min=0), ridge)


def _least(parts: Sequence[Tensor], targets: Sequence[Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The mean loss of the folds with the scale that is best for all of them."""
    log_scale = torch.tensor(FIRST_SCALE, dtype=torch.float64)

    def value() -> Tensor:
        scaled = [loss(part * (log_scale / 2).exp(), wanted) for part, wanted in zip(parts, targets, strict=True)]
        return torch.stack(scaled).mean()

    minimised([log_scale], value, 20)
    with torch.no_grad():
        return value().item()
