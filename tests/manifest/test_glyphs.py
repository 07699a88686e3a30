"""The embedded data set: real characters, clean splits, answers that Unicode gives, and a VQA that needs both sides."""

import hashlib
import io
import unicodedata
from collections import Counter, defaultdict

import pyarrow as pa
import pytest
from PIL import Image

from fusetune.errors import FusetuneError
from fusetune.manifest.readers import readers
from fusetune.manifest.readers.glyph_faces import FACES, glyphs
from fusetune.manifest.readers.glyphs import ORDINALS, QUESTIONS, read
from fusetune.manifest.readers.unicode_facts import FACTS

FACE = "DejaVuSerif"
SMALL = {"train": 1200, "val": 200, "test": 400}


@pytest.fixture(scope="module")
def scenes() -> pa.Table:
    return read({"faces": [FACE, "DejaVuSansMono"], "samples": SMALL})


@pytest.fixture(scope="module")
def characters() -> pa.Table:
    return read({"faces": [FACE, "STIXGeneral"], "view": "characters"})


def test_the_faces_are_as_large_as_the_fonts_are():
    assert len(glyphs("DejaVuSans")) > 5000 and len(glyphs(FACE)) > 3000
    assert sum(len(glyphs(face)) for face in FACES) > 45_000


def test_glyphs_are_drawn_named_and_different():
    members = glyphs(FACE)
    assert all(glyph.cell.any() and glyph.crop.any() and len(glyph.outline) for glyph in members)
    assert all(unicodedata.name(glyph.char) for glyph in members)
    outlines = Counter(hashlib.sha256(glyph.outline.tobytes()).digest() for glyph in members)
    assert outlines.most_common(1)[0][1] == 1
    chars = {glyph.char for glyph in members}
    assert "A" in chars and "\N{GREEK CAPITAL LETTER ALPHA}" not in chars, "drawn alike: the lowest code point stays"


def test_the_metrics_are_the_fonts_own():
    from fontTools.ttLib import TTFont
    from matplotlib import get_data_path

    font = TTFont(f"{get_data_path()}/fonts/ttf/{FACE}.ttf")
    cmap, advances, scale = font.getBestCmap(), font["hmtx"], font["head"].unitsPerEm
    for glyph in glyphs(FACE)[::97]:
        assert glyph.metrics[0] == pytest.approx(advances[cmap[ord(glyph.char)]][0] / scale, abs=1e-3)


def test_a_character_never_stands_in_two_splits_whatever_the_face(scenes, characters):
    home = defaultdict(set)
    for table, column in ((characters, "text"), (scenes, "characters")):
        for split, cell, group in zip(*(table[c].to_pylist() for c in ("split", column, "group_id")), strict=True):
            for char in cell if column == "characters" else [chr(int(group[2:], 16))]:
                home[char].add(split)
    assert all(len(splits) == 1 for splits in home.values())


def test_answers_are_true_of_the_asked_character(scenes):
    for row in scenes.slice(0, 300).to_pylist():
        position = next(i for i, word in enumerate(ORDINALS) if word in row["text"].split())
        char = row["characters"][position]
        assert FACTS[row["question_type"]](char) == row["answer"]
        assert row["text"] in [phrase.format(ORDINALS[position]) for phrase in QUESTIONS[row["question_type"]]]
        asked = Image.open(io.BytesIO(row["image"][position]))
        face = {glyph.char: glyph for glyph in glyphs(row["face"])}
        assert asked.tobytes() == face[char].cell.tobytes()


def test_answers_and_positions_are_balanced_within_a_question_type(scenes):
    train = [r for r in scenes.to_pylist() if r["split"] == "train"]
    by_type = defaultdict(Counter)
    for row in train:
        by_type[row["question_type"]][row["answer"]] += 1
    for counts in by_type.values():
        assert max(counts.values()) < 2.5 * sum(counts.values()) / len(counts)
    positions = Counter(next(w for w in ORDINALS if w in r["text"].split()) for r in train)
    assert min(positions.values()) > 0.2 * len(train)


def test_the_same_bytes_twice_and_others_with_another_seed(scenes):
    again = read({"faces": [FACE, "DejaVuSansMono"], "samples": SMALL})
    assert again.equals(scenes)
    assert not read({"faces": [FACE, "DejaVuSansMono"], "samples": SMALL, "seed": 1}).equals(scenes)


def test_facts_of_known_characters():
    expected = {
        "é": {"script": "latin", "case": "small", "accent": "acute", "base": "e"},
        "Ж": {"script": "cyrillic", "case": "capital", "accent": "none"},
        "→": {"kind": "arrow", "direction": "right"},
        "7": {"kind": "digit"},
    }
    for char, facts in expected.items():
        for name, answer in facts.items():
            assert FACTS[name](char) == answer, (char, name)
    assert FACTS["base"]("ʃ") is None and FACTS["direction"]("↔") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"faces": ["Arial"]}, "faces: 'Arial' is unknown. Known: DejaVuSans"),
        ({"faces": [FACE], "veiw": "scenes"}, "unknown key 'veiw'. Did you mean 'view'"),
        ({"faces": [FACE], "splits": {"train": 1.0, "val": 0.5, "test": 0.2}}, "add up to 1"),
        ({"faces": [FACE], "samples": {"train": 0, "val": 1, "test": 1}}, "samples: expected a positive count"),
        ({"faces": []}, "at least one typeface"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(FusetuneError, match=message):
        readers.get("glyphs")(settings)
