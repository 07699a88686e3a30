"""Tasks in turn in a comparison: what each method forgets is a number in its row."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from conftest import WANDER
from fusetune.comparison.compare import Watcher, compare, shared_by_all
from fusetune.comparison.in_turn import sentences
from fusetune.comparison.record import opened, record
from fusetune.comparison.summary import summarize
from fusetune.config import to_plain
from fusetune.errors import FusetuneError
from fusetune.report.comparison_page import comparison_page
from fusetune.training.evaluation import EvaluationSettings

HEAD = {"where": "head", "adapter": "linear"}
METHODS = {
    "probe": {"placements": [HEAD]},
    "wander": {"placements": [WANDER, HEAD]},
    "lora": {"placements": [{"where": "towers", "adapter": "lora", "config": {"rank": 2}}, HEAD]},
}
TASKS = {name: {"name": "classification", "label": name} for name in ("right_up", "left_up")}


def compared(toy, continual, task=None):
    table = toy.table
    for side in ("right", "left"):
        up = [str(np.mean(value) > 0) for value in table[side].to_pylist()]
        table = table.append_column(f"{side}_up", pa.array(up))
    data = to_plain(replace(toy.data, task=task or {"name": "multi_task", "tasks": TASKS}))
    settings = {
        "methods": {name: {} for name in METHODS}, "seeds": [0, 1], "workers": 1, "continual": continual,
        "robustness": {"samples": 16, "missing": [], "noise": []},
    }  # fmt: skip
    train, folder = {"epochs": 12, "batch_size": 32, "device": "cpu", "learning_rate": 0.05}, toy.folder / "comparison"
    shared = shared_by_all(table, toy.base, data, train, {"dtype": "float32"}, {}, settings, toy.store, folder, "code")
    found = compare(shared, METHODS, lambda *_: None, Watcher())
    return shared, found, opened(json.loads(json.dumps(record(shared, found))), folder)


def test_what_each_method_forgets_stands_in_its_row(toy):
    _, found, rows = compared(toy, {"ways": ["shared", "orthogonal"]})
    assert found.failed() == {}
    summary = summarize(rows, None, {}, EvaluationSettings())
    turns = {name: row["continual"] for name, row in summary.rows.items()}
    assert turns["probe"]["shared"]["forgetting"] == 0, "heads are a task's own: a probe has nothing to forget"
    by_hand = []
    for _, cell in sorted(rows[1].cells.items()):
        first, later = (row[0] for row in cell.results["continual"]["shared"]["after"])
        by_hand.append(max(first, later) - later)
    assert by_hand[0] > 0.02, "the first task is worse once the second is learned"
    assert turns["wander"]["shared"]["forgetting"] == pytest.approx(np.mean(by_hand))
    assert turns["wander"]["shared"]["forgetting_deviation"] == pytest.approx(np.std(by_hand, ddof=1))
    assert "can't be merged" in turns["wander"]["orthogonal"]["refused"]
    assert 0 <= turns["lora"]["orthogonal"]["average"] <= 1
    flat = summary.flat()
    assert flat["wander"]["forgetting_shared"] == turns["wander"]["shared"]["forgetting"]
    assert "forgetting_orthogonal" in flat["lora"] and "forgetting_orthogonal" not in flat["wander"]
    (told,) = [text for text in summary.sentences if "(shared)" in text]
    assert "probe forgets least: 0.0 points" in told
    tied = sentences({"a": summary.rows["probe"], "b": summary.rows["probe"]}, "accuracy")
    assert any("a and b forget least: 0.0 points of accuracy" in text for text in tied)
    page = comparison_page(summary, rows, "two tasks")
    assert "One task after another" in page and "be merged into the base" in page


def test_nothing_to_take_in_turn_is_said_before_anything_is_trained(toy):
    with pytest.raises(FusetuneError, match=r"continual\.tasks: expected at least two"):
        compared(toy, {"ways": ["shared"]}, TASKS["left_up"])
    assert not (toy.folder / "comparison").exists()
    with pytest.raises(FusetuneError, match=r"expected some of .*, found sideways"):
        compared(toy, {"ways": ["sideways"]})


def test_nothing_in_turn_where_nobody_asks(toy):
    _, _, rows = compared(toy, {})
    summary = summarize(rows, None, {}, EvaluationSettings())
    assert all(row["continual"] == {} for row in summary.rows.values())
    assert "One task after another" not in comparison_page(summary, rows, "two tasks")
