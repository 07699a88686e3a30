"""From a plan and a backbone follows the adapted model."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.adapters.adapter import Adapter, BlockAdapter, Stream, total_penalty
from fusetune.adapters.orthogonality import Orthogonality
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import check
from fusetune.device import half_of
from fusetune.errors import FusetuneError
from fusetune.plan.assembly import Assembly
from fusetune.plan.plan import Plan
from fusetune.tasks.joined_head import heard
from fusetune.tasks.task import Task
from fusetune.tokens import Tokens


class AdaptedModel(nn.Module):
    """A frozen backbone with the adapters of a plan and a task's head.

    Args:
        streams: width and largest number of tokens at the junction, by modality, in the order of the conf.
        where: what the plan is called for the user (the method's name), for error messages.

    Raises:
        FusetuneError: an unknown adapter, a site that it doesn't fit, blocks that aren't there, two placements that
            fight over a module, no head or two of them.
    """

    def __init__(
        self, backbone: Backbone, plan: Plan, task: Task, streams: Mapping[str, Stream], where: str = "plan"
    ) -> None:
        super().__init__()
        backbone.remember_fingerprints()  # before anything is put into it
        self.backbone, self.plan, self.task, self.streams = backbone, plan, task, dict(streams)
        self._base = set(backbone.parameters())
        self._half = half_of(self._base)
        self._base_count = self._count_base()
        self._aside: dict[nn.Parameter, Tensor] = {}  # attached: the base's own values; detached: the trained ones
        self._attached = False
        made = Assembly(backbone, task, self.streams, where).of(plan.placements)
        self.connectors, self.blocks = nn.ModuleList(made.connectors), nn.ModuleList(made.blocks)
        self.junction = nn.ModuleList(made.junction)
        self.branches = nn.ModuleDict({name: nn.ModuleList(several) for name, several in made.branches.items()})
        self.placed, self.resolved = made.placed, made.resolved
        try:
            self.attach()
            widths = {name: stream.width for name, stream in streams.items()}
            self.head = task.head_in(backbone.spaces(list(streams)), widths, made.head)
            self.apart = Orthogonality(plan.orthogonal, self.trainable()) if plan.orthogonal else None
        except BaseException:
            self.detach()
            raise
        backbone.separate(self.opened().values())
        self.set_epoch(1)

    def forward(self, states: Mapping[str, Tokens], start: Frontier) -> Tensor:
        """Outputs of the task from streams at the frontier `start`."""
        with self.its_precision(next(iter(states.values())).mask.device):
            return self._outputs(states, start)

    def its_precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which a base in half precision and adapters in full meet; nothing is changed for a base in full."""
        return torch.autocast(device.type, self._half) if self._half else nullcontext()

    def _outputs(self, states: Mapping[str, Tokens], start: Frontier) -> Tensor:
        streams = self._met(states, start)
        if self.task.speaks:
            return self.backbone.trunk.said(streams)
        met, entered = streams, _pooled(streams)
        for adapter in self.junction:
            streams = adapter(streams) if adapter.active else streams
        if hasattr(self.head, "embeds"):
            embedded = self.backbone.embed(met, [name for name in self.head.embeds if name in met])  # type: ignore[union-attr]
            return self.head(_pooled(streams), embedded, entered)
        if getattr(self.head, "takes_tokens", False):
            return self.head(streams, _pooled(streams))
        if not hasattr(self.head, "apart"):
            return heard(self.head, _pooled(streams), entered)
        parts = dict.fromkeys(self.head.tasks, streams)  # type: ignore[arg-type]
        for task, adapters in self.branches.items():
            for adapter in adapters:  # type: ignore[attr-defined]
                parts[task] = adapter(parts[task]) if adapter.active else parts[task]
        return self.head.apart(parts, entered)  # type: ignore[operator]

    def reads_means(self) -> bool:
        """Whether all that is trained reads no more of the streams at the junction than the mean of their tokens."""
        more = self.connectors or any(hasattr(self.head, name) for name in ("embeds", "takes_tokens", "apart"))
        return not more and not self.task.speaks and all(adapter.reads_means for adapter in self.junction)

    def _met(self, states: Mapping[str, Tokens], start: Frontier) -> dict[str, Tokens]:
        """The streams at the junction: through towers, connectors and trunk."""
        full = self.backbone.full_depth(list(states))
        streams, depths = self._connected(states, start)
        return self.backbone.advance(streams, Frontier(depths, start.trunk), full)

    def in_front_of_trunk(self, states: Mapping[str, Tokens], start: Frontier) -> dict[str, Tokens]:
        """The streams through towers and connectors."""
        streams, depths = self._connected(states, start)
        return self.backbone.advance_towers(streams, depths, self.backbone.full_depth(list(states)).towers)

    def _connected(self, states: Mapping[str, Tokens], start: Frontier) -> tuple[dict[str, Tokens], dict[str, int]]:
        """The streams behind the last connector, and how far they are in their towers."""
        full = self.backbone.full_depth(list(states))
        streams, depths = dict(states), dict(start.towers)
        for connector in self.active_connectors():
            reach = connector.reach(full.towers)
            streams = self.backbone.advance_towers(streams, depths, reach)
            before, streams, depths = streams, connector(streams), reach
            if hasattr(connector, "leave"):
                streams = self.backbone.advance_towers(streams, depths, full.towers)
                streams, depths = connector.leave(streams, before), dict(full.towers)
        return streams, depths

    def active_connectors(self) -> list[Any]:
        return [connector for connector in self.connectors if connector.active]

    def adapters(self) -> list[Adapter]:
        """All adapters but the head."""
        return [placed.adapter for placed in self.placed]

    def set_epoch(self, epoch: int) -> None:
        """Switch on what the plan has from this epoch on (from 1), and the rest off."""
        for placed in self.placed:
            placed.adapter.set_active(epoch >= placed.from_epoch)

    def stages(self) -> list[int]:
        """The epochs at which something is switched on; the first is 1."""
        return sorted({1} | {placed.from_epoch for placed in self.placed})

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, of every epoch: found by identity, whatever they are called."""
        sites = self.sites()
        return {name: p for name, p in self.named_parameters() if p in sites}

    def sites(self) -> dict[nn.Parameter, str]:
        """Where each trained parameter acts: a modality's name, trunk, connector, junction or head."""
        sites = {parameter: "head" for parameter in self.head.parameters() if parameter.requires_grad}
        for placed in self.placed:
            owners = placed.owners(self.backbone)
            sites |= {parameter: owners.get(parameter, placed.site) for parameter in placed.adapter.trained()}
        return sites

    def kept(self) -> dict[str, Tensor]:
        """All that an artifact has to hold, by name: what was trained, and frozen parts that are not the base's."""
        trained = self.trainable()
        return {name: p for name, p in self.named_parameters() if name in trained or p not in self._base}

    def penalty(self) -> Tensor | None:
        """What the adapters add to the task's loss, a scalar, after a forward pass in training."""
        asking = [adapter for adapter in self.adapters() if adapter.active]
        return total_penalty([*asking, self.apart] if self.apart else asking)

    def observed(self, samples: int) -> dict[str, Tensor]:
        """What the last forward pass showed, (samples, columns) by name, the placement's number where several do.

        Of a sample with several pictures it is their mean; NaN where one has none.

        Args:
            samples: of the batch.
        """
        shown = [(placed.number, self._observed(placed.adapter, samples)) for placed in self.placed]
        several = sum(bool(values) for _, values in shown) > 1
        return {f"p{i}_{name}" if several else name: v for i, values in shown for name, v in values.items()}

    def _observed(self, adapter: Adapter, samples: int) -> dict[str, Tensor]:
        stack = getattr(adapter, "stack_name", None)
        rows: Tensor | None = getattr(self.backbone.stack(stack), "row_samples", None) if stack else None
        found = {}
        for name, values in adapter.observed().items():
            of = torch.arange(samples, device=values.device) if rows is None else rows
            each = values.unflatten(0, (len(of), -1)).mean(1) if len(of) else values[:0]  # of a row, over what is in it
            counts = torch.bincount(of, minlength=samples)[:, None]
            found[name] = each.new_zeros(samples, each.shape[1]).index_add(0, of, each) / counts
        return found

    def fold(self) -> None:
        """Drop what only training needs (the MLP behind a prefix); outputs stay the same."""
        for adapter in self.adapters():
            adapter.fold()

    def merge(self) -> None:
        """Fold every adapter into the base's weights: inference then costs what the base costs.

        Raises:
            TypeError: an adapter that is no change of weights; nothing has been changed then.
        """
        changes = [(placed, placed.adapter.delta()) for placed in self.placed]
        for placed, delta in changes:
            adapter = placed.adapter
            adapter.detach()
            if isinstance(adapter, BlockAdapter):
                stack = self.backbone.stack(adapter.stack_name)
                for name, change in delta.items():
                    parameter = stack.get_parameter(name)
                    merged = parameter.data + change  # in a tensor of its own: another tower may be on the same weights
                    parameter.data = merged.to(parameter.dtype)
        self.blocks, self.placed = nn.ModuleList(), []

    def changes(self) -> dict[str, Tensor]:
        """What a model that was loaded changes of the base's parameters, by place (`text.layers.0.mlp.0.weight`).

        Raises:
            TypeError: an adapter that is no change of weights.
        """
        found = {f"{placed.site}.{n}": change for placed in self.placed for n, change in placed.adapter.delta().items()}
        return found | {place: p.detach() - self._aside[p] for place, p in self.opened().items()}

    def stacks(self) -> list[str]:
        """The towers that the streams pass through, and the trunk where there is one."""
        return [*self.streams, *(["trunk"] if self.backbone.trunk else [])]

    def opened(self) -> dict[str, nn.Parameter]:
        """The base's own parameters that are trained, by place."""
        own, places = set(self.trainable().values()) & self._base, {}
        for stack in self.stacks():
            for name, parameter in self.backbone.stack(stack).named_parameters():
                if parameter in own:
                    places[f"{stack}.{name.replace('.base_layer.', '.')}"] = parameter
        return places

    def attach(self) -> None:
        """Put everything into the backbone again that `detach` took out: hooks, layers, trained values of the base."""
        if not self._attached:
            self._attached = True
            self._exchange()
            for adapter in sorted(self.adapters(), key=lambda a: not a.changes_weights):
                adapter.attach()

    def detach(self) -> None:
        """Leave the backbone as it was, so that another model may use it; what was trained is kept aside."""
        if self._attached:
            self._attached = False
            for adapter in self.adapters():
                adapter.detach()
            self._exchange()

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Take over trained tensors, all of `kept`; the base's own values are kept aside until `detach`.

        Raises:
            FusetuneError: see `check_tensors`; nothing has been changed then.
        """
        wanted = self.check_tensors(tensors, where)
        with torch.no_grad():
            for name, parameter in wanted.items():
                if isinstance(parameter, nn.Parameter) and self.is_base(parameter):
                    self._aside[parameter] = parameter.data
                    parameter.data = tensors[name].to(parameter.device, copy=True)
                else:
                    parameter.copy_(tensors[name])

    def check_tensors(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """All of `kept`; raises FusetuneError where tensors are missing, too many, or of another shape or dtype."""
        wanted = self.kept()
        for name in sorted(set(wanted) ^ set(tensors)):
            state = "is missing" if name in wanted else "belongs to no part of the plan"
            raise FusetuneError(f"{where}: tensor '{name}' {state}. The file is not from this adapter_config.json.")
        for name, parameter in wanted.items():
            found, expected = _shape(tensors[name]), _shape(parameter)
            check(found == expected, f"{where}: tensor '{name}' has {found}, the plan says {expected}.")
        return wanted

    def _exchange(self) -> None:
        for parameter, other in self._aside.items():
            self._aside[parameter], parameter.data = parameter.data, other

    def trainable_count(self) -> int:
        return sum(p.numel() for p in self.trainable().values())

    def base_count(self) -> int:
        """Parameters of the backbone that this model's modalities pass through."""
        return self._base_count

    def is_base(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is the backbone's own, opened to training or not."""
        return parameter in self._base

    def exchange_base(self, others: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Parameters of the backbone that others have taken the place of are no more its own; those are."""
        self._base = {others.get(parameter, parameter) for parameter in self._base}

    def _count_base(self) -> int:
        used: list[Any] = [self.backbone.tower(name) for name in self.streams]
        modules = [*used, self.backbone.trunk] if self.backbone.trunk else used
        parameters = [p for module in modules for p in module.parameters()]
        return sum({p.data_ptr() or id(p): p.numel() for p in parameters}.values())


def _shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} and dtype {str(tensor.dtype).removeprefix('torch.')}"


def _pooled(streams: Mapping[str, Tokens]) -> dict[str, Tensor]:
    return {name: tokens.pooled() for name, tokens in streams.items()}
