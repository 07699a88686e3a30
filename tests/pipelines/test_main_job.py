"""The main job as a user runs it: end to end at a small size, again with nothing to do, and with mistakes."""

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import served

from conftest import clean, copy_project, kedro

REPORT = Path("data/08_reporting/ci/wander")


def said(done) -> str:
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def client(trained_project, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(f"sqlite:///{trained_project / 'mlflow.db'}")
    return mlflow.MlflowClient()


def runs(client):
    return client.search_runs([client.get_experiment_by_name("fusetune-ci").experiment_id])


def test_the_adapter_the_report_and_the_version_are_there(trained_project, client):
    metrics = json.loads((trained_project / REPORT / "metrics.json").read_text())
    assert metrics["test"]["accuracy_low"] <= metrics["test"]["accuracy"] <= metrics["test"]["accuracy_high"]
    assert set(metrics["unimodal"]) == {"text", "image"}
    assert (trained_project / "data/06_models/ci/wander/adapter_model.safetensors").is_file()
    assert (trained_project / "data/07_model_output/ci/wander/predictions.parquet").is_file()
    version = client.get_model_version_by_alias("fusetune-ci", "champion")
    challenger = client.get_model_version_by_alias("fusetune-ci", "challenger")
    assert str(version.version) == str(challenger.version) == "1"
    assert float(version.tags["value"]) == metrics["test"]["accuracy"]


def test_mlflow_holds_parameters_curves_figures_and_tags(trained_project, client):
    run = next(r for r in runs(client) if r.info.status == "FINISHED")
    assert run.data.params["train.epochs"] == "3" and run.data.params["data.task.name"] == "vqa"
    assert run.data.params["wander.placements.0.adapter"] == "wander"
    assert not [name for name in run.data.params if name.startswith(("lora.", "compare.", "merge."))]
    assert len(run.data.params) < 150, "its own method's, not those of thirty"
    assert run.data.tags["mlflow.note.content"].startswith("wander: test accuracy 0.")
    assert run.info.run_name == f"{run.data.metrics['test_accuracy']:.3f} wander"
    assert {"method", "metric", "experiment", "base_fingerprint", "data_sha256"} <= set(run.data.tags)
    assert run.data.tags["kedro.pipelines"] == "train_wander" and run.data.tags["frontier"].startswith(
        "text 2, image 3"
    )
    curve = (trained_project / REPORT / "curve.csv").read_text().splitlines()
    assert len(client.get_metric_history(run.info.run_id, "val_accuracy")) == len(curve) - 1
    assert run.data.metrics["test_accuracy"] > 0 and "test_only_text" in run.data.metrics
    figures = {a.path for a in client.list_artifacts(run.info.run_id, "figures")}
    assert "figures/confusion_matrix.png" in figures


def test_a_second_run_has_nothing_to_do_and_says_so(trained_project, client):
    before = len(runs(client))
    noted = "1"  # each module that is imported, with its time
    done = kedro(trained_project, "run", "--pipeline", "train_wander", "--env", "ci", PYTHONPROFILEIMPORTTIME=noted)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "kedro" in imported and not imported & {"torch", "transformers", "mlflow"}, "it takes two seconds"
    assert done.returncode == 0 and "everything is up to date" in said(done)
    assert "wander: up to date" in said(done) or "train_wander: up to date" in said(done)
    assert len(runs(client)) == before, "nothing to do is no MLflow run"


def test_the_plan_is_shown_every_time_and_made_once(trained_project, client, tmp_path):
    project = copy_tree(trained_project, tmp_path)
    first = said(kedro(project, "run", "--pipeline", "plan", "--env", "ci"))
    plan = json.loads((project / "data/08_reporting/ci/plan.json").read_text())
    assert plan["wander"]["frontier"] == "text 2, image 3" and plan["wander"]["flop_ratio"] > 10
    assert plan["partial_finetune"]["frontier"] == "text 1, image 2" and plan["full_finetune"]["flop_ratio"] == 1
    again = said(kedro(project, "run", "--pipeline", "plan", "--env", "ci"))
    assert "plan: up to date" in again and "plan: up to date" not in first
    assert all("partial_finetune" in text and "text 1" in text for text in (first, again))
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    run = next(r for r in runs(mlflow.MlflowClient()) if r.data.tags["kedro.pipelines"] == "plan")
    assert run.data.metrics["wander_flop_ratio"] == plan["wander"]["flop_ratio"]
    assert "plan.json" in {a.path for a in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


def test_a_damaged_shard_is_made_anew_and_nothing_else(trained_project, tmp_path):
    project = copy_tree(trained_project, tmp_path)
    store = project / "data/04_feature/store"
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in store.rglob("*.safetensors")}
    victim = max(before, key=lambda f: len(before[f][0]))
    data = bytearray(before[victim][0])
    data[-1000] ^= 1
    victim.write_bytes(data)
    command = [sys.executable, "-m", "fusetune.features", "verify", "--repair"]
    done = subprocess.run(command, cwd=project, env=clean(), capture_output=True, text=True)
    assert done.returncode == 0 and victim.name in done.stdout and "changed on disk" in done.stdout
    text = said(kedro(project, "run", "--pipeline", "train_wander", "--env", "ci"))
    assert "pretrain: up to date" in text and "cache_features_wander: up to date" not in text
    for file, (content, stamp) in before.items():
        assert file.read_bytes() == content and (file == victim or file.stat().st_mtime_ns == stamp)


def test_a_changed_parameter_repeats_only_what_depends_on_it(trained_project, tmp_path):
    project = copy_tree(trained_project, tmp_path)
    done = kedro(project, "run", "--pipelines", "train_wander", "--env", "ci", "--params", "evaluate.confidence=0.9")
    text = said(done)
    assert done.returncode == 0, text
    for node in ("ingest", "validate", "pretrain", "unimodal", "cache_features_wander"):
        assert f"{node}: up to date" in text
    assert "train_wander: up to date" not in text


def test_texts_that_the_base_does_not_know_stop_the_run_before_anything_is_cached(trained_project, tmp_path):
    project = copy_tree(trained_project, tmp_path)
    store = {file.name for file in (project / "data/04_feature/store").rglob("*")}
    asked = ("--pipelines", "train_wander", "--env", "ci", "--params", "data.modalities.text.column=sample_id")
    done = kedro(project, "run", *asked)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "inputs: stopped by text.mostly_unknown (sample_id):" in said(done)
    assert "Take a base whose tokenizer knows these texts" in said(done)
    page = (project / "data/08_reporting/ci/validation_with_base.html").read_text()
    assert "text.mostly_unknown" in page and "Stopped by" in page
    assert {file.name for file in (project / "data/04_feature/store").rglob("*")} == store
    file = project / "conf/ci/parameters.yml"
    file.write_text(file.read_text().replace("validate:\n", "validate:\n  severity: {text.mostly_unknown: warn}\n"))
    found = kedro(project, "run", "--pipelines", "plan", *asked[2:])
    assert "of the tokens are unknown to the base" in said(found)


def test_a_training_that_diverges_is_a_failed_run_and_registers_nothing(trained_project, tmp_path):
    project = copy_tree(trained_project, tmp_path)
    one_step = "wander.train.batch_size=100000,wander.train.learning_rate=1e30,wander.train.warmup=0.0"
    done = kedro(project, "run", "--pipelines", "train_wander", "--env", "ci", "--params", one_step)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "outputs of the split 'val' are NaN or infinite in epoch 1" in said(done)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    assert "outputs of the split 'val'" in next(r for r in runs(client) if r.info.status == "FAILED").data.tags["error"]
    assert len(client.search_model_versions("name = 'fusetune-ci'")) == 1


def test_the_stamps_travel_with_the_data(trained_project, tmp_path):
    """What another machine gets by `dvc pull`, all that a commit keeps, is up to date there."""
    project = copy_tree(trained_project, tmp_path)
    (project / "data/08_reporting/ci/wander/registration.json").unlink()
    done = kedro(project, "run", "--pipeline", "train_wander", "--env", "ci", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "train_wander: up to date" in said(done) and "register_wander: up to date" not in said(done)
    assert "these very bytes are version 1" in said(done)


def copy_tree(project: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(project, target / "copy", symlinks=True))


def test_the_same_command_in_another_place_gives_bitwise_the_same_adapter(trained_project, tmp_path):
    project = copy_project(tmp_path / "again")
    done = kedro(project, "run", "--pipeline", "train_wander", "--env", "ci", PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stdout + done.stderr
    made = [f.relative_to(trained_project) for f in trained_project.glob("data/06_models/**/*.safetensors")]
    assert len(made) >= 5, "the adapter and four towers; a trunk is made where one is used"
    for name in made:
        assert (project / name).read_bytes() == (trained_project / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params", "train.epoch=3"], "train: unknown key 'epoch'. Did you mean 'epochs'?"),
        (["--params", "trian.epochs=3"], "parameters: unknown key 'trian'. Did you mean 'train'?"),
        (["--params", "train.batch_size=0"], "train.batch_size: expected a whole number of at least 1, found 0"),
        (["--params", "train.device=tpu"], "device: expected auto, cpu, cuda or cuda:N, found 'tpu'"),
        (["--params", "ingest.reader=glyfs"], "readers: 'glyfs' is unknown. Known: avdigits, ave, charades_sta"),
        (["--params", "backbone.source=/no/such/model"], "backbone '/no/such/model'"),
    ],
)
def test_a_mistake_is_one_line_and_a_failed_run(trained_project, client, tmp_path, arguments, message):
    project = copy_tree(trained_project, tmp_path)
    done = kedro(project, "run", "--pipeline", "train_wander", "--env", "ci", *arguments)
    assert done.returncode == 1
    assert message in said(done)
    last = done.stderr.strip().splitlines()
    assert any(line.startswith("Error: ") for line in last) and "Traceback" not in done.stderr + done.stdout
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    failed = [r for r in runs(mlflow.MlflowClient()) if r.info.status == "FAILED"]
    assert failed and message.split(".")[0][:20] in failed[0].data.tags["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline", "train_wonder"], "Failed to find the pipeline named 'train_wonder'"),
        (["--pipeline", "train_wander", "--env", "nowhere"], "nowhere"),
    ],
)
def test_an_unknown_pipeline_or_env_is_one_line(trained_project, arguments, message):
    done = kedro(trained_project, "run", *arguments)
    assert done.returncode == 1 and message in said(done) and "Traceback" not in done.stderr + done.stdout


def test_validation_killed_in_the_middle_leaves_nothing_and_ends_the_same(trained_project, tmp_path):
    project = copy_tree(trained_project, tmp_path)
    made = ["data/02_intermediate/ci/checked.parquet", "data/03_primary/ci/manifest.parquet",
            "data/08_reporting/ci/quarantine.parquet", "data/08_reporting/ci/validation.json"]  # fmt: skip
    for seconds in (2.5, 4.0):
        for name in made:
            (project / name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "kedro", "run", "--pipelines", "validate", "--env", "ci"]
        process = subprocess.Popen(command, cwd=project, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        time.sleep(seconds)
        process.kill()
        process.communicate()
    assert kedro(project, "run", "--pipelines", "validate", "--env", "ci").returncode == 0
    for name in made:
        assert (project / name).read_bytes() == (trained_project / name).read_bytes(), name


def test_runs_that_start_at_once_make_one_database(tmp_path):
    code = (
        "import sys, mlflow; from pathlib import Path; from fusetune import hooks; root = Path(sys.argv[1])\n"
        "mlflow.set_tracking_uri(hooks.tracking_uri(root)); print('ready', flush=True); sys.stdin.readline()\n"
        "hooks.create_database(root); mlflow.set_experiment('one'); mlflow.start_run(); mlflow.end_run()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    processes = [subprocess.Popen(command, env=clean(), cwd=tmp_path, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ended


def test_a_terminated_run_is_killed_in_mlflow(tmp_path):
    import mlflow

    project = copy_project(tmp_path / "killed")
    command = [sys.executable, "-m", "kedro", "run", "--pipelines", "pretrain", "--env", "ci"]
    process = subprocess.Popen(
        command, cwd=project, env=clean(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if "MLflow run" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(60) != 0
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    assert [r.info.status for r in runs(mlflow.MlflowClient())] == ["KILLED"]
    assert not (project / "data/06_models/ci/base.json").exists(), "nothing half-written is taken for whole"


def test_no_socket_leaves_the_loopback(trained_project, tmp_path):
    """The training part of the main job, MLflow included, in a process whose sockets may go nowhere else."""
    project = copy_tree(trained_project, tmp_path)
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import socket\n"
        "real = socket.socket.connect\n"
        "def connect(self, address):\n"
        "    if isinstance(address, tuple) and address[0] not in ('127.0.0.1', '::1', 'localhost'):\n"
        "        open('/dev/stderr', 'w').write(f'LEFT THE LOOPBACK: {address}\\n'); raise OSError('blocked')\n"
        "    return real(self, address)\n"
        "socket.socket.connect = connect\n"
        "lookup = socket.getaddrinfo\n"
        "def getaddrinfo(host, *a, **k):\n"
        "    if host not in (None, '', '127.0.0.1', '::1', 'localhost', socket.gethostname()):\n"
        "        open('/dev/stderr', 'w').write(f'LOOKED UP: {host}\\n')\n"
        "    return lookup(host, *a, **k)\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    environment = {"PYTHONPATH": str(guard), "MLFLOW_DISABLE_TELEMETRY": "", "HF_HUB_OFFLINE": ""}
    done = kedro(
        project, "run", "--pipelines", "train_wander", "--env", "ci", "--params", "train.seed=3", **environment
    )
    assert done.returncode == 0, said(done)
    assert "LOOPBACK" not in done.stderr and "LOOKED UP" not in done.stderr


def large() -> bytes:
    """Sixteen million pixels in some kB."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("1", (4000, 4000)).save(buffer, "png")
    return buffer.getvalue()


def test_the_registered_model_answers_over_http(trained_project):
    """`mlflow models serve`, real requests: an answer, a missing modality, and requests that make no sense."""
    import pyarrow.parquet as pq

    with served(trained_project, "models:/fusetune-ci@champion") as ask:
        row = pq.read_table(trained_project / "data/03_primary/ci/manifest.parquet").slice(0, 1).to_pylist()[0]
        pictures = [base64.b64encode(picture).decode() for picture in row["image"]]
        status, text = ask([{"text": row["text"], "image": pictures}])
        answer = json.loads(text)["predictions"][0]
        assert status == 200 and isinstance(answer["prediction"], str) and 0 < answer["probability"] <= 1
        assert ask([{"text": row["text"]}])[0] == 200, "a modality may be missing"
        again = ask([{"text": row["text"], "image": pictures}], adapter="fusetune-ci/1")
        assert again == (200, text), "the same version, asked for by name"
        for name in ("fusetune-ci@nobody", "fusetune-ci/7", "nothing", "../secrets"):
            status, text = ask([{"text": row["text"]}], adapter=name)
            assert status == 400 and f"adapter '{name}'" in text, text
        for rows, message in (
            ([{"text": row["text"], "image": ["not base64!"]}], "expected as base64"),
            ([{"text": row["text"], "image": [base64.b64encode(b"no picture").decode()]}], "no readable image"),
            ([{"text": row["text"], "sound": "x"}], "sound"),
            ([{"text": 7}], "text"),
            ([{"text": None}], "no modality is given"),
        ):
            status, text = ask(rows)
            assert 400 <= status < 500 and message in text, text
        status, text = ask([{"image": [base64.b64encode(large()).decode()]}] * 8)
        assert status == 413 and "112,000,000 pixels, at most 100,000,000 are taken" in text, text
        assert ask([{"text": row["text"], "image": pictures}])[0] == 200, "the server goes on"
