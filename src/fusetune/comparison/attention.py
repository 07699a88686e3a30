"""What looks at what in a trained adapter: the attention that it has brought, and the products that it fuses by."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusetune.backbones.backbone import Frontier
from fusetune.backbones.blocks import Attention
from fusetune.comparison.measures import Streams
from fusetune.plan.adapted import AdaptedModel
from fusetune.tokens import Tokens

LOOKED_AT = 64  # samples: the products of all pairs of tokens are many


@torch.no_grad()
def attention_maps(model: AdaptedModel, states: Streams, start: Frontier) -> dict[str, list[list[float]]]:
    """By name, mean weights over samples and heads: a row for each token that reads, a column for each that is read.

    A row counts the samples in which its token is real; {} for methods without an attention of their own.
    """
    seen: list[tuple[str, Tensor]] = []

    def hook(name: str, module: Attention, inputs: Sequence[Any]) -> None:
        seen.append((name, _weights(module, *inputs)))

    _run_watched(model, states, start, lambda module: isinstance(module, Attention), hook)
    found: dict[str, list[list[float]]] = {}
    for name, weights in seen:
        path = name.rpartition(".")[0]
        calls = [key for key in found if key.startswith(f"{path}: ")]
        told = getattr(model.get_submodule(path), "reads", lambda: ())()
        label = told[len(calls)] if len(calls) < len(told) else f"call {len(calls) + 1}"
        found[f"{path}: {label}"] = weights.tolist()
    return found


@torch.no_grad()
def interaction_maps(model: AdaptedModel, states: Streams, start: Frontier) -> dict[str, list[list[float]]]:
    """By name, how strongly tokens of two modalities act together (rows, columns), over the first samples.

    {} for methods that don't fuse by products of tokens.
    """
    found: dict[str, list[list[float]]] = {}

    def hook(place: str, adapter: Any, inputs: Sequence[Any]) -> None:
        for (one, other), strength in adapter.interactions(inputs[0]).items():
            found[f"{place}: {one} with {other}"] = strength.tolist()

    few = {n: Tokens(tokens.values[:LOOKED_AT], tokens.mask[:LOOKED_AT]) for n, tokens in states.items()}
    _run_watched(model, few, start, lambda module: hasattr(module, "interactions"), hook)
    return found


def _run_watched(
    model: AdaptedModel,
    states: Streams,
    start: Frontier,
    wanted: Callable[[nn.Module], bool],
    hook: Callable[[str, Any, Sequence[Any]], None],
) -> None:
    """A forward pass in which `hook` gets name, module and inputs of each call of the adapters' wanted modules."""
    own = [(n, m) for n, m in model.named_modules() if wanted(m) and not n.startswith("backbone.")]
    handles = [
        module.register_forward_pre_hook(lambda m, inputs, name=name: hook(name, m, inputs)) for name, module in own
    ]
    try:
        model.eval()(states, start)
    finally:
        for handle in handles:
            handle.remove()


def _weights(
    module: Attention, hidden_states: Tensor, context: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """(tokens that read, tokens that are read), means over samples in which the read stream is there, and heads."""
    query, key = (
        layer(states).unflatten(-1, (module.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, width / heads)
        for layer, states in ((module.query, hidden_states), (module.key, context))
    )
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias[None, :, None, :]
    weights = logits.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)[mask.any(1)].mean(1)
    return weights.mean(0).cpu()
