"""An artifact comes back as it was, and only onto its own base."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import WANDER
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.bank.artifact import CONFIG, WEIGHTS, Artifact
from fusetune.errors import FusetuneError
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.loop import Reporter
from fusetune.training.run import train_and_test
from fusetune.training.settings import TrainSettings


@pytest.fixture
def saved(toy, tmp_path):
    experiment = toy.experiment(WANDER)
    result = train_and_test(
        experiment,
        toy.features(experiment),
        toy.store,
        TrainSettings(epochs=3, batch_size=16, device="cpu"),
        EvaluationSettings(bootstrap_samples=20),
        tmp_path / "checkpoints",
        Reporter(),
        "wander",
        {"left": 0.5},
    )
    result.artifact.save_pretrained(tmp_path / "adapter")
    result.figures.save_pretrained(tmp_path / "figures")
    return tmp_path / "adapter", experiment, result


def test_loaded_equals_trained_and_the_card_says_what_was_measured(saved, toy):
    folder, experiment, result = saved
    model = Artifact.from_pretrained(folder).build(toy.base)
    inputs = model.backbone.prepare({m: experiment.source.decoded(m, [0, 1, 239]) for m in ("left", "right")})
    start = Frontier({"left": 0, "right": 0})
    with torch.no_grad():
        assert torch.equal(model(inputs, start), experiment.model.eval()(inputs, start))
    card = (folder / "README.md").read_text()
    assert f"{result.metrics['test']['accuracy']:.3f}" in card and "left alone | 0.500" in card
    assert {f.name for f in (folder.parent / "figures").iterdir()} == {
        "learning_curve.png",
        "test_metrics.png",
        "confusion_matrix.png",
    }
    assert not list((folder.parent / "checkpoints").glob("*")), "a finished run leaves no checkpoint"


def test_another_base_is_refused(saved, toy, tmp_path):
    folder = saved[0]
    other = Backbone.from_pretrained(toy.base)
    with torch.no_grad():
        next(other.trunk.parameters()).view(-1)[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(FusetuneError, match="its fingerprint is .* but the adapter was trained on"):
        Artifact.from_pretrained(folder).build(tmp_path / "other")


def damage_truncate(folder):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def damage_pickle(folder):
    import pickle

    (folder / WEIGHTS).write_bytes(pickle.dumps({"a": 1}))


def damage_foreign_key(folder):
    save_file({**load_file(folder / WEIGHTS), "stranger": torch.zeros(1)}, folder / WEIGHTS)


def damage_missing_key(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / WEIGHTS)


def damage_shape(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["junction.0.scale"] = torch.zeros(3)
    save_file(tensors, folder / WEIGHTS)


def damage_format(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "format": 99}))


def damage_json(folder):
    (folder / CONFIG).write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "can't be read"),
        (damage_pickle, "can't be read"),
        (damage_foreign_key, "tensor 'stranger' belongs to no part of the plan"),
        (damage_missing_key, "is missing"),
        (damage_shape, r"tensor 'junction.0.scale' has shape \(3,\)"),
        (damage_format, "format 99, this version reads 1"),
        (damage_json, "no JSON"),
        (shutil.rmtree, "expected an adapter's folder"),
    ],
)
def test_a_damaged_artifact_is_named(saved, toy, damage, message):
    damage(saved[0])
    with pytest.raises(FusetuneError, match=message):
        Artifact.from_pretrained(saved[0]).build(toy.base)
