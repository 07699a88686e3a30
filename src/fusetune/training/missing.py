"""Samples that lack a modality: hidden at random in training, and on purpose in a test."""

from collections.abc import Mapping, Sequence

import torch

from fusetune.tokens import Tokens


def with_dropped_modalities(
    states: Mapping[str, Tokens], share: float, generator: torch.Generator | None = None, always: Sequence[str] = ()
) -> dict[str, Tokens]:
    """Hide each modality of each sample with probability `share`; a sample whose all would go keeps them.

    Args:
        always: streams that are no modality of a sample and stay.
    """
    untouched = {name: tokens for name, tokens in states.items() if name in always}
    states = {name: tokens for name, tokens in states.items() if name not in always}
    present = torch.stack([tokens.mask.any(1) for tokens in states.values()])  # (modalities, batch)
    kept = present & (torch.rand(present.shape, generator=generator).to(present.device) >= share)
    kept = torch.where(kept.any(0), kept, present)
    hidden = {
        name: Tokens(tokens.values, tokens.mask & kept[i].unsqueeze(1))
        for i, (name, tokens) in enumerate(states.items())
    }
    return hidden | untouched
