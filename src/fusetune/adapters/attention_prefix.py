"""Trained keys and values beside those of an attention, whatever model the attention belongs to.

While an attention module runs, its call of `scaled_dot_product_attention` is met: the prefix's keys and values stand
in front of its own, and every query may attend to them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fusetune.adapters.parts import Instead
from fusetune.errors import FusetuneError

# of an attention call: (keys, values), each (prefix, width), and which samples may see them, (batch, prefix) or None
Prefix = tuple[Tensor, Tensor, Tensor | None]


class _Prefixed(TorchFunctionMode):
    def __init__(self, prefix: Prefix, gate: Tensor | None) -> None:
        super().__init__()
        self.prefix, self.gate, self.met = prefix, gate, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.met = True
        return attend(func, self.prefix, self.gate, *args, **(kwargs or {}))


def attend(
    attention: Callable[..., Tensor],
    prefix: Prefix,
    gate: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attention of `query` (batch, heads, tokens, d) to the prefix and to `key`, `value`.

    Args:
        gate: (batch, tokens, 1); the result is (1 - gate) times the attention without the prefix plus gate times the
            attention with it. None: with it.
    """
    batch, heads, length, width = key.shape
    tokens = query.shape[2]
    keys, values = (_by_head(states.to(key.dtype), heads, width).expand(batch, -1, -1, -1) for states in prefix[:2])
    added = keys.shape[2]
    seen = torch.ones(batch, 1, tokens, added, dtype=torch.bool, device=key.device)
    if prefix[2] is not None:
        seen = seen & prefix[2][:, None, None, :]
    if attn_mask is None:
        own = torch.ones(tokens, length, dtype=torch.bool, device=key.device)
        own = (own.tril() if is_causal else own).expand(batch, 1, -1, -1)
    else:
        own = attn_mask.expand(batch, -1, tokens, length)
    if own.dtype != torch.bool:
        lowest = torch.finfo(own.dtype).min
        seen = torch.zeros(seen.shape, dtype=own.dtype, device=own.device).masked_fill(~seen, lowest)
    mask = torch.cat([seen.expand(-1, own.shape[1], -1, -1), own], -1)
    with_prefix = attention(
        query, torch.cat([keys, key], 2), torch.cat([values, value], 2), mask, dropout_p, False, **options
    )
    if gate is None:
        return with_prefix
    plain = attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    return plain + gate[:, None] * (with_prefix - plain)


def _by_head(states: Tensor, heads: int, width: int) -> Tensor:
    """(prefix, all widths) as (heads, prefix, width); where several heads of queries share keys, each of them once."""
    apart = states.reshape(len(states), -1, width).transpose(0, 1)
    return apart.repeat_interleave(heads // len(apart), 0)


class Prefixing(Instead):
    """Wraps the forward of one attention module; `remove()` unwraps it.

    Args:
        prefix: called before each forward with the module's positional arguments: the prefix and the gate, or None
            where the attention is to run as it is.
    """

    def __init__(
        self, module: nn.Module, prefix: Callable[[tuple[Any, ...]], tuple[Prefix, Tensor | None] | None]
    ) -> None:
        forward = module.forward

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found = prefix(args or tuple(kwargs.values()))
            if found is None:
                return forward(*args, **kwargs)
            with _Prefixed(*found) as mode:
                out = forward(*args, **kwargs)
            if not mode.met:
                raise FusetuneError(
                    f"prefix: {type(module).__name__} computes its attention without scaled_dot_product_attention. "
                    "Load the model with attn_implementation: sdpa, or choose a method without a prefix."
                )
            return out

        super().__init__(module, wrapped)
