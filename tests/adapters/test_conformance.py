"""What holds of every method; a new one is a row in methods.py."""

import pytest
import torch
from methods import METHODS

from conftest import Toy
from fusetune.backbones.backbone import Frontier
from fusetune.bank.artifact import Artifact
from fusetune.config import build
from fusetune.plan.frontier import frontier
from fusetune.plan.plan import Plan
from fusetune.tokens import Tokens
from fusetune.training.epochs import Reporter
from fusetune.training.loop import train
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings

GROUND = Frontier({"left": 0, "right": 0})
SETTINGS = TrainSettings(epochs=3, batch_size=32, patience=3, learning_rate=1e-2, weight_decay=0.0, device="cpu")
rows = pytest.mark.parametrize("row", METHODS.values(), ids=METHODS.keys())


def streams_of(model, experiment, count=6):
    return experiment.model.backbone.prepare({m: experiment.source.decoded(m, range(count)) for m in ("left", "right")})


def outputs(model, streams):
    model.eval()
    with torch.no_grad():
        return model(streams, Frontier(dict.fromkeys(streams, 0)))


def trained(toy, row, folder, seed=0):
    experiment = toy.experiment(*row.placements, seed=seed)
    splits = toy.splits(experiment)
    train(experiment.model, splits["train"], splits["val"], SETTINGS, "key", folder, Reporter())
    return experiment, splits


@rows
def test_it_begins_as_the_identity(toy, row):
    model = toy.experiment(*row.placements).model
    plain = toy.experiment().model
    plain.head.load_state_dict(model.head.state_dict())
    streams = streams_of(model, toy.experiment())
    gap = (outputs(model, streams) - outputs(plain, streams)).abs().max()
    assert (gap < 1e-5) == row.identity


@rows
def test_all_of_the_adapter_learns_and_nothing_of_the_base(toy, row, tmp_path):
    experiment = toy.experiment(*row.placements)
    model = experiment.model
    trainable = model.trainable()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    splits = toy.splits(experiment)
    train(model, splits["train"], splits["val"], SETTINGS, "key", tmp_path, Reporter())
    # an attention's key bias moves nothing: softmax is blind to it
    still = [
        n for n, p in trainable.items() if torch.equal(p, before[n]) and not n.endswith(("key.bias", "_norm.bias"))
    ]
    assert not still, f"never moved: {still}"
    frozen = [n for n, p in model.named_parameters() if n not in trainable and not torch.equal(p, before[n])]
    assert not frozen, f"moved: {frozen}"
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trainable)
    assert set(model.sites().values()) <= {"left", "right", "trunk", "connector", "junction", "head"}


@rows
def test_saved_and_loaded_it_answers_the_same(toy, row, tmp_path):
    experiment, _ = trained(toy, row, tmp_path / "ck")
    model = experiment.model
    streams = streams_of(model, experiment)
    before = outputs(model, streams)
    model.fold()
    assert torch.equal(outputs(model, streams), before), "folding changes no output"
    fingerprint = toy.experiment().model.backbone.fingerprint(["left", "right"])
    assert model.backbone.fingerprint(["left", "right"]) == fingerprint
    Artifact.of(model, experiment.data, "toy", "", experiment.frontier).save_pretrained(tmp_path / "adapter")
    loaded = Artifact.from_pretrained(tmp_path / "adapter").build(toy.base)
    torch.testing.assert_close(outputs(loaded, streams), before, rtol=0, atol=0)


@rows
def test_merged_it_answers_the_same_or_says_that_it_cannot(toy, row, tmp_path):
    experiment, _ = trained(toy, row, tmp_path / "ck")
    model = experiment.model
    streams = streams_of(model, experiment)
    before = outputs(model, streams)
    if not row.merges:
        with pytest.raises(TypeError, match="can't be merged into the base"):
            model.merge()
        assert torch.equal(outputs(model, streams), before), "a refusal changes nothing"
        return
    model.merge()
    torch.testing.assert_close(outputs(model, streams), before, rtol=1e-5, atol=1e-5)
    plain = toy.experiment().model  # the merged weights alone, in a backbone without hooks
    plain.backbone.load_state_dict(model.backbone.state_dict())
    plain.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(outputs(plain, streams), before, rtol=1e-5, atol=1e-5)


@rows
def test_a_batch_gives_what_its_samples_give_alone(toy, row, tmp_path):
    experiment, _ = trained(toy, row, tmp_path / "ck")
    streams = streams_of(experiment.model, experiment)
    together = outputs(experiment.model, streams)
    for i in range(len(together)):
        alone = {name: Tokens(t.values[i : i + 1], t.mask[i : i + 1]) for name, t in streams.items()}
        length = int(alone["left"].mask.sum())
        alone["left"] = Tokens(alone["left"].values[:, :length], alone["left"].mask[:, :length])  # without padding
        torch.testing.assert_close(outputs(experiment.model, alone)[0], together[i], rtol=1e-4, atol=1e-5)


@rows
def test_a_modality_may_be_missing(toy, row, tmp_path):
    experiment, _ = trained(toy, row, tmp_path / "ck")
    model = experiment.model
    streams = streams_of(model, experiment)
    for gone in ("left", "right"):
        masked = {**streams, gone: Tokens(streams[gone].values, torch.zeros_like(streams[gone].mask))}
        absent = {name: tokens for name, tokens in streams.items() if name != gone}
        out = outputs(model, masked)
        assert torch.isfinite(out).all()
        if gone == "right":  # the target of what is added may be masked, but not left out
            torch.testing.assert_close(outputs(model, absent), out, rtol=1e-4, atol=1e-5)
        half = masked[gone].mask.clone()
        half[:3] = streams[gone].mask[:3]
        mixed = outputs(model, {**streams, gone: Tokens(streams[gone].values, half)})
        torch.testing.assert_close(mixed[:3], outputs(model, streams)[:3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[3:], out[3:], rtol=1e-4, atol=1e-5)


@rows
def test_the_same_twice_and_after_an_interruption(toy, row, tmp_path):
    class Stop(Exception):
        pass

    def stop(number):
        if number == 2:
            raise Stop

    def run(folder, after=lambda _: None):
        experiment = toy.experiment(*row.placements)
        splits = toy.splits(experiment)
        train(experiment.model, splits["train"], splits["val"], SETTINGS, "key", folder, Reporter(), after)
        return experiment.model.trainable(), predict(experiment.model, splits["test"], 32)[0]

    whole, answers = run(tmp_path / "a")
    with pytest.raises(Stop):
        run(tmp_path / "b", stop)
    resumed, again = run(tmp_path / "b")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert torch.equal(answers, again)


@rows
def test_from_the_cache_it_loses_what_it_loses_from_the_raw_inputs(toy, row, tmp_path):
    losses = []
    for raw in (False, True):
        experiment = toy.experiment(*row.placements)
        if raw:
            experiment.frontiers = dict.fromkeys(experiment.frontiers, GROUND)
        splits = toy.splits(experiment)
        folder = tmp_path / str(raw)
        epochs = train(experiment.model, splits["train"], splits["val"], SETTINGS, "key", folder, Reporter())
        losses.append([epoch.train_loss for epoch in epochs])
    assert torch.tensor(losses[0]).sub(torch.tensor(losses[1])).abs().max() < 1e-5


@rows
def test_nothing_below_the_frontier_is_trained(toy, row):
    """The blocks below hold no trained parameter, and the cache there holds what the bare base gives."""
    experiment = toy.experiment(*row.placements)
    model, bare = experiment.model, toy.experiment().model.backbone
    streams = streams_of(model, experiment)
    with torch.no_grad():
        ours = model.backbone.advance(streams, GROUND, experiment.frontier)
        plain = bare.advance(streams, GROUND, experiment.frontier)
    for name in streams:
        assert torch.equal(ours[name].values, plain[name].values)
    model.set_epoch(model.stages()[-1])
    assert frontier(model, streams) == experiment.frontier


def test_every_registered_method_is_in_the_table():
    from fusetune.adapters import adapters

    def named(values):
        for value in values if isinstance(values, list | tuple) else [values]:
            if isinstance(value, dict):
                yield from [value["adapter"]] if "adapter" in value else []
                for inner in value.values():
                    yield from named(inner)

    used = {name for row in METHODS.values() for name in named(row.placements)}
    # heads are in every row; fusion needs trained ones, two a model that speaks (tests/composite)
    elsewhere = {"linear", "mlp", "adapter_fusion", "prompt_tuning", "new_connector"}
    assert set(adapters.names()) - elsewhere == used


def test_plans_survive_json(toy):
    from fusetune.config import to_plain

    for row in METHODS.values():
        plan = build(Plan, {"placements": row.placements}, "plan")
        assert build(Plan, to_plain(plan), "plan") == build(Plan, to_plain(build(Plan, to_plain(plan), "plan")), "plan")


assert Toy  # the fixture `toy` makes it
