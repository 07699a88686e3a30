"""One rule makes a class of a label's value, and every exception has a check's name."""

import json
import math

import pyarrow as pa
import pytest
from media import SPLIT

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.labels import label_text
from fusetune.manifest.readers.table import read
from fusetune.manifest.schema import Modality
from fusetune.manifest.validation import validate
from fusetune.tasks.classification import Classification, ClassificationConfig


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), ("1", "1"), ("1.0", "1"), (" cat ", "cat"), ("007", "007"), (True, "true"), (False, "false"),
     (0.5, "0.5"), (None, None), (math.nan, None), ("v1.0", "v1.0"), (-2.0, "-2"), ("1.50", "1.50")],
)  # fmt: skip
def test_a_value_is_a_class_by_one_rule(value, text):
    assert label_text(value) == text


def test_one_and_one_point_nought_are_one_class():
    task = Classification(ClassificationConfig("y"))
    task.fit({"y": [1, 1.0, "1", "2", 2.0]})
    assert task.labels == ["1", "2"] and task.targets({"y": ["1.0", 2]}).tolist() == [0, 1]
    with pytest.raises(FusetuneError, match="a list is no label"):
        task.fit({"y": [["a"], ["b"]]})


def test_truth_values_beside_numbers_keep_what_they_are(tmp_path):
    file = tmp_path / "j.jsonl"
    file.write_text("".join(json.dumps({"y": y}) + "\n" for y in (1, 2.0, True, None)))
    assert read({"file": str(file)}, "x")["y"].to_pylist() == ["1", "2", "true", None]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("sample_id;text;y\n1;a, b;1\n", ["sample_id", "text", "y"]),
        ("sample_id,text,y\n1,a; b; c; d,1\n", ["sample_id", "text", "y"]),
        ("id|y\n1|2\n", ["id", "y"]),
        ("id\ty\n1\t2\n", ["id", "y"]),
        ('"a;b;c",y\n1,2\n', ["a;b;c", "y"]),
        ("only\n1\n", ["only"]),
    ],
)
def test_what_divides_columns_is_seen_in_the_first_line(tmp_path, text, columns):
    (tmp_path / "s.csv").write_text(text)
    table = read({"file": str(tmp_path / "s.csv")}, "x")
    assert table.column_names[: len(columns)] == columns and table.num_rows == 1


def checks(labels):
    rows = len(SPLIT)
    values = [labels[i] if i < len(labels) else ("a", "b")[i % 2] for i in range(rows)]
    table = pa.table(
        {
            "sample_id": [f"s{i}" for i in range(rows)],
            "split": SPLIT,
            "group_id": [f"g{i}" for i in range(rows)],
            "text": [f"text {i}" for i in range(rows)],
            "label": pa.array(values),
        }
    )
    settings = build(ValidationSettings, {"max_quarantined": 1.0}, "validate")
    outcome = validate(table, {"text": Modality("text")}, ["label"], settings)
    return {c["check"]: [e["row"] for e in c["examples"]] for c in outcome.report["checks"]}


def test_exceptions_are_named_by_checks():
    assert checks(["a", "A ", "b"])["label.alike"] == [1]
    assert checks(["1", "2", "true", "1"])["label.mixed"] == [2]
    assert not checks([])


def test_a_list_of_labels_is_named_and_crashes_nothing():
    rows = len(SPLIT)
    table = pa.table(
        {
            "sample_id": [f"s{i}" for i in range(rows)],
            "split": SPLIT,
            "group_id": [f"g{i}" for i in range(rows)],
            "text": [f"text {i}" for i in range(rows)],
            "label": pa.array([["a"]] * rows),
        }
    )
    settings = build(ValidationSettings, {}, "validate")
    report = validate(table, {"text": Modality("text")}, ["label"], settings).report
    (found,) = [c for c in report["checks"] if c["check"] == "label.type"]
    assert found["rows"] == rows and "a list is no label" in found["examples"][0]["value"] and report["stopped_by"]
