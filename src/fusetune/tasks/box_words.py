"""How models that speak write a box: each family in its own way, and no box is lost on the way there and back.

Boxes are (left, top, right, bottom) in shares of what the model sees. What is written is rounded: a corner comes back
within half a step.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusetune.config import check

Size = tuple[int, int]  # width and height in pixels of what the model sees
NUMBER = r"-?\d+(?:\.\d+)?"
LOCATIONS = 1023  # the last of PaliGemma's 1024 words for a place


@dataclass(frozen=True)
class BoxWords:
    """
    Attributes:
        write: a box and what the model sees -> words.
        read: words and what the model sees -> the first box in them, None where there is none.
        step: largest distance between neighbouring corners, in shares, by what the model sees.
    """

    write: Callable[[Sequence[float], Size], str]
    read: Callable[[str, Size], list[float] | None]
    step: Callable[[Size], float]


def _four(text: str, pattern: str) -> list[float] | None:
    found = re.search(pattern, text)
    return [float(number) for number in found.groups()] if found else None


_BRACKETS = r"\[\s*" + r"\s*,\s*".join([f"({NUMBER})"] * 4) + r"\s*\]"
_PAIRS = rf"\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)\s*,\s*\(\s*({NUMBER})\s*,\s*({NUMBER})\s*\)"
_LOCATIONS = r"<loc(\d{4})>\s*" * 3 + r"<loc(\d{4})>"


def _shares(box: Sequence[float], _: Size) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in box)}]"


def _thousandths(box: Sequence[float], _: Size) -> str:
    left, top, right, bottom = (round(value * 1000) for value in box)
    return f"<|box_start|>({left},{top}),({right},{bottom})<|box_end|>"


def _read_thousandths(text: str, _: Size) -> list[float] | None:
    found = _four(text, _PAIRS)
    return found and [value / 1000 for value in found]


def _pixels(box: Sequence[float], size: Size) -> str:
    return f"[{', '.join(str(round(value * side)) for value, side in zip(box, size * 2, strict=True))}]"


def _read_pixels(text: str, size: Size) -> list[float] | None:
    found = _four(text, _BRACKETS)
    return found and [value / side for value, side in zip(found, size * 2, strict=True)]


def _locations(box: Sequence[float], _: Size) -> str:
    left, top, right, bottom = (round(value * LOCATIONS) for value in box)
    return "".join(f"<loc{value:04d}>" for value in (top, left, bottom, right))


def _read_locations(text: str, _: Size) -> list[float] | None:
    found = _four(text, _LOCATIONS)
    if found is None:
        return None
    top, left, bottom, right = (value / LOCATIONS for value in found)
    return [left, top, right, bottom]


FORMATS = {
    "shares": BoxWords(_shares, lambda text, _: _four(text, _BRACKETS), lambda _: 0.001),  # Shikra, LLaVA-1.5
    "thousandths": BoxWords(_thousandths, _read_thousandths, lambda _: 0.001),  # Qwen-VL, Qwen2-VL
    "pixels": BoxWords(_pixels, _read_pixels, lambda size: 1 / min(size)),  # Qwen2.5-VL
    "locations": BoxWords(_locations, _read_locations, lambda _: 1 / LOCATIONS),  # PaliGemma, from the top
}
OF_MODELS = {
    "paligemma": "locations",
    "qwen2_vl": "thousandths",
    "qwen3_vl": "thousandths",
    "qwen2_5_vl": "pixels",
}  # by `model_type`; of others: shares


def box_words(name: str) -> BoxWords:
    check(name in FORMATS, f"words: expected one of {', '.join(FORMATS)}, found '{name}'.")
    return FORMATS[name]
