"""From a table of one's own to a trained adapter by `new` and one command more, as a user types them."""

import csv
import json
import subprocess

import numpy as np
from media import png

from conftest import clean, copy_project, kedro, ran


def written(folder):
    """A table and pictures: the label is the picture's colour together with a word of its caption."""
    (folder / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (folder / "samples.csv").open("w", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["file", "caption", "author", "kind"])
        for i in range(240):
            red, old = rng.integers(2), rng.integers(2)
            (folder / "pictures" / f"{i}.png").write_bytes(png(30 if red else 1, (16, 16)))
            caption = f"{'an old' if old else 'a new'} house that was seen on day {i} of this year"
            rows.writerow([f"{i}.png", caption, f"a{i % 40}", "yes" if red == old else "no"])
    return folder / "samples.csv"


def command(project, *words: str) -> str:
    done = subprocess.run(words, cwd=project, env=clean(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_commands_lead_from_a_table_to_an_adapter(tmp_path):
    project, table = copy_project(tmp_path / "project"), written(tmp_path / "mine")
    done = kedro(project, "run", "--pipelines", "new", "--params", f"new.table={table}", HF_HUB_OFFLINE="1")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0 and "No hub answered" in text, text
    assert "kedro run --pipelines train_late_fusion --env samples" in text
    assert not (project / "mlflow.db").exists(), "a look is no run"
    folder = project / "conf" / "samples"
    assert "group_id: author # what must not stand in two splits" in (folder / "parameters_ingest.yml").read_text()
    again = kedro(project, "run", "--pipelines", "new", "--params", f"new.table={table}")
    assert again.returncode == 1 and "conf/samples is there already. Choose another name" in again.stderr + again.stdout
    assert not (project / "mlflow.db").exists()
    (folder / "parameters_compare.yml").write_text("compare:\n  methods:\n    late_fusion: {}\n")
    ran(project, "samples", "--pipelines", "dvc")
    command(project, "git", "init", "-q")
    command(project, "dvc", "init", "-q")
    target = "conf/samples/dvc.yaml:train@late_fusion"
    assert "Running stage 'conf/samples/dvc.yaml:ingest'" in command(project, "dvc", "repro", target)
    assert "up to date" in command(project, "dvc", "repro", target)
    settings = folder / "parameters_train.yml"
    settings.write_text("train: {epochs: 2, device: cpu}\n")
    ran(project, "samples", "--pipelines", "dvc")  # the parameter stands in another file now
    changed = command(project, "dvc", "repro", target)
    assert "Running stage" in changed and "Stage 'conf/samples/dvc.yaml:pretrain' didn't change" in changed
    metrics = json.loads((project / "data" / "08_reporting" / "samples" / "late_fusion" / "metrics.json").read_text())
    assert metrics["best_epoch"] <= 2 and metrics["metric"] == "accuracy" and metrics["test_samples"] > 20
    assert (project / "data" / "06_models" / "samples" / "late_fusion").is_dir()
