"""From demonstrations to an adapter that acts, by the real commands; a robot's state beside a model that speaks."""

import json

import pytest
from speaking import saved_llava

from conftest import copy_project, experiment_in, kedro, ran

FACES = ["DejaVuSerif", "STIXGeneral"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("robot"))
    saved_llava(project / "llava")
    modalities = {"image": {"kind": "image"}, "text": {"kind": "text"}, "state": {"kind": "vector"}}
    world = {"world": "glyph_reaching", "settings": {"faces": FACES, "steps": 3}, "episodes": 12,
             "shifts": {"noise": {"noise": 0.2}}}  # fmt: skip
    parameters = {
        "ingest": {
            "reader": "glyph_reaching",
            "settings": {"faces": FACES, "samples": {"train": 60, "val": 12, "test": 12}, "chunk": 2},
        },
        "backbone": {"source": str(project / "llava")},
        "data": {
            "modalities": modalities, "use_trunk": True, "task": {"name": "actions", "question_type": "question_type"},
        },
        "validate": {"min_rows_per_split": 10, "severity": {"content.duplicate": "off", "text.unknown": "off",
                     "text.mostly_unknown": "off", "text.identical": "off"}},
        "evaluate": {"rollouts": world},
        "train": {"epochs": 3},
    }  # fmt: skip
    experiment_in(project, "robot", parameters)
    return project


def test_what_was_demonstrated_is_learned_done_and_done_again(project):
    text = ran(project, "robot", "--pipelines", "train_linear_probe")
    reported = project / "data/08_reporting/robot/linear_probe"
    metrics = json.loads((reported / "metrics.json").read_text())
    acted = metrics["rolled_out"]
    assert set(acted) == {"", "noise"} and acted[""]["episodes"] == 12 and acted[""]["an expert"] > 0.5
    assert sum(acted[""]["outcomes"].values()) == 12 and set(acted[""]["by_kind"]) <= {"fact", "order", "place"}
    assert metrics["test"]["success"] == acted[""]["success"] and "success_noise" in metrics["test"]
    assert f"rolled out: success {acted['']['success']:.3f}" in text
    assert (reported / "figures/rollouts.png").stat().st_size > 20_000
    assert list(metrics["unimodal"]) == ["image"] and metrics["plain"], "a linear model of numbers stands beside it"
    ran(project, "robot", "--pipelines", "rollout")
    again = json.loads((project / "data/08_reporting/robot/rolled_out/metrics.json").read_text())
    assert again["adapter"] == "fusetune-robot/1" and again["success"] == acted[""]["success"]
    assert again["outcomes"] == acted[""]["outcomes"] and again["shifts"]["noise"]["episodes"] == 12


def test_a_world_that_is_not_there_is_told(project):
    done = kedro(project, "run", "--env", "robot", "--pipelines", "rollout", "--params", "evaluate.rollouts.world=mars")
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "worlds: 'mars' is unknown. Known: glyph_reaching" in told
