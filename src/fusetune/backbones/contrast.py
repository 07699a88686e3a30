"""The loss that pulls two views of the same things together."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(similarity: Tensor, own: Tensor | None = None) -> Tensor:
    """Cross-entropy in both directions, as in CLIP (Radford et al. 2021, arXiv 2103.00020).

    Args:
        similarity: (rows, columns), scaled.
        own: (rows,), the column that belongs to each row; None: that of its number.
    """
    rows = torch.arange(len(similarity), device=similarity.device)
    own = rows if own is None else own
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T[own], rows)) / 2
