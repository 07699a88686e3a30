"""Other methods than Wander by the real command: stages of features, gates in the report, peft in the registry."""

import base64
import json
import shutil

import pyarrow.parquet as pq
import pytest

from conftest import kedro
from fusetune.features.key_files import read_keys

REPORT, MODEL_INPUT = "data/08_reporting/ci", "data/05_model_input/ci"


def said(done) -> str:
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    return shutil.copytree(trained_project, tmp_path_factory.mktemp("methods") / "project", symlinks=True)


def test_a_plan_that_unfreezes_gradually_caches_every_stage_and_is_served(project, monkeypatch):
    command = ("run", "--pipeline", "train_mixed", "--env", "ci", "--params", "mixed.train.epochs=4")
    text = said(kedro(project, *command))
    assert "mixed: frontier at text 2, image 3" in text and "mixed: frontier at text 1, image 2 from epoch 3 on" in text
    assert "moves from (text 2, image 3) to (text 1, image 2)" in text
    features, _ = read_keys(project / MODEL_INPUT / "mixed" / "features.arrow")
    assert features["frontier"]["towers"] == {"text": 2, "image": 3}
    assert features["later"]["3"]["frontier"]["towers"] == {"text": 1, "image": 2}
    assert "everything is up to date" in said(kedro(project, *command))
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/fusetune-ci@challenger")
    predictions = pq.read_table(project / "data/07_model_output/ci/mixed/predictions.parquet").to_pylist()
    manifest = pq.read_table(project / "data/03_primary/ci/manifest.parquet").to_pandas().set_index("sample_id")
    rows = manifest.loc[[row["sample_id"] for row in predictions[:8]], ["text", "image"]].reset_index(drop=True)
    rows["image"] = [[base64.b64encode(picture).decode() for picture in pictures] for pictures in rows["image"]]
    answers = model.predict(rows)
    assert answers["prediction"].tolist() == [row["prediction"] for row in predictions[:8]]
    assert answers["probability"].tolist() == pytest.approx([row["probability"] for row in predictions[:8]], abs=1e-2)


def test_gates_go_to_predictions_metrics_and_a_figure(project):
    assert kedro(project, "run", "--pipeline", "train_fusion_gate", "--env", "ci").returncode == 0
    table = pq.read_table(project / "data/07_model_output/ci/fusion_gate/predictions.parquet")
    gates = [table[f"gate_{name}"].to_numpy() for name in ("text", "image")]
    assert gates[0] + gates[1] == pytest.approx(1.0)
    metrics = json.loads((project / REPORT / "fusion_gate" / "metrics.json").read_text())
    assert metrics["observed"]["gate_text"] == pytest.approx([gates[0].mean()])
    assert (project / REPORT / "fusion_gate" / "figures" / "gates.png").stat().st_size > 5000


def test_a_method_that_has_no_place_here_says_what_it_needs(project):
    done = kedro(project, "run", "--pipeline", "train_fusion_lora", "--env", "ci")
    assert done.returncode != 0 and "there is no trunk here. Use a backbone with one and data.use_trunk: true" in said(
        done
    )


def test_costs_of_any_model_are_estimated_without_data_or_weights(project):
    done = kedro(project, "run", "--pipeline", "estimate", "--params", "estimate.model=bert,estimate.labels=2")
    assert done.returncode == 0, said(done)
    found = json.loads((project / "data/08_reporting/estimate.json").read_text())
    assert found["lora"]["trainable_by_site"] == {"text": 294912, "head": 2 * 768 + 2}
    assert "no trunk" in found["vl_adapter"]["error"] and "vl_adapter does not fit" in said(done)
