"""`compare` as a user runs it: the report, MLflow's nested runs, a second run, failures that are tried again."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import kedro

REPORT = Path("data/08_reporting/ci/comparison")
CELLS = Path("data/07_model_output/ci/comparison/cells")


def said(done) -> str:
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def project(compared_project, tmp_path_factory):
    """A copy, so that what these tests break stays here."""
    return Path(shutil.copytree(compared_project, tmp_path_factory.mktemp("broken") / "project"))


def test_the_report_and_the_winner_are_there(project):
    from fusetune.bank.artifact import Artifact

    summary = json.loads((project / REPORT / "summary.json").read_text())
    metrics = json.loads((project / REPORT / "metrics.json").read_text())
    assert set(summary["rows"]) == set(metrics) == {"linear_probe", "fusion_gate", "wander"}
    for name, row in metrics.items():
        assert row["low"] <= row["accuracy"] <= row["high"] and row["seeds"] == 2, name
    assert len(summary["differences"]) == 3 and len(summary["scaling"]["points"]) == 4
    assert summary["winner"] in summary["sentences"][0]
    assert len(list((project / CELLS).iterdir())) == 9, "rank 8 on all samples, seed 0, stands in both"
    page = (project / REPORT / "comparison.html").read_text()
    assert summary["sentences"][0] in page and "Plotly.react" in page
    assert page.count("<article class='card'") > 20 and page.count("data:image/webp;base64,") > 20
    assert " is wrong</option>" in page and "TF-IDF of text (scikit-learn)" in page
    figures = {file.stem for file in (project / REPORT / "figures").iterdir()}
    assert figures >= {"means", "pareto_parameters", "robustness", "learning_curves", "scaling"}
    winner = Artifact.from_pretrained(project / "data/06_models/ci/comparison_winner")
    assert winner.config["method"] == summary["winner"]
    table = (project / REPORT / "table.csv").read_text().splitlines()
    assert table[0].startswith("method,validation,mean,low,high") and len(table) == 4


def test_every_cell_is_a_nested_run_and_the_report_an_artifact(project, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("fusetune-ci").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("kedro.pipelines") == "compare"]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == 9 and {run.info.status for run in below} == {"FINISHED"}
    one = next(run for run in below if run.data.tags["variant"] == "wander")
    assert {"test_accuracy", "test_ece", "train_seconds", "trainable_parameters"} <= set(one.data.metrics)
    assert len(client.get_metric_history(one.info.run_id, "val_metric")) == 3
    assert one.data.params["placements.0.adapter"] == "wander" and one.data.params["seed"] in "01"
    assert parent.info.run_name.endswith(f"{parent.data.tags['winner']}, of 3 compared")
    assert parent.data.tags["mlflow.note.content"].count("\n- ") > 1
    assert parent.data.tags["winner"] in {"linear_probe", "fusion_gate", "wander"}
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"comparison.html", "comparison.json", "figures"} <= names


def test_a_second_run_has_nothing_to_do_and_a_change_trains_what_it_touches(project):
    again = kedro(project, "run", "--pipeline", "compare", "--env", "ci")
    assert again.returncode == 0 and "everything is up to date" in said(again)
    before = {file.name for file in (project / CELLS).iterdir()}
    changed = kedro(project, "run", "--pipeline", "compare", "--env", "ci", "--params", "linear_probe.train.epochs=2")
    assert changed.returncode == 0, said(changed)
    assert "2 cells are new, 7 were there" in said(changed)
    assert len({file.name for file in (project / CELLS).iterdir()} - before) == 2


def test_a_method_that_raises_or_does_not_fit_is_a_row_and_what_raised_is_tried_again(project):
    broken = "wander.train.learning_rate=1e30,compare.methods.vl_adapter={}"
    arguments = ("run", "--pipeline", "compare", "--env", "ci", "--params", broken)
    done = kedro(project, *arguments)
    assert done.returncode == 0, said(done)
    assert "vl_adapter does not fit" in said(done) and "wander, seed 0 failed: training: the loss is" in said(done)
    summary = json.loads((project / REPORT / "summary.json").read_text())
    assert "no trunk" in summary["errors"]["vl_adapter"]["0"] or "trunk" in summary["errors"]["vl_adapter"]["0"]
    assert "the loss is" in summary["errors"]["wander"]["1"] and "wander" not in summary["rows"]
    assert "What failed" in (project / REPORT / "comparison.html").read_text()
    again = kedro(project, *arguments)
    assert "wander, seed 0 failed" in said(again) and "0 cells are new, 4 were there" in said(again)
    mended = kedro(project, "run", "--pipeline", "compare", "--env", "ci")
    assert "0 cells are new, 9 were there" in said(mended), said(mended)


def test_a_misspelled_setting_is_named_before_anything_runs(project):
    for params, words in (
        ("compare.sedes=3", "Did you mean 'seeds'"),
        ("compare.methods.wandr={}", "unknown method 'wandr'"),
        ("compare.robustness.missing=[2]", "expected shares between 0 and 1"),
    ):
        done = kedro(project, "run", "--pipeline", "compare", "--env", "ci", "--params", params)
        assert done.returncode == 1 and words in said(done), said(done)[-600:]
