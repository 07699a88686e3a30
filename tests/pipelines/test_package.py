"""The wheel, outside of the repository, with a conf of its own."""

import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from conftest import ROOT, clean, copy_project


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel was installed into, and a conf with a method that the repository doesn't have."""
    folder = tmp_path_factory.mktemp("package")
    project = copy_project(folder / "project")
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, project / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "-q", ".", "--no-deps", "--no-build-isolation", "-w", str(folder / "dist")]
    done = subprocess.run(wheel, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "dist").glob("fusetune-*.whl")
    site = folder / "site"
    done = subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(site), str(file)], capture_output=True)
    assert done.returncode == 0, done.stderr
    conf = folder / "conf"
    shutil.move(project / "conf", conf)
    shutil.rmtree(project)
    text = (conf / "base/methods/linear_probe.yml").read_text()
    (conf / "base/methods/ours.yml").write_text(text.replace("linear_probe:", "ours:"))
    archive = folder / "conf-fusetune.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(conf, arcname="conf")
    return site, conf, archive


def run(installed, tmp_path, conf, *arguments):
    path = os.pathsep.join([str(installed[0]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fusetune", "run", "--conf-source", str(conf), "--env", "ci", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=clean(PYTHONPATH=path), capture_output=True, text=True)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("which", [1, 2], ids=["folder", "archive"])
def test_the_wheel_works_outside_the_repository_with_the_methods_of_the_conf_in_use(installed, tmp_path, which):
    asked = ("--pipelines", "train_ours", "--to-nodes", "validate")
    code, text = run(installed, tmp_path, installed[which], *asked)
    assert code == 0, text
    assert (tmp_path / "data/03_primary/ci/manifest.parquet").is_file() and (tmp_path / "mlflow.db").is_file()
    code, text = run(installed, tmp_path, installed[which], *asked)
    assert code == 0 and "everything is up to date" in text
    code, text = run(installed, tmp_path, installed[which], "--pipelines", "train_theirs")
    assert code == 1 and "train_theirs" in text and "Traceback" not in text
    code, text = run(installed, tmp_path, installed[which], "--pipelines", "ingest", "--params", "trian.epochs=1")
    assert code == 1 and "Did you mean 'train'?" in text
