"""The loop: the same twice, the same after a kill, and what it says when it can't go on."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from conftest import ROOT, WANDER
from fusetune.errors import FusetuneError
from fusetune.training.epochs import Reporter
from fusetune.training.loop import train
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=6, batch_size=16, patience=6, device="cpu")


def trained(toy, folder, settings=SETTINGS, after_epoch=lambda _: None, reporter=None):
    experiment = toy.experiment(WANDER, seed=settings.seed)
    splits = toy.splits(experiment)
    history = train(
        experiment.model, splits["train"], splits["val"], settings, "key", folder, reporter or Reporter(), after_epoch
    )
    weights = {name: p.detach().clone() for name, p in experiment.model.trainable().items()}
    return experiment, splits, history, weights


def equal(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_twice_and_another_with_another_seed(toy, tmp_path):
    one, two = (trained(toy, tmp_path / str(i))[3] for i in range(2))
    assert equal(one, two)
    other = trained(toy, tmp_path / "3", TrainSettings(epochs=6, batch_size=16, patience=6, device="cpu", seed=1))[3]
    assert not equal(one, other)


class _Stop(Exception):
    pass


def stop_at(epoch):
    def stop(number):
        if number == epoch:
            raise _Stop

    return stop


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_interrupted_at_any_epoch_and_resumed_ends_bitwise_the_same(toy, tmp_path, epoch):
    whole = trained(toy, tmp_path / "whole")
    with pytest.raises(_Stop):
        trained(toy, tmp_path / "cut", after_epoch=stop_at(epoch))
    resumed = trained(toy, tmp_path / "cut")
    assert equal(whole[3], resumed[3])
    assert [e.val_loss for e in whole[2]] == [e.val_loss for e in resumed[2]]


def test_a_checkpoint_of_other_settings_is_not_resumed(toy, tmp_path):
    trained(toy, tmp_path / "ck")
    experiment = toy.experiment(WANDER)
    splits, started = toy.splits(experiment), []

    class Watch(Reporter):
        def started(self, settings, steps, resumed_at):
            started.append(resumed_at)

    train(experiment.model, splits["train"], splits["val"], SETTINGS, "other key", tmp_path / "ck", Watch())
    assert started == [0]


def test_it_learns_what_needs_both_sides(toy, tmp_path):
    settings = TrainSettings(epochs=40, batch_size=16, patience=40, learning_rate=1e-2, device="cpu")
    history = trained(toy, tmp_path, settings)[2]
    assert history[0].train_loss > 0.6 and history[-1].train_loss < 0.4  # ln 2 = 0.69 is a coin


def test_the_best_epoch_is_kept_and_patience_stops(toy, tmp_path):
    settings = TrainSettings(epochs=60, batch_size=16, patience=3, learning_rate=3e-2, device="cpu")
    experiment, splits, history, _ = trained(toy, tmp_path, settings)
    best = max(epoch.val_metric for epoch in history)
    outputs, _ = predict(experiment.model, splits["val"], 16)
    assert experiment.task.metrics(outputs, splits["val"].targets)["accuracy"] == pytest.approx(best)
    assert len(history) < 60


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good(toy, tmp_path):
    class Poison(Reporter):
        def epoch(self, epoch, best):
            if epoch.number == 2:
                with torch.no_grad():
                    self.model.head.head.linear.weight.fill_(float("nan"))

    experiment = toy.experiment(WANDER)
    splits, reporter = toy.splits(experiment), Poison()
    reporter.model = experiment.model
    with pytest.raises(FusetuneError, match=r"loss is nan in epoch 3.*lower train.learning_rate"):
        train(experiment.model, splits["train"], splits["val"], SETTINGS, "key", tmp_path, reporter)
    from fusetune.training import checkpoint

    tensors, state = checkpoint.load(tmp_path, "key")
    assert len(state["history"]) == 2 and all(torch.isfinite(t).all() for t in tensors.values())


def test_a_kill_in_the_middle_of_training_leaves_a_checkpoint_that_resumes(toy, tmp_path):
    code = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from pathlib import Path
        from conftest import Toy
        sys.path.insert(0, {str(ROOT / "tests" / "training")!r})
        from test_loop import trained
        def die(number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        trained(Toy(Path(sys.argv[1])), Path(sys.argv[2]), after_epoch=die)
        """
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(tmp_path / "cut")], env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert equal(trained(toy, tmp_path / "whole")[3], trained(toy, tmp_path / "cut")[3])


@pytest.mark.parametrize("key", ["batch_size", "epochs", "learning_rate", "patience"])
def test_settings_of_zero_are_refused(key):
    with pytest.raises(FusetuneError, match=f"train.{key}: expected .* found 0"):
        TrainSettings(**{key: 0})


class _Steps(Reporter):
    def __init__(self):
        self.seen = []

    def step(self, done, steps, loss):
        self.seen.append(done)


def test_losses_that_are_read_every_few_steps_change_nothing(toy, tmp_path, monkeypatch):
    """As on a GPU, where reading one waits for the device."""
    at_once, later = _Steps(), _Steps()
    one = trained(toy, tmp_path / "1", reporter=at_once)
    monkeypatch.setattr("fusetune.training.steps.LOOKED_AT", {"cpu": 4})
    two = trained(toy, tmp_path / "2", reporter=later)
    assert equal(one[3], two[3]) and [e.train_loss for e in one[2]] == [e.train_loss for e in two[2]]
    assert at_once.seen[:10] == list(range(1, 11)) and later.seen[:3] == [4, 8, 10]
    bad = TrainSettings(epochs=3, batch_size=16, learning_rate=1e30, device="cpu", warmup=0.0)
    with pytest.raises(FusetuneError, match=r"the loss is (nan|inf) in epoch 1, step 2\b"):
        trained(toy, tmp_path / "3", bad)


def test_float16_trains_with_a_scaled_loss_and_resumes_bitwise(toy, tmp_path, monkeypatch):
    """What a GPU without bfloat16 does, on this CPU's own float16."""
    monkeypatch.setattr("fusetune.training.steps.training_dtype", lambda *_: torch.float16)

    whole = trained(toy, tmp_path / "whole")
    with pytest.raises(_Stop):
        trained(toy, tmp_path / "cut", after_epoch=stop_at(3))
    resumed = trained(toy, tmp_path / "cut")
    assert equal(whole[3], resumed[3])
    assert max(epoch.val_metric for epoch in whole[2]) > 0.6 and whole[2][0].train_loss > whole[2][-1].train_loss
    monkeypatch.undo()
    plain = trained(toy, tmp_path / "plain")
    assert not equal(whole[3], plain[3]), "float16 it was"
    assert whole[2][0].gradient_norm == pytest.approx(plain[2][0].gradient_norm, rel=0.3), "norms are those of the loss"
