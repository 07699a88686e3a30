"""Plans: what is trainable, where the frontier lies, and that training from it is training from depth 0."""

import pytest
import torch

from conftest import WANDER
from fusetune.backbones.backbone import Frontier
from fusetune.errors import FusetuneError
from fusetune.plan import frontier
from fusetune.training.loop import Reporter, train
from fusetune.training.settings import TrainSettings

OPEN = {"where": "backbone", "adapter": "unfreeze"}


@pytest.mark.parametrize(
    ("placements", "expected"),
    [
        ([], Frontier({"left": 2, "right": 1}, 2)),
        ([WANDER], Frontier({"left": 2, "right": 1}, 2)),
        ([{**OPEN, "config": {"parts": ["trunk"]}}], Frontier({"left": 2, "right": 1}, 0)),
        ([{**OPEN, "config": {"parts": ["left"]}}], Frontier({"left": 0, "right": 1}, 0)),
        ([OPEN], Frontier({"left": 0, "right": 0}, 0)),
    ],
)
def test_the_frontier_follows_from_the_plan(toy, placements, expected):
    assert toy.experiment(*placements).frontier == expected


def test_the_frontier_is_below_the_first_trainable_block_however_it_was_opened(toy):
    experiment = toy.experiment()
    example = experiment._example()
    model = experiment.model
    last = model.backbone.trunk.layers[1]
    last.mlp[0].bias.requires_grad_(True)
    assert frontier(model, example) == Frontier({"left": 2, "right": 1}, 1)
    model.backbone.towers["left"].norm.weight.requires_grad_(True)  # behind the last block: replay from before it
    assert frontier(model, example) == Frontier({"left": 1, "right": 1}, 0)


def test_a_frozen_base_stays_in_eval_mode_and_gets_no_gradient(toy):
    experiment = toy.experiment(WANDER)
    model = experiment.model.train()
    assert not any(module.training for module in model.backbone.modules())
    split = toy.splits(experiment)["train"]
    out = model(split.features.batch(torch.arange(8)), experiment.frontier)
    model.task.loss(out, split.targets[:8]).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.trainable_count() == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("placements", [[WANDER], [{**OPEN, "config": {"parts": ["trunk"]}}]])
def test_fifty_steps_from_the_cache_lose_what_fifty_steps_from_depth_zero_lose(toy, placements, tmp_path):
    losses = []
    for depth_zero in (False, True):
        experiment = toy.experiment(*placements)
        if depth_zero:
            experiment.frontier = Frontier({"left": 0, "right": 0}, 0)
        splits = toy.splits(experiment)
        settings = TrainSettings(epochs=10, batch_size=32, patience=10, device="cpu")  # 5 steps an epoch
        folder = tmp_path / str(depth_zero)
        epochs = train(experiment.model, splits["train"], splits["val"], settings, "k", folder, Reporter())
        losses.append([epoch.train_loss for epoch in epochs])
    assert torch.tensor(losses[0]).sub(torch.tensor(losses[1])).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("placements", "message"),
    [
        (
            [{"where": "head", "adapter": "wander"}],
            "'wander' is placed at 'junction', not 'head'",
        ),
        ([{"where": "junction", "adapter": "wonder"}], "adapters: 'wonder' is unknown. Known: linear, mlp, unfreeze"),
        ([{**WANDER, "config": {"rnk": 2}}], r"toy.placements\[0\].config: unknown key 'rnk'. Did you mean 'rank'"),
        ([{"where": "head", "adapter": "mlp"}], "exactly one placement at 'head', found 2"),
        ([{**OPEN, "config": {"parts": ["top"]}}], "no part 'top'. Known: towers, trunk, left, right"),
    ],
)
def test_a_plan_that_makes_no_sense_is_named(toy, placements, message):
    with pytest.raises(FusetuneError, match=message):
        toy.experiment(*placements)


def test_fusion_is_refused_where_the_task_compares_the_streams(toy):
    task = {"name": "retrieval", "query": "left", "target": "right"}
    with pytest.raises(FusetuneError, match="mixes the streams that this task compares"):
        toy.experiment(WANDER, task=task, use_trunk=False)


def test_retrieval_trains_from_the_towers_and_has_nothing_to_say_of_one_side_alone(toy, tmp_path):
    from dataclasses import replace

    from fusetune.config import build
    from fusetune.features.extraction import CacheSettings
    from fusetune.plan import Plan
    from fusetune.training.run import unimodal_metrics

    data = {"task": {"name": "retrieval", "query": "left", "target": "right"}, "use_trunk": False}
    settings = TrainSettings(epochs=3, batch_size=32, device="cpu")
    experiment = toy.experiment(**data)
    assert experiment.frontier == Frontier({"left": 2, "right": 1}, 0)
    splits = toy.splits(experiment)
    epochs = train(experiment.model, splits["train"], splits["val"], settings, "k", tmp_path / "ck", Reporter())
    assert epochs[-1].train_loss < epochs[0].train_loss
    plan = build(Plan, {"placements": [{"where": "head", "adapter": "linear"}]}, "toy")
    alone = (toy.table, toy.base, replace(toy.data, **data), plan, settings, CacheSettings(), toy.store, tmp_path)
    assert unimodal_metrics(*alone, lambda *_: None)[0] == {}
