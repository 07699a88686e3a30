"""Rendering the typefaces that matplotlib ships: pixels, contours and metrics of every character that they draw."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusetune.errors import FusetuneError
from fusetune.manifest.readers.unicode_facts import is_visible

CELL = 32  # pixels, both ways
EM = 26  # pixels per em in a cell
BASELINE = 25  # pixels from the top
CROP_MARGIN = 2  # pixels left free around a cropped glyph
OUTLINE_WIDTH = 5  # x, y (in em), contour starts here, point on a curve, contour closes here
MAX_POINTS = 128  # longer contours (ornaments, hexagrams of dots) are left out
METRICS = ("advance", "left_bearing", "right_bearing", "bottom", "top", "width", "height", "ink", "contours", "points")

# matplotlib.path.Path's codes
_MOVE, _LINE, _CLOSE = 1, 2, 79


@dataclass(frozen=True)
class Face:
    """A font file: its family and style are labels of the `family` and `style` tasks."""

    name: str
    family: str
    style: str


FACES = {
    face.name: face
    for face in (
        *(Face(f"DejaVuSans{s}", "sans", n) for s, n in (("", "regular"), ("-Bold", "bold"))),
        *(Face(f"DejaVuSans{s}", "sans", n) for s, n in (("-Oblique", "italic"), ("-BoldOblique", "bold italic"))),
        *(Face(f"DejaVuSerif{s}", "serif", n) for s, n in (("", "regular"), ("-Bold", "bold"))),
        *(Face(f"DejaVuSerif{s}", "serif", n) for s, n in (("-Italic", "italic"), ("-BoldItalic", "bold italic"))),
        *(Face(f"DejaVuSansMono{s}", "mono", n) for s, n in (("", "regular"), ("-Bold", "bold"))),
        *(Face(f"DejaVuSansMono{s}", "mono", n) for s, n in (("-Oblique", "italic"), ("-BoldOblique", "bold italic"))),
        *(Face(f"STIXGeneral{s}", "stix", n) for s, n in (("", "regular"), ("Bol", "bold"))),
        *(Face(f"STIXGeneral{s}", "stix", n) for s, n in (("Italic", "italic"), ("BolIta", "bold italic"))),
    )
}


@dataclass(frozen=True)
class Glyph:
    """One character in one typeface.

    Attributes:
        cell: (32, 32) uint8, 255 = ink, on a common baseline and at a common size.
        crop: (32, 32) uint8, the same glyph scaled to fill the square: its size is gone, its shape is left.
        outline: (points, 5) float32, see OUTLINE_WIDTH.
        metrics: (10,) float32, see METRICS; lengths in em.
    """

    char: str
    face: Face
    cell: NDArray[np.uint8]
    crop: NDArray[np.uint8]
    outline: NDArray[np.float32]
    metrics: NDArray[np.float32]


@cache
def glyphs(face_name: str) -> tuple[Glyph, ...]:
    """Every visible character of a face, cleaned: no `.notdef`, no blank, no second character of the same rendering.

    Of characters that are drawn alike (Latin A, Greek Alpha) the lowest code point stays, since no picture can tell
    them apart.
    """
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font, LoadFlags

    if face_name not in FACES:
        raise FusetuneError(f"reader glyphs: unknown face '{face_name}'. Known: {', '.join(FACES)}.")
    font = FT2Font(str(Path(get_data_path(), "fonts", "ttf", f"{face_name}.ttf")))
    charmap = font.get_charmap()
    kept, seen = [], set()
    for code_point in sorted(charmap):
        if charmap[code_point] == 0 or not is_visible(chr(code_point)):
            continue
        font.set_size(EM, 72)
        loaded = font.load_char(code_point, LoadFlags.NO_HINTING)
        vertices, codes = font.get_path()
        if not len(codes) or len(codes) > MAX_POINTS:
            continue
        pen = round((CELL - loaded.linearHoriAdvance / 65536) / 2)  # the advance box stands in the middle
        cell = _rasterise(font, loaded, pen, BASELINE - round(loaded.horiBearingY / 64))
        key = hashlib.sha256(vertices.tobytes() + codes.tobytes()).digest()
        if key in seen or not cell.any():
            continue
        seen.add(key)
        metrics = _metrics(loaded, cell, codes)
        extent = max(loaded.width, loaded.height) / 64  # pixels
        font.set_size(EM * (CELL - 2 * CROP_MARGIN) / max(extent, 1.0), 72)
        scaled = font.load_char(code_point, LoadFlags.NO_HINTING)
        crop = _rasterise(font, scaled, CROP_MARGIN - round(scaled.horiBearingX / 64), CROP_MARGIN)
        kept.append(Glyph(chr(code_point), FACES[face_name], cell, crop, _outline(vertices, codes), metrics))
    return tuple(kept)


def _rasterise(font, glyph, pen: int, top: int) -> NDArray[np.uint8]:
    margin = 2 * CELL  # the few glyphs that leave the cell are cut at its border
    canvas = np.zeros((CELL + 2 * margin, CELL + 2 * margin), np.uint8)
    # FreeType adds the left bearing to x (the pen), but not the top bearing to y
    font.draw_glyph_to_bitmap(canvas, pen + margin, top + margin, glyph, antialiased=True)
    return canvas[margin : margin + CELL, margin : margin + CELL].copy()


def _outline(vertices, codes) -> NDArray[np.float32]:
    points = np.zeros((len(codes), OUTLINE_WIDTH), np.float32)
    points[:, :2] = vertices / EM
    points[:, 2] = codes == _MOVE
    points[:, 3] = (codes > _LINE) & (codes != _CLOSE)
    points[:, 4] = codes == _CLOSE
    points[codes == _CLOSE, :2] = 0  # matplotlib ignores the vertex of a closing code
    return points


def _metrics(glyph, cell, codes) -> NDArray[np.float32]:
    to_em = 1 / (64 * EM)  # FreeType's lengths are 1/64 pixel
    advance = glyph.linearHoriAdvance / 65536 / EM
    left, bottom, right, top = (value * to_em for value in glyph.bbox)
    ink = cell.sum() / 255 / EM**2
    return np.array(
        [
            advance,
            left,
            advance - right,
            bottom,
            top,
            right - left,
            top - bottom,
            ink,
            (codes == _MOVE).sum() / 8,
            len(codes) / MAX_POINTS,
        ],
        np.float32,
    )
