"""Two processes train what one trains: the same losses, resumed by another number of them, and what a death costs."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from conftest import ROOT, WANDER, ran
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.runs.ranks import ranks, take_part
from fusetune.tasks.masked_words import MaskedWords, MaskedWordsConfig
from fusetune.training.distributed import ALONE, Group, joined, spawned
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.loop import train
from fusetune.training.settings import TrainSettings

SETTINGS = TrainSettings(
    epochs=3, batch_size=12, patience=3, learning_rate=1e-2, device="cpu"
)  # 160 rows: the last has 4
LATE = {"where": "junction", "adapter": "lmf", "from_epoch": 2}
ADALORA = {"where": "towers", "adapter": "adalora", "config": {"initial_rank": 4, "rank": 2}}


class Stopped(Exception):
    pass


BOTTLENECK = {"where": "towers", "adapter": "bottleneck", "config": {"bottleneck_dim": 4}}
PAIRS = {"name": "retrieval", "query": "left", "target": "right", "embedding_dim": 8}
LABEL = {"name": "classification", "label": "label"}
WEIGHTED = {"name": "multi_task", "tasks": {"even": {**LABEL, "class_weights": "balanced"}, "plain": LABEL}}


def trained(toy, folder, settings, *placements, stop_at=None, **data):
    experiment = toy.experiment(*placements, **data)
    features = toy.features(experiment)
    experiment.begin(toy.store, CacheSettings(dtype="float32"), lambda *_: None)
    splits = toy.splits(experiment)

    def stop(epoch):
        if epoch == stop_at:
            raise Stopped

    with ranks(experiment, features, toy.store, settings, EvaluationSettings(), folder, "toy") as group:
        key, both = experiment.key(features, settings), (splits["train"], splits["val"])
        epochs = train(experiment.model, *both, settings, key, folder, Reporter(), stop, group)
    return epochs, {name: p.detach().clone() for name, p in experiment.model.trainable().items()}


def near(one, two):
    for a, b in zip(one[0], two[0], strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-5) and a.val_loss == pytest.approx(
            b.val_loss, abs=1e-5
        )
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-3)
    for name, value in one[1].items():
        torch.testing.assert_close(value, two[1][name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("placements", [(WANDER,), (WANDER, LATE), (ADALORA,)], ids=["wander", "later", "adalora"])
def test_two_ranks_train_what_one_trains(toy, tmp_path, placements):
    one = trained(toy, tmp_path / "one", SETTINGS, *placements)
    two = trained(toy, tmp_path / "two", replace(SETTINGS, devices=2), *placements)
    near(one, two)
    assert one[0][0].train_loss != one[0][-1].train_loss
    other = trained(toy, tmp_path / "other", replace(SETTINGS, learning_rate=2e-2), *placements)
    assert abs(other[0][-1].train_loss - one[0][-1].train_loss) > 1e-4  # the comparison above could have failed


def test_batches_of_several_parts_and_one_row_for_two_ranks(toy, tmp_path):
    settings = replace(SETTINGS, batch_size=53, accumulate=2, epochs=2)  # 160 rows: 53, 53, 53 and 1
    near(
        trained(toy, tmp_path / "1", settings, WANDER),
        trained(toy, tmp_path / "2", replace(settings, devices=2), WANDER),
    )


def test_one_rank_goes_on_where_two_were_and_two_where_one_was(toy, tmp_path):
    whole = trained(toy, tmp_path / "whole", SETTINGS, WANDER)
    with pytest.raises(Stopped):
        trained(toy, tmp_path / "cut", replace(SETTINGS, devices=2), WANDER, stop_at=1)
    with pytest.raises(Stopped):
        trained(toy, tmp_path / "cut", SETTINGS, WANDER, stop_at=2)
    near(whole, trained(toy, tmp_path / "cut", replace(SETTINGS, devices=2), WANDER))


@pytest.mark.parametrize(
    "placements, task, fsdp",
    [((ADALORA,), PAIRS, False), ((BOTTLENECK,), PAIRS, True), ((WANDER,), WEIGHTED, False)],
    ids=["pairs", "pairs-divided", "weighted"],
)
def test_a_loss_of_the_whole_batch_is_that_of_one_process(toy, tmp_path, placements, task, fsdp):
    settings = replace(SETTINGS, batch_size=53, accumulate=2)  # 160 rows: 53, 53, 53 and 1; adalora has a penalty
    one = trained(toy, tmp_path / "one", settings, *placements, task=task)
    two = trained(toy, tmp_path / "two", replace(settings, devices=2, fsdp=fsdp), *placements, task=task)
    near(one, two)
    halves = trained(toy, tmp_path / "halves", replace(settings, batch_size=27), *placements, task=task)
    assert abs(halves[0][0].train_loss - one[0][0].train_loss) > 1e-2  # what ranks that don't share outputs would have


def test_a_loss_of_the_whole_batch_over_tokens_is_refused(toy, tmp_path):
    experiment = toy.experiment(WANDER)
    features = toy.features(experiment)
    experiment.task.by_sample, experiment.task.token_outputs = False, 1
    with pytest.raises(FusetuneError, match="of a batch as a whole, whose outputs are by token"):
        take_part(experiment, features, toy.store, SETTINGS, EvaluationSettings(), tmp_path, "toy", Group(0, 2))


def test_a_loss_of_masked_words_is_of_a_batch_over_tokens():
    task = MaskedWords(MaskedWordsConfig("text"))
    task.restore({"known_ids": [3, 5, 7]})
    assert not task.by_sample and task.token_outputs == 3, "so several devices are refused"


def test_every_row_is_one_ranks():
    rows = torch.arange(7)
    parts = [Group(rank, 3).part(rows) for rank in range(3)]
    assert torch.equal(torch.cat(parts), rows) and [len(part) for part in parts] == [3, 2, 2]
    assert Group(1, 3).part(rows[:1]).numel() == 0 and ALONE.part(rows) is rows


def test_a_world_of_another_size_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with (
        pytest.raises(FusetuneError, match=r"train.devices: 4 were asked for, and this is one process of 1"),
        joined(4),
    ):
        pass


def test_a_rank_that_is_killed_ends_all_with_a_sentence_and_costs_its_epoch_alone(toy, tmp_path):
    code = textwrap.dedent(
        """
        import os, signal, sys
        sys.path[:0] = [TESTS, TESTS + "/training"]
        from dataclasses import replace
        from pathlib import Path
        from conftest import Toy, WANDER
        from test_ranks import SETTINGS
        from fusetune.errors import FusetuneError
        from fusetune.features.index import CacheSettings
        from fusetune.runs import ranks as module
        from fusetune.training.epochs import Reporter
        from fusetune.training.evaluation import EvaluationSettings as Evaluation
        from fusetune.training.loop import train

        def killed(epoch):
            if epoch == 2:
                import multiprocessing
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

        if __name__ == "__main__":
            toy, settings, folder = Toy(Path(sys.argv[1])), replace(SETTINGS, devices=2), Path(sys.argv[2])
            experiment = toy.experiment(WANDER)
            features = toy.features(experiment)
            experiment.begin(toy.store, CacheSettings(dtype="float32"), lambda *_: None)
            splits = toy.splits(experiment)
            try:
                with module.ranks(experiment, features, toy.store, settings, Evaluation(), folder, "toy") as group:
                    both, key = (splits["train"], splits["val"]), experiment.key(features, settings)
                    train(experiment.model, *both, settings, key, folder, Reporter(), killed, group)
            except FusetuneError as error:
                sys.exit(str(error))
        """
    ).replace("TESTS", repr(str(ROOT / "tests")))
    script = tmp_path / "killed.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(tmp_path / "cut")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "rank 1 of 2 has ended (signal 9), so training ends" in done.stderr, done.stderr
    near(trained(toy, tmp_path / "whole", SETTINGS, WANDER), trained(toy, tmp_path / "cut", SETTINGS, WANDER))


def test_a_rank_that_dies_before_it_has_come_is_not_waited_for():
    with (
        pytest.raises(FusetuneError, match=r"rank 1 of 2 has ended \(exit code 1\)"),
        spawned(2, print, (Unreadable(),)),
    ):
        pass


class Unreadable:
    """Raises where another process makes it again."""

    def __reduce__(self):
        return (int, ("no number",))


def test_torchrun_trains_one_adapter_and_writes_it_once(trained_project, tmp_path):
    out, data = tmp_path / "out", trained_project / "data"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fusetune.runs",
        "--method", "wander", "--conf", str(trained_project / "conf" / "base"), "--env", "ci",
        "--manifest", str(data / "03_primary" / "ci" / "manifest.parquet"),
        "--base", str(data / "06_models" / "ci" / "base.json"),
        "--store", str(tmp_path / "store"), "--out", str(out), "--set", "train.device=cpu",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1 and "2 in all" in done.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    known = json.loads((data / "08_reporting" / "ci" / "wander" / "metrics.json").read_text())
    assert metrics["validation"] == pytest.approx(known["validation"], abs=0.1) and (out / "adapter").is_dir()


def test_kedro_starts_the_other_rank_and_keeps_one_run(trained_project, tmp_path):
    project = shutil.copytree(trained_project, tmp_path / "project")
    metrics = project / "data" / "08_reporting" / "ci" / "wander" / "metrics.json"
    known = json.loads(metrics.read_text())
    text = ran(project, "ci", "--pipelines", "train_wander", "--params", "train.devices=2,train.device=cpu")
    found = json.loads(metrics.read_text())
    assert found["validation"] == pytest.approx(known["validation"], abs=0.1) and "wander: test accuracy" in text
    assert text.count("see `mlflow ui`") == 1
