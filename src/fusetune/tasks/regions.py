"""Regions: spans of time (start, end) and boxes in a picture (left, top, right, bottom), and how far two overlap.

A region of d directions is 2d numbers: where it begins in each direction, then where it ends.
"""

import torch
from torch import Tensor


def sizes(regions: Tensor) -> Tensor:
    """(..., 2d) to (..., d): how long a region is in each direction, from 0."""
    low, high = regions.chunk(2, -1)
    return (high - low).clamp(min=0)


def centres(regions: Tensor) -> Tensor:
    """(..., 2d) to (..., d)."""
    low, high = regions.chunk(2, -1)
    return (low + high) / 2


def iou(some: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, (...), of regions that broadcast, (..., 2d); 0 where both are empty."""
    return _overlap(some, others)[0]


def generalised_iou(some: Tensor, others: Tensor) -> Tensor:
    """GIoU, (...), from -1 to 1 (Rezatofighi et al., CVPR 2019): what of the smallest region around both is in neither
    is taken off, so that regions that don't meet have a gradient."""
    overlap, union = _overlap(some, others)
    (low, high), (other_low, other_high) = some.chunk(2, -1), others.chunk(2, -1)
    around = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).clamp(min=0).prod(-1)
    return overlap - (around - union) / around.clamp(min=torch.finfo(around.dtype).eps)


def _overlap(some: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union."""
    (low, high), (other_low, other_high) = some.chunk(2, -1), others.chunk(2, -1)
    both = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0).prod(-1)
    union = sizes(some).prod(-1) + sizes(others).prod(-1) - both
    return both / union.clamp(min=torch.finfo(union.dtype).eps), union


def brought(regions: Tensor, views: Tensor) -> Tensor:
    """Regions (rows, ..., 2d) in shares of what is seen: 0 where a view (rows, 2d) begins, 1 where it ends.

    Nothing is clipped: what lies outside of the view is below 0 or above 1, and every IoU stays as it was.
    """
    low, span = _frame(regions, views)
    return (regions - low) / span


def brought_back(regions: Tensor, views: Tensor) -> Tensor:
    """Inverse of `brought`."""
    low, span = _frame(regions, views)
    return regions * span + low


def _frame(regions: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
    shape = (len(views), *[1] * (regions.ndim - 2), -1)
    low, high = views.to(regions).chunk(2, -1)
    return torch.cat([low, low], -1).view(shape), torch.cat([high - low] * 2, -1).view(shape)
