"""Trained tokens in front of what a language model reads, and among those of a tower's blocks."""

import pytest
import torch
from speaking import ASKED as ENCODED
from speaking import HEARING, MODELS, READERS, SIZED, without_places
from test_answering import ANSWERS, KINDS, LORA, SPEAKING, adapted, given, listening, shown_to

from fusetune.adapters.prompts import PromptTuning
from fusetune.backbones.backbone import Frontier
from fusetune.errors import FusetuneError
from fusetune.plan.frontier import frontier
from fusetune.plan.speaking import spoken
from fusetune.tasks.decoding import Decoding
from fusetune.tokens import pad
from fusetune.training.data import ANSWER

GROUND = Frontier(dict.fromkeys((*KINDS, ANSWER), 0))
PROMPT = {"where": "trunk", "adapter": "prompt_tuning", "config": {"length": 3}}
NAMES = {**MODELS, **SIZED, **HEARING, **READERS}


@pytest.fixture(scope="module", params=NAMES)
def speaking(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    NAMES[request.param](folder)
    return request.param, folder


def prompted(name, folder, *placements):
    torch.manual_seed(0)
    backbone, task = listening(folder, name=name)
    return adapted(backbone, task, *placements).eval(), given(backbone, shown_to(name, 1, 1, 1))


@torch.no_grad()
def test_tokens_of_the_vocabulary_in_front_are_what_the_model_makes_of_them(speaking):
    """Trained tokens that are the embeddings of words do what a prompt that begins with these words does."""
    name, folder = speaking
    model, streams = prompted(name, folder, PROMPT)
    bare, _ = prompted(name, folder, LORA)
    words = torch.tensor([7, 11, 12])
    (adapter,) = (a for a in model.adapters() if isinstance(a, PromptTuning))
    composite = model.backbone.trunk.composite
    adapter.prompt.copy_(composite.model.get_input_embeddings()(words))
    found = model(streams, GROUND)
    assert (found - bare(streams, GROUND)).abs().max() > 1e-3, "they change the answers"
    trunk, text = bare.backbone.trunk, streams["text"]
    longer = torch.cat([words.expand(3, -1)[..., None], text.values], 1)
    mask = torch.cat([torch.ones(3, 3, dtype=torch.bool), text.mask], 1)
    trunk.offset += len(words)
    told = {**streams, "text": type(text)(longer, mask)}
    torch.testing.assert_close(found, bare(told, GROUND), rtol=1e-4, atol=1e-5)
    for how in (Decoding(), Decoding(beams=3)):
        assert torch.equal(spoken(model, streams, GROUND, how), spoken(bare, told, GROUND, how))


def test_they_are_learned_and_nothing_above_is_cached(speaking):
    name, folder = speaking
    model, streams = prompted(name, folder, PROMPT)
    reached = frontier(model, streams)
    assert reached.trunk == 0 and reached.towers["image"] == model.backbone.tower("image").depth
    targets = model.task.targets({"said": ANSWERS})
    (parameter,) = model.trainable().values()
    optimizer, losses = torch.optim.AdamW([parameter], lr=3e-2), []
    cached = model.backbone.advance(streams, GROUND, reached)
    for start, states in ((reached, cached), (GROUND, streams)) * 5:
        optimizer.zero_grad()
        loss = model.task.loss(model(states, start), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    model.detach()
    assert model.backbone.trunk.prompt() is None


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_answers_are_those_that_teacher_forcing_counts(speaking, beams):
    name, folder = speaking
    model, streams = prompted(name, folder, PROMPT)
    (parameter,) = model.trainable().values()
    parameter.add_(torch.randn_like(parameter))
    said = spoken(model, streams, GROUND, Decoding(beams=beams)).long()
    alone = prompted(name, folder, LORA)[0]
    assert not torch.equal(said, spoken(alone, streams, GROUND, Decoding(beams=beams)).long())
    if beams > 1:
        return
    rows = [[i for i in row.tolist() if i != model.task.no_token] for row in said]
    told = pad([torch.tensor(ids[:-1], dtype=torch.long)[:, None] for ids in rows])
    out = without_places(model({**streams, ANSWER: told}, GROUND), model.backbone.trunk.composite.image_id)
    assert [out[i].argmax(-1)[: len(ids)].tolist() for i, ids in enumerate(rows)] == rows


@pytest.mark.parametrize("name", ENCODED)
def test_where_an_encoder_reads_the_question_it_is_refused(name, tmp_path):
    ENCODED[name](tmp_path)
    with pytest.raises(FusetuneError, match="this model answers from what an encoder of its own has read"):
        adapted(*listening(tmp_path, name=name), PROMPT)


def test_what_makes_no_sense_is_refused(tmp_path):
    SPEAKING["llava"](tmp_path)
    top = {**PROMPT, "blocks": {"take": "top", "count": 2}}
    for placement, message in (
        (top, "read by all 4 blocks, found 2 chosen"),
        ({"where": "towers", "adapter": "deep_prompts"}, "Expected towers alone"),
    ):
        with pytest.raises(FusetuneError, match=message):
            prompted("llava", tmp_path, placement)
    SPEAKING["qwen2_vl"](tmp_path / "qwen")
    deep = {"where": "towers", "adapter": "deep_prompts", "blocks": "vision_only"}
    model, streams = prompted("qwen2_vl", tmp_path / "qwen", deep)
    with pytest.raises(FusetuneError, match="count the places of their tokens"):
        model(streams, GROUND)
