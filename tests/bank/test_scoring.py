"""A table scored by a trained model: each row as alone, whoever decodes it; what is wrong with one costs no other."""

import os
import signal

import numpy as np
import pyarrow as pa
import pytest
import torch
from artifacts import made

from conftest import WANDER
from fusetune import on_disk
from fusetune.backbones.backbone import Backbone
from fusetune.bank import predictions as module
from fusetune.bank.artifact import Artifact
from fusetune.bank.predictions import predictions, score_answers
from fusetune.bank.scoring import Scored, score
from fusetune.config import digest
from fusetune.errors import FusetuneError
from fusetune.features.source import Source, listed_digest
from fusetune.manifest.schema import Modality
from fusetune.tasks.moments import Moments, MomentsConfig
from fusetune.training.data import sample_columns
from fusetune.training.evaluation import EvaluationSettings

CPU = torch.device("cpu")
ROWS = np.arange(200, 230)
WRONG, NOTHING, HALF = (203, 204, 217), 211, 212  # what is no number; no modality; one of two


@pytest.fixture
def table(toy):
    left, right = toy.table["left"].to_pylist(), toy.table["right"].to_pylist()
    for row in WRONG:
        left[row] = [[1.0, 2.0, float("nan"), 0.0]]
    left[NOTHING] = right[NOTHING] = left[HALF] = None
    types = toy.table.schema.field("left").type, toy.table.schema.field("right").type
    return toy.table.set_column(3, "left", pa.array(left, types[0])).set_column(4, "right", pa.array(right, types[1]))


@pytest.fixture
def model(toy):
    return Artifact.from_pretrained(made(toy, "wander", WANDER)).build(toy.base)


def test_each_row_is_answered_as_alone_and_what_is_wrong_costs_itself(toy, table, model, monkeypatch):
    monkeypatch.setattr("fusetune.features.decoding.PART", 4)
    source, seen = Source(table, toy.data.modalities), []
    alone = [score(model, source, [row], 1, CPU) for row in ROWS if row not in (*WRONG, NOTHING)]
    for batch_size, decoders in ((30, 0), (7, 0), (7, 2)):
        found = score(model, source, ROWS, batch_size, CPU, lambda *done: seen.append(done), decoders)
        assert list(found.rows) == [int(one.rows[0]) for one in alone]
        torch.testing.assert_close(found.outputs, torch.cat([one.outputs for one in alone]), atol=1e-5, rtol=1e-5)
        assert list(found.errors) == sorted((*WRONG, NOTHING)) and seen[-1] == (30, 30)
        assert all(f"row {row}, column 'left'" in found.errors[row] for row in WRONG)
        assert found.errors[NOTHING] == "row 211: no modality is given; expected some of left, right."
    assert found.outputs.std(0).min() > 1e-3
    with pytest.raises(FusetuneError, match=r"no row could be read: row 203, column 'left'"):
        score(model, source, list(WRONG), 2, CPU)


def test_a_batch_that_the_model_refuses_is_answered_row_by_row(toy, model):
    left = toy.table["left"].to_pylist()
    left[210] = [left[210][0]] * 7  # the adapter knows 5 tokens
    left[222] = [left[222][0]] * 9  # and the tower 8
    types = toy.table.schema.field("left").type
    source = Source(toy.table.set_column(3, "left", pa.array(left, types)), toy.data.modalities)
    found = score(model, source, ROWS, 8, CPU)
    assert list(found.errors) == [210, 222] and "7 tokens" in found.errors[210] and len(found.rows) == 28
    assert found.errors[222].startswith("row 222, column 'left': expected at most 8 tokens of 4 floats")


def test_a_decoder_that_is_killed_is_told(toy, model, monkeypatch):
    monkeypatch.setattr("fusetune.features.decoding.PART", 4)
    prepare, here = Backbone.prepare, os.getpid()

    def killed(self, samples):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(self, samples)

    monkeypatch.setattr(Backbone, "prepare", killed)
    with pytest.raises(FusetuneError, match=r"predict.decoders: a process .* was killed.*Nothing was written"):
        score(model, Source(toy.table, toy.data.modalities), ROWS, 8, CPU, decoders=2)


@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_lines_made_some_at_a_time_are_those_of_all_at_once(toy, table, model, monkeypatch, task):
    if task == "multi_label":
        labels = [[label] if i % 3 else [] for i, label in enumerate(table["label"].to_pylist())]
        table = table.append_column("labels", pa.array(labels))
        monkeypatch.setattr(toy, "table", table)
        data = {"name": "multi_label", "label": "labels", "min_rows": 1}
        model = Artifact.from_pretrained(made(toy, "labels", WANDER, task=data)).build(toy.base)
    source, found = Source(table, toy.data.modalities), []
    keys, scored = source.readable_keys(), score(model, source, ROWS, 8, CPU)
    told = sample_columns(model.task, source, keys)
    monkeypatch.setattr(on_disk, "KEPT", 0)
    for at_once, parts in ((10**6, 10**6), (2, 3)):  # rows 203 and 204 are a block with nothing but errors
        monkeypatch.setattr(on_disk, "AT_ONCE", at_once)
        monkeypatch.setattr(on_disk, "ROWS", parts)
        monkeypatch.setattr(module, "_lines", noted(module._lines, blocks := []))
        lines = predictions(model.task, source, keys, told, ROWS[1:], scored)
        metrics = score_answers(model.task, source, told, scored, EvaluationSettings(bootstrap_samples=20))
        found.append((len(blocks), lines, metrics))
    (one, lines, metrics), (many, others, again) = found
    assert one == 1 and many == 15 and metrics == again and metrics["evaluated_rows"] == 26
    assert lines.to_pylist() == others.select(lines.column_names).to_pylist() and len(lines) == 29
    assert {row["sample_id"]: row["error"] is None for row in lines.to_pylist()}["s203"] is False
    ids = dict(zip(lines["sample_id"].to_pylist(), lines["content_sha256"].to_pylist(), strict=True))
    assert ids["s212"] == digest({name: own[212] for name, own in keys.items()}) and len(set(ids.values())) == 29


def noted(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call


def test_what_a_column_tells_of_samples_is_known_where_answers_are_made():
    task = Moments(MomentsConfig(duration="seconds"))
    table = pa.table({"text": list("abcd"), "seconds": [10.0, 20.0, 40.0, 80.0]})
    source, rows = Source(table, {"text": Modality("text")}), np.array([0, 1, 3])
    scored = Scored(rows, torch.tensor([[0.25, 0.5]] * 3), {2: "row 2: away"})
    lines = predictions(task, source, source.readable_keys(), {}, np.arange(4), scored).to_pylist()
    assert [line["span"] for line in lines] == [[2.5, 5.0], [5.0, 10.0], None, [20.0, 40.0]]
    assert [line["error"] for line in lines] == [None, None, "row 2: away", None]
    spans = predictions(task, Source(table.select(["text"]), source.modalities), {}, {}, rows, scored)["span"]
    assert spans.to_pylist() == [None] * 3, "nobody knows how long they are"


def test_keys_of_what_cannot_be_read_are_none_and_digested_as_before(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    table = pa.table({"image": ["a.png", None, "gone.png", "b.png", "away.png"], "text": list("vwxyz")})
    keys = Source(table, {"image": Modality("image", root=str(tmp_path)), "text": Modality("text")}).readable_keys()
    plain = {name: list(own) for name, own in keys.items()}
    assert [key and len(key) for key in plain["image"]] == [64, "", None, 64, None] and None not in plain["text"]
    assert list(keys["image"][1:4]) == plain["image"][1:4] and keys["image"][2] is None
    assert listed_digest(keys) == digest(plain) != digest({**plain, "image": plain["text"]})
