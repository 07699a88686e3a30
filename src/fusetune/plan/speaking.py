"""Answers in words, one token after another."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.backbone import Frontier
from fusetune.backbones.composite.decoding import decode
from fusetune.config import check
from fusetune.plan.adapted import AdaptedModel
from fusetune.tasks.decoding import Decoding
from fusetune.tokens import Tokens


def answered(
    model: AdaptedModel,
    streams: Mapping[str, Tokens],
    start: Frontier,
    decoding: Mapping[str, Any] | None = None,
) -> Tensor:
    """The task's outputs where nobody knows the answer, float32 on the CPU.

    Args:
        decoding: what is otherwise than the task says of looking for an answer in words; see `Decoding`.
    """
    if model.task.speaks:
        return spoken(model, streams, start, model.task.decoding(decoding)).float().cpu()  # type: ignore[attr-defined]
    check(not decoding, f"{', '.join(decoding or ())}: of answers in words; this adapter's task is another.")
    return model.task.kept(model(streams, start).float(), None).cpu()


@torch.no_grad()
def spoken(model: AdaptedModel, streams: Mapping[str, Tokens], start: Frontier, how: Decoding) -> Tensor:
    """What the model says, (rows, most): ids, and the task's `no_token` behind an answer's end.

    Towers and connectors run once, and the language model reads the prompt once. Adapters are heard as they were in
    training: what they do to the prompt's places no answer changes.

    Args:
        streams: at `start`, in front of the trunk; an answer among them is left out.
    """
    trunk: Any = model.backbone.trunk
    task: Any = model.task
    given = {name: tokens for name, tokens in streams.items() if name != trunk.answer}
    most = task.words.most
    with model.its_precision(next(iter(given.values())).mask.device):
        met = model.in_front_of_trunk(given, start)
        said = decode(trunk, met, task.words.stops, how.max_new_tokens or most, how)
    found = torch.full((len(said), most), task.no_token)
    for row, ids in zip(found, said, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return found
