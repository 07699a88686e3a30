"""Intervals and metrics against independent values."""

import numpy as np
import pytest
import torch

from conftest import WANDER
from fusetune.errors import FusetuneError
from fusetune.tasks.classification import Classification, ClassificationConfig
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings, bootstrap_interval, evaluate
from fusetune.training.loop import train
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings


def test_the_bootstrap_interval_is_scipys():
    from scipy.stats import bootstrap

    values = (np.random.default_rng(1).random(400) < 0.6).astype(float)
    low, high = bootstrap_interval(values, EvaluationSettings(bootstrap_samples=4000))
    reference = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=2).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = bootstrap_interval((rng.random(200) < 0.7).astype(float), EvaluationSettings(bootstrap_samples=300))
        hits += low <= 0.7 <= high
    assert 0.89 < hits / 200 < 0.99


def test_accuracy_and_its_groups():
    task = Classification(ClassificationConfig("y"))
    task.fit({"y": ["a", "b", "c"]})
    targets = task.targets({"y": ["a", "b", "c", "a"]})
    outputs = torch.eye(3)[[0, 1, 0, 0]]
    result = evaluate(task, outputs, targets, EvaluationSettings(bootstrap_samples=10), ["x", "x", "y", "y"])
    assert result["accuracy"] == 0.75 and result["by_group"] == {"x": 1.0, "y": 0.5}
    assert task.decode(outputs)[2]["prediction"] == "a"


def test_labels_that_training_has_not_seen_are_named():
    task = Classification(ClassificationConfig("y"))
    task.fit({"y": ["a", "b"]})
    with pytest.raises(FusetuneError, match="column 'y', row 1: label 'z' is in no training row"):
        task.targets({"y": ["a", "z"]})
    with pytest.raises(FusetuneError, match="at least two labels"):
        task.fit({"y": ["a", "a"]})


def test_groups_are_drawn_as_a_whole():
    """Twenty rows a group that are all alike: the interval is that of the groups, not twenty times as sure."""
    rng = np.random.default_rng(0)
    by_group = (rng.random(50) < 0.5).astype(float)
    values, groups = np.repeat(by_group, 20), np.repeat(np.arange(50), 20)
    settings = EvaluationSettings(bootstrap_samples=2000)
    found, of_groups = bootstrap_interval(values, settings, groups), bootstrap_interval(by_group, settings)
    alone = bootstrap_interval(values, settings)
    assert found == pytest.approx(of_groups, abs=0.02)
    assert alone[1] - alone[0] < (found[1] - found[0]) / 3, "rows on their own seem far surer"


def test_the_draws_take_little_memory_whatever_the_number_of_rows():
    import tracemalloc

    values = (np.random.default_rng(0).random(200_000) < 0.6).astype(float)
    tracemalloc.start()
    bootstrap_interval(values, EvaluationSettings(bootstrap_samples=100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6, "an index of all draws alone would be 160 MB, with 1000 of them 1.6 GB"


def test_what_is_no_number_is_no_class():
    task = Classification(ClassificationConfig("y"))
    task.fit({"y": ["a", "b"]})
    outputs = torch.tensor([[2.0, 1.0], [torch.nan, 1.0], [torch.nan, torch.nan]])
    assert task.metrics(outputs, torch.zeros(3, dtype=torch.long))["accuracy"] == pytest.approx(1 / 3)
    assert [row["prediction"] for row in task.decode(outputs)] == ["a", None, None]


def test_a_training_whose_weights_diverge_in_the_last_step_of_an_epoch_fails(toy):
    """One step an epoch: its loss is still a number, what validation answers isn't."""
    experiment = toy.experiment(WANDER)
    splits = toy.splits(experiment)
    settings = TrainSettings(epochs=3, batch_size=1000, learning_rate=1e30, device="cpu", warmup=0.0)
    with pytest.raises(FusetuneError, match=r"outputs of the split 'val' are NaN or infinite in epoch 1"):
        train(experiment.model, splits["train"], splits["val"], settings, "k", toy.folder / "run", Reporter())
    (value := next(iter(experiment.model.trainable().values()))).data.fill_(torch.nan)
    assert value.isnan().all()
    with pytest.raises(FusetuneError, match="40 of 40 outputs of the split 'test' are NaN or infinite"):
        predict(experiment.model, splits["test"], 64)


def test_with_many_groups_the_interval_is_the_normal_one_that_draws_converge_to(monkeypatch):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4, 3000)
    values, groups = (rng.random(sizes.sum()) < 0.3).astype(float), np.repeat(np.arange(3000), sizes)
    drawn = bootstrap_interval(values, EvaluationSettings(bootstrap_samples=20_000), groups)
    monkeypatch.setattr("fusetune.training.evaluation.MANY", 2000)
    limit = bootstrap_interval(values, EvaluationSettings(bootstrap_samples=20_000), groups)
    assert limit != drawn and limit == pytest.approx(drawn, abs=0.0006) and drawn[1] - drawn[0] > 0.02
