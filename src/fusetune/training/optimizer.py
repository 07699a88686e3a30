"""AdamW with parameter groups by where a parameter acts."""

from typing import Any

import torch
from torch import Tensor, nn

from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.assembly import TRUNK
from fusetune.plan.placing import LANGUAGE, VISION
from fusetune.training.settings import TrainSettings

TOTAL = "total"  # in norms by site: of all
Rates = tuple[str, float, float]  # site, peak learning rate, weight decay


def make_optimizer(model: AdaptedModel, settings: TrainSettings) -> torch.optim.AdamW:
    """One group for each site, rate and decay; a group keeps its `site` and its `peak` rate."""
    trainable = model.trainable()
    on_gpu = any(parameter.is_cuda for parameter in trainable.values())
    groups: dict[Rates, list[nn.Parameter]] = {}
    for name, rates in rates_of(model, settings).items():
        groups.setdefault(rates, []).append(trainable[name])
    return torch.optim.AdamW(
        [
            {
                "params": several,
                "lr": rate_on(several[0].device, rate),
                "peak": rate,
                "weight_decay": decay,
                "site": site,
            }
            for (site, rate, decay), several in groups.items()
        ],
        fused=True,
        capturable=on_gpu,
    )


def rate_on(device: torch.device, rate: float) -> float | Tensor:
    """A rate as an optimizer takes it: on a GPU a tensor there, where a recorded step can read it."""
    return torch.tensor(rate, device=device) if device.type == "cuda" else rate


def set_rates(optimizer: torch.optim.Optimizer, share: float | Tensor) -> None:
    """Every group's rate becomes `share` of its peak."""
    for group in optimizer.param_groups:
        if isinstance(share, Tensor):
            group["lr"].copy_(share * group["peak"])
        elif isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["peak"] * share)
        else:
            group["lr"] = group["peak"] * share


def rates_of(model: AdaptedModel, settings: TrainSettings) -> dict[str, Rates]:
    """Of each trained parameter, by name: its site, its peak learning rate and its weight decay.

    The rate is the adapters' or the base's, times the factor of the site's kind. Biases, norms, gates and other vectors
    don't decay.
    """
    sites, undecayed, connectors, found = model.sites(), _undecayed(model), _own_connectors(model), {}
    for name, parameter in model.trainable().items():
        site = sites[parameter]
        rate = settings.base_learning_rate if model.is_base(parameter) else settings.learning_rate
        kind = "connector" if parameter in connectors else site_kind(model, site)
        rate *= settings.rate_factors.get(kind, 1.0)
        is_vector = sum(size > 1 for size in parameter.shape) < 2
        found[name] = (site, rate, 0.0 if is_vector or parameter in undecayed else settings.weight_decay)
    return found


def site_kind(model: AdaptedModel, site: str) -> str:
    """vision, language or other for a tower; language_model; cross_modal for what joins streams otherwise; head."""
    if site == "head":
        return "head"
    if site == TRUNK and model.backbone.origin:
        return "language_model"
    if site not in model.backbone.towers:
        return "cross_modal"
    kind = model.backbone.tower(site).kind
    return "vision" if kind in VISION else "language" if kind in LANGUAGE else "other"


def _own_connectors(model: AdaptedModel) -> set[nn.Parameter]:
    """What is trained inside the connectors that belong to models that speak."""
    own = [getattr(tower, "connector", None) for tower in model.backbone.towers.values()]
    return {parameter for connector in own if connector for parameter in connector.parameters()}


def gradient_norms(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The norm of the gradient by site, scalars on the device."""
    gradients: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        found = gradients.setdefault(group["site"], [])
        found += [parameter.grad for parameter in group["params"] if parameter.grad is not None]
    return {site: nn.utils.get_total_norm(several) for site, several in gradients.items() if several}


def clipped(optimizer: torch.optim.Optimizer, largest: float) -> dict[str, Tensor]:
    """Scale all gradients so that their common norm is at most `largest`; returns what it was, by site and in all."""
    norms = gradient_norms(optimizer)
    total = torch.stack(list(norms.values())).norm()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grads_with_norm_(parameters, largest, total)
    return {**norms, TOTAL: total}


def _undecayed(model: nn.Module) -> set[nn.Parameter]:
    """What modules name in their attribute `undecayed`: parameters, or collections of them."""
    found: set[nn.Parameter] = set()
    for module in model.modules():
        for name in getattr(module, "undecayed", ()):
            part: Any = getattr(module, name)
            found |= {part} if isinstance(part, nn.Parameter) else set(part.parameters())
    return found
