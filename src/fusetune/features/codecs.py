"""How values are kept on disk: as they are, in a shorter float, or as int8 with a scale per token."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fusetune.errors import FusetuneError

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
CODECS = (*FLOATS, "int8")
LEVELS = 127


def bytes_per_value(dtype: str) -> int:
    """Of a codec's values, without its scales."""
    return 1 if dtype == "int8" else FLOATS[dtype].itemsize


def encode(values: Tensor, dtype: str) -> dict[str, Tensor]:
    """Values (tokens, width) as the tensors of a shard; `as prepared` changes nothing.

    int8: each channel is standardised over the shard, then each token is scaled to its largest value. Transformers
    have a few channels that are a hundred times larger than the others, on which a scale per token alone would spend
    all its levels.

    Raises:
        FusetuneError: a value is not finite, or the dtype can't hold it.
    """
    if not values.is_floating_point():
        return {"values": values}
    if dtype == "as prepared":
        _check_finite(values, str(values.dtype)[6:])
        return {"values": values}
    if dtype == "int8":
        _check_finite(values, dtype)
        values = values.float()
        center = values.mean(0) if len(values) else values.new_zeros(values.shape[1])
        spread = values.std(0, correction=0).clamp(min=1e-8) if len(values) else torch.ones_like(center)
        standard = (values - center) / spread
        scales = standard.abs().amax(1, keepdim=True).clamp(min=1e-8) / LEVELS  # (tokens, 1)
        levels = (standard / scales).round().to(torch.int8)
        return {"values": levels, "scales": scales, "channels": torch.stack([center, spread])}
    short = values.to(FLOATS[dtype])
    _check_finite(short, dtype)
    return {"values": short}


def decode(tensors: Mapping[str, Tensor]) -> Tensor:
    """The values of `encode`'s tensors, or of some of their tokens: int8 comes back as float32, others as stored."""
    if "scales" not in tensors:
        return tensors["values"]
    center, spread = tensors["channels"]
    return tensors["values"].float() * tensors["scales"] * spread + center


def _check_finite(values: Tensor, dtype: str) -> None:
    if not torch.isfinite(values).all():
        raise FusetuneError(
            f"feature cache: activations beyond what {dtype} can hold (or NaN). Set cache.dtype to bfloat16 or float32."
        )
