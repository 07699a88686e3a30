"""Embedded data for temporal grounding: a clip of characters, one a second, and when it shows what a sentence says.

A clip is a few stretches of several seconds. The characters of a stretch share something (a script, a case, an accent,
a kind) that those of the others don't have; the sentence asks for one of them. Splits are by code point, as in
`glyphs`; nothing is downloaded.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from fusetune.config import build, check
from fusetune.manifest.readers import glyph_faces, unicode_facts
from fusetune.manifest.readers.glyph_faces import Glyph
from fusetune.manifest.readers.glyphs import GlyphSettings, pgm, split_of
from fusetune.manifest.schema import SPLITS

SECONDS = (2, 4)  # of a stretch, least and most
STRETCHES = (3, 5)  # of a clip
SENTENCES = {
    "script": ("when is a {} letter shown", "find the {} letters"),
    "case": ("when is a {} letter shown", "find the {} letters"),
    "accent": ("when is a letter with {} shown", "find the letters with {}"),
    "base": ("when is the letter {} shown", "find every {}"),
    "kind": ("when is a {} shown", "find each {}"),
}

Pool = dict[str, dict[str, list[Glyph]]]  # fact -> answer -> characters of one typeface


@dataclass(frozen=True)
class GlyphMomentSettings:
    """
    Attributes:
        faces: the typefaces, by font file name.
        splits: share of the code points per split.
        samples: clips per split.
        min_characters: an answer is asked for only if a typeface has so many characters of it in a split.
        seed: of splits, clips and sentences.
    """

    faces: tuple[str, ...]
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 0.7, "val": 0.1, "test": 0.2})
    samples: Mapping[str, int] = field(default_factory=lambda: {"train": 3200, "val": 600, "test": 1200})
    min_characters: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        GlyphSettings(self.faces, splits=self.splits, samples=self.samples)  # which says what is wrong
        check(self.min_characters > 0, f"min_characters: expected at least 1, found {self.min_characters}.")


def read(settings: Mapping[str, Any], where: str = "reader glyph_moments") -> pa.Table:
    """Columns frames (a list of pictures), text, span and duration (seconds), question_type, face."""
    config = build(GlyphMomentSettings, settings, where)
    shared, rows = GlyphSettings(config.faces, splits=config.splits, seed=config.seed), []
    for split in SPLITS:
        pools = {face: _pool(face, split, shared, config.min_characters) for face in config.faces}
        usable = [(face, fact) for face, pool in pools.items() for fact in pool if len(pool[fact]) >= STRETCHES[0]]
        check(bool(usable), f"{where}: no typeface has {STRETCHES[0]} kinds of characters in {split}. Add faces.")
        rng = random.Random(f"moments-{config.seed}-{split}")
        facts = sorted({fact for _, fact in usable})
        for number in range(config.samples[split]):
            fact = facts[number % len(facts)]
            face = rng.choice([face for face, own in usable if own == fact])
            clip = _clip(pools[face][fact], fact, rng)
            name = f"{split}-{number:05d}"
            rows.append({"sample_id": name, "split": split, "group_id": name, **clip, "face": face})
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("split", pa.string()),
        ("group_id", pa.string()),
        ("frames", pa.list_(pa.binary())),
        ("text", pa.string()),
        ("span", pa.list_(pa.float32())),
        ("duration", pa.float32()),
        ("question_type", pa.string()),
        ("face", pa.string()),
    ]
)


def _pool(face: str, split: str, shared: GlyphSettings, least: int) -> Pool:
    found: Pool = defaultdict(lambda: defaultdict(list))
    for glyph in glyph_faces.glyphs(face):
        if split_of(glyph.char, shared) == split:
            for fact in SENTENCES:
                answer = unicode_facts.FACTS[fact](glyph.char)
                if answer and answer != "none":
                    found[fact][answer].append(glyph)
    return {fact: {a: own for a, own in by.items() if len(own) >= least} for fact, by in found.items()}


def _clip(by_answer: Mapping[str, list[Glyph]], fact: str, rng: random.Random) -> dict[str, Any]:
    count = rng.randint(STRETCHES[0], min(STRETCHES[1], len(by_answer)))
    answers = rng.sample(sorted(by_answer), count)
    asked, span = rng.choice(answers), [0.0, 0.0]
    frames: list[bytes] = []
    for answer in answers:
        begin = len(frames)
        frames += [pgm(rng.choice(by_answer[answer]).cell) for _ in range(rng.randint(*SECONDS))]
        if answer == asked:
            span = [float(begin), float(len(frames))]
    return {
        "frames": frames,
        "text": rng.choice(SENTENCES[fact]).format(asked),
        "span": span,
        "duration": float(len(frames)),
        "question_type": fact,
    }
