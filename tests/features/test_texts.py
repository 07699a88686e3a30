"""What of the texts reaches the base is counted, and said where it is little."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import SHARED
from fusetune.backbones.backbone import Backbone
from fusetune.config import build
from fusetune.features.inputs import input_lengths, input_report, told
from fusetune.features.source import Source
from fusetune.features.texts import text_facts
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.schema import Modality


@pytest.fixture(scope="module")
def backbone(base):
    return Backbone.from_pretrained(base, {"text": "text"})


def report(backbone, texts, **settings):
    source = Source(
        pa.table({"text": texts, "sample_id": [f"s{i}" for i in range(len(texts))]}), {"text": Modality("text")}
    )
    return input_report(source, backbone, build(ValidationSettings, settings, "validate"))


KNOWN = ["latin small letter a", "greek small letter alpha", "digit one", "latin capital letter b"]


def test_texts_that_the_base_knows_are_counted_and_nothing_is_said(backbone):
    found = report(backbone, KNOWN * 10)
    assert found["texts"]["text"] == {"truncated": 0, "unknown": 0, "identical": 0} and not found["checks"]
    assert found["lengths"] == {"text": 6} and not found["stopped_by"]


def test_what_is_cut_unknown_or_the_same_to_the_base_is_named_with_its_share(backbone):
    long = "latin small letter " * 12
    texts = [*KNOWN * 4, f"{long} a", f"{long} b", "latin quux small letter", "latin flurb small letter"]
    found = report(backbone, texts)
    checks = {c["check"]: c for c in found["checks"]}
    assert set(checks) == {"text.truncated", "text.unknown", "text.identical"}
    assert checks["text.truncated"]["rows"] == 2 and checks["text.truncated"]["share"] == pytest.approx(2 / 20)
    assert [e["row"] for e in checks["text.unknown"]["examples"]] == [18, 19]
    assert checks["text.unknown"]["examples"][0]["value"] == "1 of 4 tokens: 'latin quux small letter'"
    assert {e["row"]: e["value"][:18] for e in checks["text.identical"]["examples"]} == {
        16: "reads like row 17:", 17: "reads like row 16:", 18: "reads like row 19:", 19: "reads like row 18:",
    }  # fmt: skip
    assert found["lengths"]["text"] == 24 and not found["stopped_by"] and len(told(found)) == 3
    tower = backbone.tower("text")
    values = tower.prepare(texts).values
    assert values[16].equal(values[17]) and values[18].equal(values[19]) and not values[0].equal(values[1])


def test_a_column_that_is_mostly_unknown_stops_the_run(backbone):
    found = report(backbone, ["zzz yyy", "xxx letter qqq"] * 5)
    assert found["stopped_by"] == ["text.mostly_unknown (text): 80%"]
    lenient = report(backbone, ["zzz yyy", "xxx letter qqq"] * 5, severity={"text.mostly_unknown": "warn"})
    assert not lenient["stopped_by"] and lenient["checks"]


def test_the_first_row_that_reads_alike_is_that_of_brute_force(backbone):
    texts = [f"latin {word}" for word in ("qux", "letter", "flurb", "letter", "zork", "flurb", "qux", "small")] + [
        "digit quux",
        "digit x",
    ]
    found, tower = text_facts(backbone.tower("text"), pa.chunked_array([texts])), backbone.tower("text")
    ids = [reading.ids for reading in tower.read(texts)]
    expected = [
        next((j for j in range(len(texts)) if ids[j] == ids[i] and texts[j] != texts[i]), -1) for i in range(len(texts))
    ]
    assert (
        found.like.tolist() == expected and expected[0] == 2 and expected[2] == expected[4] == 0 and expected[1] == -1
    )


def test_chunks_give_what_all_texts_at_once_give(backbone, monkeypatch):
    texts = [f"{word} {'latin ' * (i % 30)}" for i, word in enumerate(KNOWN * 20)] + [None]
    whole = text_facts(backbone.tower("text"), pa.chunked_array([texts]))
    source = Source(pa.table({"text": texts}), {"text": Modality("text")})
    longest = backbone.tower("text").prepare([t for t in texts if t]).values.shape[1]
    monkeypatch.setattr("fusetune.features.texts.CHUNK", 7)
    parts = text_facts(backbone.tower("text"), pa.chunked_array([texts]))
    assert whole.cut.any() and not whole.cut.all()
    for name in ("rows", "tokens", "unknown", "cut", "like"):
        assert (getattr(whole, name) == getattr(parts, name)).all()
    assert whole.longest == parts.longest == longest == input_lengths(source, backbone)["text"]


def test_labels_of_emoji_are_mostly_unknown_to_the_embedded_base(backbone):
    file = SHARED / "emoji" / "emoji.parquet"
    if not file.is_file():
        pytest.skip(f"the data set is not at {file}")
    found = report(backbone, pq.read_table(file)["label_en"].to_pylist())
    assert found["texts"]["text"]["unknown"] > 0.5 and found["stopped_by"]
