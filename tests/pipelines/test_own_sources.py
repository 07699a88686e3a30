"""What a user brings: an encoder from a hub, features that somebody else extracted, and targets of any kind."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from encoders import bert
from serving import served

from conftest import copy_project, experiment_in, kedro, ran

WORDS = ["the first", "a much longer text", "several words", "one"]
TASKS = {
    "kinds": {"name": "classification", "label": "kind"},
    "prices": {"name": "regression", "label": "price"},
    "tags": {"name": "multi_label", "label": "tags", "min_rows": 2},
    "grades": {"name": "ordinal", "label": "grade"},
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
        "grade": [int(w) + 2 * int(x > 0) for w, x in zip(words, numbers[:, 1], strict=True)],
        "tags": [
            [WORDS[w].split()[0], *(["loud"] if x > 0 else [])] for w, x in zip(words, numbers[:, 1], strict=True)
        ],
    }
    columns["tags"][250] = []
    pq.write_table(pa.table(columns), project / "reviews.parquet")
    for name, task in TASKS.items():
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
        experiment_in(project, name, parameters)
    return project


@pytest.mark.parametrize("env", TASKS)
def test_a_hub_tower_and_features_train_cache_register_and_predict(project, env):
    text = ran(project, env, "--pipelines", "train_late_fusion")
    reported = project / "data/08_reporting" / env
    metrics = json.loads((reported / "late_fusion/metrics.json").read_text())
    index = json.loads((project / "data/06_models" / env / "base.json").read_text())
    towers = json.loads((project / "data/06_models/bases" / index["fingerprint"] / "backbone.json").read_text())[
        "towers"
    ]
    assert towers["text"]["source"] == str(project / "encoder") and towers["prosody"]["tower"] == "features_vector"
    name = {"kinds": "accuracy", "prices": "r2", "tags": "map", "grades": "quadratic_kappa"}[env]
    plain = json.loads((reported / "baselines.json").read_text())
    assert metrics["metric"] == name and metrics["plain"] == plain
    assert set(plain) == {"majority or mean", "TF-IDF of text", "numbers of prosody", "their late fusion"}
    test = metrics["test"]
    assert test[f"{name}_low"] <= test[name] <= test[f"{name}_high"]
    assert test[name] > max(metrics["unimodal"].values()) + 0.05, "both modalities are needed"
    assert test[name] > plain["majority or mean"] + 0.2
    assert "plain baselines: majority or mean" in text and "champion" in text
    predicted = ran(project, env, "--pipelines", "predict")
    assert "50 rows predicted, 0 could not be read" in predicted, "those of the test split"
    scored = pq.read_table(project / "data/07_model_output" / env / "scored.parquet")
    column = {"kinds": "prediction", "prices": "value", "tags": "labels", "grades": "prediction"}[env]
    assert scored[column].null_count == 0 and len(set(map(str, scored[column].to_pylist()))) > 3
    again = ran(project, env, "--pipelines", "train_late_fusion")
    assert "everything is up to date" in again


def test_a_hub_tower_and_features_answer_over_http(project):
    """The same as `predict` says; what is missing or of another width is told by name."""
    ran(project, "kinds", "--pipelines", "train_late_fusion")
    ran(project, "kinds", "--pipelines", "predict")
    rows = pq.read_table(project / "reviews.parquet").to_pylist()[250:]
    asked = [{"text": row["review"], "prosody": row["prosody"]} for row in rows]
    scored = pq.read_table(project / "data/07_model_output/kinds/scored.parquet").to_pylist()
    expected = {row["sample_id"]: row["prediction"] for row in scored}
    assert len(set(expected.values())) > 1, "answers can differ"
    with served(project, "models:/fusetune-kinds@champion") as ask:
        status, text = ask(asked)
        assert status == 200, text
        answers = [answer["prediction"] for answer in json.loads(text)["predictions"]]
        assert answers == [expected[row["id"]] for row in rows]
        assert ask([{"prosody": rows[0]["prosody"]}])[0] == 200, "a modality may be missing"
        status, text = ask([{"text": "one", "prosody": [1.0, 2.0]}])
        assert 400 <= status < 500 and "prosody" in text and "5" in text, text


def test_the_comparison_is_of_numbers_too(project):
    (project / "conf/prices/parameters_compare.yml").write_text(
        yaml.safe_dump({"compare": {"methods": {"linear_probe": {}, "wander": {"set": {"train.epochs": 2}}},
                                    "seeds": [0, 1], "scaling": {"method": ""}, "workers": 1}})
    )  # fmt: skip
    noisy = {"noisy": {"changes": {"prosody": {"name": "noise", "share": 2.0}}}}
    (project / "conf/prices/parameters_second.yml").write_text(yaml.safe_dump({"evaluate_on": noisy}))
    ran(project, "prices", "--pipelines", "compare")
    summary = json.loads((project / "data/08_reporting/prices/comparison/summary.json").read_text())
    assert summary["metric"] == "r2" and set(summary["rows"]) == {"linear_probe", "wander"}
    assert len(summary["differences"]) == 1
    told = " ".join(summary["sentences"])
    assert "Without any of this, their late fusion reaches" in told
    best = summary["winner"]
    there = summary["second_sets"]["noisy"][best]
    assert there["rows"] == 50 and len(there["by_seed"]) == 2 and there["mean"] < summary["rows"][best]["mean"] - 0.1
    assert f"On 'noisy' (50 rows) {best} has {there['mean']:.3f}" in told
    page = (project / "data/08_reporting/prices/comparison/comparison.html").read_text()
    assert "On other data" in page and f"{there['mean']:.3f} ({there['low']:.3f} to {there['high']:.3f})" in page


SETS = {
    "elsewhere": {"reader": "manifest", "settings": {"file": "other.parquet"}, "columns": {"prosody": "measured"}},
    "misheard": {"changes": {"prosody": {"name": "noise", "share": 5.0}}},
    "blind": {"columns": {"text": "sample_id"}},
}


def test_other_data_are_evaluated_beside_the_test_split(project):
    """A table without splits, with a broken row, a strange label and a training row; and the test rows, changed."""
    rows = pq.read_table(project / "reviews.parquet").to_pylist()[200:]
    for row in rows:
        row["measured"] = row.pop("prosody")
        del row["split"], row["id"]
    rows[3]["review"], rows[4]["kind"] = None, "unheard of"
    rows[6]["review"] = "a much longer text of several words one"  # than any that was trained on
    rows[5] |= {name: pq.read_table(project / "reviews.parquet")[name][7].as_py() for name in ("review", "kind")}
    rows[5]["measured"] = pq.read_table(project / "reviews.parquet")["prosody"][7].as_py()
    pq.write_table(pa.Table.from_pylist(rows), project / "other.parquet")
    (project / "conf/kinds/parameters_second.yml").write_text(yaml.safe_dump({"evaluate_on": SETS}, sort_keys=False))
    ran(project, "kinds", "--pipelines", "train_late_fusion,train_wander", "--params", "wander.train.epochs=2")
    text = ran(project, "kinds", "--pipelines", "evaluate")
    assert "1 rows fail cell.missing (text), e.g." in text and "'row': 3" in text
    assert "1 rows are the same as training rows" in text
    both = json.loads((project / "data/08_reporting/kinds/second_sets/metrics.json").read_text())
    wander, found = both["wander"]["elsewhere"], both["late_fusion"]
    assert (wander["rows"], wander["rows_left_out"], wander["rows_too_long"]) == (97, 1, 1)
    assert "1 left out: more tokens than the adapter was made for" in text
    assert list(found) == ["test", *SETS]
    assert found["test"]["rows"] == 50 and found["test"]["metrics"] == _metrics(project)["test"]
    elsewhere = found["elsewhere"]
    assert (elsewhere["rows"], elsewhere["rows_left_out"], elsewhere["set_aside"]) == (98, 1, 1)
    values = {name: one["metrics"]["accuracy"] for name, one in found.items()}
    assert abs(values["elsewhere"] - values["test"]) < 0.1 and values["misheard"] < values["test"] - 0.15
    assert values["blind"] < values["test"] - 0.15, "text alone knows half of it"
    table = pq.read_table(project / "data/07_model_output/kinds/second_predictions.parquet")
    assert table.num_rows == sum(one["rows"] for own in both.values() for one in own.values())
    assert (project / "data/08_reporting/kinds/second_sets/figures/second_sets.png").stat().st_size > 5_000
    assert "everything is up to date" in ran(project, "kinds", "--pipelines", "evaluate")
    rows[8]["kind"] = None
    pq.write_table(pa.Table.from_pylist(rows), project / "other.parquet")
    assert "1 rows fail label.missing (kind)" in ran(project, "kinds", "--pipelines", "evaluate")


def _metrics(project):
    return json.loads((project / "data/08_reporting/kinds/late_fusion/metrics.json").read_text())


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "evaluate_on: there is no set to evaluate on"),
        ({"a": {"colums": {}}}, "evaluate_on.a: unknown key 'colums'. Did you mean 'columns'?"),
        ({"a": {"columns": {"sound": "review"}}}, "evaluate_on.a.columns: 'sound' is neither a modality"),
        ({"a": {"columns": {"text": "absent"}}}, "evaluate_on.a.columns.text: there is no column 'absent'"),
        ({"a": {"split": "best"}}, "evaluate_on.a.split: no row of split 'best'; there are"),
        ({"a": {"changes": {"text": {"name": "noise"}}}}, "evaluate_on.a.changes.text: this one changes image"),
    ],
)
def test_a_set_that_can_not_be_is_refused_by_name(project, sets, message):
    (project / "conf/prices/parameters_second.yml").write_text(yaml.safe_dump({"evaluate_on": sets}))
    ran(project, "prices", "--pipelines", "train_linear_probe", "--params", "train.epochs=1")
    done = kedro(project, "run", "--env", "prices", "--pipelines", "evaluate")
    assert done.returncode != 0 and message in " ".join((done.stdout + done.stderr).split())


def test_rows_without_a_number_or_labels_are_set_aside_by_name(project):
    rows = pq.read_table(project / "reviews.parquet").to_pylist()
    rows[3]["price"], rows[4]["price"] = float("inf"), None
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, project / "broken.parquet")
    ran(project, "prices", "--pipelines", "validate", "--params", "ingest.settings.file=broken.parquet")
    aside = pq.read_table(project / "data/08_reporting/prices/quarantine.parquet").to_pylist()
    assert [(row["row"], row["column"], row["check"]) for row in aside] == [
        (4, "price", "label.missing"), (3, "price", "label.type")
    ]  # fmt: skip
    assert "inf is no finite number" in aside[1]["value"]
