"""Several adapters as one: what the equations say, trained members, several tasks, apart from others."""

import json

import pytest
import torch
from methods import GATE, MEMBERS, SMALL, placement

from fusetune.adapters.adapter import Stream
from fusetune.adapters.compositions import Average, CompositionConfig, MixtureConfig, MixtureOfAdapters, Parallel, Stack
from fusetune.bank.artifact import Artifact
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.runs.run import train_and_test
from fusetune.tokens import Tokens
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings

STREAMS = {"left": Stream(6, 4), "right": Stream(5, 3)}


def given(count=5):
    torch.manual_seed(1)
    return {
        name: Tokens(torch.randn(count, s.max_tokens, s.width), torch.ones(count, s.max_tokens, dtype=torch.bool))
        for name, s in STREAMS.items()
    }


def made(cls, config_class, members, **more):
    torch.manual_seed(0)
    adapter = cls(build(config_class, {"adapters": members, **more}, "c"), STREAMS)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return adapter


def test_stack_parallel_and_average():
    streams = given()
    for cls in (Stack, Parallel, Average):
        adapter = made(cls, CompositionConfig, MEMBERS)
        first, second = adapter.members
        one, two, after = first(streams), second(streams), second(first(streams))
        for name, tokens in streams.items():
            both = (one[name].values - tokens.values) + (two[name].values - tokens.values)
            expected = {
                Stack: after[name].values,
                Parallel: tokens.values + both,
                Average: tokens.values + both / 2,
            }[cls]
            torch.testing.assert_close(adapter(streams)[name].values, expected)


def test_a_mixture_routes_each_sample_to_its_best_members():
    adapter = made(MixtureOfAdapters, MixtureConfig, MEMBERS * 2, top_k=2)
    streams = given(64)
    out = adapter(streams)
    weights = torch.cat([adapter.observed()[f"route_{i}"] for i in range(4)], 1)
    assert ((weights > 0).sum(1) == 2).all() and (weights.sum(1) <= 1).all()
    changes = [member(streams)["left"].values - streams["left"].values for member in adapter.members]
    expected = streams["left"].values + sum(w[:, None, None] * c for w, c in zip(weights.T, changes, strict=True))
    torch.testing.assert_close(out["left"].values, expected)
    # all samples to the same two members is the worst: 4 * (1/2 * p1 + 1/2 * p2), against 1 when they share
    with torch.no_grad():
        adapter.router.weight.zero_()
        adapter.router.bias.copy_(torch.tensor([5.0, 5.0, -5.0, -5.0]))
    adapter(streams)
    assert adapter.penalty().item() / adapter.config.balance == pytest.approx(2.0, abs=1e-3)


def test_what_cannot_be_composed_is_named():
    with pytest.raises(FusetuneError, match="'lora' is no adapter of whole streams"):
        made(Parallel, CompositionConfig, [{"adapter": "lora"}])
    with pytest.raises(FusetuneError, match="'perceiver_resampler' changes the number of tokens"):
        made(Parallel, CompositionConfig, [{"adapter": "perceiver_resampler"}])
    with pytest.raises(FusetuneError, match="either `adapter`.* or `trained`"):
        made(Parallel, CompositionConfig, [{}])
    with pytest.raises(FusetuneError, match="top_k: expected 1 to 2"):
        made(MixtureOfAdapters, MixtureConfig, MEMBERS, top_k=3)


def run(toy, tmp_path, name, *placements, epochs=3, **more):
    plan = {key: more.pop(key) for key in ("orthogonal",) if key in more}
    experiment = toy.experiment(*placements, plan=plan, **more)
    result = train_and_test(
        experiment,
        toy.features(experiment),
        toy.store,
        TrainSettings(epochs=epochs, batch_size=32, learning_rate=1e-2, weight_decay=0.0, device="cpu"),
        EvaluationSettings(bootstrap_samples=20),
        tmp_path / "checkpoints",
        Reporter(),
        name,
        {},
    )
    result.artifact.save_pretrained(tmp_path / name)
    return experiment, result


def outputs(model, experiment):
    from fusetune.backbones.backbone import Frontier

    streams = experiment.model.backbone.prepare({m: experiment.source.decoded(m, range(6)) for m in ("left", "right")})
    with torch.no_grad():
        return model.eval()(streams, Frontier({"left": 0, "right": 0}))


def test_adapter_fusion_learns_attention_over_trained_adapters_that_stay_as_they_are(toy, tmp_path):
    run(toy, tmp_path, "one", SMALL)
    run(toy, tmp_path, "two", GATE)
    members = [{"trained": str(tmp_path / name)} for name in ("one", "two")]
    fusion = placement("junction", "adapter_fusion", adapters=members, key_dim=4)
    experiment, result = run(toy, tmp_path, "fused", fusion)
    adapter = experiment.model.junction[0]
    held = Artifact.from_pretrained(tmp_path / "one").tensors
    for name, parameter in adapter.members[0].named_parameters():
        assert torch.equal(parameter, held[f"junction.0.{name}"]) and not parameter.requires_grad
    assert not any("members" in name for name in experiment.model.trainable())
    shares = result.metrics["observed"]["attention_left"]
    assert len(shares) == 2 and sum(shares) == pytest.approx(1)
    import shutil

    expected = outputs(experiment.model, experiment)
    for name in ("one", "two"):
        shutil.rmtree(tmp_path / name)  # the artifact needs nothing but itself and the base
    loaded = Artifact.from_pretrained(tmp_path / "fused").build(toy.base)
    assert torch.equal(outputs(loaded, experiment), expected)


def test_a_trained_member_that_is_not_there_or_of_other_streams_is_named(toy, tmp_path):
    fusion = placement("junction", "adapter_fusion", adapters=[{"trained": str(tmp_path / "none")}])
    with pytest.raises(FusetuneError, match="none: expected the folder of a trained adapter .* Train it first"):
        toy.experiment(fusion)
    run(toy, tmp_path, "one", SMALL)
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    config["streams"]["left"]["width"] = 99
    (tmp_path / "one" / "adapter_config.json").write_text(json.dumps(config))
    fusion = placement("junction", "adapter_fusion", adapters=[{"trained": str(tmp_path / "one")}])
    with pytest.raises(FusetuneError, match="Take an adapter of the same data and base"):
        toy.experiment(fusion)


def test_two_tasks_share_what_is_shared_and_have_what_is_theirs(toy, tmp_path):
    tasks = {"side": {"name": "classification", "label": "label"}, "group": {"name": "classification", "label": "half"}}
    toy.table = toy.table.append_column("half", [["a" if i % 3 else "b" for i in range(240)]])
    own = [{**placement("junction", "lmf", rank=2), "task": name} for name in tasks]
    task = {"name": "multi_task", "tasks": tasks}
    experiment, result = run(toy, tmp_path, "both", SMALL, *own, task=task)
    model = experiment.model
    assert {"side_accuracy", "group_accuracy", "accuracy"} <= set(result.metrics["test"])
    mean = (result.metrics["test"]["side_accuracy"] + result.metrics["test"]["group_accuracy"]) / 2
    assert result.metrics["test"]["accuracy"] == pytest.approx(mean)
    assert {"side_prediction", "group_prediction"} <= set(result.predictions.column_names)
    before = outputs(model, experiment)
    with torch.no_grad():
        model.branches["side"][0].scale.add_(1.0)
    after = outputs(model, experiment)
    assert torch.equal(before[:, 2:], after[:, 2:]) and not torch.equal(before[:, :2], after[:, :2])
    with torch.no_grad():
        model.junction[0].scale.add_(1.0)
    assert not torch.equal(outputs(model, experiment)[:, 2:], after[:, 2:]), "the shared part is both tasks'"
    loaded = Artifact.from_pretrained(tmp_path / "both").build(toy.base)
    assert torch.equal(outputs(loaded, experiment), before)


def test_an_orthogonal_adapter_keeps_away_from_the_given_one(toy, tmp_path):
    lora = placement("towers", "lora", {"modalities": ["left"]}, rank=2)
    run(toy, tmp_path, "first", lora)
    overlaps = {}
    for weight in (0.0, 10.0):
        against = {"to": [str(tmp_path / "first")], "weight": weight}
        _, result = run(toy, tmp_path, f"second{weight}", lora, orthogonal=against, epochs=30, seed=1)
        overlaps[weight] = result.metrics["overlap"]
    assert all("lora_A" in name for name in overlaps[0.0])
    mean = {weight: sum(found.values()) / len(found) for weight, found in overlaps.items()}
    assert mean[10.0] < 0.02 < mean[0.0], mean
    with pytest.raises(FusetuneError, match="has no matrix at"):
        run(toy, tmp_path, "x", SMALL, orthogonal={"to": [str(tmp_path / "first")]})
