"""Each planted fault is named by check and row; decoders say what they found where."""

import pyarrow as pa
import pytest

from fusetune.errors import FusetuneError
from fusetune.manifest.decoders import decode
from fusetune.manifest.schema import Modality
from fusetune.manifest.validation import ValidationSettings, validate

MODALITIES = {"text": Modality("text"), "numbers": Modality("vector")}


def table(**columns) -> pa.Table:
    sound = {
        "sample_id": [f"s{i}" for i in range(6)],
        "split": ["train", "train", "val", "val", "test", "test"],
        "group_id": ["a", "a", "b", "b", "c", "c"],
        "text": ["x"] * 6,
        "numbers": [[1.0, 2.0]] * 6,
        "label": ["p", "q"] * 3,
    }
    return pa.table({**sound, **columns})


def run(manifest, **settings):
    return validate(manifest, MODALITIES, ["label"], ValidationSettings(**settings))


def test_a_sound_manifest_is_counted():
    report = run(table())
    assert report["rows_per_split"] == {"train": 2, "val": 2, "test": 2}
    assert report["labels"] == {"label": {"p": 3, "q": 3}}
    assert set(report["checks"].values()) == {0} and len(report["checks"]) >= 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sample_id": ["s0", "s0", "s2", "s3", "s4", "s5"]}, "sample_id: sample_id is unique: 1 rows, e.g. row 1"),
        ({"split": ["train", "dev", "val", "val", "test", "test"]}, "split is one of .*row 1"),
        ({"split": ["train"] * 6}, "every split has at least 1 rows"),
        ({"group_id": ["a", "a", "a", "b", "c", "c"]}, "no group stands in two splits: .*row 0"),
        ({"text": ["x", "", "x", "x", "x", "x"]}, "text is not empty: 1 rows, e.g. row 1"),
        ({"numbers": [[1.0], [], [1.0], [1.0], [1.0], [1.0]]}, "numbers is not empty: 1 rows, e.g. row 1"),
        ({"label": ["p", None, "q", "p", "q", "p"]}, "label: .*row 1"),
        ({"numbers": [1, 2, 3, 4, 5, 6]}, r"column 'numbers' is int64; modality 'numbers' \(vector\) expects"),
    ],
)
def test_a_planted_fault_is_named(columns, message):
    with pytest.raises(FusetuneError, match=message):
        run(table(**columns))


def test_a_missing_column_is_named_with_those_that_are_there():
    with pytest.raises(FusetuneError, match="column 'text' is missing. It has sample_id"):
        run(table().drop_columns(["text"]))


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        ("image", b"nonsense", "row 3: 8 bytes are no readable image"),
        ("image", "path.png", "row 3: expected the bytes of an image, found str"),
        ("vector", [1.0, float("nan")], "row 3: NaN or infinity"),
        ("vector", ["a"], "row 3: expected 1-dimensional floats"),
        ("sequence", [[1.0], [1.0, 2.0]], "row 3: expected 2-dimensional floats of one width"),
        ("text", 5, "row 3: expected text, found int"),
    ],
)
def test_a_cell_that_does_not_decode_is_named(kind, cell, message):
    with pytest.raises(FusetuneError, match=message):
        decode(kind, cell, "row 3")
