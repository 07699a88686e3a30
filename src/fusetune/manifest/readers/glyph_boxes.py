"""Embedded data for visual grounding: four characters in one picture, a phrase that means one of them, and its box.

A phrase names what a character is (`fact`: 'the letter with acute', which no other of the four is), which of several
alike it is in reading order (`order`: 'the second small letter'), or how it lies (`place`: 'the largest character').
Sizes and places vary; boxes are those of the ink. Splits are by code point, as in `glyphs`; nothing is downloaded.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusetune.config import build, check
from fusetune.manifest.readers import glyph_faces, unicode_facts
from fusetune.manifest.readers.glyph_faces import CELL, Glyph
from fusetune.manifest.readers.glyphs import ORDINALS, GlyphSettings, code, pgm, split_of
from fusetune.manifest.schema import SPLITS

SIDE = 2 * CELL  # pixels of a picture; each character stands somewhere in a quarter of it
SMALLEST = 0.55  # of a character's own size in a cell, to which it may be scaled down
INK = 48  # of 255, from which a pixel belongs to a character
NAMES = {
    "script": "the {} letter",
    "case": "the {} letter",
    "accent": "the letter with {}",
    "base": "the letter {}",
    "kind": "the {}",
    "direction": "the arrow pointing {}",
}
SEVERAL = {"script": "the {} {} letter", "case": "the {} {} letter", "kind": "the {} {}"}
QUARTERS = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")
TYPES = ("fact", "order", "place")
CLEARLY = 1.25  # times as much area as any other, to be called the largest


@dataclass(frozen=True)
class GlyphBoxSettings:
    """
    Attributes:
        faces: the typefaces, by font file name.
        splits: share of the code points per split.
        samples: pictures per split.
        seed: of splits, pictures and phrases.
    """

    faces: tuple[str, ...]
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.7, "val": 0.1, "test": 0.2})
    samples: Mapping[str, int] = field(default_factory=lambda: {"train": 6400, "val": 1200, "test": 2400})
    seed: int = 0

    def __post_init__(self) -> None:
        GlyphSettings(self.faces, splits=self.splits, samples=self.samples)  # which says what is wrong


@dataclass(frozen=True)
class Laid:
    """A character in a picture: its box is (left, top, right, bottom) in pixels."""

    glyph: Glyph
    box: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def read(settings: Mapping[str, Any], where: str = "reader glyph_boxes") -> pa.Table:
    """Columns image, text (the phrase), box, question_type, face, characters."""
    config = build(GlyphBoxSettings, settings, where)
    shared = GlyphSettings(config.faces, splits=config.splits, seed=config.seed)
    rows = []
    for split in SPLITS:
        pools = [[g for g in glyph_faces.glyphs(face) if split_of(g.char, shared) == split] for face in config.faces]
        for face, pool in zip(config.faces, pools, strict=True):
            check(len(pool) >= len(ORDINALS), f"{where}: '{face}' has {len(pool)} characters of {split}; four needed.")
        rng = random.Random(f"boxes-{config.seed}-{split}")
        for number in range(config.samples[split]):
            scene = _scene(pools, TYPES[number % len(TYPES)], rng)
            rows.append({"sample_id": f"{split}-{number:05d}", "split": split, **scene})
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),
        ("group_id", pa.string()),
        ("image", pa.list_(pa.binary())),
        ("text", pa.string()),
        ("box", pa.list_(pa.float32())),
        ("question_type", pa.string()),
        ("face", pa.string()),
        ("characters", pa.string()),
    ]
)


def phrases(laid: Sequence[Laid], kind: str) -> list[tuple[str, int]]:
    """All phrases of a type that mean exactly one of the characters, with its number."""
    found = []
    if kind == "place":
        found = [(f"the character {where}", number) for number, where in enumerate(QUARTERS)]
        areas = [one.area for one in laid]
        for word, best in (("largest", max(areas)), ("smallest", min(areas))):
            number = areas.index(best)
            ratios = [max(best, area) / min(best, area) for i, area in enumerate(areas) if i != number]
            if min(ratios) >= CLEARLY:
                found.append((f"the {word} character", number))
        return found
    for fact, template in (NAMES if kind == "fact" else SEVERAL).items():
        answers = [unicode_facts.FACTS[fact](one.glyph.char) for one in laid]
        for answer in sorted({a for a in answers if a and a != "none"}):
            having = [number for number, own in enumerate(answers) if own == answer]
            if kind == "fact" and len(having) == 1:
                found.append((template.format(answer), having[0]))
            elif kind == "order" and len(having) > 1:
                found += [(template.format(ORDINALS[i], answer), number) for i, number in enumerate(having)]
                found.append((template.format("last", answer), having[-1]))
    return found


def draw_scene(
    pools: Sequence[Sequence[Glyph]], kind: str, rng: random.Random
) -> tuple[NDArray[np.uint8], list[Laid], str, int]:
    """The picture, its characters, a phrase of the type, and the number of the one that it means."""
    while True:
        drawn = rng.sample(rng.choice(pools), len(ORDINALS))
        canvas = np.zeros((SIDE, SIDE), np.uint8)
        laid = [_put(canvas, glyph, number, rng) for number, glyph in enumerate(drawn)]
        if meant := phrases(laid, kind):
            break
    words = sorted({text for text, _ in meant})
    text = rng.choice(words)
    return canvas, laid, text, dict(meant)[text]


def _scene(pools: Sequence[Sequence[Glyph]], kind: str, rng: random.Random) -> dict[str, Any]:
    canvas, laid, text, number = draw_scene(pools, kind, rng)
    target = laid[number]
    return {
        "group_id": code(target.glyph.char),
        "image": [pgm(canvas)],
        "text": text,
        "box": list(target.box),
        "question_type": kind,
        "face": target.glyph.face.name,
        "characters": "".join(one.glyph.char for one in laid),
    }


def _put(canvas: NDArray[np.uint8], glyph: Glyph, number: int, rng: random.Random) -> Laid:
    return Laid(glyph, put_ink(canvas, glyph.cell, number, rng))


def put_ink(
    canvas: NDArray[np.uint8], drawn: NDArray[np.uint8], number: int, rng: random.Random, largest: float = 1.0
) -> tuple[float, float, float, float]:
    """Draw somewhere in one of the canvas' quarters, at `SMALLEST` to 1 of the largest scale; the box of the ink."""
    from PIL import Image

    top, left, bottom, right = _ink(drawn)
    ink, scale = drawn[top:bottom, left:right], largest * rng.uniform(SMALLEST, 1.0)
    width, height = (max(2, round(side * scale)) for side in (right - left, bottom - top))
    scaled = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BILINEAR))
    x = (number % 2) * CELL + rng.randint(0, CELL - width)
    y = (number // 2) * CELL + rng.randint(0, CELL - height)
    canvas[y : y + height, x : x + width] = scaled
    top, left, bottom, right = _ink(scaled)
    return float(x + left), float(y + top), float(x + right), float(y + bottom)


def _ink(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what is drawn; of something faint, the whole."""
    there = pixels >= min(INK, int(pixels.max()))
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
