"""When the tokens of a stream are, in shares of its length."""

import torch
from torch import Tensor

from fusetune.tokens import Lattice, Tokens

WHOLE = ("text", "vector")  # kinds of modality without places or times of their own


def token_times(mask: Tensor, lattice: Lattice | None) -> tuple[Tensor, Tensor, Tensor]:
    """The middle of each token's time, (batch, tokens); how long one time is, (batch, 1); which tokens have one.

    Args:
        mask: (batch, tokens) of the stream.
        lattice: of one item's tokens, where items (frames, clips) follow one another; None: each token is a time.
    """
    lattice = lattice or Lattice()
    inside = torch.arange(mask.shape[1], device=mask.device) % lattice.tokens - lattice.lead
    item = torch.arange(mask.shape[1], device=mask.device) // lattice.tokens
    time = item * lattice.times + inside.clamp(min=0) // (lattice.rows * lattice.columns)
    times = (mask.sum(1, keepdim=True) / lattice.tokens).clamp(min=1) * lattice.times
    return (time + 0.5) / times, 1 / times, mask & (inside >= 0)


def in_segments(tokens: Tokens, lattice: Lattice | None, segments: int) -> Tensor:
    """(batch, segments, width): the mean of a stream's tokens over each of so many equal stretches of its length, each
    token weighted by how much of its time lies in it; zeros where there is nothing."""
    middle, length, real = token_times(tokens.mask, lattice)
    begin, end = (middle - length / 2)[:, None], (middle + length / 2)[:, None]  # (batch, 1, tokens)
    edges = torch.arange(segments + 1, device=middle.device) / segments
    overlap = torch.minimum(end, edges[1:, None]) - torch.maximum(begin, edges[:-1, None])
    weights = overlap.clamp(min=0) * real[:, None]
    total = weights.sum(-1, keepdim=True)
    return ((weights / total.clamp(min=1e-9)).to(tokens.values.dtype)) @ tokens.values
