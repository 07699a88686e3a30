"""The embedded data set: characters of the typefaces that matplotlib ships, with answers of the Unicode database.

Two views of it, both split by code point (a character never stands in two splits, whatever the face):

- ``characters``: a sample is a character in a typeface. Modalities `image`, `outline`, `metrics`, `text` (its Unicode
  name); labels `script`, `category`, `family`, `style`.
- ``scenes``: a sample is four characters of one typeface and a question about one of them. Modalities `image` (four
  pictures in order, or one of all four) and `text` (the question); labels `answer`, `question_type`, and a caption of
  all four, `description`. Neither side suffices: the question names the cell, the cell holds the answer, and the other
  three cells are drawn from the same balanced pool.

Nothing is downloaded; the same matplotlib gives the same bytes on every machine (pixels are stored as raw PGM).
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build, check
from fusetune.manifest.readers import glyph_faces, unicode_facts
from fusetune.manifest.readers.glyph_faces import FACES, Glyph
from fusetune.manifest.readers.layouts import check_samples
from fusetune.manifest.schema import SPLITS

ORDINALS = ("first", "second", "third", "fourth")
QUESTIONS = {
    "script": (
        "which script does the {} character belong to",
        "the {} character is written in which script",
        "name the script of the {} character",
    ),
    "case": (
        "is the {} letter a capital or a small letter",
        "what is the case of the {} character",
        "capital or small , which is the {} character",
    ),
    "accent": (
        "which mark does the {} letter carry",
        "what accent is on the {} character",
        "name the accent of the {} letter",
    ),
    "base": (
        "what is the {} letter without its accents",
        "which letter of the alphabet is the {} character",
        "name the base letter of the {} character",
    ),
    "kind": (
        "what kind of character is the {} one",
        "which sort of sign is the {} character",
        "name the category of the {} character",
    ),
    "direction": (
        "where does the {} arrow point",
        "in which direction does the {} sign point",
        "which way does the {} character point",
    ),
}
SEPARATOR = " , "  # of the four in a caption
LABELS = ("script", "category", "family", "style")
_PIXELS = pa.list_(pa.binary())
_POINTS = pa.list_(pa.list_(pa.float32()))


@dataclass(frozen=True)
class GlyphSettings:
    """Settings of the reader.

    Attributes:
        view: ``scenes`` or ``characters``.
        faces: the typefaces, by font file name (`glyph_faces.FACES`).
        splits: share of the code points per split.
        only: keep the characters of these splits alone (pretraining reads ``[train, val]``).
        samples: scenes per split.
        label: characters only: keep the characters that have this label, with at least `min_characters` of them.
        min_characters: an answer is asked for only if this many training characters have it.
        layout: scenes only: ``row`` (four pictures, one behind another) or ``grid`` (one picture, two above two).
        image: ``cell`` (common size and baseline) or ``crop`` (scaled to fill the square).
        seed: of the splits and of the scenes.
    """

    faces: tuple[str, ...]
    view: str = "scenes"
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.7, "val": 0.1, "test": 0.2})
    only: tuple[str, ...] = SPLITS
    samples: Mapping[str, int] = field(default_factory=lambda: {"train": 6400, "val": 1200, "test": 2400})
    label: str | None = None
    min_characters: int = 20
    layout: str = "row"
    image: str = "cell"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.view in ("scenes", "characters"), f"view: expected scenes or characters, found '{self.view}'.")
        check(self.layout in ("row", "grid"), f"layout: expected row or grid, found '{self.layout}'.")
        check(self.image in ("cell", "crop"), f"image: expected cell or crop, found '{self.image}'.")
        check(bool(self.faces), "faces: at least one typeface is needed.")
        for name in self.faces:
            check(name in FACES, f"faces: '{name}' is unknown. Known: {', '.join(FACES)}.")
        check(set(self.only) <= set(SPLITS), f"only: expected some of {SPLITS}, found {self.only}.")
        check(
            tuple(self.splits) == SPLITS and abs(sum(self.splits.values()) - 1) < 1e-6,
            f"splits: expected shares of train, val and test that add up to 1, found {dict(self.splits)}.",
        )
        check_samples(self.samples)
        check(self.label in (None, *LABELS), f"label: expected one of {LABELS}, found '{self.label}'.")


def read(settings: Mapping[str, Any], where: str = "reader glyphs") -> pa.Table:
    """The manifest of one view; raises FusetuneError for settings that are unknown or make no sense."""
    config = build(GlyphSettings, settings, where)
    glyphs = {
        face: [g for g in glyph_faces.glyphs(face) if split_of(g.char, config) in config.only] for face in config.faces
    }
    return _scenes(glyphs, config) if config.view == "scenes" else _characters(glyphs, config)


def split_of(char: str, config: GlyphSettings) -> str:
    """The split of a character, by a hash of seed and code point: the same on every machine and for every face."""
    draw = int.from_bytes(hashlib.sha256(f"{config.seed}:{ord(char)}".encode()).digest()[:8]) / 2**64
    for split, share in config.splits.items():
        draw -= share
        if draw < 0:
            return split
    return SPLITS[-1]


def code(char: str) -> str:
    """Unicode's notation of a code point: 'U+0041'."""
    return f"U+{ord(char):04X}"


def char_of(notation: str) -> str:
    """Inverse of `code`."""
    return chr(int(notation.removeprefix("U+"), 16))


def pgm(pixels) -> bytes:
    """A grey picture as a portable graymap: raw pixels behind a short header."""
    height, width = pixels.shape
    return b"P5 %d %d 255\n" % (width, height) + pixels.tobytes()


def _characters(glyphs: dict[str, list[Glyph]], config: GlyphSettings) -> pa.Table:
    rows = [(glyph, _labels(glyph)) for face in config.faces for glyph in glyphs[face]]
    if config.label:
        counts: dict[str, set[str]] = defaultdict(set)
        for glyph, labels in rows:
            if split_of(glyph.char, config) == "train":
                counts[labels[config.label] or ""].add(glyph.char)
        frequent = {label for label, chars in counts.items() if label and len(chars) >= config.min_characters}
        rows = [(glyph, labels) for glyph, labels in rows if labels[config.label] in frequent]
    columns: dict[str, pa.Array] = {
        "sample_id": pa.array([f"{g.face.name}/{code(g.char)}" for g, _ in rows]),
        "split": pa.array([split_of(g.char, config) for g, _ in rows]),
        "group_id": pa.array([code(g.char) for g, _ in rows]),
        "image": pa.array([[pgm(getattr(g, config.image))] for g, _ in rows], _PIXELS),
        "outline": pa.array([g.outline.tolist() for g, _ in rows], _POINTS),
        "metrics": pa.array([g.metrics.tolist() for g, _ in rows], pa.list_(pa.float32())),
        "text": pa.array([unicode_facts.name(g.char).lower() for g, _ in rows]),
        "face": pa.array([g.face.name for g, _ in rows]),
    }
    for label in LABELS:
        columns[label] = pa.array([labels[label] for _, labels in rows], pa.string())
    return pa.table(columns)


def _labels(glyph: Glyph) -> dict[str, str | None]:
    return {
        "script": unicode_facts.script(glyph.char),
        "category": unicode_facts.kind(glyph.char),
        "family": glyph.face.family,
        "style": glyph.face.style,
    }


Pool = dict[str, dict[str, dict[str, list[Glyph]]]]  # face -> question type -> answer -> glyphs


def _scenes(glyphs: dict[str, list[Glyph]], config: GlyphSettings) -> pa.Table:
    answers = _askable(glyphs, config)
    rows: list[dict[str, Any]] = []
    for split in config.only:
        pool: Pool = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        for face, members in glyphs.items():
            for glyph in members:
                if split_of(glyph.char, config) == split:
                    for question, fact in unicode_facts.FACTS.items():
                        if (answer := fact(glyph.char)) in answers[question]:
                            pool[face][question][answer].append(glyph)
        rng = random.Random(f"scenes-{config.seed}-{split}")
        askable = [question for question in QUESTIONS if any(pool[face][question] for face in config.faces)]
        check(bool(askable), f"reader glyphs: no character of {split} answers a question; add faces.")
        for number in range(config.samples[split]):
            scene = _scene(pool, askable[number % len(askable)], config, rng)
            rows.append({"sample_id": f"{split}-{number:05d}", "split": split, **scene})
    return pa.Table.from_pylist(rows, schema=_SCENE_SCHEMA)


_SCENE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),
        ("group_id", pa.string()),
        ("image", _PIXELS),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("question_type", pa.string()),
        ("description", pa.string()),
        ("face", pa.string()),
        ("characters", pa.string()),
    ]
)


def _askable(glyphs: dict[str, list[Glyph]], config: GlyphSettings) -> dict[str, set[str]]:
    """Per question type, the answers that enough different training characters have."""
    chars: dict[tuple[str, str], set[str]] = defaultdict(set)
    for members in glyphs.values():
        for glyph in members:
            if split_of(glyph.char, config) == "train":
                for question, fact in unicode_facts.FACTS.items():
                    if answer := fact(glyph.char):
                        chars[question, answer].add(glyph.char)
    askable: dict[str, set[str]] = {question: set() for question in QUESTIONS}
    for (question, answer), members_ in chars.items():
        if len(members_) >= config.min_characters:
            askable[question].add(answer)
    return askable


def _scene(pool: Pool, question: str, config: GlyphSettings, rng: random.Random) -> dict[str, Any]:
    """Four characters and a question about one: the answer first, evenly, then a character that has it."""
    faces = [face for face in config.faces if pool[face][question]]
    everywhere = sorted({answer for face in faces for answer in pool[face][question]})
    answer = rng.choice(everywhere)
    face = rng.choice([face for face in faces if answer in pool[face][question]])
    asked = rng.choice(pool[face][question][answer])
    others = sorted(pool[face][question])
    cells = [rng.choice(pool[face][question][rng.choice(others)]) for _ in ORDINALS]
    position = rng.randrange(len(ORDINALS))
    cells[position] = asked
    return {
        "group_id": code(asked.char),
        "image": _pictures([getattr(glyph, config.image) for glyph in cells], config.layout),
        "text": rng.choice(QUESTIONS[question]).format(ORDINALS[position]),
        "answer": answer,
        "question_type": question,
        "description": SEPARATOR.join(unicode_facts.description(glyph.char) for glyph in cells),
        "face": face,
        "characters": "".join(glyph.char for glyph in cells),
    }


def _pictures(cells: list[Any], layout: str) -> list[bytes]:
    """Four cells as four pictures, or as one in reading order."""
    if layout == "row":
        return [pgm(cell) for cell in cells]
    first, second, third, fourth = cells
    return [pgm(np.block([[first, second], [third, fourth]]))]
