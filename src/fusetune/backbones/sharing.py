"""One encoder for several modalities: modules of their own, weights in memory once."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module, tensor: Callable[[Tensor], Tensor]) -> Module:
    """The same modules again, with what `tensor` makes of each parameter and buffer; processors are not copied."""
    memo: dict[int, Any] = {id(t): tensor(t) for t in [*module.parameters(), *module.buffers()]}
    processors = [getattr(part, "processor", None) for part in module.modules()]
    return copy.deepcopy(module, memo | {id(processor): processor for processor in processors})


def twin(tower: Module) -> Module:
    """Another tower on the same weights: what is hooked into one is not in the other."""
    return copied(tower, _on_the_same)


def _on_the_same(tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor.data, requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor


def shared(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that lie on the same memory, together."""
    found: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.numel() and not parameter.is_meta and not hasattr(parameter, "device_mesh"):  # divided: on its own
            found.setdefault((parameter.data_ptr(), parameter.shape), []).append(parameter)
    return [several for several in found.values() if len(several) > 1]


def share(groups: Iterable[list[nn.Parameter]]) -> None:
    """Put each group on the memory of its first."""
    for first, *others in groups:
        for other in others:
            other.data = first.data


def separate(changing: Iterable[nn.Parameter], of: Iterable[nn.Parameter]) -> None:
    """Give memory of their own to parameters that are about to change where others lie on it too."""
    places = Counter(parameter.data_ptr() for parameter in of if not parameter.is_meta)
    for parameter in changing:
        if not parameter.is_meta and places[parameter.data_ptr()] > 1:
            parameter.data = parameter.data.clone()
