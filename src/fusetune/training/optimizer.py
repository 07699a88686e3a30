"""AdamW with parameter groups by where a parameter acts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.placing import LANGUAGE, VISION
from fusetune.plan import AdaptedModel
from fusetune.training.settings import TrainSettings


def make_optimizer(model: AdaptedModel, settings: TrainSettings) -> torch.optim.AdamW:
    """One group for each site, rate and decay; a group keeps its `site` and its `peak` rate.

    The rate is the adapters' or the base's, times the factor of the site's kind. Biases, norms, gates and other vectors
    don't decay.
    """
    sites, undecayed = model.sites(), _undecayed(model)
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for parameter in model.trainable().values():
        site = sites[parameter]
        rate = settings.base_learning_rate if model.is_base(parameter) else settings.learning_rate
        rate *= settings.rate_factors.get(site_kind(model, site), 1.0)
        is_vector = sum(size > 1 for size in parameter.shape) < 2
        decay = 0.0 if is_vector or parameter in undecayed else settings.weight_decay
        groups.setdefault((site, rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": several, "lr": rate, "peak": rate, "weight_decay": decay, "site": site}
            for (site, rate, decay), several in groups.items()
        ]
    )


def site_kind(model: AdaptedModel, site: str) -> str:
    """vision, language or other for a tower; cross_modal for what joins streams; head."""
    if site == "head":
        return "head"
    if site not in model.backbone.towers:
        return "cross_modal"
    kind = model.backbone.tower(site).kind
    return "vision" if kind in VISION else "language" if kind in LANGUAGE else "other"


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The norm of the gradient by site, scalars on the device."""
    gradients: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        found = gradients.setdefault(group["site"], [])
        found += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
    return {site: nn.utils.get_total_norm(several) for site, several in gradients.items() if several}


def clip(optimizer: torch.optim.Optimizer, norms: Mapping[str, Tensor], largest: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `largest`; returns what it was."""
    total = torch.stack(list(norms.values())).norm()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grads_with_norm_(parameters, largest, total)
    return total


def _undecayed(model: nn.Module) -> set[nn.Parameter]:
    """What modules name in their attribute `undecayed`: parameters, or collections of them."""
    found: set[nn.Parameter] = set()
    for module in model.modules():
        for name in getattr(module, "undecayed", ()):
            part: Any = getattr(module, name)
            found |= {part} if isinstance(part, nn.Parameter) else set(part.parameters())
    return found
