"""Texts in the common space of a dual encoder, of which the backbone may have the other side alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.sources import from_source
from fusetune.config import check

CHUNK = 256  # texts that are encoded at once


@torch.no_grad()
def directions(backbone: Backbone, modality: str, texts: Sequence[Sequence[str]], device: torch.device) -> Tensor:
    """(items, width of the space): the mean direction of each item's texts, of unit length.

    The text tower is the backbone's own, or comes out of the checkpoint that the modality's tower came from.

    Args:
        modality: whose tower is the other side.

    Raises:
        FusetuneError: nobody knows where the text side is, or it is not of this space.
    """
    tower = _text_side(backbone, modality).to(device)
    flat = [text for several in texts for text in several]
    found = []
    for start in range(0, len(flat), CHUNK):
        tokens = tower.prepare(flat[start : start + CHUNK]).to(device)
        embedded = tower.embed(tower.advance(tokens, 0, tower.depth))
        found.append(F.normalize(embedded.float(), dim=-1).cpu())
    means = [several.mean(0) for several in torch.cat(found).split([len(several) for several in texts])]
    return F.normalize(torch.stack(means), dim=-1)


def _text_side(backbone: Backbone, modality: str) -> Any:
    tower = backbone.tower(modality)
    space = tower.space()
    for other in backbone.towers.values():
        if other.kind == "text" and other.space() and other.space().identity == space.identity:  # type: ignore[operator]
            return other
    origin = tower.origin
    check(
        origin is not None,
        f"data.task.prompts: nobody knows where the tower of '{modality}' came from, so its text side can't be loaded.",
    )
    found = from_source(replace(origin, part=None, max_tokens=None), "text", modality)
    check(
        found.space() is not None and found.space().identity == space.identity,
        f"data.task.prompts: '{origin.source}' has changed since the tower of '{modality}' was loaded.",
    )
    return found
