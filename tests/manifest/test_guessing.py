"""What a table's columns are taken for."""

import io
import wave

import numpy as np
import pyarrow as pa
import pytest
from media import png

from fusetune.errors import FusetuneError
from fusetune.manifest.class_folders import listed
from fusetune.manifest.guessing import guess
from fusetune.manifest.readers.table import read

SENTENCES = [f"a sentence about thing number {i} and what it does" for i in range(60)]


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
        out.writeframes(np.zeros(800, np.int16).tobytes())
    return buffer.getvalue()


def table(**columns) -> pa.Table:
    return pa.table({"text": SENTENCES, "label": ["cat", "dog", "eel"] * 20, **columns})


def test_kinds_of_cells(tmp_path):
    columns = {
        "picture": [png(1, (8, 8))] * 60,
        "sound": [sound()] * 60,
        "numbers": [[0.5, 1.0]] * 60,
        "track": [[[0.5], [1.0]]] * 60,
        "age": list(range(60)),
        "colour": ["red", "green"] * 30,
    }
    found = guess(table(**columns), tmp_path, None)
    assert found.modalities == {
        "text": "text", "picture": "image", "sound": "audio", "numbers": "vector", "track": "sequence",
    }  # fmt: skip
    assert found.task == {"name": "classification", "label": "label"} and found.stratify
    assert "one number a row" in found.why["age"] and "2 short values" in found.why["colour"]


def test_paths_are_found_below_the_table_or_in_a_folder_beside_it(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(png(1, (8, 8)))
    names = [f"{i}.png" for i in range(60)]
    found = guess(table(file=names), tmp_path, "label")
    assert found.modalities["file"] == "image" and found.roots == {"file": str(tmp_path / "pictures")}
    assert guess(table(file=[f"pictures/{n}" for n in names]), tmp_path, None).roots == {"file": str(tmp_path)}
    with pytest.raises(FusetuneError, match="column 'file' holds paths of image files, e.g. 'x0.png', and hardly one"):
        guess(table(file=[f"x{n}" for n in names]), tmp_path, None)


def test_parts_splits_and_groups(tmp_path):
    splits = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    ids = [f"s{i}" for i in range(60)]
    found = guess(table(split=splits, utt_id=ids, speaker=["a", "b", "c"] * 20), tmp_path, None)
    assert found.parts == {"split": "split", "sample_id": "utt_id", "group_id": "speaker"}
    other = guess(table(split=["train"] * 40 + ["dev"] * 20), tmp_path, None)
    assert other.parts == {} and "with train, val and test it would be" in other.why["split"]


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ([f"{i / 7:.3f}" for i in range(60)], {"name": "regression", "label": "label"}),
        (["1", "2", "3"] * 20, {"name": "classification", "label": "label"}),
        (["a|b", "b", "a|c"] * 20, {"name": "multi_label", "label": "label", "separator": "|"}),
        ([["a"], ["a", "b"], []] * 20, {"name": "multi_label", "label": "label"}),
        ([f"it is thing {i}" for i in range(60)], {"name": "generation", "answer": "label"}),
    ],
)
def test_tasks(tmp_path, labels, task):
    assert guess(pa.table({"text": SENTENCES, "label": labels}), tmp_path, None).task == task


def test_what_cannot_be_guessed_is_asked_for(tmp_path):
    with pytest.raises(FusetuneError, match="new.label: expected the column that is to be predicted, found None"):
        guess(pa.table({"text": SENTENCES, "thing": ["a", "b"] * 30}), tmp_path, None)
    with pytest.raises(FusetuneError, match="no column that a model could read"):
        guess(pa.table({"age": list(range(60)), "label": ["a", "b"] * 30}), tmp_path, None)


@pytest.mark.parametrize("split", [False, True])
def test_a_folder_of_folders_is_a_table(tmp_path, split):
    for part in ("train", "val", "test") if split else ("",):
        for label in ("cat", "dog"):
            folder = tmp_path / "media" / part / label
            folder.mkdir(parents=True)
            for i in range(5):
                (folder / f"{i}.png").write_bytes(png(1, (8, 8)))
    label = listed(tmp_path / "media", tmp_path / "raw" / "samples.csv")
    made = read({"file": str(tmp_path / "raw" / "samples.csv")}, "x")
    found = guess(made.drop_columns(["sample_id", "group_id"]), tmp_path / "media", label)
    assert found.modalities == {"file": "image"} and made.num_rows == (30 if split else 10)
    assert found.task["label"] == "label" and ("split" in found.parts) == split
    with pytest.raises(FusetuneError, match="holds no media in folders called after their labels"):
        listed(tmp_path / "raw", tmp_path / "x.csv")
