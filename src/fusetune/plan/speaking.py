"""Answers in words, one token after another."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fusetune.backbones.backbone import Frontier
from fusetune.plan.adapted import AdaptedModel
from fusetune.tokens import Tokens


def answered(model: AdaptedModel, streams: Mapping[str, Tokens], start: Frontier) -> Tensor:
    """The task's outputs where nobody knows the answer, float32 on the CPU."""
    return (greedy(model, streams, start) if model.task.speaks else model(streams, start)).float().cpu()


@torch.no_grad()
def greedy(model: AdaptedModel, streams: Mapping[str, Tokens], start: Frontier) -> Tensor:
    """The likeliest token behind the prompt, the likeliest behind that one, and so on, (rows, most): ids, and the
    task's `no_token` behind an answer's end.

    Each token costs a pass of the language blocks over prompt and answer: whatever an adapter does to earlier places is
    done again, so every adapter is heard as it was in training. Towers run once.

    Args:
        streams: at `start`, in front of the trunk; an answer among them is left out.
    """
    task, backbone = model.task, model.backbone
    words, banned = task.words, backbone.trunk.composite.image_id  # type: ignore[attr-defined]
    given = {name: tokens for name, tokens in streams.items() if name != backbone.trunk.answer}
    top = Frontier(backbone.full_depth(list(given)).towers)
    if not model.active_connectors():
        given, start = backbone.advance_towers(given, start.towers, top.towers), top
    start = Frontier({**start.towers, backbone.trunk.answer: 0})
    one = next(iter(given.values())).mask
    said = torch.zeros(len(one), 0, dtype=torch.long, device=one.device)
    ended = torch.zeros(len(one), dtype=torch.bool, device=one.device)
    stops = torch.tensor(words.stops, device=one.device)
    for _ in range(words.most):
        answer = Tokens(said.unsqueeze(-1), torch.ones_like(said, dtype=torch.bool))
        logits = model({**given, backbone.trunk.answer: answer}, start)[:, -1]
        if banned is not None:
            logits[:, banned] = -torch.inf  # a place for a picture is no word
        said = torch.cat([said, logits.argmax(-1, keepdim=True).masked_fill(ended[:, None], stops[0])], 1)
        ended |= (said[:, -1:] == stops).any(1)
        if ended.all():
            break
    behind = (said[..., None] == stops).any(-1).long().cumsum(1).cumsum(1) > 1
    found = said.masked_fill(behind, task.no_token)  # type: ignore[attr-defined]
    return torch.nn.functional.pad(found, (0, words.most - found.shape[1]), value=task.no_token)  # type: ignore[attr-defined]
