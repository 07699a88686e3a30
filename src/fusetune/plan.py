"""A method is a plan: placements of adapters on a backbone. From the plan follow the adapted model and its frontier."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.adapters import adapters
from fusetune.adapters.adapter import JunctionAdapter, Stream
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.tasks.task import Task
from fusetune.tokens import Tokens


@dataclass(frozen=True)
class Placement:
    """Where and what.

    Attributes:
        where: ``backbone``, ``junction`` or ``head``.
        adapter: its name in the registry of adapters.
        config: the adapter's own settings.
    """

    where: str
    adapter: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        placements: in the order in which they act; exactly one is a head.
        train: settings of `train` that this method has of its own.
    """

    placements: tuple[Placement, ...]
    train: Mapping[str, Any] = field(default_factory=dict)


class AdaptedModel(nn.Module):
    """A frozen backbone with the adapters of a plan and a task's head.

    Args:
        streams: width and largest number of tokens at the junction, by modality, in the order of the conf.
        where: what the plan is called for the user (the method's name), for error messages.

    Raises:
        FusetuneError: an unknown adapter, a site that it doesn't fit, no head or two of them.
    """

    def __init__(
        self, backbone: Backbone, plan: Plan, task: Task, streams: Mapping[str, Stream], where: str = "plan"
    ) -> None:
        super().__init__()
        self.backbone, self.plan, self.task, self.streams = backbone, plan, task, dict(streams)
        self.junction = nn.ModuleList()
        heads = []
        for number, placement in enumerate(plan.placements):
            at = f"{where}.placements[{number}]"
            cls = adapters.get(placement.adapter)
            if placement.where != cls.site:
                raise FusetuneError(f"{at}: '{placement.adapter}' is placed at '{cls.site}', not '{placement.where}'.")
            config = build(cls.Config, placement.config, f"{at}.config")
            if cls.site == "junction":
                if not task.fuses:
                    raise FusetuneError(f"{at}: '{placement.adapter}' mixes the streams that this task compares.")
                self.junction.append(cls(config, streams))
            elif cls.site == "head":
                heads.append(lambda width, outputs, cls=cls, config=config: cls(config, width, outputs))
            else:
                cls(config).apply(backbone)
        if len(heads) != 1:
            raise FusetuneError(f"{where}: a plan has exactly one placement at 'head', found {len(heads)}.")
        self.head = task.head({name: stream.width for name, stream in streams.items()}, heads[0])

    def forward(self, states: Mapping[str, Tokens], start: Frontier) -> Tensor:
        """Outputs of the task from streams at the frontier `start`."""
        streams = self.backbone.advance(states, start, self.backbone.full_depth(list(states)))
        for adapter in self.junction:
            streams = adapter(streams)
        return self.head({name: tokens.pooled() for name, tokens in streams.items()})

    def adapters(self) -> list[JunctionAdapter]:
        return list(self.junction)  # type: ignore[arg-type]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name: found by identity, whatever they are called."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def trainable_count(self) -> int:
        return sum(p.numel() for p in self.trainable().values())

    def base_count(self) -> int:
        """Parameters of the backbone that this model's modalities pass through."""
        used = [self.backbone.tower(name) for name in self.streams]
        modules = [*used, self.backbone.trunk] if self.backbone.trunk else used
        return sum(p.numel() for module in modules for p in module.parameters())

    def open_base(self) -> bool:
        """Whether the plan trains weights of the backbone itself."""
        return any(p.requires_grad for p in self.backbone.parameters())


def frontier(model: AdaptedModel, example: Mapping[str, Tokens]) -> Frontier:
    """The frontier of a plan, found by a dynamic probe: two small forward passes in which gradients are followed.

    Nothing is cached above what is trainable, nor above what is random: where the two passes differ (dropout that is
    not switched off, drawn noise), the frontier ends. A walk over parameter names would be wrong where a trainable part
    reaches blocks by another way (prompts, shared embeddings, connectors); what requires a gradient says it itself.

    Args:
        example: one batch at depth 0, by modality.
    """
    backbone = model.backbone
    depths = {name: _first_trainable(backbone.tower(name), tokens) for name, tokens in example.items()}
    full = backbone.full_depth(list(example))
    if backbone.trunk is None or depths != full.towers:
        return Frontier(depths, 0)
    with torch.no_grad():
        streams = backbone.advance(example, Frontier(dict.fromkeys(example, 0)), Frontier(full.towers, 0))
    return Frontier(depths, _first_trainable(backbone.trunk, streams))


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
    return not any(t.requires_grad for t in one) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, Tokens):
        return [out.values]
    values = out.values() if isinstance(out, Mapping) else out if isinstance(out, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]
