"""What was trained is mixed with linear models of the frozen streams: never worse on validation rows than they are."""

import pytest
import torch

from fusetune.bank.artifact import Artifact
from fusetune.features.index import CacheSettings
from fusetune.runs.run import train_and_test
from fusetune.tasks.joined_head import joined_heads
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.mixing import linear_models_alone, mix
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings

SETTINGS = TrainSettings(epochs=2, batch_size=32, device="cpu")
CACHE = CacheSettings(dtype="float32", device="cpu")


@pytest.fixture
def begun(toy):
    experiment = toy.experiment()
    experiment.begin(toy.store, CACHE, lambda *_: None)
    features = experiment.extract(toy.store, CACHE, lambda *_: None, torch.device("cpu"))
    splits = {n: experiment.split(n, features, toy.store, torch.device("cpu")) for n in ("train", "val", "test")}
    return experiment, features, splits


def loss_of(model, split):
    outputs, loss = predict(model, split, 32)
    return outputs, loss


def test_before_any_training_the_linear_models_are_heard_alone_and_afterwards_nobody_is_lost(begun):
    experiment, _, splits = begun
    model = experiment.model
    trained, _ = loss_of(model, splits["val"])
    with linear_models_alone(model):
        known, known_loss = loss_of(model, splits["val"])
    again, trained_loss = loss_of(model, splits["val"])
    assert torch.equal(again, trained) and not torch.allclose(known, trained)
    mix(model, splits["val"], SETTINGS)
    mixed, loss = loss_of(model, splits["val"])
    first, second = joined_heads(model.head)[0].shares.tolist()
    assert first >= 0 and second >= 0 and loss <= min(known_loss, trained_loss) + 1e-4
    torch.testing.assert_close(mixed, first * known + second * trained, atol=1e-4, rtol=1e-4)


def test_a_method_that_is_only_wrong_gets_no_share(begun):
    experiment, _, splits = begun
    model = experiment.model
    with torch.no_grad():
        for parameter in model.head.head.parameters():
            parameter.normal_(std=30.0)
    with linear_models_alone(model):
        _, known_loss = loss_of(model, splits["val"])
    _, wrong = loss_of(model, splits["val"])
    assert wrong > 2 * known_loss
    mix(model, splits["val"], SETTINGS)
    assert loss_of(model, splits["val"])[1] <= known_loss + 1e-4
    assert joined_heads(model.head)[0].shares[1] < 0.05


def test_an_artifact_holds_the_linear_models_and_the_shares(begun, toy, tmp_path):
    experiment, features, _ = begun
    result = train_and_test(
        experiment, features, toy.store, SETTINGS, EvaluationSettings(10), tmp_path / "c", Reporter(), "probe", {}
    )
    assert 0 < result.metrics["linear_models"] <= 1 and "linear models of all" in result.sentence()
    result.artifact.save_pretrained(tmp_path / "adapter")
    model = Artifact.from_pretrained(tmp_path / "adapter").build(toy.base)
    shares = joined_heads(experiment.model.head)[0].shares
    torch.testing.assert_close(dict(model.named_parameters())["head.shares"], shares)
    states = experiment.split("test", features, toy.store, torch.device("cpu")).features.batch(torch.arange(8))
    with torch.no_grad():
        found = model(states, experiment.frontier)
    torch.testing.assert_close(found, result.outputs[:8], atol=1e-5, rtol=1e-5)


def test_a_start_is_found_once_and_is_another_for_other_rows(begun, toy):
    experiment, _, _ = begun
    again = toy.experiment()
    files = sorted((toy.store / "starts").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    again.begin(toy.store, CACHE, lambda *_: None)
    assert again.starts == experiment.starts and [f.stat().st_mtime_ns for f in files] == before
    fewer = toy.experiment()
    fewer.rows["train"] = fewer.rows["train"][:60]
    fewer.begin(toy.store, CACHE, lambda *_: None)
    assert fewer.starts != experiment.starts and len(list((toy.store / "starts").iterdir())) == len(files) + 1
