"""Gates: linear layers whose weights no decay pulls to zero."""

import torch
from torch import Tensor, nn


class Gate(nn.Linear):
    """Logits of a gate, (..., count); weight decay leaves it alone."""

    undecayed = ("weight",)

    def __init__(self, width: int, count: int) -> None:
        super().__init__(width, count)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def softmax_over_present(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over the last dimension; what is not `present` (a mask of the same shape) gets 0, and all do in a row
    without any."""
    weights = logits.masked_fill(~present, torch.finfo(logits.dtype).min).softmax(-1)
    return weights * present
