"""What was trained, mixed with the linear models of the frozen streams, as validation rows say.

A method that has learned more than they know gets the share; one that has only memorised gets none, and the result is
no worse than they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fusetune.plan.adapted import AdaptedModel
from fusetune.tasks.joined_head import joined_heads
from fusetune.tasks.linear_models import minimised
from fusetune.training.predicting import Split, predict
from fusetune.training.settings import TrainSettings


@contextmanager
def linear_models_alone(model: AdaptedModel) -> Iterator[None]:
    """Where the head knows linear models, they alone are heard."""
    heads = joined_heads(model.head)
    before = [head.shares.detach().clone() for head in heads]
    try:
        _share(model, 1.0, 0.0)
        yield
    finally:
        for head, shares in zip(heads, before, strict=True):
            head.shares.data.copy_(shares)


def mix(model: AdaptedModel, val: Split, settings: TrainSettings) -> None:
    """Give both their shares, from 0: those with the least loss on validation rows; nothing without linear models."""
    if not joined_heads(model.head):
        return
    outputs = []
    for shares in ((1.0, 0.0), (0.0, 1.0)):
        _share(model, *shares)
        outputs.append(predict(model, val, settings.batch_size)[0].double())
    known, trained = outputs
    roots = torch.full((2,), 0.5**0.5, dtype=torch.float64)

    def loss() -> Tensor:
        return model.task.loss(roots[0].square() * known + roots[1].square() * trained, val.targets)

    minimised([roots], loss)
    first, second = roots.detach().square().tolist()
    _share(model, first, second)


@torch.no_grad()
def _share(model: AdaptedModel, known: float, trained: float) -> None:
    for head in joined_heads(model.head):
        head.shares.copy_(torch.tensor([known, trained]))
