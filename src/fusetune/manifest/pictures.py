"""Encoded pictures as a viewer shows them: turned by their EXIF tag, 8 bits a channel, on a ground that one can see."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fusetune.errors import FusetuneError

MOST_PIXELS = 64_000_000  # of one picture; a small file may unpack to many gigabytes
NOTE = "fusetune_note"  # in a picture's `info`: what was changed so that it can be seen
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # its values of which width and height change places
PLAIN = ("RGB", "L", "P", "1", "YCbCr")  # modes that come out as they are shown


def read_picture(data: bytes, where: str, background: str = "white") -> Any:
    """A PIL image of mode L or RGB.

    16 bits are scaled to 8, floats from 0 to 1 to 255; what is transparent shows `background`; a picture is turned as
    its EXIF tag says. What was changed stands in ``info[NOTE]``.

    Raises:
        FusetuneError: no picture, too large a one, or values that no viewer can show.
    """
    with opened_picture(data, where) as image:
        if image.width * image.height > MOST_PIXELS:
            raise FusetuneError(f"{where}: {image.width} x {image.height} pixels; expected at most {MOST_PIXELS:,}.")
        image.load()
    frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
    notes = [f"the first of {frames} frames"] if frames > 1 else []
    shown = _turned(_eight_bits(image, where, background, notes), _orientation(image))
    shown.info[NOTE] = "; ".join(notes) or None
    return shown


@contextmanager
def opened_picture(data: bytes | Path, where: str) -> Iterator[Any]:
    """The picture by its header, not decoded yet; what is wrong with it, now or within, is a FusetuneError.

    Args:
        data: its bytes, or its file, of which no more is read than is asked for.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(data, bytes):
            yield Image.open(io.BytesIO(data))
        else:
            with Image.open(data) as image:
                yield image
    except UnidentifiedImageError:
        raise FusetuneError(f"{where}: {_told(data)} no readable image (of no format that is known).") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FusetuneError(f"{where}: {_told(data)} no readable image ({error}).") from None


def _told(data: bytes | Path) -> str:
    return f"{len(data)} bytes are" if isinstance(data, bytes) else f"{data} is"


def shown_size(data: bytes | Path, where: str) -> tuple[float, float]:
    """Width and height of a picture as a viewer shows it, by its header."""
    with opened_picture(data, where) as image:
        sides = float(image.width), float(image.height)
        return sides[::-1] if _orientation(image) in SIDEWAYS else sides


def _eight_bits(image: Any, where: str, background: str, notes: list[str]) -> Any:
    from PIL import Image

    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, background)
        notes.append(f"transparent, laid on {background}")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if image.mode.startswith("I"):
        return _scaled(image, 65535, where, "whole numbers", notes)
    if image.mode == "F":
        return _scaled(image, 1.0, where, "floats", notes)
    if image.mode not in PLAIN:
        notes.append(f"mode {image.mode}, as RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _scaled(image: Any, most: float, where: str, kind: str, notes: list[str]) -> Any:
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= most):  # NaN is neither
        raise FusetuneError(
            f"{where}: a picture of {kind} from {low:g} to {high:g} (mode {image.mode}); expected 0 to {most:g}. Save "
            "it with 8 or 16 bits a channel."
        )
    notes.append(f"mode {image.mode} of 0 to {most:g}, scaled to 8 bits")
    return Image.fromarray(np.round(values * (255 / most)).astype(np.uint8))


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # whatever the library says of broken EXIF: a viewer shows the picture all the same
        return 1


def _turned(image: Any, orientation: int) -> Any:
    from PIL.Image import Transpose

    ways = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(ways[orientation]) if orientation in ways else image
