"""Calibration, conditions, attention and energy against what they are defined to be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import WANDER
from fusetune.backbones.backbone import Frontier
from fusetune.comparison.attention import attention_maps, interaction_maps
from fusetune.comparison.energy import Meter
from fusetune.comparison.measures import Conditions, calibration, calibration_error
from fusetune.comparison.settings import RobustnessSettings
from fusetune.tokens import Tokens
from fusetune.training.epochs import Reporter
from fusetune.training.loop import train
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings

CPU = torch.device("cpu")
CROSS = {"where": "junction", "adapter": "cross_modal", "config": {"bottleneck_dim": 8, "heads": 2}}
LORA = {"where": "towers", "adapter": "lora", "config": {"rank": 2}}


def test_the_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.41, 0.41])
    correct = np.array([1.0, 1, 1, 0, 1, 0])
    error, bins = calibration_error(confidence, correct)
    assert error == pytest.approx(4 / 6 * abs(0.95 - 0.75) + 2 / 6 * abs(0.41 - 0.5))
    assert bins == [
        pytest.approx({"confidence": 0.41, "accuracy": 0.5, "share": 2 / 6}),
        pytest.approx({"confidence": 0.95, "accuracy": 0.75, "share": 4 / 6}),
    ]
    assert calibration_error(np.array([1.0, 1.0]), np.array([1.0, 1.0]))[0] == 0
    sure = np.random.default_rng(0).random(200_000)
    assert calibration_error(sure, (np.random.default_rng(1).random(200_000) < sure).astype(float))[0] < 0.01


def test_tasks_without_probabilities_have_no_calibration(toy):
    task = toy.experiment().task
    outputs = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    found = calibration(task, outputs, torch.tensor([0, 0]))
    assert found["ece"] == pytest.approx(abs(outputs.softmax(-1).max().item() - 0.5), abs=1e-6)
    task.probabilities = lambda outputs: {}
    assert calibration(task, outputs, torch.tensor([0, 0])) == {}


@pytest.fixture
def trained(toy, tmp_path):
    def of(*placements):
        name = placements[0]["adapter"] if placements else "head"
        experiment = toy.experiment(*placements)
        splits = toy.splits(experiment)
        settings = TrainSettings(epochs=6, batch_size=16, device="cpu", learning_rate=0.02)
        train(experiment.model, splits["train"], splits["val"], settings, "key", tmp_path / name, Reporter())
        return experiment, splits

    return of


@pytest.mark.parametrize("placements", [[WANDER], [LORA], []], ids=["junction", "towers", "head"])
def test_conditions_at_the_frontier_are_those_of_the_raw_inputs(trained, placements):
    """The whole samples give the test metric; a modality that is taken away is one that was never there."""
    experiment, splits = trained(*placements)
    wanted = RobustnessSettings(samples=1000, missing=(0.5,), noise=(0.01, 100.0))
    conditions = Conditions(experiment, wanted, CPU)
    found = conditions.metrics(experiment.model)
    outputs, _ = predict(experiment.model, splits["test"], 16)
    assert found["samples"] == 40
    assert found["whole"] == pytest.approx(experiment.task.metrics(outputs, splits["test"].targets)["accuracy"])
    rows = experiment.rows["test"]
    raw = {name: experiment.source.decoded(name, rows) for name in experiment.data.modalities}
    given = experiment.model.backbone.prepare({**raw, "left": [None] * len(rows)})
    with torch.no_grad():
        without = experiment.model.eval()(given, Frontier(dict.fromkeys(given, 0)))
    expected = experiment.task.metrics(without, splits["test"].targets)["accuracy"]
    assert found["without"]["left"] == pytest.approx(expected)
    assert set(found["without"]) == {"left", "right"} and set(found["noise"]) == {"0.01", "100.0"}
    assert abs(found["noise"]["0.01"] - found["whole"]) <= 0.05
    assert abs(found["noise"]["100.0"] - 0.5) < 0.25, "noise says nothing of the label"
    assert conditions.metrics(experiment.model) == found, "the same noise every time"


def test_answers_are_timed_and_the_model_is_as_before(trained):
    experiment, _ = trained(LORA)
    conditions = Conditions(experiment, RobustnessSettings(samples=8), CPU)
    before = conditions.metrics(experiment.model)
    times = conditions.answer_times(experiment.model)
    assert times["seconds_per_answer"] > 0 and times["seconds_plain"] > 0 and times["overhead"] > -1
    assert conditions.metrics(experiment.model) == before


def test_attention_maps_are_weights_and_name_who_reads_whom(trained):
    experiment, _ = trained(CROSS)
    conditions = Conditions(experiment, RobustnessSettings(samples=16), CPU)
    maps = attention_maps(experiment.model, conditions.all[0].states, conditions.start)
    assert list(maps) == ["junction.0: left reads right", "junction.0: right reads left"]
    for weights in maps.values():
        assert np.array(weights).sum(1) == pytest.approx(np.ones(len(weights)), abs=1e-5)
    assert np.array(maps["junction.0: left reads right"]).shape == (5, 1)
    assert attention_maps(*_wander(trained)) == {}
    found = interaction_maps(*_wander(trained))
    assert list(found) == ["junction.0: left with right"] and np.array(found["junction.0: left with right"]).min() > 0


def _wander(trained):
    experiment, _ = trained(WANDER)
    conditions = Conditions(experiment, RobustnessSettings(samples=16), CPU)
    return experiment.model, conditions.all[0].states, conditions.start


def test_words_are_replaced_by_other_words_at_the_stated_rate():
    from fusetune.comparison.measures import _noisy

    ids = Tokens(torch.randint(0, 1000, (200, 10, 1)), torch.ones(200, 10, dtype=torch.bool))
    changed = _noisy(ids, 0.3, torch.Generator().manual_seed(0)).values != ids.values
    assert 0.25 < changed.float().mean() < 0.35
    floats = Tokens(torch.randn(200, 10, 4) * 7, torch.ones(200, 10, dtype=torch.bool))
    noise = _noisy(floats, 0.5, torch.Generator().manual_seed(0)).values - floats.values
    assert noise.std().item() == pytest.approx(3.5, rel=0.05)


def test_the_meter_reads_the_packages_counters_over_their_end(tmp_path: Path):
    def counters(**values):
        for name, value in values.items():
            zone = tmp_path / name.replace("_", ":")
            zone.mkdir(exist_ok=True)
            (zone / "energy_uj").write_text(f"{value}\n")
            (zone / "max_energy_range_uj").write_text("10000000\n")

    counters(**{"intel-rapl_0": 9_000_000, "intel-rapl_1": 100, "intel-rapl_0_0": 5})
    meter = Meter(CPU, tmp_path)
    counters(**{"intel-rapl_0": 1_000_000, "intel-rapl_1": 500_100, "intel-rapl_0_0": 4_000_000})
    assert meter.joules() == pytest.approx(2.0 + 0.5), "parts of a package are in it already"
    assert Meter(CPU, tmp_path / "nothing").joules() is None
