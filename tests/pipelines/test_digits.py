"""The real data sets, from their files to a registered adapter, by the command that a user types."""

import json
import shutil

import pytest
import yaml

from conftest import SHARED, copy_project, kedro

CASES = {"avdigits": (SHARED / "fsdd", 0.98), "digits6": (SHARED / "digits6", 0.9)}


@pytest.mark.parametrize("env", [pytest.param("avdigits", marks=pytest.mark.slow), "digits6"])
def test_digits_are_trained_evaluated_and_registered(tmp_path, env):
    data, least = CASES[env]
    if not data.is_dir():
        pytest.skip(f"the data set is not at {data}")
    project = copy_project(tmp_path / "project")
    file = project / "conf" / env / "parameters.yml"
    file.write_text(file.read_text().replace(f"../shared/data/{data.name}", str(data)))
    done = kedro(project, "run", "--pipeline", "train_wander", "--env", env)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    report = project / "data" / "08_reporting" / env
    metrics = json.loads((report / "wander" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] >= least
    assert metrics["test"]["accuracy"] >= max(metrics["unimodal"].values()) - 0.02
    assert set(metrics["unimodal"]) == set(yaml.safe_load(file.read_text())["data"]["modalities"])
    validation = json.loads((report / "validation.json").read_text())
    assert validation["quarantined_rows"] == 0 and not validation["stopped_by"]
    if env == "digits6":
        assert metrics["train_samples"] == 50, "five labels per class"
    else:
        scores = [score for probe in metrics["align"].values() for score in probe.values()]
        assert set(metrics["align"]) == {"image", "sound"} and len(set(scores)) > 1 and min(scores) > 0.5
    assert json.loads((report / "wander" / "registration.json").read_text())
    again = kedro(project, "run", "--pipeline", "train_wander", "--env", env)
    assert "everything is up to date" in " ".join((again.stdout + again.stderr).split())
    shutil.rmtree(project)
