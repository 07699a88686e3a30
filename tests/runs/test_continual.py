"""Task after task: what is forgotten by hand, and a shared adapter that forgets where adapters apart can't."""

import pytest

from conftest import kedro
from fusetune.runs.continual import measures


def test_forgetting_and_transfer_by_hand():
    table = [[0.8, None, None], [0.9, 0.5, None], [0.6, 0.7, 0.4]]
    found = measures(table, [0.8, 0.6, 0.3])
    assert found["average"] == pytest.approx((0.6 + 0.7 + 0.4) / 3)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.7 - 0.7)) / 2)
    assert found["backward"] == pytest.approx(((0.6 - 0.8) + (0.7 - 0.5)) / 2)
    assert found["forward"] == pytest.approx(((0.5 - 0.6) + (0.4 - 0.3)) / 2)


def test_tasks_in_turn_by_the_real_command(trained_project, tmp_path_factory):
    import json
    import shutil

    records = shutil.ignore_patterns("mlflow.db*", "mlruns", "mlartifacts")
    project = shutil.copytree(trained_project, tmp_path_factory.mktemp("turns") / "project", ignore=records)
    tasks = {
        "kind": {"name": "classification", "label": "question_type", "metric": "accuracy"},
        "answer": {"name": "vqa", "label": "answer"},
    }
    settings = {"continual": {"tasks": tasks, "seeds": [0]}}
    (project / "conf/ci/parameters_continual.yml").write_text(json.dumps(settings))
    (project / "conf/ci/methods").mkdir()
    method = {
        "placements": [
            {"where": "towers", "adapter": "lora", "blocks": {"take": "top", "count": 1}},
            {"where": "head", "adapter": "linear"},
        ],
        "train": {"epochs": 4, "learning_rate": 0.02},
    }
    (project / "conf/ci/methods/lora.yml").write_text(json.dumps({"lora": method}))
    done = kedro(project, "run", "--env", "ci", "--pipelines", "continual")
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, text
    found = json.loads((project / "data/08_reporting/ci/continual/metrics.json").read_text())
    assert found["tasks"] == ["kind", "answer"] and list(found["ways"]) == ["apart", "shared", "orthogonal", "merged"]
    ways = {way: seeds["0"] for way, seeds in found["ways"].items()}
    assert ways["apart"]["forgetting"] == ways["apart"]["forward"] == 0
    first = {way: one["after"][0][0] for way, one in ways.items()}
    assert max(first.values()) - min(first.values()) < 0.02, "the first task is learned the same way by all"
    assert ways["shared"]["after"][1][0] != first["shared"], "the adapters have gone on"
    assert ways["apart"]["bytes"] > ways["shared"]["bytes"]
    assert (project / "data/08_reporting/ci/continual/figures/continual.png").stat().st_size > 5_000
    done = kedro(project, "run", "--env", "ci", "--pipelines", "continual")
    assert "continual: up to date" in " ".join((done.stdout + done.stderr).split())
