"""How a plan is trained: rates by site, decay, accumulation, gradual unfreezing, hidden modalities."""

import pytest
import torch

from conftest import WANDER
from fusetune.backbones.backbone import Frontier
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens
from fusetune.training.epochs import Reporter
from fusetune.training.loop import train
from fusetune.training.missing import with_dropped_modalities
from fusetune.training.optimizer import make_optimizer
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings

LORA = {"where": "towers", "adapter": "lora", "blocks": {"modalities": ["left"]}, "config": {"rank": 2}}
OPEN = {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["right"]}}
TRUNK = {"where": "trunk", "adapter": "unipelt", "config": {"rank": 2}}
SETTINGS = TrainSettings(epochs=4, batch_size=32, patience=4, device="cpu")


def groups(model, settings):
    names = {parameter: name for name, parameter in model.trainable().items()}
    return [
        (names[p], group["site"], group["peak"], group["weight_decay"])
        for group in make_optimizer(model, settings).param_groups
        for p in group["params"]
    ]


def test_every_site_has_its_rate_and_vectors_and_gates_do_not_decay(toy):
    settings = TrainSettings(learning_rate=1.0, base_learning_rate=0.1, weight_decay=0.5)
    found = groups(toy.experiment(LORA, OPEN, TRUNK, WANDER).model, settings)
    rates = {site: {rate for _, s, rate, _ in found if s == site} for site in ("left", "right", "trunk", "junction")}
    # the toy's towers are a sequence and a vector: neither vision nor language
    assert rates == {"left": {1.0}, "right": {0.1}, "trunk": {0.5}, "junction": {0.5}}
    assert {rate for _, site, rate, _ in found if site == "head"} == {1.0}
    still = {name for name, _, _, decay in found if decay == 0}
    assert any("bias_row" in n for n in still) and any(n.endswith("gates.lora.weight") for n in still)
    assert any(n.endswith("down.bias") for n in still) and any("norm" in n for n in still)
    moved = {name for name, _, _, decay in found if decay == 0.5}
    assert any("lora_A" in n for n in moved) and any(n.endswith("down.weight") for n in moved)
    assert len(found) == len(moved) + len(still) == len(toy.experiment(LORA, OPEN, TRUNK, WANDER).model.trainable())


def test_vision_language_and_cross_modal_are_told_apart(toy, monkeypatch):
    model = toy.experiment(LORA, OPEN, WANDER).model
    monkeypatch.setattr(model.backbone.tower("left"), "kind", "text", raising=False)
    monkeypatch.setattr(model.backbone.tower("right"), "kind", "image", raising=False)
    peaks = {
        site: rate for _, site, rate, _ in groups(model, TrainSettings(learning_rate=1e-4, base_learning_rate=1e-4))
    }
    assert peaks == pytest.approx({"left": 2e-4, "right": 1e-4, "junction": 5e-5, "head": 1e-4})


def test_accumulated_batches_are_one_larger_batch(toy, tmp_path):
    trained = []
    # 160 rows: the last batch of 48 has 16 of them, and each of those weighs as much as any other
    for batch_size, accumulate in ((32, 1), (8, 4), (160, 1), (48, 4)):
        experiment = toy.experiment(WANDER)
        splits = toy.splits(experiment)
        settings = TrainSettings(epochs=3, batch_size=batch_size, accumulate=accumulate, patience=3, device="cpu")
        train(experiment.model, splits["train"], splits["val"], settings, "k", tmp_path / str(batch_size), Reporter())
        trained.append(experiment.model.trainable())
    for name, parameter in trained[0].items():
        torch.testing.assert_close(parameter, trained[1][name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(trained[2][name], trained[3][name], rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(p, trained[2][name], rtol=1e-3) for name, p in trained[0].items())


def test_checkpointed_blocks_run_twice_and_learn_the_same(toy, tmp_path):
    """Above the frontier alone, hidden units (dropout) too."""
    dropped = {
        **LORA,
        "config": {"rank": 2, "dropout": 0.2},
        "blocks": {"modalities": ["left"], "take": "top", "count": 1},
    }
    found, runs = [], []
    for again in (False, True):
        experiment = toy.experiment(dropped, TRUNK)
        splits, counts = toy.splits(experiment), {}
        for number, block in enumerate(experiment.model.backbone.tower("left").blocks()):
            part = next(module for module in block.modules() if not list(module.children()))
            part.register_forward_hook(lambda *_, n=number, c=counts: c.update({n: c.get(n, 0) + 1}))
        settings = TrainSettings(epochs=2, batch_size=32, patience=2, device="cpu", gradient_checkpointing=again)
        folder = tmp_path / str(again)
        train(experiment.model, splits["train"], splits["val"], settings, "k", folder, Reporter())
        found.append(experiment.model.trainable())
        runs.append(counts)
    assert runs[0].keys() == runs[1].keys() == {1}, "block 0 is below the frontier"
    steps = 2 * 5  # two epochs of 160 rows
    assert runs[1][1] == runs[0][1] + steps
    for name, parameter in found[0].items():
        torch.testing.assert_close(found[1][name], parameter, rtol=1e-4, atol=1e-6)


def test_the_norm_of_the_gradient_is_known_by_site(toy, tmp_path):
    experiment = toy.experiment(LORA, WANDER)
    splits = toy.splits(experiment)
    epoch = train(experiment.model, splits["train"], splits["val"], SETTINGS, "k", tmp_path, Reporter())[-1]
    assert set(epoch.gradient_norms) == {"left", "junction", "head"}
    largest = max(epoch.gradient_norms.values())
    assert largest <= epoch.gradient_norm <= sum(epoch.gradient_norms.values())


def test_hidden_modalities_leave_one_and_what_was_missing_stays_missing():
    torch.manual_seed(0)
    mask = torch.ones(4000, 3, dtype=torch.bool)
    mask[0] = False
    states = {name: Tokens(torch.zeros(4000, 3, 2), mask.clone()) for name in ("a", "b", "c")}
    states["c"] = Tokens(states["c"].values, torch.ones_like(mask))
    there = torch.stack([t.mask.any(1) for t in with_dropped_modalities(states, 0.5).values()], 1)
    assert there.any(1).all() and there[0].tolist() == [False, False, True]
    # of 8 equally likely outcomes the one without any keeps all three: 1/2 + 1/8 each
    assert there[1:].float().mean(0).tolist() == pytest.approx([0.625] * 3, abs=0.03)


def test_training_with_hidden_modalities_bears_their_absence_better(toy, tmp_path):
    def left_alone(share):
        experiment = toy.experiment({"where": "trunk", "adapter": "bottleneck"})
        splits = toy.splits(experiment)
        settings = TrainSettings(epochs=25, batch_size=16, patience=25, modality_dropout=share, device="cpu")
        train(experiment.model, splits["train"], splits["val"], settings, "k", tmp_path / str(share), Reporter())
        features, model = splits["train"].features, experiment.model.eval()
        states = features.batch(torch.arange(160))
        states["right"] = Tokens(states["right"].values, torch.zeros_like(states["right"].mask))
        with torch.no_grad():
            out = model(states, features.frontier)
        return model.task.loss(out, splits["train"].targets).item()

    assert left_alone(0.5) < left_alone(0.0)


class Told(Reporter):
    def __init__(self):
        self.stages, self.epochs = [], []

    def stage(self, text):
        self.stages.append(text)

    def epoch(self, epoch, best):
        self.epochs.append(epoch)


def gradual(epoch):
    return [WANDER, {**TRUNK, "from_epoch": epoch}, {**LORA, "from_epoch": epoch + 1}]


def test_gradual_unfreezing_moves_the_frontier_down_and_says_so(toy, tmp_path):
    experiment = toy.experiment(*gradual(2))
    assert experiment.frontiers == {
        1: Frontier({"left": 2, "right": 1}, 2),
        2: Frontier({"left": 2, "right": 1}, 0),
        3: Frontier({"left": 0, "right": 1}, 0),
    }
    model, told = experiment.model, Told()
    splits = toy.splits(experiment)
    start = {name: p.detach().clone() for name, p in model.trainable().items()}
    moved = []

    def look(number):
        sites = model.sites()
        moved.append({sites[p] for name, p in model.trainable().items() if not torch.equal(p, start[name])})

    train(model, splits["train"], splits["val"], SETTINGS, "k", tmp_path, told, look)
    assert moved[0] == {"junction", "head"} and moved[1] == moved[0] | {"trunk"} and moved[2] == moved[1] | {"left"}
    assert len(told.stages) == 2
    assert "the frontier moves from (left 2, right 1, trunk 2) to (left 2, right 1)" in told.stages[0]
    assert "samples/s" in told.stages[1]
    best = max(epoch.val_metric for epoch in told.epochs[2:])
    outputs, _ = predict(model, splits["val"], 32)
    assert model.task.metrics(outputs, splits["val"].targets)["accuracy"] == pytest.approx(best), (
        "an epoch before the last stage is another model, whatever its metric"
    )


def test_until_its_epoch_an_adapter_is_not_there(toy):
    experiment, bare = toy.experiment(*gradual(2)), toy.experiment(WANDER)
    bare.model.head.load_state_dict(experiment.model.head.state_dict())
    bare.model.junction.load_state_dict(experiment.model.junction.state_dict())
    states, ground = experiment.example(4), Frontier({"left": 0, "right": 0})
    experiment.model.set_epoch(1)
    with torch.no_grad():
        assert torch.equal(experiment.model(states, ground), bare.model(states, ground))
        experiment.model.set_epoch(2)
        assert not torch.equal(experiment.model(states, ground), bare.model(states, ground))


def test_a_stage_that_training_never_reaches_is_an_error(toy, tmp_path):
    experiment = toy.experiment({**TRUNK, "from_epoch": 9})
    splits = toy.splits(experiment)
    with pytest.raises(FusetuneError, match="switches something on in epoch 9, found 4 epochs"):
        train(experiment.model, splits["train"], splits["val"], SETTINGS, "k", tmp_path, Reporter())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate_factors": {"visoin": 1.0}}, "unknown site 'visoin'. Known: vision, language"),
        ({"modality_dropout": 1.0}, "a share from 0 to below 1, found 1.0"),
        ({"accumulate": 0}, "accumulate: expected a whole number of at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(FusetuneError, match=message):
        TrainSettings(**settings)
