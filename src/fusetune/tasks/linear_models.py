"""Where a head starts: linear models of the frozen streams, one a modality, and how much each of them counts.

For each modality a regularised linear model is fitted to its pooled, standardised stream, its strength chosen on
out-of-fold losses. Their outputs are then added up, each times a share of 0 or more, and the shares minimise the loss
of the out-of-fold outputs (stacking with non-negative weights, Breiman 1996; for classes a product of experts). So a
modality that is only noise gets no share, however many numbers it has, and what is trained afterwards begins there, as
linear probing then fine-tuning does (Kumar et al. 2022, arXiv 2202.10054).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusetune.on_disk import shuffled
from fusetune.tasks.joined_head import LinearStart, standardised

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C: the penalty on the mean loss is |W|^2 / (2 C rows)
FOLDS, FOLDS_OF_MANY, MANY = 5, 3, 2000  # rows from which fewer folds do
MOST_ROWS = 20_000
MOST_PRODUCTS = 5e9  # rows x width x outputs: of more, fewer rows are taken
STEPS = 60  # of L-BFGS
Loss = Callable[[Tensor, Tensor], Tensor]


def fit_start(
    pooled: Mapping[str, Tensor], targets: Tensor, loss: Loss, outputs: int, groups: Sequence[Any], seed: int = 0
) -> LinearStart:
    """
    Args:
        pooled: training rows by modality, (rows, width); a row of zeros is one without this modality.
        targets: (rows, ...).
        loss: of outputs (rows, outputs) and targets: convex, a mean over rows.
        groups: of rows that never stand in two folds.
    """
    torch.manual_seed(seed)
    rows = _few(pooled, outputs, len(targets))
    pooled, targets = {name: x[rows].double() for name, x in pooled.items()}, targets[rows]
    targets = targets.double() if targets.is_floating_point() else targets
    folds = folds_of(targets, [groups[i] for i in rows.tolist()])
    nothing = torch.zeros(len(targets), 0, dtype=torch.float64)
    prior = _fit(nothing, targets, loss, outputs, 1.0)[1]
    mean, std, weight, bias, held, losses = {}, {}, {}, {}, {}, {}
    for name, values in pooled.items():
        present = (values != 0).any(1)
        mean[name], std[name] = statistics(values[present])
        x = standardised(values, mean[name], std[name])
        held[name], strength = _out_of_fold(x, present, targets, loss, outputs, folds, prior)
        losses[name] = loss(held[name], targets).item()
        weight[name], bias[name] = _fit(x[present], targets[present], loss, outputs, strength)
    shares = _shares(held, targets, loss, prior)
    whole = sum((share * (held[name] - prior) for name, share in shares.items()), prior.expand(len(targets), -1))
    losses[""] = loss(whole, targets).item()

    def single(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in values.items()}

    return LinearStart(single(mean), single(std), single(weight), single(bias), prior.float(), shares, losses)


def fit_one(
    train: Tensor, train_targets: Tensor, other: Tensor, loss: Loss, outputs: int, groups: Sequence[Any]
) -> Tensor:
    """Outputs for other rows of a linear model of one stream; see `fit_start`."""
    start = fit_start({"": train}, train_targets, loss, outputs, groups)
    x = standardised(other, start.mean[""], start.std[""])
    return x @ start.weight[""].T + start.bias[""]


def folds_of(targets: Tensor, groups: Sequence[Any]) -> Tensor:
    """(rows,) fold numbers: groups stay together, targets are spread evenly over the folds."""
    count = FOLDS if len(targets) < MANY else FOLDS_OF_MANY
    first: dict[str, int] = {}
    of_row = torch.tensor([first.setdefault(str(group), len(first)) for group in groups])
    starts = torch.tensor([of_row.tolist().index(i) for i in range(len(first))]) if len(first) < len(of_row) else of_row
    key = targets.reshape(len(targets), -1)[:, 0].double()[starts]
    order = torch.randperm(len(first))
    order = order[key[order].argsort(stable=True)]
    fold_of_group = torch.empty(len(first), dtype=torch.long)
    fold_of_group[order] = torch.arange(len(first)) % count
    return fold_of_group[of_row]


def _few(pooled: Mapping[str, Tensor], outputs: int, count: int) -> Tensor:
    width = max(values.shape[1] for values in pooled.values())
    most = max(1000, min(MOST_ROWS, int(MOST_PRODUCTS / width / outputs)))
    return torch.arange(count) if count <= most else shuffled(count)[:most].sort().values


def statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel, (width,); infinite spread where it is constant."""
    mean, std = values.mean(0), values.std(0)
    return mean, std.masked_fill(std <= 1e-6 * values.abs().amax(0).clamp(min=1e-12), math.inf)


def _out_of_fold(
    x: Tensor, present: Tensor, targets: Tensor, loss: Loss, outputs: int, folds: Tensor, prior: Tensor
) -> tuple[Tensor, float]:
    """Outputs of rows by models that haven't seen their fold, and the strength whose outputs are best."""
    found = {strength: prior.expand(len(x), -1).clone() for strength in STRENGTHS}
    for fold in folds.unique():
        train, other = present & (folds != fold), present & (folds == fold)
        if not train.any():
            continue
        start = None
        for strength in STRENGTHS:
            start = _fit(x[train], targets[train], loss, outputs, strength, start)
            found[strength][other] = x[other] @ start[0].T + start[1]
    best = min(STRENGTHS, key=lambda strength: loss(found[strength], targets).item())
    return found[best], best


def _fit(
    x: Tensor, targets: Tensor, loss: Loss, outputs: int, strength: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """W (outputs, width) and b (outputs,) by L-BFGS."""
    weight = start[0].clone() if start else x.new_zeros(outputs, x.shape[1])
    bias = start[1].clone() if start else x.new_zeros(outputs)
    penalty = 1 / (2 * strength * len(x))
    minimised([weight, bias], lambda: loss(x @ weight.T + bias, targets) + penalty * weight.square().sum(), STEPS)
    return weight.detach(), bias.detach()


def _shares(held: Mapping[str, Tensor], targets: Tensor, loss: Loss, prior: Tensor) -> dict[str, float]:
    roots = torch.full((len(held),), len(held) ** -0.5, dtype=torch.float64)
    away = torch.stack([outputs - prior for outputs in held.values()])
    minimised([roots], lambda: loss(prior + torch.einsum("m,mno->no", roots.square(), away), targets), STEPS)
    return dict(zip(held, roots.detach().square().tolist(), strict=True))


def minimised(parameters: list[Tensor], value: Callable[[], Tensor], steps: int = STEPS) -> None:
    """Change parameters in place so that a scalar of them is least, by L-BFGS."""
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = value()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(closure)
