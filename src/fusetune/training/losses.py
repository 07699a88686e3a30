"""The loss of a batch."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fusetune.backbones.backbone import Frontier
from fusetune.plan.adapted import AdaptedModel
from fusetune.tokens import Tokens


def batch_losses(
    model: AdaptedModel,
    states: Mapping[str, Tokens],
    start: Frontier,
    targets: Tensor,
    dtype: torch.dtype | None = None,
    recording: bool = False,
    whole: Callable[[Tensor], Tensor] | None = None,
    penalty_share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The task's mean loss of a batch, in float32, and the loss with penalties.

    Args:
        dtype: that the forward pass multiplies in; None: as the weights are.
        recording: whether a GPU records this: weights are cast each time then, as they are each time that it replays.
        whole: makes outputs of these rows those of a batch, whose the targets are (`Group.whole`).
        penalty_share: of the penalties that count here.
    """
    device = targets.device.type
    with torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=not recording):
        out = model(states, start)
    out = out.float() if whole is None else whole(out.float())
    loss = model.task.loss(out, targets)
    penalty = model.penalty()
    return loss, loss if penalty is None else loss + penalty_share * penalty
