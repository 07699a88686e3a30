"""Fifty steps of training from what is cached at the frontier are fifty steps from the pixels."""

from functools import partial

import pytest
import torch
from composites import batch, made
from speaking import ASKED as ENCODED
from speaking import HEARING, MODELS, QUERIES, READERS, SIZED
from test_answering import ANSWERS, KINDS, LORA, SPEAKING, adapted, given, listening, shown_to

from fusetune.backbones.backbone import Frontier
from fusetune.backbones.composite.cuts import Cut
from fusetune.backbones.composite.model import CompositeModel
from fusetune.plan.frontier import frontier
from fusetune.training.data import ANSWER

STEPS, FEW = 50, 10
CONNECTOR = {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["image"], "top_blocks": 1}}
IN_TOWER = {"where": "towers", "adapter": "lora", "blocks": {"modalities": ["image"]}, "config": {"rank": 2}}
PLANS = {  # placements, blocks of the tower above the frontier, frontier in the language blocks
    "connector": ([CONNECTOR], 1, 0),
    "two language blocks": ([LORA], 0, 2),
    "LoRA everywhere": ([{**LORA, "blocks": "all"}, IN_TOWER], None, 0),
}
CROSS = {**LORA, "config": {"rank": 4, "targets": ["cross_query", "cross_value"]}}
READING = {
    "two language blocks": ([LORA], 0, 2),
    "cross-attention": ([{**CROSS, "blocks": "all"}], 0, 0),
    "cross-attention on top": ([{**CROSS, "blocks": {"take": "top", "count": 1}}], 0, 3),
}
QKV = {**IN_TOWER, "config": {"rank": 2, "targets": ["qkv"]}}  # one matrix for all three
FUSED = {**PLANS, "LoRA everywhere": ([{**LORA, "blocks": "all"}, QKV], None, 0)}
CASES = [(name, plan, PLANS[plan]) for name in MODELS for plan in PLANS]
CASES += [(name, plan, FUSED[plan]) for name in QUERIES for plan in FUSED]
CASES += [(n, plan, (FUSED if n.startswith("qwen") else PLANS)[plan]) for n in SIZED for plan in PLANS]
CASES += [(name, plan, PLANS[plan]) for name in HEARING for plan in PLANS]
CASES += [(name, plan, READING[plan]) for name in READERS for plan in READING]
CROSS_ALONE = ([{**CROSS, "blocks": {"take": "explicit", "explicit": {"trunk": [4, 5, 6, 7]}}}], 0, 4)
CASES += [("blip2_t5", plan, FUSED[plan]) for plan in ("connector", "LoRA everywhere")]
CASES += [(name, "two language blocks", ([LORA], 0, 6)) for name in ENCODED]
CASES.append(("blip2_t5", "cross-attention", CROSS_ALONE))
CASES.append(("blip_vqa", "cross-attention", READING["cross-attention"]))
CASES.remove(("mllama", "cross-attention", READING["cross-attention"]))
CASES.append(("mllama", "cross-attention", (READING["cross-attention"][0], 0, 1)))  # its first block has none


def fitted(parameters, loss, steps=STEPS):
    """Losses of so many steps."""
    optimizer, found = torch.optim.AdamW(parameters, lr=3e-3), []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return torch.tensor(found)


def loss_of(model, states, start):
    return model.task.loss(model(states, start), model.task.targets({"said": ANSWERS}))


def model_of(name, folder, placements):
    torch.manual_seed(0)
    SPEAKING[name](folder)
    return adapted(*listening(folder, name=name), *placements)


@pytest.mark.parametrize(("name", "plan", "case"), CASES, ids=[f"{name}, {plan}" for name, plan, _ in CASES])
def test_from_the_frontier_as_from_pixels(name, plan, case, tmp_path):
    placements, above, depth = case
    ground, losses = Frontier(dict.fromkeys((*KINDS, ANSWER), 0)), []
    for source in ("pixels", "cache", "other pixels"):
        model = model_of(name, tmp_path, placements)
        streams = given(model.backbone, shown_to(name, 1, 1, 1)[:: -1 if source == "other pixels" else 1])
        reached, top = frontier(model, streams), model.backbone.tower("image").depth
        assert (reached.towers["image"], reached.trunk) == (0 if above is None else top - above, depth)
        with torch.no_grad():
            cached = model.backbone.advance(streams, ground, reached)
        start, states = (reached, cached) if source == "cache" else (ground, streams)
        steps = STEPS if source != "other pixels" else FEW
        losses.append(fitted(list(model.trainable().values()), partial(loss_of, model, states, start), steps))
    pixels, cache, others = losses
    assert pixels[-1] < pixels[0] - 0.05, "something is learned"
    assert (pixels[:FEW] - others).abs().max() > 1e-4, "other pictures teach something else"
    assert (pixels - cache).abs().max() <= 1e-6


@torch.no_grad()
def test_below_what_reads_the_encoder_deep_down_states_alone_are_not_cached(tmp_path):
    """Qwen3-VL's first language blocks are given lower depths of the encoder, which are cached at its places."""
    model = model_of("qwen3_vl", tmp_path, [{**LORA, "blocks": {"take": "top", "count": 3}}])
    streams = given(model.backbone, shown_to("qwen3_vl", 1, 1, 1))
    ground, reached = Frontier(dict.fromkeys((*KINDS, ANSWER), 0)), frontier(model, streams)
    assert (reached.towers["image"], reached.trunk) == (model.backbone.tower("image").depth, 0)
    cached = model.backbone.advance(streams, ground, reached)
    width = model.backbone.trunk.width
    assert cached["image"].width == 3 * width, "what two depths below the last gave stands beside"
    expected = model(streams, ground)
    assert torch.equal(model(cached, reached), expected)
    cached["image"].values[..., width:] = 0
    assert (model(cached, reached) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["blip", "mllama"])
def test_cross_attention_alone(name):
    """Below its first cross-attention nothing is trained, so states and memory are cached there."""
    path, losses = "crossattention" if name == "blip" else "cross_attn", []
    for cached in (False, True):
        model, places = made(name)
        composite, inputs = CompositeModel(model), batch(name, places)
        blocks = composite.blocks("language")
        reading = [i for i, block in enumerate(blocks) if hasattr(block, path)]
        cut = Cut("language", reading[0])
        with torch.no_grad():
            carried = composite.carry(inputs, cut)
        assert carried.memory is not None
        parameters = [p for i in reading for p in getattr(blocks[i], path).parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        start = (cut, carried) if cached else ()
        losses.append(fitted(parameters, lambda model=composite, given=(inputs, *start): model(*given).loss))
    assert losses[0][-1] < losses[0][0] - 0.05
    assert (losses[0] - losses[1]).abs().max() <= 1e-6
