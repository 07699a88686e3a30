"""`fusetune.adapt` and `fusetune.load`: from a table to answers in a few lines."""

import numpy as np
import pyarrow as pa
import pytest

import fusetune
from fusetune.errors import FusetuneError

PLAN = {"placements": [{"where": "head", "adapter": "linear"}], "train": {"epochs": 15}}


def table() -> pa.Table:
    """The label is whether two vectors agree in a sign; their products tell, neither alone does."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 300, 4)).astype(np.float32)
    label = np.where(left[:, 0] + right[:, 0] > 0, "more", "less")
    return pa.table({"left": list(left), "a right": list(right), "label": label})


def test_from_a_table_to_answers_and_back_from_the_folder(tmp_path):
    found = fusetune.adapt(table(), tmp_path / "out", method=PLAN, device="cpu")
    assert found.metrics["test"]["accuracy"] > 0.75 and "test accuracy" in found.told
    assert set(found.data.modalities) == {"left", "a_right"}
    samples = {"left": [[3.0, 0, 0, 0], [-3.0, 0, 0, 0]], "a_right": [[2.0, 0, 0, 0], [-2.0, 0, 0, 0]]}
    answers = found.predict(samples)
    assert [answer["prediction"] for answer in answers] == ["more", "less"]
    again = fusetune.load(tmp_path / "out", device="cpu")
    assert again.predict(samples) == answers and again.told == found.told
    with pytest.raises(FusetuneError, match=r"unknown modality \['right'\]. Known: left, a_right"):
        found.predict({"right": [[1.0] * 4]})


def test_what_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(FusetuneError, match="no adapter in it"):
        fusetune.load(tmp_path)
    with pytest.raises(FusetuneError, match="'wandr' is no file of"):
        fusetune.adapt(table(), tmp_path / "out", method="wandr", device="cpu")
    with pytest.raises(FusetuneError, match="expected the column that is to be predicted"):
        fusetune.adapt(table(), tmp_path / "out", label="lable", method=PLAN)
    with pytest.raises(AttributeError, match="has no attribute 'adopt'"):
        _ = fusetune.adopt
