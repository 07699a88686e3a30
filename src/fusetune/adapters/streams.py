"""What adapters of whole streams share."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fusetune.adapters.adapter import Stream
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens


def target_of(name: str | None, streams: Mapping[str, Stream], adapter: str) -> str:
    """The stream called `name`, or the first one; raises FusetuneError that lists them."""
    if name is not None and name not in streams:
        raise FusetuneError(f"{adapter}.target: no stream '{name}'. Known: {', '.join(streams)}.")
    return name or next(iter(streams))


def pooled(streams: Mapping[str, Tokens], widths: Mapping[str, int]) -> tuple[dict[str, Tensor], Tensor]:
    """Mean of the real tokens by stream, (batch, width), zeros where there is none; and (batch, streams), True = real.

    A stream that is not given counts as missing.
    """
    one = next(iter(streams.values()))
    empty = Tokens(one.values[:, :1], torch.zeros_like(one.mask[:, :1]))
    vectors, present = {}, []
    for name, width in widths.items():
        tokens = streams.get(name)
        vectors[name] = tokens.pooled() if tokens else one.values.new_zeros(len(one.values), width)
        present.append((tokens or empty).mask.any(1))
    return vectors, torch.stack(present, 1)
