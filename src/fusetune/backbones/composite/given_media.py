"""Pictures and sounds as families take them: their processors' tensors, and what is told beside those."""

import math
from typing import Any

import torch
from torch import Tensor


def as_patches(processor: Any, pictures: Any) -> Tensor:
    found: Tensor = processor(images=pictures, return_tensors="pt")["pixel_values"]
    return found.view(len(pictures), -1, found.shape[-1])


def patched(config: Any) -> tuple[int, int]:
    """Qwen's: the patches of a picture of its side, and the numbers of one."""
    vision = config.vision_config
    patch = getattr(vision, "in_channels", None) or vision.in_chans
    return (14 * vision.spatial_merge_size) ** 2, patch * vision.temporal_patch_size * vision.patch_size**2


def one_each(processor: Any, pictures: Any) -> Tensor:
    found: Tensor = processor(images=[[p] for p in pictures], do_image_splitting=False, return_tensors="pt")[
        "pixel_values"
    ]
    return found


def before_tiles(shape: Any, side: int | None, present: Tensor) -> dict[str, Tensor]:
    """LLaVA-NeXT's: height and width before a picture was cut into tiles."""
    return {"image_sizes": torch.tensor([[side, side]]).expand(len(present), -1)}


def in_tiles(processor: Any, pictures: Any) -> Tensor:
    """Mllama's: (pictures, 1, most tiles, 3, height, width), what is no tile of a picture zeros."""
    found: Tensor = processor(images=[[p] for p in pictures], return_tensors="pt")["pixel_values"]
    return found


def of_tiles(shape: Any, side: int | None, present: Tensor) -> dict[str, Tensor]:
    """Mllama's: into how many tiles each way a picture was cut, as its number in the list of what there is."""
    most, across = shape[1], _across(shape, side)
    listed = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if w * h <= most]
    ids = torch.full((len(present), 1), 1 + listed.index((across, across)), device=present.device)
    return {"aspect_ratio_ids": ids, "aspect_ratio_mask": _tiles(shape, side, present)[:, None].expand(-1, 1, -1)}


def by_tiles(behind: Tensor, shape: Any, side: int | None) -> dict[str, Tensor]:
    """Mllama's: the tiles that each token reads."""
    tiles = _tiles(shape, side, behind)
    return {"cross_attention_mask": behind[:, :, None, None].long() * tiles[:, None, None]}


def _tiles(shape: Any, side: int | None, rows: Tensor) -> Tensor:
    """(rows, most tiles): those that a picture has."""
    there = torch.arange(shape[1], device=rows.device) < _across(shape, side) ** 2
    return there.long().expand(len(rows), -1)


def _across(shape: Any, side: int | None) -> int:
    """Tiles of a square picture, in one direction."""
    return min(math.isqrt(shape[1]), -(-(side or 1) // shape[-1]))


def frames_there(frames: Tensor, most: int) -> dict[str, Tensor]:
    """Qwen2-Audio's: which frames of each sound are there."""
    return {"feature_attention_mask": (torch.arange(most, device=frames.device) < frames[:, None]).long()}


def squares(shape: Any, side: int | None, present: Tensor) -> dict[str, Tensor]:
    """Qwen's: frames, rows and columns of patches, for the rows that have a picture."""
    rows, count = math.isqrt(shape[0]), len(present) if present.is_meta else int(present.sum())
    grid = torch.tensor([[1, rows, rows]]).expand(count, -1)
    return {"image_grid_thw": grid if present.is_meta else grid.to(present.device)}
