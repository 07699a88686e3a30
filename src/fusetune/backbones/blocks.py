"""Pre-norm transformer parts, as our own towers and the trunk use them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of `hidden_states` to a `context`; q, k and v are modules of their own, to be adapted."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, context: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """
        Args:
            hidden_states: (batch, tokens, width).
            context: (batch, context tokens, width).
            mask: (batch, context tokens), True = may be attended to; a sample with none gets zeros.
            bias: (heads, context tokens), added to the logits.
        """
        present = mask.any(1)
        query, key, value = (
            layer(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, width / heads)
            for layer, states in ((self.query, hidden_states), (self.key, context), (self.value, context))
        )
        allowed = (mask | ~present[:, None])[:, None, None, :]  # an empty row would make softmax NaN
        if bias is None:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        else:  # written out: the fused kernel gives a trained bias no gradient under vmap
            logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias[:, None, :]
            mixed = logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ value
        mixed = self.output(self.read(mixed.transpose(1, 2).flatten(2), hidden_states))
        return mixed * present[:, None, None]

    def read(self, mixed: Tensor, hidden_states: Tensor) -> Tensor:
        """What is kept of that which the heads bring, (batch, tokens, width)."""
        del hidden_states
        return mixed


class MLP(nn.Sequential):
    """The feed-forward half of a block; `expansion` times wider inside."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))


def attention_roles(attention: str, prefix: str = "") -> dict[str, str]:
    """Roles of an `Attention` in a block, by its path there; `prefix` tells two attentions of a block apart."""
    output = f"{prefix}output" if prefix else "attention_output"
    parts = {f"{prefix}{name}": f"{attention}.{name}" for name in ("query", "key", "value")}
    return {f"{prefix}attention": attention, **parts, output: f"{attention}.output"}


ENCODER_ROLES = attention_roles("attention") | {"mlp_input": "mlp.0", "mlp_output": "mlp.2"}


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each behind a norm and beside a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        normed = self.attention_norm(hidden_states)
        hidden_states = hidden_states + self.attention(normed, normed, mask)
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))
