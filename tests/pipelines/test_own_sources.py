"""What a user brings: an encoder from a hub, features that somebody else extracted, and targets of any kind."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from encoders import bert

from conftest import copy_project, kedro

WORDS = ["the first", "a much longer text", "several words", "one"]
TASKS = {
    "kinds": {"name": "classification", "label": "kind"},
    "prices": {"name": "regression", "label": "price"},
    "tags": {"name": "multi_label", "label": "tags", "min_rows": 2},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """One table, three experiments on it; the text's encoder is a folder as a hub has it."""
    project = copy_project(tmp_path_factory.mktemp("strangers"))
    torch.manual_seed(0)
    bert().save_pretrained(project / "encoder")
    rng = np.random.default_rng(0)
    words, numbers = rng.integers(0, 4, 300), rng.normal(0, 1, (300, 5)).astype(np.float32)
    columns = {
        "id": [f"r{i}" for i in range(300)],
        "split": ["train"] * 200 + ["val"] * 50 + ["test"] * 50,
        "review": [WORDS[w] for w in words],
        "prosody": (numbers * [1, 100, 1, 1, 1e-3]).tolist(),
        "kind": [f"{w % 2}{int(x > 0)}" for w, x in zip(words, numbers[:, 1], strict=True)],
        "price": (words + 2 * numbers[:, 1]).tolist(),
        "tags": [
            [WORDS[w].split()[0], *(["loud"] if x > 0 else [])] for w, x in zip(words, numbers[:, 1], strict=True)
        ],
    }
    columns["tags"][250] = []
    pq.write_table(pa.table(columns), project / "reviews.parquet")
    for name, task in TASKS.items():
        folder = project / "conf" / name
        folder.mkdir()
        (folder / "globals.yml").write_text(f"experiment: {name}\n")
        parameters = {
            "ingest": {"reader": "manifest", "settings": {"file": "reviews.parquet", "sample_id": "id"}},
            "backbone": {"towers": {"text": {"source": str(project / "encoder")}}},
            "data": {
                "modalities": {"text": {"kind": "text", "column": "review"}, "prosody": {"kind": "vector"}},
                "task": task,
                "use_trunk": False,
            },
            "validate": {"min_rows_per_split": 10, "severity": {"content.duplicate": "off"}},
        }
        (folder / "parameters.yml").write_text(yaml.safe_dump(parameters))
    return project


def run(project, env, *arguments):
    done = kedro(project, "run", "--env", env, *arguments)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, text
    return text


@pytest.mark.parametrize("env", TASKS)
def test_a_hub_tower_and_features_train_cache_register_and_predict(project, env):
    text = run(project, env, "--pipelines", "train_late_fusion")
    reported = project / "data/08_reporting" / env
    metrics = json.loads((reported / "late_fusion/metrics.json").read_text())
    index = json.loads((project / "data/06_models" / env / "base.json").read_text())
    towers = json.loads((project / "data/06_models/bases" / index["fingerprint"] / "backbone.json").read_text())[
        "towers"
    ]
    assert towers["text"]["source"] == str(project / "encoder") and towers["prosody"]["tower"] == "features_vector"
    name = {"kinds": "accuracy", "prices": "r2", "tags": "map"}[env]
    plain = json.loads((reported / "baselines.json").read_text())
    assert metrics["metric"] == name and metrics["plain"] == plain
    assert set(plain) == {"majority or mean", "TF-IDF of text", "numbers of prosody", "their late fusion"}
    test = metrics["test"]
    assert test[f"{name}_low"] <= test[name] <= test[f"{name}_high"]
    assert test[name] > max(metrics["unimodal"].values()) + 0.05, "both modalities are needed"
    assert test[name] > plain["majority or mean"] + 0.2
    assert "plain baselines: majority or mean" in text and "champion" in text
    predicted = run(project, env, "--pipelines", "predict")
    assert "50 rows predicted, 0 could not be read" in predicted, "those of the test split"
    scored = pq.read_table(project / "data/07_model_output" / env / "scored.parquet")
    column = {"kinds": "prediction", "prices": "value", "tags": "labels"}[env]
    assert scored[column].null_count == 0 and len(set(map(str, scored[column].to_pylist()))) > 3
    again = run(project, env, "--pipelines", "train_late_fusion")
    assert "everything is up to date" in again


def test_the_comparison_is_of_numbers_too(project):
    (project / "conf/prices/parameters_compare.yml").write_text(
        yaml.safe_dump({"compare": {"methods": {"linear_probe": {}, "wander": {"set": {"train.epochs": 2}}},
                                    "seeds": [0, 1], "scaling": {"method": ""}, "workers": 1}})
    )  # fmt: skip
    run(project, "prices", "--pipelines", "compare")
    summary = json.loads((project / "data/08_reporting/prices/comparison/summary.json").read_text())
    assert summary["metric"] == "r2" and set(summary["rows"]) == {"linear_probe", "wander"}
    assert len(summary["differences"]) == 1
    told = " ".join(summary["sentences"])
    assert "Without any of this, their late fusion reaches" in told
    assert (project / "data/08_reporting/prices/comparison/comparison.html").stat().st_size > 10_000


def test_rows_without_a_number_or_labels_are_set_aside_by_name(project):
    rows = pq.read_table(project / "reviews.parquet").to_pylist()
    rows[3]["price"], rows[4]["price"] = float("inf"), None
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, project / "broken.parquet")
    run(project, "prices", "--pipelines", "validate", "--params", "ingest.settings.file=broken.parquet")
    aside = pq.read_table(project / "data/08_reporting/prices/quarantine.parquet").to_pylist()
    assert [(row["row"], row["column"], row["check"]) for row in aside] == [
        (4, "price", "label.missing"), (3, "price", "label.type")
    ]  # fmt: skip
    assert "inf is no finite number" in aside[1]["value"]
