"""Shared by all tests: tiny towers made here, and a project folder with a small pretrained base."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def kedro(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the real command in a project folder."""
    command = [sys.executable, "-m", "kedro", *arguments]
    env = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=600)


def copy_project(target: Path) -> Path:
    """conf, data's empty folders and pyproject of this project; its package is the installed one."""
    import shutil

    shutil.copytree(ROOT / "conf", target / "conf", ignore=shutil.ignore_patterns("local"))
    (target / "conf" / "local").mkdir()
    (target / "data").mkdir()
    for name in ("pyproject.toml", ".telemetry", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, target / name)
    (target / "src").symlink_to(ROOT / "src")
    return target


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `kedro run --pipeline train_wander --env ci` has run once."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    done = kedro(project, "run", "--pipeline", "train_wander", "--env", "ci")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture(scope="session")
def base(trained_project: Path) -> Path:
    """The folder of a small pretrained base with all four towers and a trunk."""
    return trained_project / "data" / "06_models" / "ci" / "base"
