"""Intervals and metrics against independent values."""

import numpy as np
import pytest
import torch

from fusetune.errors import FusetuneError
from fusetune.tasks.classification import Classification, ClassificationConfig
from fusetune.tasks.retrieval import Retrieval, RetrievalConfig
from fusetune.training.evaluation import EvaluationSettings, bootstrap_interval, evaluate


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


def test_recall_counts_each_group_once_by_brute_force():
    torch.manual_seed(0)
    task = Retrieval(RetrievalConfig())
    outputs = torch.nn.functional.normalize(torch.randn(30, 2, 8), dim=-1)
    targets = task.targets({"group_id": [f"g{i % 12}" for i in range(30)]})
    found = task.per_sample(outputs, targets)
    for k in (1, 5, 10):
        for row in range(30):
            scores = outputs[row, 0] @ outputs[:, 1].T
            best = {int(g): max(scores[targets == g]).item() for g in targets.unique()}
            ranked = sorted(best, key=lambda g: -best[g])
            assert found[f"recall_at_{k}"][row] == (int(targets[row]) in ranked[:k])


def test_the_contrastive_loss_is_cross_entropy_where_all_groups_differ():
    torch.manual_seed(0)
    task, outputs = Retrieval(RetrievalConfig()), torch.randn(6, 2, 4)
    logits = outputs[:, 0] @ outputs[:, 1].T
    diagonal = torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(logits, diagonal) + torch.nn.functional.cross_entropy(logits.T, diagonal)
    ) / 2
    torch.testing.assert_close(task.loss(outputs, diagonal), expected)
