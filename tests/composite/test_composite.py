"""Every composite family, at every cut: a pass that is divided there is the undivided one, bit by bit."""

import pytest
import torch
from composites import FAMILIES, batch, made

from fusetune.backbones.composite.cuts import Cut
from fusetune.backbones.composite.model import CompositeModel
from fusetune.errors import FusetuneError


@pytest.fixture(scope="module", params=FAMILIES)
def composite(request):
    model, places = made(request.param)
    return request.param, CompositeModel(model), places


def sides(composite):
    return composite.family.padding


@torch.no_grad()
def test_every_cut_is_exact(composite):
    name, model, places = composite
    for side in sides(model):
        inputs = batch(name, places, side)
        expected, loss = model.logits(inputs), model(inputs).loss
        other = batch(name, places, side, media=8)
        assert (model.logits(other) - expected).abs().max() > 1e-3, "another picture changes what is said"
        without = {key: value for key, value in inputs.items() if key not in model.family.media}
        for cut in model.cuts:
            carried = model.carry(inputs, cut)
            given = without if cut.part in ("memory", "language", "top") else other  # of media the shape alone counts
            found = model.logits(given, cut, carried)
            assert torch.equal(found, expected), f"{side}, {cut}: {(found - expected).abs().max()}"
            assert torch.equal(model(given, cut, carried).loss, loss)


@torch.no_grad()
def test_from_one_cut_to_the_next(composite):
    name, model, places = composite
    inputs = batch(name, places)
    expected, carried, at = model.logits(inputs), None, None
    for cut in model.cuts:
        carried = model.carry(inputs, cut, at, carried)
        at = cut
    assert torch.equal(model.logits(inputs, at, carried), expected)


@torch.no_grad()
def test_what_is_carried_matters(composite):
    """Equality would say nothing if the pass took its states from somewhere else."""
    name, model, places = composite
    inputs, other = batch(name, places), batch(name, places, media=8)
    expected = model.logits(inputs)
    for cut in model.cuts:
        wrong = model.carry(other, cut)
        if cut.part == "language" and cut.block == 0 and wrong.memory is None:
            assert not torch.equal(wrong.states, model.carry(inputs, cut).states), f"{cut} holds the picture"
        assert (model.logits(inputs, cut, wrong) - expected).abs().max() > 1e-4, f"{cut} takes what is carried"


def test_gradients_of_the_blocks_above_a_cut_are_the_same(composite):
    name, model, places = composite
    inputs = batch(name, places)
    blocks = model.blocks("language")[-2:]
    cut = Cut("language", len(model.blocks("language")) - 2)
    parameters = [p for block in blocks for p in block.parameters()]
    carried = model.carry(inputs, cut)
    assert not carried.states.requires_grad
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        found = []
        for start in (None, cut):
            loss = model(inputs, start, carried if start else None).loss
            found.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    finally:
        model.requires_grad_(False)
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a is not None]
    assert len(pairs) > 4 and max(a.abs().max() for a, _ in pairs) > 1e-6
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_is_loaded_as_what_it_was_saved_from(composite, tmp_path):
    name, model, places = composite
    model.model.save_pretrained(tmp_path)
    again = CompositeModel.from_pretrained(tmp_path)
    inputs = batch(name, places)
    with torch.no_grad():
        assert torch.equal(again.logits(inputs), model.logits(inputs))
    assert again.fingerprint() == model.fingerprint()
    assert not any(parameter.requires_grad for parameter in again.parameters()) and not again.model.training


def test_fingerprints_are_by_what_the_states_depend_on():
    model, _ = made("llava")
    one = CompositeModel(model)
    encoder, connector, language = Cut("encoder", 1), Cut("connector"), Cut("language", 2)
    before = {cut: one.fingerprint(cut) for cut in (encoder, connector, language)}
    with torch.no_grad():
        model.get_submodule("model.language_model.layers.0").self_attn.q_proj.weight.add_(1)
    assert one.fingerprint(encoder) == before[encoder] and one.fingerprint(connector) == before[connector]
    assert one.fingerprint(language) != before[language]
    with torch.no_grad():
        model.get_submodule("model.vision_tower.encoder.layers.0").mlp.fc1.weight.add_(1)
    assert one.fingerprint(encoder) != before[encoder]


def test_what_is_no_cut_and_what_is_no_composite_model_is_named(tmp_path):
    from encoders import bert

    model, places = made("qwen3_vl")
    one = CompositeModel(model)
    with pytest.raises(FusetuneError, match="can't begin or end at language block 0.*language 2 to 3"):
        one.carry(batch("qwen3_vl", places), Cut("language", 0))
    reading, places = made("whisper")
    with pytest.raises(FusetuneError, match="can't begin or end at connector"):
        CompositeModel(reading).carry(batch("whisper", places), Cut("connector"))
    bert().save_pretrained(tmp_path)
    with pytest.raises(FusetuneError, match="checkpoint is of BertModel, no composite model that can be entered"):
        CompositeModel.from_pretrained(tmp_path)
    with pytest.raises(FusetuneError, match="no composite model of class BertModel"):
        CompositeModel(bert().model)
