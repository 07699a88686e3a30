"""An experiment of a user's own under DVC: pushed, pulled into a fresh clone, nothing to do there; a change runs what
it touches. Run by hand: two and a half minutes of real commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import SHARED, copy_project, experiment_in, ran

pytest.importorskip("dvc")
pytestmark = pytest.mark.slow
STAGE = "conf/mine/dvc.yaml:train@late_fusion"


def run(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_clone_pulls_and_has_nothing_to_do_and_a_change_runs_what_it_touches(tmp_path):
    data = SHARED / "digits6" / "digits6.npz"
    if not data.is_file():
        pytest.skip(f"the data set is not at {data}")
    project = copy_project(tmp_path / "project")
    parameters = yaml.safe_load((project / "conf/experts/parameters.yml").read_text())
    parameters["ingest"]["settings"]["file"], parameters["train"]["epochs"] = str(data), 4
    conf = experiment_in(project, "mine", {**parameters, "compare": {"methods": {"late_fusion": {}}}})
    with (conf / "globals.yml").open("a") as file:
        file.write("store: data/04_feature/store_mine\nbases: data/06_models/bases_mine\n")
    remote = f"dvc remote add -q -d store {tmp_path / 'remote'}"
    for command in ("git init -q", "dvc init -q", "git config user.email a@b.c", "git config user.name a", remote):
        run(project, *command.split())
    ran(project, "mine", "--pipelines", "dvc")
    assert "Running stage" in run(project, "dvc", "repro", STAGE)
    run(project, "git", "add", "-A")
    run(project, "git", "commit", "-qm", "trained")
    run(project, "dvc", "push", "-q")

    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(project), str(clone))
    run(clone, "dvc", "pull", "-q", "--allow-missing")
    told = run(clone, "dvc", "repro", STAGE)
    assert "Running stage" not in told and told.count("didn't change, skipping") == 6
    assert not run(clone, "git", "status", "--short").strip(), "and no byte is another"
    assert "up to date" in ran(clone, "mine", "--pipelines", "train_late_fusion")

    file = clone / "conf/mine/parameters.yml"
    parameters["train"]["epochs"] = 5
    file.write_text(yaml.safe_dump({**parameters, "compare": {"methods": {"late_fusion": {}}}}, sort_keys=False))
    told = run(clone, "dvc", "repro", STAGE)
    for stage in ("ingest", "validate", "pretrain", "inputs"):
        assert f"'conf/mine/dvc.yaml:{stage}' didn't change, skipping" in told
    assert f"Running stage '{STAGE}'" in told
    assert "epochs" in run(clone, "dvc", "params", "diff", "HEAD", "--targets", "conf/mine/parameters.yml")
