"""Passes over tensors without values (on the `meta` device), where a model's own code asks for some."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten


class Presumed(TorchDispatchMode):
    """While this lasts, masks without values are full, numbers without values are one, and what has values joins them.

    Enough for shapes, costs and gradients' paths: a sample of which nothing is padding.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((*args, *kwargs.values()))
        if not any(tensor.is_meta for tensor in tensors):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or 1
        if func is aten.nonzero.default:
            return torch.cat([place[:, None] for place in _everywhere(args[0])], 1)
        if func is aten.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _places(index)])
        if not all(tensor.is_meta for tensor in tensors):
            args, kwargs = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        return func(*args, **kwargs)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """An operation's own: given one by one, or in lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def _places(index: Tensor | None) -> list[Tensor | None]:
    return [*_everywhere(index)] if index is not None and index.dtype == torch.bool else [index]


def _everywhere(mask: Tensor) -> tuple[Tensor, ...]:
    """Indices, one tensor an axis, of a mask's places."""
    return torch.empty(mask.numel(), mask.ndim, dtype=torch.long, device="meta").unbind(1)
