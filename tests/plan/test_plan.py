"""Plans: what is trainable, where the frontier lies, and that training from it is training from depth 0."""

import pytest
import torch

from conftest import WANDER
from fusetune.backbones.backbone import Frontier
from fusetune.errors import FusetuneError
from fusetune.plan.frontier import frontier
from fusetune.training.epochs import Reporter
from fusetune.training.loop import train
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
        ([{**OPEN, "config": {"parts": ["trunk"], "top_blocks": 1}}], Frontier({"left": 2, "right": 1}, 1)),
        ([{**OPEN, "config": {"parts": ["towers"], "top_blocks": 1}}], Frontier({"left": 1, "right": 0}, 0)),
        ([{**OPEN, "config": {"parts": ["left"], "top_blocks": 9}}], Frontier({"left": 0, "right": 1}, 0)),
    ],
)
def test_the_frontier_follows_from_the_plan(toy, placements, expected):
    assert toy.experiment(*placements).frontier == expected


def test_the_frontier_is_below_the_first_trainable_block_however_it_was_opened(toy):
    experiment = toy.experiment()
    example = experiment.example(2)
    model = experiment.model
    last = model.backbone.trunk.layers[1]
    last.mlp[0].bias.requires_grad_(True)
    assert frontier(model, example) == Frontier({"left": 2, "right": 1}, 1)
    model.backbone.towers["left"].norm.weight.requires_grad_(True)  # behind the last block: replay from before it
    assert frontier(model, example) == Frontier({"left": 1, "right": 1}, 0)


def test_nothing_is_cached_above_what_is_random(toy):
    """A block that draws numbers although it should be in eval mode, as careless third-party code does."""

    class Noisy(torch.nn.Module):
        def forward(self, hidden_states, mask):
            return torch.nn.functional.dropout(hidden_states, 0.5, training=True)

    experiment = toy.experiment()
    model, tower = experiment.model, experiment.model.backbone.towers["left"]
    state = torch.random.get_rng_state()
    tower.layers[1] = Noisy()
    assert frontier(model, experiment.example(2)) == Frontier({"left": 1, "right": 1}, 0)
    tower.layers[0] = Noisy()
    assert frontier(model, experiment.example(2)) == Frontier({"left": 0, "right": 1}, 0)
    assert torch.equal(torch.random.get_rng_state(), state), "the probe leaves the random numbers of training alone"


def test_the_account_counts_what_lies_above_the_frontier(toy):
    from fusetune.features.index import CacheSettings
    from fusetune.runs.account import account

    counts = {}
    for name, placements in {"head": [], "top": [{**OPEN, "config": {"top_blocks": 1}}], "all": [OPEN]}.items():
        counts[name] = account(toy.experiment(*placements), CacheSettings())
    assert counts["all"].flops == counts["all"].flops_uncached > counts["top"].flops > counts["head"].flops > 0
    assert counts["head"].flop_ratio > counts["top"].flop_ratio > counts["all"].flop_ratio == 1
    # 240 samples, 3.5 tokens on the left and one on the right, 16 floats of two bytes, met in the trunk
    assert counts["head"].cache_bytes == pytest.approx(240 * 4.5 * 16 * 2, rel=0.01)
    experiment = toy.experiment()
    features = toy.features(experiment)
    from fusetune.features.dataset import FeatureSet

    assert FeatureSet(features, toy.store, torch.device("cpu")).bytes == 2 * counts["head"].cache_bytes  # float32


def test_a_frozen_base_stays_in_eval_mode_and_gets_no_gradient(toy):
    experiment = toy.experiment(WANDER)
    model = experiment.model.train()
    assert not any(module.training for module in model.backbone.modules())
    split = toy.splits(experiment)["train"]
    out = model(split.features.batch(torch.arange(8)), experiment.frontier)
    model.task.loss(out, split.targets[:8]).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.trainable_count() == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "placements",
    [
        [WANDER],
        [{**OPEN, "config": {"parts": ["trunk"]}}],
        [{**OPEN, "config": {"parts": ["trunk"], "top_blocks": 1}}],
        [{**OPEN, "config": {"parts": ["left"], "top_blocks": 1}}],
        [OPEN],
    ],
    ids=["junction", "trunk", "top half of the trunk", "top half of a tower", "all layers"],
)
def test_fifty_steps_from_the_cache_lose_what_fifty_steps_from_depth_zero_lose(toy, placements, tmp_path):
    losses = []
    for depth_zero in (False, True):
        experiment = toy.experiment(*placements)
        if depth_zero:
            experiment.frontiers = {1: Frontier({"left": 0, "right": 0}, 0)}
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
            "'wander' is placed at 'junction' or 'trunk', not 'head'",
        ),
        ([{"where": "junction", "adapter": "wonder"}], "adapters: 'wonder' is unknown. Known: adalora, .*, wander"),
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
    from fusetune.features.storage import Store
    from fusetune.plan.plan import Plan
    from fusetune.runs.alone import unimodal_metrics
    from fusetune.runs.workplace import Workplace

    data = {"task": {"name": "retrieval", "query": "left", "target": "right"}, "use_trunk": False}
    settings = TrainSettings(epochs=3, batch_size=32, device="cpu")
    experiment = toy.experiment(**data)
    assert experiment.frontier == Frontier({"left": 2, "right": 1}, 0)
    splits = toy.splits(experiment)
    epochs = train(experiment.model, splits["train"], splits["val"], settings, "k", tmp_path / "ck", Reporter())
    assert epochs[-1].train_loss < epochs[0].train_loss
    plan = build(Plan, {"placements": [{"where": "head", "adapter": "linear"}]}, "toy")
    work = Workplace(Store(toy.store), CacheSettings(), tmp_path, lambda *_: None, torch.device("cpu"))
    assert unimodal_metrics(toy.table, toy.base, replace(toy.data, **data), plan, settings, work)[0] == {}
