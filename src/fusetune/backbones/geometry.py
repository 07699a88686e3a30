"""Where tokens lie in what was given, and which part of that an encoder sees.

Image processors resize, crop and pad, each in its own way; what that comes to for a picture of some size is measured
with a ramp, so that no processor's settings need to be read, and none can be misread.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fusetune.errors import FusetuneError
from fusetune.tokens import Lattice

MOST_LEAD = 8  # tokens that stand for no place: a class token, a distillation token, registers
CLEAR = (8, 247)  # grey levels of a ramp that neither its ends nor padding have touched
SNAP = 0.002  # share of a picture's side within which an edge that was measured is the picture's own
LEAST = 4  # rows or columns that a measurement needs

Process = Callable[[Sequence[Any]], Tensor]  # PIL pictures -> (pictures, channels, height, width)
View = tuple[float, float, float, float]


def grid(tokens: int, height: int, width: int) -> Lattice | None:
    """The rows and columns of a picture's tokens by their number; None where they form none.

    Args:
        height, width: pixels of the picture, as the model takes it.
    """
    for lead in range(min(MOST_LEAD, tokens - 1) + 1):
        rows = round(((tokens - lead) * height / width) ** 0.5)
        if rows and (tokens - lead) % rows == 0 and height % rows == 0:
            columns = (tokens - lead) // rows
            if rows * width == columns * height:
                return Lattice(lead, rows=rows, columns=columns)
    return None


class Views:
    """What a processor shows of pictures, by their size: measured once for each."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._known: dict[tuple[int, int], View] = {}

    def __call__(self, extent: Sequence[float]) -> View:
        size = (round(extent[0]), round(extent[1]))
        if size not in self._known:
            self._known[size] = seen_part(self._process, size)
        return self._known[size]


def seen_part(process: Process, size: tuple[int, int]) -> View:
    """The part of a picture that a processor shows to its model: left, top, right, bottom, in the picture's own pixels.

    Padding counts as seen: the part may reach beyond the picture.

    Args:
        size: width and height of the picture, in pixels.

    Raises:
        FusetuneError: the processor doesn't keep a picture's rows and columns where they are, or the picture is a few
            pixels large.
    """
    from PIL import Image

    width, height = size
    levels = [np.linspace(0, 255, count) for count in (width, height)]
    ramps = [np.tile(levels[0], (height, 1)), np.tile(levels[1][:, None], (1, width))]
    flat = [np.zeros((height, width)), np.full((height, width), 255.0)]
    pictures = [Image.fromarray(values.round().astype(np.uint8)).convert("RGB") for values in (*ramps, *flat)]
    found = [process([picture])[0, 0].double().numpy() for picture in pictures]
    black, white = (values[values.shape[0] // 2, values.shape[1] // 2] for values in found[2:])
    across, down = ((values - black) / (white - black) * 255 for values in found[:2])
    left, right = _ends(across[across.shape[0] // 2], width)
    top, bottom = _ends(down[:, down.shape[1] // 2], height)
    return left, top, right, bottom


def _ends(levels: np.ndarray, pixels: int) -> tuple[float, float]:
    """Where the first and the last of what was seen lie, in pixels; `levels` of a ramp over so many, 0 to 255."""
    steps = np.arange(len(levels)) + 0.5  # the middles of what the model sees
    clear = (levels > CLEAR[0]) & (levels < CLEAR[1])
    if clear.sum() >= LEAST:
        places = levels[clear] / 255 * (pixels - 1) + 0.5  # in pixels of the picture, from its edge
        slope, begin = np.polyfit(steps[clear], places, 1)
        if slope > 0 and np.abs(slope * steps[clear] + begin - places).max() < 1 + slope:
            ends = float(begin), float(begin + slope * len(levels))
            return _snapped(ends[0], pixels), _snapped(ends[1], pixels)
    raise FusetuneError(
        f"a picture of {pixels} pixels, as this model's processor brings it to {len(levels)}, can't be measured: which "
        "part of it is seen is unknown. Expected a larger picture, and a processor that resizes, crops or pads."
    )


def _snapped(place: float, pixels: int) -> float:
    return next((edge for edge in (0.0, float(pixels)) if abs(place - edge) < SNAP * pixels), place)
