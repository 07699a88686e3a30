"""A spoken command and a picture, by the real command: where, and what to do there."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from speaking import saved_llava

from conftest import copy_project, experiment_in, ran

FOLDER = Path(__file__).parents[3] / "shared/data/fsdd"


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the recordings are not there: {FOLDER}")
def test_a_command_is_a_place_and_an_action(tmp_path):
    project = copy_project(tmp_path)
    saved_llava(project / "llava")
    tasks = {
        "where": {"name": "grounding"},
        "what": {"name": "classification", "label": "action", "metric": "accuracy"},
    }
    parameters = {
        "ingest": {
            "reader": "spoken_commands",
            "settings": {"folder": str(FOLDER), "held_out": "theo", "samples": {"train": 240, "val": 40, "test": 40}},
        },
        "backbone": {"source": str(project / "llava")},
        "data": {
            "modalities": {"image": {"kind": "image"}, "mel": {"kind": "sequence"}},
            "use_trunk": True,
            "task": {"name": "multi_task", "metric": "all_right", "tasks": tasks},
        },
        "validate": {"min_rows_per_split": 10},
        "train": {"epochs": 8},
    }
    experiment_in(project, "commands", parameters)
    ran(project, "commands", "--pipelines", "train_late_fusion")
    reported = project / "data/08_reporting/commands/late_fusion"
    metrics = json.loads((reported / "metrics.json").read_text())
    test = metrics["test"]
    assert {"all_right", "accuracy", "where_accuracy_at_50", "what_accuracy"} <= set(test)
    assert test["what_accuracy"] > 0.4, "four actions, a voice that nobody has heard"
    assert test["all_right"] <= min(test["what_accuracy"], test["where_accuracy_at_50"])
    assert test["accuracy"] == pytest.approx((test["what_accuracy"] + test["where_accuracy_at_50"]) / 2)
    assert max(metrics["plain"].values()) <= 0.2 and list(metrics["unimodal"]) == ["image"]
    assert (reported / "figures/located.png").stat().st_size > 10_000
    table = pq.read_table(project / "data/07_model_output/commands/late_fusion/predictions.parquet")
    assert {"box", "action", "where_box", "what_prediction", "what_probability"} <= set(table.column_names)
