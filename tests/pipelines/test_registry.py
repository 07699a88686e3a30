"""Versions and champions: decided by numbers, made whole or not at all, whatever happens to the process."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from conftest import clean, kedro
from fusetune.bank.artifact import Artifact
from fusetune.pipelines.registry import RegisterSettings, Registry

NAME = "fusetune-ci"
WHOLE = {"method", "experiment", "frontier", "adapter_sha256", "base_fingerprint", "data_sha256", "test_data_sha256",
         "metric", "value", "trainable_parameters", "dvc.stage"}  # fmt: skip

# registers folders one after the other, as runs of a pipeline would; `kill` names the step at which the process dies
REGISTER = """
import json, os, signal, sys
from pathlib import Path
import pyarrow.parquet as pq
from fusetune.hooks import use_tracking
kill, folders = sys.argv[1], [Path(name) for name in sys.argv[2:]]
print("begun", flush=True)
mlflow = use_tracking(Path.cwd())
from fusetune.backbones.bases import opened
from fusetune.pipelines.registry import RegisterSettings, Registry
from fusetune.pipelines.train.registration import Trained, register_version
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if kill == "before the version":
    Registry.create = die
elif kill == "behind the version":
    Registry.challenge = die
elif kill == "in the files":
    mlflow.log_metrics = die
mlflow.set_experiment("fusetune-ci")
print("open", flush=True)
manifest = pq.read_table("data/03_primary/ci/manifest.parquet")
for folder in folders:
    with mlflow.start_run(tags={"dvc.stage": "none"}):
        metrics, predictions = json.loads((folder / "metrics.json").read_text()), folder / "predictions.parquet"
        scores = pq.read_table(folder / "scores.parquet")
        trained = Trained(
            folder.name, folder / "adapter", metrics, pq.read_table(predictions), scores,
            Path("data/08_reporting/ci/wander/figures"), opened("data/06_models/ci/base.json"), manifest, "ci")
        print(json.dumps(register_version(trained, RegisterSettings("fusetune-ci"), {"bootstrap_samples": 500})))
"""


@pytest.fixture
def project(trained_project, tmp_path):
    return Path(shutil.copytree(trained_project, tmp_path / "project", symlinks=True))


@pytest.fixture
def client(project, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    return mlflow.MlflowClient()


def candidate(project, name, right):
    """The trained adapter with other bytes, and scores of which so many of a split are right, from the first on."""
    folder = project / name
    artifact = Artifact.from_pretrained(project / "data/06_models/ci/wander")
    tensors = {n: t + len(name) * 1e-3 + right * 1e-5 for n, t in artifact.tensors.items()}
    replace(artifact, tensors=tensors).save_pretrained(folder / "adapter")
    shutil.copy(project / "data/07_model_output/ci/wander/predictions.parquet", folder / "predictions.parquet")
    table = pq.read_table(project / "data/07_model_output/ci/wander/scores.parquet")
    splits = table["split"].to_pylist()
    places = [splits[:i].count(split) for i, split in enumerate(splits)]
    scores = [float(place < right) for place in places]
    position = table.column_names.index("score")
    pq.write_table(table.set_column(position, "score", pa.array(scores)), folder / "scores.parquet")
    metrics = json.loads((project / "data/08_reporting/ci/wander/metrics.json").read_text())
    metrics["test"]["accuracy"] = right / splits.count("test")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def start(project, *folders, kill="never"):
    command = [sys.executable, "-c", REGISTER, kill, *(folder.name for folder in folders)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=project, env=clean(), text=True, **pipes)


def register(project, *folders, kill="never"):
    process = start(project, *folders, kill=kill)
    out, error = process.communicate(timeout=120)
    if kill != "never":
        assert process.returncode == -signal.SIGKILL, error
        return []
    assert process.returncode == 0, error
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def versions(client):
    return {str(v.version): v for v in client.search_model_versions(f"name = '{NAME}'")}


def champion(client):
    return str(client.get_model_version_by_alias(NAME, "champion").version)


def assert_whole(client, count):
    found = versions(client)
    assert len(found) == count
    assert len({v.tags["adapter_sha256"] for v in found.values()}) == count
    for version in found.values():
        assert set(version.tags) >= WHOLE, version.tags
        import mlflow

        folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version.version}/artifacts/adapter")
        Artifact.from_pretrained(folder)


def test_a_champion_is_beaten_beyond_doubt_or_stays(project, client):
    rows = pq.read_table(project / "data/07_model_output/ci/wander/scores.parquet")
    rows = rows.filter(pc.equal(rows["split"], "val"))
    held, count = int(sum(rows["score"].to_pylist())), rows.num_rows
    folders = [candidate(project, name, right) for name, right in
               {"good": count - 3, "bit_better": count - 2, "worse": count - 30}.items()]  # fmt: skip
    other = candidate(project, "other", count)
    pq.write_table(pq.read_table(other / "scores.parquet").slice(0, 100), other / "scores.parquet")
    good, better, worse, again, other = register(project, *folders, folders[0], other)
    assert good["champion"] and good["gain"] == pytest.approx((count - 3 - held) / count) and good["low"] > 0
    assert better["gain"] > 0 and better["low"] <= 0 and not better["champion"], "a gain within the noise"
    assert not worse["champion"] and worse["high"] < 0
    assert [one["number"] for one in (good, better, worse, again, other)] == [1, 2, 3, None, None]
    assert "not beyond 0" in versions(client)["4"].tags["champion_decision"]
    assert again["version"] == "2" and again["reason"] == "the champion already", "the same bytes"
    assert "validated on other data" in other["reason"]
    assert champion(client) == "2" and str(client.get_model_version_by_alias(NAME, "challenger").version) == "5"
    run = client.get_run(good["run_id"])
    assert run.data.metrics["champion_gain_low"] == pytest.approx(good["low"])
    assert "champion_decision.json" in {artifact.path for artifact in client.list_artifacts(good["run_id"])}
    assert_whole(client, 5)
    registry = Registry(RegisterSettings(NAME), {"bootstrap_samples": 100})
    assert registry.compare("3").gain == pytest.approx(better["gain"])
    assert registry.compare("3").number == 2, "the same question again is no new challenge"
    folder = Path(client.get_model_version_download_uri(NAME, "2").removeprefix("file://"))
    (folder / "artifacts" / "evaluation.parquet").unlink()
    assert "registered without the scores of its samples. No comparison" in registry.compare("3").reason


def test_promote_and_roll_back_by_command(project, client):
    register(project, candidate(project, "worse", 0))
    assert champion(client) == "1"

    def run(*arguments):
        done = kedro(project, "run", "--env", "ci", *arguments)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    code, text = run("--pipeline", "promote")
    assert code == 0 and "version 2 changes nothing" in text and "not beyond 0" in text and champion(client) == "1"
    code, text = run("--pipeline", "promote", "--params", "promote.version=2,promote.force=true")
    assert code == 0 and "version 2 is champion now" in text and champion(client) == "2"
    code, text = run("--pipeline", "rollback")
    assert code == 0 and "champion is version 1 again, no longer 2" in text and champion(client) == "1"
    code, text = run("--pipeline", "rollback")
    assert code == 1 and "no champion before this one to go back to" in text and champion(client) == "1"
    code, text = run("--pipeline", "promote", "--params", "promote.version=7")
    assert code == 1 and "has no version or alias '7'. Versions: 1, 2." in text


@pytest.mark.parametrize("kill", ["in the files", "before the version", "behind the version"])
def test_a_killed_registration_leaves_nothing_half_made_and_is_made_up_for(project, client, kill):
    folder = candidate(project, "best", 128)
    register(project, folder, kill=kill)
    made = 2 if kill == "behind the version" else 1
    assert_whole(client, made)
    assert champion(client) == "1", "what was decided before still stands"
    (again,) = register(project, folder)
    assert again["version"] == "2" and again["champion"] and champion(client) == "2"
    assert_whole(client, 2)


def test_two_registrations_at_once_lose_nothing(project, client):
    folders = [candidate(project, "good", 127), candidate(project, "best", 128), candidate(project, "bad", 0)]
    processes = [start(project, folder) for folder in folders]
    ended = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended
    assert_whole(client, 4)
    values = {number: float(v.tags["value"]) for number, v in versions(client).items()}
    assert values[champion(client)] >= 127 / 128, "the worst one never wins, whoever came last"


@pytest.mark.parametrize("since", ["begun", "open"])
def test_a_database_that_is_locked_for_ten_seconds_is_waited_for(project, client, since):
    held, end = threading.Event(), threading.Event()

    def hold():
        connection = sqlite3.connect(project / "mlflow.db", isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        held.set()
        time.sleep(10)
        connection.execute("COMMIT")
        end.set()

    folder = candidate(project, "patient", 128)
    process = start(project, folder)
    while process.stdout.readline().strip() != since:
        assert process.poll() is None, process.communicate()
    threading.Thread(target=hold).start()
    held.wait()
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    end.wait()
    assert json.loads(out.splitlines()[-1])["champion"]
    assert_whole(client, 2)
