"""Fitting small towers of our own without labels: the modalities of one sample are to find each other in a batch.

For every pair of modalities the symmetric InfoNCE loss of CLIP (Radford et al. 2021), on noisy inputs, as contrastive
multi-view coding does it for more than two views (Tian et al. 2020).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusetune.backbones.aligned_towers import TOWERS, AlignedTower
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.contrast import contrastive_loss
from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.schedule import warmup_cosine

StepProgress = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class AlignSettings:
    """
    Attributes:
        steps: of training; 0 leaves the MLPs random.
        batch_size: samples, each against all others.
        temperature: of the softmax over the batch.
        noise: standard deviation, of the standardised inputs.
        dropout: of inputs and hidden units.
        learning_rate, weight_decay: of AdamW.
        projection: width of the space in which modalities are compared; it is thrown away afterwards.
        seed: of weights, order and noise.
        keep: ``better``: a tower for which a linear probe finds less behind its MLP than in the plain numbers goes
            without it; ``always``: the MLP stays.
        unlabelled: a reader and its settings: the rows to fit to, which need no labels; None: the training rows.
    """

    steps: int = 400
    batch_size: int = 256
    temperature: float = 0.5
    noise: float = 0.3
    dropout: float = 0.3
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    projection: int = 64
    seed: int = 0
    keep: str = "better"
    unlabelled: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check(self.steps >= 0 and self.batch_size > 1, "align: expected steps of 0 or more and a batch of at least 2.")
        check(self.keep in ("better", "always"), f"align.keep: expected better or always, found '{self.keep}'.")
        check(self.temperature > 0, f"align.temperature: expected a positive number, found {self.temperature}.")


def align(
    samples: Mapping[str, Sequence[Any]], kinds: Mapping[str, str], settings: AlignSettings, progress: StepProgress
) -> Backbone:
    """A backbone of small towers, one a modality.

    Args:
        samples: decoded, by modality; None where one is missing. Of the training rows.

    Raises:
        FusetuneError: a kind that no such tower takes.
    """
    torch.manual_seed(settings.seed)
    towers: dict[str, AlignedTower] = {}
    for name, kind in kinds.items():
        if kind not in TOWERS:
            raise FusetuneError(
                f"backbone.towers.{name}: there is no small tower for {kind}; expected one of {', '.join(TOWERS)}. "
                f"Name an encoder that has been trained: backbone.towers: {{{name}: {{source: ...}}}}."
            )
        towers[name] = TOWERS[kind].fitted(samples[name], f"data.modalities.{name}")
    with torch.no_grad():
        inputs = {name: tower.advance(tower.prepare(samples[name]), 0, 1) for name, tower in towers.items()}
    values = {name: tokens.values[:, 0] for name, tokens in inputs.items()}  # (samples, inputs), standardised
    present = {name: tokens.mask[:, 0] for name, tokens in inputs.items()}
    heads = {name: nn.Linear(tower.width, settings.projection) for name, tower in towers.items()}
    modules = [*(tower.layers[1] for tower in towers.values()), *heads.values()]
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    count = len(next(iter(values.values())))
    pairs = list(combinations(towers, 2))
    for step in range(settings.steps if pairs else 0):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * warmup_cosine(step, settings.steps, 0.05)
        rows = torch.randperm(count)[: settings.batch_size]
        found = {}
        for name, tower in towers.items():
            noisy = values[name][rows] + settings.noise * torch.randn(len(rows), values[name].shape[1])
            hidden = _dropped(tower.layers[1], F.dropout(noisy, settings.dropout), settings.dropout)
            found[name] = F.normalize(heads[name](hidden), dim=-1)
        losses = [
            _contrast(found[a], found[b], present[a][rows] & present[b][rows], settings.temperature) for a, b in pairs
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress("alignment", step + 1, settings.steps, {"loss": loss.item()})
    return Backbone(towers)


def _dropped(mlp: Any, values: Tensor, share: float) -> Tensor:
    first, activation, second, norm = mlp
    return norm(second(F.dropout(activation(first(values)), share)))


def _contrast(one: Tensor, two: Tensor, both: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions over the samples that have both; 0 where fewer than two do."""
    one, two = one[both], two[both]
    if len(one) < 2:
        return one.sum() * 0.0
    return contrastive_loss(one @ two.T / temperature)
