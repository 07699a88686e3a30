"""Low-rank changes of many adapters in one pass over the backbone: every row of the batch takes its own.

With A_k: (rank, in) and B_k: (out, rank) of adapter k at a linear layer, row i of adapter k(i) gets

    y_i = W x_i + b + B_k(i) A_k(i) x_i

by two batched products over the stacked factors; smaller ranks are filled up with zeros, which add nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.backbone import Backbone
from fusetune.plan.adapted import AdaptedModel


class LowRankTables:
    """The stacked factors of several models, by stack and layer.

    Args:
        models: whose adapters inside the backbone are low-rank changes and nothing else.
    """

    def __init__(self, models: Sequence[AdaptedModel]) -> None:
        changes: dict[tuple[str, str], dict[int, tuple[Tensor, Tensor]]] = {}
        for number, model in enumerate(models):
            for placed in model.placed:
                for layer, factors in (placed.adapter.low_rank() or {}).items():
                    changes.setdefault((placed.site, layer), {})[number] = factors
        self.tables = {place: _stacked(factors, len(models)) for place, factors in changes.items()}

    @contextmanager
    def rows(self, backbone: Backbone, owner: Tensor) -> Iterator[None]:
        """While this lasts, row i of a pass through `backbone` is changed by model number `owner[i]`."""
        handles = []
        try:
            for (site, name), (down, up) in self.tables.items():
                stack = backbone.stack(site)
                layer: Any = stack.get_submodule(name)
                handles.append(layer.register_forward_hook(_adding(stack, down, up, owner)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _stacked(factors: dict[int, tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """(models, in, rank) and (models, rank, out)."""
    down, up = next(iter(factors.values()))
    rank = max(len(a) for a, _ in factors.values())
    downs, ups = down.new_zeros(count, down.shape[1], rank), up.new_zeros(count, rank, len(up))
    for number, (a, b) in factors.items():
        downs[number, :, : len(a)], ups[number, : len(a)] = a.detach().T, b.detach().T
    return downs, ups


def _adding(stack: nn.Module, down: Tensor, up: Tensor, owner: Tensor) -> Callable[..., Tensor]:
    def add(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        samples = getattr(stack, "row_samples", None)
        rows = owner if samples is None else owner[samples]
        read = args[0].reshape(len(rows), -1, args[0].shape[-1])  # (rows, tokens, in)
        return out + torch.bmm(torch.bmm(read, down[rows]), up[rows]).view_as(out)

    return add
