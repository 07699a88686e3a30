"""An answer word by word: with a cache of keys and values it is that of full passes, every adapter in its place."""

from dataclasses import replace

import pytest
import torch
from speaking import ASKED as ENCODED
from speaking import MODELS, READERS, TEXTS, saved_llava, without_places
from test_answering import ANSWERS, SPEAKING, adapted, given, listening, shown_to

from fusetune.backbones.backbone import Frontier
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.plan.speaking import spoken
from fusetune.tasks.decoding import Decoding
from fusetune.tasks.generation import Generation, GenerationConfig
from fusetune.tokens import Tokens
from fusetune.training.data import ANSWER

MOST = 7
IN_BLOCKS = {
    "lora": {"where": "towers", "adapter": "lora", "config": {"rank": 4}},
    "bottleneck": {"where": "towers", "adapter": "bottleneck", "config": {"bottleneck_dim": 8}},
    "prefix": {"where": "trunk", "adapter": "prefix", "config": {"length": 3, "hidden": 0}},
    "modality_prefix": {"where": "trunk", "adapter": "modality_prefix", "config": {"length": 3, "hidden": 0}},
    "vl_adapter": {"where": "trunk", "adapter": "vl_adapter", "config": {"bottleneck_dim": 8, "behind": ["mlp"]}},
    "unipelt": {"where": "trunk", "adapter": "unipelt", "config": {"bottleneck_dim": 8, "prefix_hidden": 0}},
}
BEHIND = {
    "wander": {"where": "trunk", "adapter": "wander", "config": {"bottleneck_dim": 8, "rank": 4, "fused_tokens": None}},
    "cross_modal": {"where": "trunk", "adapter": "cross_modal", "config": {"bottleneck_dim": 8, "heads": 2}},
    "perceiver_resampler": {
        "where": "connector",
        "adapter": "perceiver_resampler",
        "config": {"source": "image", "queries": 4, "heads": 2, "width": 16},
    },
}
NONE = Decoding()


@pytest.fixture(scope="module", params=SPEAKING)
def speaking(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    SPEAKING[request.param](folder)
    backbone, task = listening(folder, MOST, name=request.param)
    if request.param in ("blip2", "blip_vqa", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"):  # as drawn, they hardly hear
        for parameter in backbone.trunk.blocks().parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return request.param, backbone, task


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    model, processor = saved_llava(folder)
    return model, processor, *listening(folder, MOST)


def asked(backbone, shown):
    streams = given(backbone, shown, [None] * 3)
    return {name: tokens for name, tokens in streams.items() if name != ANSWER}


def ground(streams):
    return Frontier(dict.fromkeys(streams, 0))


def drawn_of(model, streams):
    """Tokens are drawn from logits that are about as large as the noise, so that each depends on all of them."""
    one = {**streams, ANSWER: Tokens(torch.zeros(3, 0, 1, dtype=torch.long), torch.zeros(3, 0, dtype=torch.bool))}
    with torch.no_grad():
        return Decoding(temperature=0.5 * model(one, ground(one)).std().item(), seed=3)


@torch.no_grad()
def by_full_passes(model, streams, how):
    """The token that is drawn behind prompt and answer so far, each from a pass of its own."""
    words, image = model.task.words, model.backbone.trunk.composite.image_id
    rows = []
    for row in range(3):
        said, generator = [], torch.Generator().manual_seed(how.seed)
        while len(said) < words.most and not (said and said[-1] in words.stops):
            one = {name: Tokens(t.values[[row]], t.mask[[row]]) for name, t in streams.items()}
            answer = torch.tensor([said], dtype=torch.long)[..., None]
            one[ANSWER] = Tokens(answer, torch.ones(1, len(said), dtype=torch.bool))
            logits = without_places(model(one, ground(one))[0, -1], image)
            noise = -(-torch.rand(len(logits), generator=generator, dtype=torch.float64).log()).log()
            said.append(int((logits / how.temperature + noise).argmax()))
        rows.append(said + [-100] * (words.most - len(said)))
    return torch.tensor(rows)


def shaken(backbone, task, *placements, by=0.3):
    torch.manual_seed(0)
    model = adapted(backbone, task, *placements)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter) * by)
    return model.eval()


def check_equal(name, backbone, model):
    shown = shown_to(name, 1, 0, 1)
    streams, others = asked(backbone, shown), asked(backbone, shown[::-1])
    how = drawn_of(model, streams)
    expected = by_full_passes(model, streams, how)
    found = spoken(model, streams, ground(streams), how)
    assert len(expected.unique()) > 2 and len({tuple(row) for row in expected.tolist()}) > 1, expected
    assert found.tolist() == expected.tolist()

    def said(shown, seed):
        return spoken(model, shown, ground(shown), replace(how, seed=seed)).tolist()

    assert any(said(streams, seed) != said(others, seed) for seed in range(6)), "another picture"  # a matter of luck
    model.detach()
    if not model.connectors:
        assert spoken(model, streams, ground(streams), how).tolist() != found.tolist(), "the adapter is heard"


@pytest.mark.parametrize("method", IN_BLOCKS)
def test_in_blocks_it_is_that_of_full_passes(speaking, method):
    name, backbone, task = speaking
    if name in ("blip", "blip_vqa") and method in ("prefix", "modality_prefix", "unipelt"):
        model, streams = shaken(backbone, task, IN_BLOCKS[method]), asked(backbone, shown_to(name, 1, 0, 1))
        with pytest.raises(FusetuneError, match="computes its attention without scaled_dot_product_attention"):
            spoken(model, streams, ground(streams), NONE)
        model.detach()
        return
    check_equal(name, backbone, shaken(backbone, task, IN_BLOCKS[method]))


@pytest.mark.parametrize("method", BEHIND)
def test_behind_blocks_it_is_that_of_full_passes(speaking, method):
    name, backbone, task = speaking
    if name in (*READERS, "blip_vqa") and method != "perceiver_resampler":
        with pytest.raises(FusetuneError, match="read by cross-attention no stream of the picture can be changed"):
            shaken(backbone, task, BEHIND[method])
        return
    if name == "mllama":
        with pytest.raises(
            FusetuneError, match="changes how many places a picture has, and these language blocks know"
        ):
            shaken(backbone, task, BEHIND[method])
        return
    placed = BEHIND[method]
    if name in ENCODED and placed["where"] == "trunk":
        with pytest.raises(FusetuneError, match="behind block 5 an answer is said.*blocks 0 to 3"):
            shaken(backbone, task, {**placed, "blocks": {"take": "explicit", "explicit": {"trunk": [5]}}})
    check_equal(name, backbone, shaken(backbone, task, placed, by=0.5))


def test_no_row_has_a_picture(speaking):
    _, backbone, task = speaking
    model = shaken(backbone, task, IN_BLOCKS["lora"])
    streams = asked(backbone, [None] * 3)
    how = drawn_of(model, streams)
    expected = by_full_passes(model, streams, how)
    assert spoken(model, streams, ground(streams), how).tolist() == expected.tolist()
    model.detach()


@pytest.mark.parametrize("how", [Decoding(beams=4), Decoding(temperature=1.0)], ids=["beams", "drawn"])
def test_a_batch_says_what_each_row_says_alone(speaking, how):
    name, backbone, task = speaking
    behind = [] if name in READERS or name in ENCODED else [BEHIND["cross_modal"]]
    model = shaken(backbone, task, IN_BLOCKS["vl_adapter"], *behind)
    streams = asked(backbone, shown_to(name, 2 if name in MODELS else 1, 0, 1))
    if how.temperature:
        how = drawn_of(model, streams)
    together = spoken(model, streams, ground(streams), how)
    for row in range(3):
        one = {n: Tokens(t.values[[row]], t.mask[[row]]) for n, t in streams.items()}
        assert spoken(model, one, ground(one), how)[0].tolist() == together[row].tolist()
    assert spoken(model, streams, ground(streams), NONE).tolist() != together.tolist(), "it isn't greedy"
    others = asked(backbone, shown_to(name, 1, 0, 2 if name in MODELS else 1)[::-1])
    assert spoken(model, others, ground(others), how).tolist() != together.tolist(), "another picture"
    model.detach()


@torch.no_grad()
def test_beams_are_those_of_the_checkpoint_from_pixels(llava):
    from encoders import pictures

    model, processor, backbone, task = llava
    shown = pictures(1, 1, 1)
    streams = backbone.prepare({"image": shown, "text": TEXTS[:3]})
    for beams in (1, 3):
        found = spoken(adapted(backbone, task), streams, ground(streams), Decoding(beams=beams))
        for row, (picture, text) in enumerate(zip(shown, TEXTS, strict=False)):
            said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            prompt = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            inputs = processor(
                text=[prompt], images=[picture[0].convert("RGB")], return_tensors="pt", add_special_tokens=False
            )
            out = model.generate(
                **inputs, max_new_tokens=MOST, num_beams=beams, do_sample=False, eos_token_id=2, pad_token_id=0,
                suppress_tokens=[3],
            )  # fmt: skip
            own = out[0, inputs["input_ids"].shape[1] :].tolist()
            assert [i for i in found[row].tolist() if i >= 0] == own


@torch.no_grad()
def test_what_is_drawn_has_the_likelihood_that_the_model_gives_it(llava):
    _, _, backbone, task = llava
    model = adapted(backbone, task)
    streams = {n: Tokens(t.values[:1], t.mask[:1]) for n, t in asked(backbone, shown_to("llava", 1, 1, 1)).items()}
    none = Tokens(torch.zeros(1, 0, 1, dtype=torch.long), torch.zeros(1, 0, dtype=torch.bool))
    logits = model({**streams, ANSWER: none}, ground({**streams, ANSWER: none}))[0, -1]
    logits[3] = -torch.inf
    expected = (2 * logits).softmax(-1)
    model.task.words.most, before = 1, model.task.words.most
    try:
        firsts = [
            int(spoken(model, streams, ground(streams), Decoding(temperature=0.5, seed=s))[0, 0]) for s in range(300)
        ]
    finally:
        model.task.words.most = before
    best = int(expected.argmax())
    share, error = firsts.count(best) / 300, (expected[best] * (1 - expected[best]) / 300).sqrt()
    assert 0.02 < expected[best] < 0.98 and len(set(firsts)) > 5
    assert abs(share - expected[best]) < 4 * error


@torch.no_grad()
def test_defaults_of_the_checkpoint_are_not_used_and_stay(llava):
    _, _, backbone, task = llava
    own = backbone.trunk.composite.model.generation_config
    streams, model = asked(backbone, shown_to("llava", 1, 1, 1)), adapted(backbone, task)
    expected = spoken(model, streams, ground(streams), NONE)
    own.do_sample, own.temperature, own.repetition_penalty = True, 3.0, 5.0
    try:
        assert spoken(model, streams, ground(streams), NONE).tolist() == expected.tolist()
        assert backbone.trunk.composite.model.generation_config is own
    finally:
        own.do_sample, own.temperature, own.repetition_penalty = False, None, None


def test_settings_that_make_no_sense_are_refused():
    for given_, told in (
        ({"beams": 0}, "beams: expected 1 to 16, found 0"),
        ({"beams": 99}, "beams: expected 1 to 16, found 99"),
        ({"temperature": -1}, "temperature: expected 0 or more, found -1"),
        ({"top_p": 0}, "top_p: expected a share above 0, found 0"),
        ({"beams": 2, "temperature": 1.0}, "found 2 beams and temperature 1.0. Set one"),
    ):
        with pytest.raises(FusetuneError, match=told):
            build(Decoding, given_, "decoding")


@pytest.mark.parametrize("method", [*IN_BLOCKS, *BEHIND])
def test_adapters_are_in_full_precision_on_a_base_in_half(method, tmp_path):
    import transformers

    saved_llava(tmp_path / "full")
    half = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "full", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    transformers.AutoProcessor.from_pretrained(tmp_path / "full").save_pretrained(tmp_path / "half")
    shown, found = shown_to("llava", 1, 0, 1), []
    for name in ("full", "half"):
        backbone, task = listening(tmp_path / name, MOST)
        torch.manual_seed(3)
        model = adapted(backbone, task, {**IN_BLOCKS, **BEHIND}[method])
        streams = given(backbone, shown)
        loss = task.loss(model(streams, ground(streams)).float(), task.targets({"said": ANSWERS}))
        loss.backward()
        trained = model.trainable().values()
        assert {p.dtype for p in trained} == {torch.float32} and all(p.grad is not None for p in trained)
        found.append(loss.item())
    base = {p.dtype for p in backbone.parameters() if not p.requires_grad}
    assert base == {torch.bfloat16} and found[1] != found[0]
    assert found[1] == pytest.approx(found[0], rel=0.02)
    asked_ = asked(backbone, shown)
    assert len(spoken(model, asked_, ground(asked_), NONE)) == 3


def test_what_is_said_is_measured_against_all_references(llava):
    _, _, backbone, _ = llava
    task = Generation(GenerationConfig("said", max_answer_tokens=16, references="answers"))
    task.meet(backbone.tower(ANSWER))
    answers = [["dark"] * 3 + ["grey"] * 7, ["it is light"] * 10]
    columns = {"said": ["grey", "it is light"], "answers": answers}
    assert task.columns() == ["said", "answers"] and task.truths(columns) == answers
    said = task.targets({"said": ["dark", "which"]})
    scores = task.per_sample(said, task.truths(columns))
    assert scores["exact_match"].tolist() == [1, 0] and scores["vqa_accuracy"].tolist() == [pytest.approx(0.9), 0]
    alone = task.per_sample(said, task.targets(columns))
    assert alone["exact_match"].tolist() == [0, 0] and "vqa_accuracy" not in alone
    problem = task.problems()["answers"]
    assert problem(["a", "b"]) is None
    assert "expected a list of answers, found 'a'" in problem("a") and "empty text" in problem(["a", " "])
