"""An ensemble's members are what they would be alone."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from methods import METHODS, placement

from conftest import WANDER
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens
from fusetune.training.ensemble import Ensemble, refusal
from fusetune.training.epochs import Reporter
from fusetune.training.loop import assign, train
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings
from fusetune.training.together import predict_together, train_together

SETTINGS = TrainSettings(epochs=4, batch_size=32, patience=4, device="cpu")
CROSS = placement("junction", "cross_modal", bottleneck_dim=8, heads=2, dropout=0.3)
MIXTURE = METHODS["mixture_of_adapters"].placements
ONE_BY_ONE = {  # and why
    "adalora": "AdaLoRA changes itself",
    "gradual": "changes while it is trained",
}


def members(toy, placements, settings):
    """The experiment of the first, initial values of all, and splits."""
    values = []
    for one in settings:
        experiment = toy.experiment(*placements, seed=one.seed)
        values.append({name: p.detach().clone() for name, p in experiment.model.trainable().items()})
    return experiment, values, toy.splits(experiment)


def alone(toy, placements, one, splits, folder):
    experiment = toy.experiment(*placements, seed=one.seed)
    history = train(experiment.model, splits["train"], splits["val"], one, "key", folder, Reporter())
    outputs, _ = predict(experiment.model, splits["test"], one.batch_size)
    return history, {name: p.detach() for name, p in experiment.model.trainable().items()}, outputs


def example(splits):
    states = splits["train"].features.batch(torch.arange(8))
    return states, splits["train"].features.frontier, splits["train"].targets[:8]


def same_as_alone(toy, placements, settings, folder, tolerance=1e-5, unseen=("key.bias",)):
    experiment, values, splits = members(toy, placements, settings)
    assert refusal(experiment.model, values, settings, *example(splits)) is None
    together = train_together(experiment.model, values, splits["train"], splits["val"], settings, "key", folder / "t")
    for i, (one, member) in enumerate(zip(settings, together, strict=True)):
        history, weights, outputs = alone(toy, placements, one, splits, folder / str(i))
        assert [e.number for e in member.history] == [e.number for e in history]
        for key in ("train_loss", "val_loss", "val_metric", "gradient_norm"):
            found, expected = ([getattr(e, key) for e in h] for h in (member.history, history))
            assert found == pytest.approx(expected, rel=tolerance, abs=tolerance), key
        for name, value in weights.items():
            if not name.endswith(unseen):  # softmax doesn't see them: gradients are rounding, which Adam normalises
                assert torch.allclose(member.best[name], value, atol=tolerance), name
        assign(experiment.model, member.best)
        assert torch.allclose(predict(experiment.model, splits["test"], 32)[0], outputs, atol=tolerance)
    final = Ensemble(experiment.model, [member.best for member in together], settings)
    assert torch.allclose(predict_together(final, splits["test"])[0][-1], outputs, atol=tolerance)


@pytest.mark.parametrize("placements", [[WANDER], [CROSS], MIXTURE, []], ids=["wander", "dropout", "penalty", "head"])
def test_seeds_together_are_the_seeds_alone(toy, tmp_path, placements):
    same_as_alone(toy, placements, [replace(SETTINGS, seed=seed) for seed in (0, 1, 7)], tmp_path)


@pytest.mark.parametrize("placements", [[WANDER], []], ids=["wander", "head"])
def test_so_are_those_of_a_task_that_looks_through_sequences_of_unequal_length(toy, tmp_path, placements):
    """Outputs are as wide as the longest of a batch; splits are longer than one."""
    lengths = [len(row) for row in toy.table["left"].to_pylist()]
    assert len(set(lengths)) > 1
    begins = [i % 2 for i in range(len(lengths))]
    spans = [[float(begin), begin + 1.0] for begin in begins]
    toy.table = toy.table.append_column("span", pa.array(spans)).append_column(
        "seconds", pa.array([float(length) for length in lengths])
    )
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])  # so that batches differ in their longest
    toy.table = toy.table.take(order)
    task = {"name": "moments", "target": "left", "duration": "seconds"}
    toy.data = replace(toy.data, task=task, use_trunk=False)
    settings = [replace(SETTINGS, batch_size=4, epochs=2, seed=seed) for seed in (0, 1)]
    # a score that is the same for all tokens of a sample
    same_as_alone(toy, placements, settings, tmp_path, 1e-4, ("linear.weight", "linear.bias"))


def test_rates_and_decays_together_are_those_alone(toy, tmp_path):
    several = [(1e-3, 0.0), (1e-2, 0.5), (1e-3, 0.5)]
    settings = [replace(SETTINGS, learning_rate=rate, weight_decay=decay, seed=3) for rate, decay in several]
    same_as_alone(toy, [WANDER], settings, tmp_path)


def test_who_stops_early_leaves_and_the_others_go_on_as_alone(toy, tmp_path):
    one = replace(SETTINGS, epochs=12, patience=2, modality_dropout=0.2)
    settings = [replace(one, seed=seed, learning_rate=rate) for seed, rate in enumerate((1e-4, 1e-2, 3e-2, 1e-2))]
    experiment, values, splits = members(toy, [CROSS], settings)
    together = train_together(experiment.model, values, splits["train"], splits["val"], settings, "key", tmp_path)
    assert len({len(member.history) for member in together}) > 1, "the case has to be there"
    same_as_alone(toy, [CROSS], settings, tmp_path / "again", tolerance=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_as_alone_or_says_why_it_trains_alone(toy, name, tmp_path):
    placements, settings = METHODS[name].placements, [replace(SETTINGS, epochs=1, seed=seed) for seed in (0, 5)]
    experiment, values, splits = members(toy, placements, settings)
    reason = refusal(experiment.model, values, settings, *example(splits))
    print(f"{name}: {reason or 'together'}")
    if reason is None:
        same_as_alone(toy, placements, settings, tmp_path)
    elif name in ONE_BY_ONE:
        import re

        assert re.search(ONE_BY_ONE[name], reason)


class _Stop(Exception):
    pass


def test_killed_between_epochs_and_resumed_it_ends_bitwise_the_same(toy, tmp_path):
    settings = [replace(SETTINGS, epochs=12, patience=4, learning_rate=1e-2, seed=seed) for seed in range(3)]
    experiment, values, splits = members(toy, [CROSS], settings)

    def run(folder, epoch_done=lambda *_: None):
        return train_together(
            experiment.model, values, splits["train"], splits["val"], settings, "key", folder, epoch_done
        )

    def stop(member, epoch):
        if epoch.number == 5:
            raise _Stop

    whole = run(tmp_path / "whole")
    assert min(len(member.history) for member in whole) < max(len(member.history) for member in whole)
    with pytest.raises(_Stop):
        run(tmp_path / "cut", stop)
    resumed = run(tmp_path / "cut")
    for one, other in zip(whole, resumed, strict=True):
        assert [e.val_loss for e in one.history] == [e.val_loss for e in other.history]
        assert all(torch.equal(one.best[name], other.best[name]) for name in one.best)


def test_a_member_whose_loss_is_no_number_fails_alone(toy, tmp_path):
    settings = [replace(SETTINGS, seed=0), replace(SETTINGS, seed=1, learning_rate=1e30), replace(SETTINGS, seed=2)]
    experiment, values, splits = members(toy, [WANDER], settings)
    found = train_together(experiment.model, values, splits["train"], splits["val"], settings, "key", tmp_path)
    assert [member.error is None for member in found] == [True, False, True]
    assert "the loss is nan in epoch" in found[1].error and "1e+30" in found[1].error
    history, _, _ = alone(toy, [WANDER], settings[2], splits, tmp_path / "alone")
    assert [e.val_loss for e in found[2].history] == pytest.approx([e.val_loss for e in history], rel=1e-5)
    with pytest.raises(FusetuneError, match="the loss is nan"):
        alone(toy, [WANDER], settings[1], splits, tmp_path / "bad")


def test_members_that_differ_in_more_than_seed_and_rates_are_refused(toy):
    settings = [SETTINGS, replace(SETTINGS, batch_size=16)]
    experiment, values, splits = members(toy, [WANDER], settings)
    assert refusal(experiment.model, values, settings, *example(splits)) == "their train.batch_size differs"


def test_what_reads_its_weights_past_the_model_is_found_out(toy):
    """An adapter that keeps a parameter where `functional_call` can't put another gives wrong gradients."""
    experiment, values, splits = members(toy, [WANDER], [SETTINGS, replace(SETTINGS, seed=1)])
    scale = experiment.model.junction[0].scale
    with torch.no_grad():
        scale.fill_(0.5)
        for own in values:
            own["junction.0.scale"].fill_(0.5)
    experiment.model.junction[0].fuse = lambda streams, fuse=experiment.model.junction[0].fuse: (
        fuse(streams) * scale.sum()
    )
    settings = [SETTINGS, replace(SETTINGS, seed=1)]
    assert "scale" in refusal(experiment.model, values, settings, *example(splits))


def test_padding_of_another_members_batch_changes_nothing(toy):
    experiment, values, splits = members(toy, [CROSS], [SETTINGS])
    features = splits["train"].features
    states = features.batch(torch.arange(0, 32, 4))  # rows of two tokens
    left = states["left"]
    assert left.mask.shape[1] == 2
    pad = torch.nn.functional.pad
    padded = {**states, "left": Tokens(pad(left.values, (0, 0, 0, 3)), pad(left.mask, (0, 3)))}
    ensemble = Ensemble(experiment.model.eval(), values, [SETTINGS])
    with torch.no_grad():
        found, expected = (ensemble.outputs(given, features.frontier) for given in (padded, states))
    assert torch.allclose(found, expected, atol=1e-6)
