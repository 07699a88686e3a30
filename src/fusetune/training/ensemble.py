"""Several sets of values of one model's trained parameters as one batched model.

The members differ in their seeds and rates, not in shapes, so a matrix product of one is a batched product of all: one
pass of the interpreter, one gather and one optimizer step instead of K. What is frozen is shared and never copied.
Parameters with the same rates lie in one tensor (members, values), the leaf that AdamW sees; `torch.func` puts views of
it into the model, under `vmap` over the members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fusetune.adapters.adapter import Adapter
from fusetune.adapters.dropout import random_streams
from fusetune.backbones.backbone import Frontier
from fusetune.device import training_dtype
from fusetune.plan.adapted import AdaptedModel
from fusetune.tokens import Tokens
from fusetune.training.loop import assign
from fusetune.training.losses import batch_losses
from fusetune.training.optimizer import TOTAL, rate_on, rates_of, set_rates
from fusetune.training.settings import TrainSettings

Values = Mapping[str, Tensor]
SAME = ("epochs", "batch_size", "clip", "warmup", "patience", "modality_dropout", "shuffle", "device", "autocast")
TOLERANCE = 1e-4  # of outputs and gradients against those of one member alone, in units of their largest value
Streams = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Leaf:
    """Values of several parameters with the same rates, of the members that have these rates.

    Attributes:
        values: (members, values).
        names: of the parameters, in order.
        members: numbers in the ensemble.
    """

    values: Tensor
    names: tuple[str, ...]
    members: tuple[int, ...]
    site: str
    rate: float
    decay: float

    @cached_property
    def rows(self) -> Tensor:
        """The members' numbers, beside the values."""
        return torch.tensor(self.members, device=self.values.device)


class Ensemble:
    """
    Args:
        model: gives everything but the trained values; it is left as it is.
        values: of each member, by parameter name.
        settings: of each member; they agree in `SAME`.
    """

    def __init__(self, model: AdaptedModel, values: Sequence[Values], settings: Sequence[TrainSettings]) -> None:
        self.model, self.settings = model, list(settings)
        self.shapes = {name: parameter.shape for name, parameter in model.trainable().items()}
        self._take(_leaves(model, values, settings))

    def __len__(self) -> int:
        return len(self.settings)

    def losses(self, states: Mapping[str, Tokens], start: Frontier, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of each member's own batch: the task's loss, and the loss with penalties, (members,) both.

        Args:
            states: values (members, batch, tokens, width), masks likewise.
            targets: (members, batch, ...).
        """

        def one(values: Values, streams: Streams, wanted: Tensor) -> tuple[Tensor, Tensor]:
            outputs = functional_call(self.model, dict(values), (_tokens(streams), start))
            loss = self.model.task.loss(outputs.float(), wanted)
            penalty = self.model.penalty()
            return loss, loss if penalty is None else loss + penalty

        return vmap(one)(self.values(), _plain(states), targets)

    def outputs(self, states: Mapping[str, Tokens], start: Frontier) -> Tensor:
        """Of every member on the same batch, (members, batch, ...)."""

        def one(values: Values, streams: Streams) -> Tensor:
            return functional_call(self.model, dict(values), (_tokens(streams), start)).float()

        return vmap(one, in_dims=(0, None))(self.values(), _plain(states))

    def values(self) -> dict[str, Tensor]:
        """By parameter name, (members, *shape), views of the leaves."""
        together: dict[tuple[str, ...], list[_Leaf]] = {}
        for leaf in self.leaves:
            together.setdefault(leaf.names, []).append(leaf)
        found: dict[str, Tensor] = {}
        for names, leaves in together.items():
            stacked = leaves[0].values
            if len(leaves) > 1:
                stacked = torch.cat([leaf.values for leaf in leaves])[
                    torch.cat([leaf.rows for leaf in leaves]).argsort()
                ]
            parts = stacked.split([self.shapes[name].numel() for name in names], 1)
            found |= {
                name: part.unflatten(1, self.shapes[name] or (1,)) for name, part in zip(names, parts, strict=True)
            }
        return {name: found[name].reshape(len(self), *self.shapes[name]) for name in self.shapes}

    @torch.no_grad()
    def member(self, number: int) -> dict[str, Tensor]:
        """A copy of one member's values."""
        return {name: values[number].clone() for name, values in self.values().items()}

    def _take(self, leaves: list["_Leaf"]) -> None:
        self.leaves, self.optimizer = leaves, _adamw(leaves)

    def step(self, share: float | Tensor, clip: float) -> dict[str, Tensor]:
        """One clipped step at `share` of the peak rates.

        Returns:
            The gradient's norm before clipping, by site and in all (`TOTAL`), (members,) each.
        """
        squares: dict[str, Tensor] = {}
        for leaf in self.leaves:
            norms = leaf.values.grad.square().sum(1)  # type: ignore[union-attr]
            total = squares.setdefault(leaf.site, norms.new_zeros(len(self)))
            total.index_add_(0, leaf.rows, norms)
        everything = torch.stack(list(squares.values())).sum(0).sqrt()
        scale = (clip / (everything + 1e-6)).clamp(max=1.0)
        for leaf in self.leaves:
            leaf.values.grad.mul_(scale.index_select(0, leaf.rows)[:, None])  # type: ignore[union-attr]
        set_rates(self.optimizer, share)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {site: total.sqrt() for site, total in squares.items()} | {TOTAL: everything}

    def keep(self, members: Sequence[int]) -> None:
        """Go on with some of the members alone; they are numbered anew, in this order of their numbers."""
        number = {member: i for i, member in enumerate(sorted(members))}
        kept, states = [], []
        for leaf in self.leaves:
            rows = [i for i, member in enumerate(leaf.members) if member in number]
            if rows:
                values = leaf.values.detach()[rows].clone().requires_grad_()
                kept.append(replace(leaf, values=values, members=tuple(number[leaf.members[i]] for i in rows)))
                state = self.optimizer.state[leaf.values]
                states.append({key: value[rows] if value.ndim else value for key, value in state.items()})
        self.settings = [self.settings[member] for member in sorted(members)]
        self._take(kept)
        for leaf, state in zip(kept, states, strict=True):
            if state:
                self.optimizer.state[leaf.values] = state

    def tensors(self) -> dict[str, Tensor]:
        """Values and the optimizer's state, for a checkpoint; `restore` takes them back."""
        found = {}
        for i, leaf in enumerate(self.leaves):
            found[f"leaf.{i}.values"] = leaf.values
            found |= {f"leaf.{i}.{key}": value for key, value in self.optimizer.state[leaf.values].items()}
        return found

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`, for the same members."""
        for i, leaf in enumerate(self.leaves):
            prefix = f"leaf.{i}."
            held = {
                name[len(prefix) :]: t.to(leaf.values.device) for name, t in tensors.items() if name.startswith(prefix)
            }
            leaf.values.copy_(held.pop("values"))
            if held:
                self.optimizer.state[leaf.values] = held


def refusal(
    model: AdaptedModel,
    values: Sequence[Values],
    settings: Sequence[TrainSettings],
    states: Mapping[str, Tokens],
    start: Frontier,
    targets: Tensor,
) -> str | None:
    """Why these members can't be trained as one, in words; None if they can: loss and gradients were compared.

    Args:
        states, targets: a small batch, on which each member is run alone and as part of an ensemble; the model holds
            the last one's values afterwards.
    """
    for name in SAME:
        if len({str(getattr(of_one, name)) for of_one in settings}) > 1:
            return f"their train.{name} differs"
    if any(of_one.accumulate > 1 or of_one.length_buckets for of_one in settings):
        return "batches of several steps or of one length are cut for each member anew"
    if training_dtype(targets.device, settings[0].autocast) == torch.float16:
        return "float16 needs a scale of the loss for each of them"
    if any(of_one.gradient_checkpointing for of_one in settings):
        return "blocks that run again in the backward pass run for one at a time"
    if model.task.speaks:
        return "the logits of a vocabulary are not kept for several at once"
    if model.stages() != [1] or model.apart:
        return "the plan changes while it is trained, or keeps away from other adapters"
    for adapter in model.adapters():
        if any(getattr(type(adapter), name) is not getattr(Adapter, name) for name in ("on_start", "on_step")):
            return f"{type(adapter).__name__} changes itself from step to step"
    seeds, device = list(range(len(values))), targets.device
    ensemble = Ensemble(model, values, settings)
    batch = {n: Tokens(_times(t.values, len(values)), _times(t.mask, len(values))) for n, t in states.items()}
    model.train()
    try:
        with random_streams([torch.Generator(device).manual_seed(seed) for seed in seeds]):
            losses, whole = ensemble.losses(batch, start, _times(targets, len(values)))
        whole.sum().backward()
    except (RuntimeError, ValueError, TypeError) as error:  # what `vmap` can't do it says so
        return str(error).strip().splitlines()[0]
    together = {name: gradient for leaf in ensemble.leaves for name, gradient in _gradients(leaf, ensemble.shapes)}
    for seed, of_one in zip(seeds, values, strict=True):
        torch.manual_seed(seed)
        assign(model, of_one)
        model.zero_grad(set_to_none=True)
        loss, alone = batch_losses(model, states, start, targets)
        alone.backward()
        if not _near(losses[seed], loss.detach()):
            return f"its loss as one of several is {losses[seed].item():.6f}, alone {loss.item():.6f}"
        for name, parameter in model.trainable().items():
            if parameter.grad is None:
                return f"'{name}' takes no part in the loss"
            if not _near(together[name, seed], parameter.grad):
                return f"the gradient of '{name}' is another one as one of several than alone"
    model.zero_grad(set_to_none=True)
    return None


def _leaves(model: AdaptedModel, values: Sequence[Values], settings: Sequence[TrainSettings]) -> list[_Leaf]:
    rates = [rates_of(model, of_one) for of_one in settings]
    alike: dict[Any, list[str]] = {}  # parameters whose rates agree in every member
    for name in model.trainable():
        alike.setdefault(tuple(of_one[name] for of_one in rates), []).append(name)
    leaves = []
    for of_members, names in alike.items():
        for site, rate, decay in dict.fromkeys(of_members):
            members = tuple(i for i, found in enumerate(of_members) if found == (site, rate, decay))
            rows = [torch.cat([values[i][name].detach().flatten() for name in names]) for i in members]
            leaves.append(_Leaf(torch.stack(rows).requires_grad_(), tuple(names), members, site, rate, decay))
    return leaves


def _adamw(leaves: Sequence[_Leaf]) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = [
        {
            "params": [leaf.values],
            "lr": rate_on(leaf.values.device, leaf.rate),
            "peak": leaf.rate,
            "weight_decay": leaf.decay,
        }
        for leaf in leaves
    ]
    return torch.optim.AdamW(groups, fused=True, capturable=any(leaf.values.is_cuda for leaf in leaves))


def _gradients(leaf: _Leaf, shapes: Mapping[str, torch.Size]) -> list[tuple[tuple[str, int], Tensor]]:
    """(name, member) and its gradient, for all that a leaf holds."""
    parts = leaf.values.grad.split([shapes[name].numel() for name in leaf.names], 1)  # type: ignore[union-attr]
    return [
        ((name, member), part[row].reshape(shapes[name]))
        for name, part in zip(leaf.names, parts, strict=True)
        for row, member in enumerate(leaf.members)
    ]


def _near(found: Tensor, expected: Tensor) -> bool:
    size = max(float(expected.abs().max()), 1e-3)
    return bool((found - expected).abs().max() <= TOLERANCE * size)


def _times(tensor: Tensor, count: int) -> Tensor:
    return tensor.unsqueeze(0).expand(count, *tensor.shape)


def _plain(states: Mapping[str, Tokens]) -> Streams:
    return {name: (tokens.values, tokens.mask) for name, tokens in states.items()}


def _tokens(streams: Streams) -> dict[str, Tokens]:
    return {name: Tokens(values, mask) for name, (values, mask) in streams.items()}
