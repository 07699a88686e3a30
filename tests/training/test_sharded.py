"""A base in parts on two devices gives what a whole one gives, bit by bit: every method, every family, a whole run."""

import sys
from dataclasses import replace

import pytest
import torch

from conftest import ROOT, Toy
from fusetune.backbones.backbone import Frontier
from fusetune.backbones.replay import fetched, skipped
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.plan.frontier import frontier
from fusetune.plan.speaking import answered
from fusetune.runs.run import train_and_test
from fusetune.training.distributed import ALONE, Group, spawned
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.losses import batch_losses
from fusetune.training.settings import TrainSettings
from fusetune.training.sharded import shard

CPU = torch.device("cpu")
ADDED_UP = ("blip2_t5", "instructblip_t5", "blip_vqa")  # gradients of the encoder, by all blocks, in another order
EVERYWHERE = {"where": "towers", "adapter": "lora", "config": {"rank": 2}}


def parts(model):
    """Numbers of the base's blocks that lie here, by block."""
    from torch.distributed.tensor import DTensor

    found = {}
    for name in model.stacks():
        for i, block in enumerate(model.backbone.stack(name).blocks()):
            found[name, i] = sum(p.to_local().numel() for p in block.parameters() if isinstance(p, DTensor))
    return found


def learned(model, streams, start, targets):
    """Outputs, gradients and outputs after a step, of the very numbers that the same generator draws."""
    torch.manual_seed(1)
    model.train()
    model.set_epoch(9)
    loss, whole = batch_losses(model, streams, start, targets, None)
    whole.backward()
    gradients = {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}
    with torch.no_grad():
        for p in model.trainable().values():
            p.sub_(p.grad if p.grad is not None else 0, alpha=0.1)
            p.grad = None
        model.eval()
        return [loss.detach(), model(streams, start)], gradients


def same(one, two, what):
    close = 1e-5 if what in ADDED_UP else 0.0
    for i, (a, b) in enumerate(zip(one[0], two[0], strict=True)):
        torch.testing.assert_close(a, b, atol=close, rtol=close, msg=lambda text, i=i: f"{what}, output {i}: {text}")
    assert one[1].keys() == two[1].keys() and any(g.any() for g in one[1].values()), what
    for name, gradient in one[1].items():
        where = f"{what}, {name}"
        torch.testing.assert_close(gradient, two[1][name], atol=close, rtol=close, msg=lambda t, n=where: f"{n}: {t}")


def every_method(group, folder):
    sys.path[:0] = [str(ROOT / "tests" / "adapters")]
    from methods import METHODS

    toy = Toy(folder / str(group.rank))
    for name, row in METHODS.items():
        found, kept = [], []
        for own in (ALONE, group):
            experiment = toy.experiment(*row.placements)
            model, rows = experiment.model, range(6)
            kept.append({n: tuple(p.shape) for n, p in model.kept().items()})
            streams = model.backbone.prepare({m: experiment.source.decoded(m, rows) for m in ("left", "right")})
            ground, targets = Frontier(dict.fromkeys(streams, 0)), experiment.targets(list(rows))
            if own is group:
                shard(model, own, CPU)
                shard(model, own, CPU)  # once
                model.detach()
                model.attach()
                model.to(CPU)
                here = parts(model)
                blocks = {k: model.backbone.stack(k[0]).blocks()[k[1]] for k in here}
                frozen = {k: [p for p in b.parameters() if not p.requires_grad] for k, b in blocks.items()}
                assert all(here[k] < 0.75 * sum(p.numel() for p in frozen[k]) for k in here if here[k]), name
                assert any(here.values()) or "full" in name, name
            assert {n: tuple(p.shape) for n, p in model.kept().items()} == kept[0], name
            found.append(learned(model, streams, ground, targets))
        same(*found, name)


def every_family(group, folder):
    sys.path[:0] = [str(ROOT / "tests" / "composite"), str(ROOT / "tests" / "backbones")]
    from test_answering import ANSWERS, LORA, SPEAKING, adapted, given, listening, shown_to

    everywhere = {**LORA, "blocks": "all"}
    for name in SPEAKING:
        place = folder / name
        if not group.rank:
            SPEAKING[name](place)
        group.wait()
        found, words = [], []
        for own in (ALONE, group):
            torch.manual_seed(0)
            model = adapted(*listening(place, name=name), everywhere)
            streams = given(model.backbone, shown_to(name, 1, 1, 1))
            ground, targets = Frontier(dict.fromkeys(streams, 0)), model.task.targets({"said": ANSWERS})
            if own is group:
                shard(model, own, CPU)
                assert any(count for (stack, _), count in parts(model).items() if stack == "trunk"), name
            found.append(learned(model, streams, ground, targets))
            reached = frontier(model, streams)
            states = model.backbone.advance(streams, ground, reached)
            with torch.no_grad():
                found[-1][0].append(model(states, reached))
            words.append(answered(model, streams, ground))
        same(*found, name)
        assert torch.equal(*words), name


@pytest.mark.parametrize("follow", [every_method, every_family])
def test_blocks_in_parts_learn_what_whole_ones_learn(follow, tmp_path):
    with spawned(2, follow, (tmp_path,)) as group:
        follow(group, tmp_path)


def run_of(toy, folder, settings, *placements):
    """A whole run by two ranks; returns its result."""
    experiment = toy.experiment(*placements)
    features = toy.features(experiment)
    experiment.begin(toy.store, CacheSettings(dtype="float32"), lambda *_: None)
    return train_and_test(
        experiment, features, toy.store, settings, EvaluationSettings(), folder, Reporter(), "toy", {}
    )


def test_a_run_gives_the_same_bytes_and_numbers(toy, tmp_path):
    settings = TrainSettings(  # 160 rows: the last batch has 1
        epochs=2, batch_size=53, patience=3, device="cpu", devices=2, gradient_checkpointing=True
    )
    whole = run_of(toy, tmp_path / "whole", settings, EVERYWHERE)
    divided = run_of(toy, tmp_path / "divided", replace(settings, fsdp=True), EVERYWHERE)
    other = run_of(toy, tmp_path / "other", replace(settings, seed=1), EVERYWHERE)
    assert divided.metrics == whole.metrics and divided.curve == whole.curve != other.curve
    assert torch.equal(divided.outputs, whole.outputs)
    for name, value in whole.artifact.tensors.items():
        assert torch.equal(divided.artifact.tensors[name], value), name


def test_one_process_holds_the_whole_base_and_says_so(toy, caplog):
    shard(toy.experiment(EVERYWHERE).model, ALONE, CPU)
    assert "there is one process, which holds the whole base" in caplog.text


def test_what_is_quantised_is_refused(toy):
    model = toy.experiment(EVERYWHERE).model
    layer = model.backbone.tower("left").blocks()[0].mlp[0]
    before, layer.weight = layer.weight, torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    model.exchange_base({before: layer.weight})
    with pytest.raises(FusetuneError, match=r"'left', block 0, 'mlp.0.weight' is quantised"):
        shard(model, Group(0, 2), CPU)


def test_every_rank_takes_part_in_every_pass():
    rows = torch.arange(5)
    by_rank = [Group(rank, 4, together=True) for rank in range(4)]
    passes = [group.passes(rows, 1) for group in by_rank]
    assert [[p.tolist() for p in own] for own in passes] == [[[0], [1]], [[2], []], [[3], []], [[4], []]]
    assert by_rank[1].asked(passes[1][1], rows).tolist() == [0] and by_rank[0].asked(rows[1:2], rows).tolist() == [1]
    alone = Group(1, 4)
    assert [p.tolist() for p in alone.passes(rows, 1)] == [[2]] and not len(alone.asked(rows[:0], rows))


def test_a_block_that_is_skipped_fetches_nothing():
    block, called = torch.nn.Identity(), []
    block.register_forward_pre_hook(lambda *_: called.append("adapter"))
    with fetched(block):
        block.register_forward_pre_hook(lambda *_: called.append("fetch"), prepend=True)
        block.register_forward_hook(lambda *_: called.append("leave"))
    with skipped([block]):
        block(1)
    assert called == ["adapter"]
    block.register_forward_hook(lambda *_: called.append("behind"))
    block(1)
    assert called[1:] == ["fetch", "adapter", "leave", "behind"]
