"""A connector in place of the model's own: what it does there, and what is cached in front of it."""

import pytest
import torch
from speaking import MODELS, SIZED, saved_blip, saved_blip2
from test_answering import ANSWERS, KINDS, LORA, SPEAKING, adapted, given, listening, shown_to

from fusetune.backbones.backbone import Frontier
from fusetune.errors import FusetuneError
from fusetune.plan.frontier import frontier
from fusetune.plan.speaking import spoken
from fusetune.tasks.decoding import Decoding
from fusetune.training.data import ANSWER

GROUND = Frontier(dict.fromkeys((*KINDS, ANSWER), 0))
NAMES = {name: saved for name, saved in {**MODELS, **SIZED}.items() if name != "qwen3_vl"}  # of several modules


def connected(name, folder, kind, *more, **config):
    torch.manual_seed(0)
    NAMES[name](folder)
    placement = {"where": "connector", "adapter": "new_connector", "config": {"kind": kind, **config}}
    model = adapted(*listening(folder, name=name), placement, *more).eval()
    return model, given(model.backbone, shown_to(name, 1, 2 if name in MODELS else 1, 1))


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), [("llava", "mlp"), ("paligemma", "linear")])
def test_with_the_weights_of_the_models_own_it_does_the_same(name, kind, tmp_path):
    model, streams = connected(name, tmp_path, kind)
    (adapter,) = model.adapters()
    found = model(streams, GROUND)
    model.detach()
    own = model(streams, GROUND)
    model.attach()
    assert (found - own).abs().max() > 1e-2, "it begins otherwise"
    layers = [layer for layer in (adapter.first, adapter.second) if layer]
    theirs = [m for m in model.backbone.tower("image").connector.modules() if isinstance(m, torch.nn.Linear)]
    for layer, other in zip(layers, theirs, strict=True):
        layer.load_state_dict(other.state_dict())
    assert torch.equal(model(streams, GROUND), own)


@pytest.mark.parametrize("kind", ["linear", "mlp", "resampler"])
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_from_the_encoders_cached_states(name, kind, tmp_path):
    model, streams = connected(name, tmp_path, kind, LORA, **({"hidden": 16} if kind == "resampler" else {}))
    reached, top = frontier(model, streams), model.backbone.full_depth(list(streams))
    assert (reached.towers["image"], reached.trunk) == (top.towers["image"] - 1, 0)
    targets, before = model.task.targets({"said": ANSWERS}), {n: p.clone() for n, p in model.named_parameters()}
    cached = model.backbone.advance(streams, GROUND, reached)
    optimizer, losses = torch.optim.AdamW(model.trainable().values(), lr=1e-2), []
    for start, states in ((reached, cached), (GROUND, streams)) * 4:
        optimizer.zero_grad()
        out = model(states, start)
        loss = model.task.loss(out, targets)
        loss.backward()
        with torch.no_grad():
            other = (GROUND, streams) if start is reached else (reached, cached)
            torch.testing.assert_close(model(other[1], other[0]), out, rtol=1e-5, atol=1e-6)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(model.trainable())


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "smolvlm", "blip2", "blip", "qwen2_vl"])
def test_a_resampler_behind_the_models_own_leaves_fewer_places(name, tmp_path):
    torch.manual_seed(0)
    SPEAKING[name](tmp_path)
    config = {"queries": 3, "width": 8, "heads": 2}
    backbone, task = listening(tmp_path, name=name)
    placement = {"where": "connector", "adapter": "perceiver_resampler", "config": config}
    if name == "qwen2_vl":
        with pytest.raises(FusetuneError, match="changes how many places a picture has"):
            adapted(backbone, task, placement)
        return
    model = adapted(backbone, task, placement).eval()
    streams = given(backbone, shown_to(name, 1, 1, 1))
    reached = frontier(model, streams)
    assert (reached.towers["image"], reached.trunk) == (backbone.tower("image").depth, 0)
    for parameter in model.trainable().values():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    cached = backbone.advance(streams, GROUND, reached)
    shorter = model.in_front_of_trunk(cached, reached)["image"]
    assert shorter.values.shape[1] == 3 < cached["image"].values.shape[1]
    found = model(streams, GROUND)
    assert torch.equal(model(cached, reached), found)
    others = given(backbone, shown_to(name, 1, 1, 1)[::-1])
    assert (model(others, GROUND) - found).abs().max() > 1e-4, "pictures are seen through it"
    said = spoken(model, streams, GROUND, Decoding())
    assert torch.equal(said, spoken(model, cached, reached, Decoding()))


def test_a_model_whose_connector_is_no_one_module_says_so(tmp_path):
    for saved, name in ((saved_blip, "blip"), (saved_blip2, "blip2"), (SIZED["qwen3_vl"], "qwen3_vl")):
        saved(tmp_path / name)
        with pytest.raises(FusetuneError, match="a connector that is one module"):
            adapted(*listening(tmp_path / name, name=name), {"where": "connector", "adapter": "new_connector"})
