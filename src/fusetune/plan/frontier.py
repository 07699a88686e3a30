"""The frontier of a plan: the deepest depths below which nothing is trainable and nothing random happens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.backbone import Frontier
from fusetune.plan.adapted import AdaptedModel
from fusetune.tokens import Tokens


def frontier(model: AdaptedModel, example: Mapping[str, Tokens]) -> Frontier:
    """Found by a dynamic probe: two small forward passes in which gradients are followed.

    Nothing is cached above what is trainable, nor above what is random: where the two passes differ (dropout that is
    not switched off, drawn noise), the frontier ends. A walk over parameter names would be wrong where a trainable part
    reaches blocks by another way (prompts, shared embeddings, connectors); what requires a gradient says it itself.
    Adapters that are frozen count as trainable: what is cached is the base's alone.

    Args:
        example: one batch at depth 0, by modality.
    """
    backbone = model.backbone
    with _adapters_followed(model):
        depths = {name: _first_trainable(backbone.tower(name), tokens) for name, tokens in example.items()}
        full = backbone.full_depth(list(example))
        connectors = model.active_connectors()
        for connector in connectors:
            reach = connector.reach(full.towers)
            depths = {name: min(depth, reach[name]) for name, depth in depths.items()}
        if backbone.trunk is None or depths != full.towers or connectors:
            return Frontier(depths, 0)
        with torch.no_grad():
            streams = backbone.advance(example, Frontier(dict.fromkeys(example, 0)), Frontier(full.towers, 0))
        reached = _first_trainable(backbone.trunk, backbone.in_trunk(streams))
        return Frontier(depths, reached if reached >= getattr(backbone.trunk, "first", 0) else 0)


@contextmanager
def _adapters_followed(model: AdaptedModel) -> Iterator[None]:
    """While this lasts, every active adapter's own parameters require gradients."""
    own = [p for a in model.adapters() if a.active for p in a.parameters() if not model.is_base(p)]
    frozen = [parameter for parameter in own if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _first_trainable(stack: Any, tokens: Any) -> int:
    """The largest depth k such that what stands at depth k needs no gradient and is the same in every pass."""
    one, two = (_pass(stack, tokens, seed) for seed in (0, 1))
    for number in range(stack.depth):
        if number in one and not _constant(one[number], two[number]):
            return number
    if _constant(one[stack.depth], two[stack.depth]):
        return stack.depth
    return stack.depth - 1  # only the final norm is trainable


def _pass(stack: Any, tokens: Any, seed: int) -> dict[int, list[Tensor]]:
    """What each block puts out, by its number, and what the whole stack does, under its depth."""
    seen: dict[int, list[Tensor]] = {}

    def note(number: int):
        return lambda _, __, out: seen.__setitem__(number, _tensors(out))

    hooks = [block.register_forward_hook(note(i)) for i, block in enumerate(stack.blocks())]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            seen[stack.depth] = _tensors(stack.advance(tokens, 0, stack.depth))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _constant(one: list[Tensor], two: list[Tensor]) -> bool:
    if any(tensor.requires_grad for tensor in one):
        return False
    return all(a.is_meta or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Tokens):
        return [out.values]
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]
