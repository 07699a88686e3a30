"""Answers in words: what is learned is the model's own loss on the answer's tokens, from every cut."""

import pytest
import torch
from encoders import pictures, sounds
from speaking import ASKED as ENCODED
from speaking import HEARING, MODELS, QUERIES, READERS, SIZED, TEXTS, saved_llava, without_places

from fusetune.adapters.adapter import Stream
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.frontier import frontier
from fusetune.plan.plan import Plan
from fusetune.tasks.generation import Generation, GenerationConfig
from fusetune.training.data import ANSWER

KINDS = {"image": "image", "text": "text"}
SPEAKING = {**MODELS, **QUERIES, **SIZED, **HEARING, **READERS, **ENCODED}
HEARS = ("whisper", "qwen2_audio")
SQUARES = (*SIZED, "mllama")  # pictures are brought to one size
PROMPTS = {"whisper": "<s>{} {answer}"}  # the tiny tokenizer has no tokens of languages and tasks
ASKED, ANSWERS = [TEXTS[0], "one", TEXTS[2]], ["dark", "it is light", "which"]
LORA = {"where": "trunk", "adapter": "lora", "blocks": {"take": "top", "count": 2}, "config": {"rank": 4}}


listening_words = {}  # tokenizers by model


def generation(**config):
    return Generation(GenerationConfig("said", **config))


def shown_to(name, *counts):
    """What a model sees or hears: pictures, or sounds."""
    return sounds(*(4000 * (i + 1) * count for i, count in enumerate(counts))) if name in HEARS else pictures(*counts)


def listening(folder, most=16, name="llava"):
    kinds = KINDS | ({"image": "audio"} if name in HEARS else {})
    source = CompositeSource(str(folder), prompt=PROMPTS.get(name), picture_side=32 if name in SQUARES else None)
    backbone = Backbone.from_composite(source, kinds).take_answers(ANSWER, most)
    task = generation(max_answer_tokens=most)
    task.meet(backbone.tower(ANSWER))
    return backbone, task


def adapted(backbone, task, *placements):
    plan = build(Plan, {"placements": [*placements, {"where": "head", "adapter": "linear"}]}, "plan")
    widths = backbone.widths(list(KINDS))
    return AdaptedModel(backbone, plan, task, {name: Stream(width, 100) for name, width in widths.items()})


def given(backbone, shown, answers=ANSWERS):
    return backbone.prepare({"image": shown, "text": ASKED, ANSWER: answers})


@pytest.fixture(scope="module", params=SPEAKING)
def speaking(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = SPEAKING[request.param](folder)
    backbone, task = listening(folder, name=request.param)
    listening_words[request.param] = backbone.tower("text").processor
    return request.param, backbone, task, model, processor


def own_loss(name, model, processor, picture, text, answer):
    """By the checkpoint's processor and forward: the summed loss of the answer's tokens, and their number."""
    if name in ("blip", "whisper", "blip_vqa"):
        return read_loss(name, model, processor, picture, text, answer)
    if name == "qwen2_audio":
        inputs = heard_inputs(model, processor, picture, text, answer)
        return model(**inputs).loss * (inputs["labels"] != -100).sum(), int((inputs["labels"] != -100).sum())
    image = picture[0].convert("RGB")
    if name in SIZED and name != "llava_next":
        inputs = sized_inputs(name, model, processor, image, text, answer)
    elif name == "blip2_t5":
        pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        asked, said = (
            processor.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (f"Question: {text} Answer:</s>", f"{answer}</s>")
        )
        ids = torch.tensor([[*[model.config.image_token_id] * 5, *asked]])
        inputs = {"pixel_values": pixels, "input_ids": ids, "labels": torch.tensor([said])}
    elif name.startswith("instructblip"):
        later = name.endswith("t5")  # it answers apart
        pixels = dict(processor.image_processor([image], return_tensors="pt"))
        pixels["qformer_input_ids"] = processor.qformer_tokenizer([text], return_tensors="pt")["input_ids"]
        asked, said = (
            processor.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in ((f"{text}</s>", f"{answer}</s>") if later else (f"<s>{text}", f" {answer}</s>"))
        )
        ids = [*[model.config.image_token_id] * 5, *asked]
        labels = said if later else [*[-100] * len(ids), *said]
        ids = ids if later else [*ids, *said]
        inputs = {**pixels, "input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    elif name == "blip2":
        pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        asked, said = (
            processor.tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (f"<s>Question: {text} Answer:", f" {answer}</s>")
        )
        ids = torch.tensor([[*[model.config.image_token_id] * 5, *asked, *said]])
        labels = torch.cat([torch.full((1, 5 + len(asked)), -100), ids[:, -len(said) :]], 1)
        inputs = {"pixel_values": pixels, "input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    elif name.startswith(("llava", "mllama")):
        image = image.resize((32, 32), 3) if name in SQUARES else image
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        prompt = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[prompt], images=[image], return_tensors="pt", add_special_tokens=False)
        end = processor.tokenizer([f"{answer}</s>"], return_tensors="pt", add_special_tokens=False)["input_ids"]
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), end], 1)
        whole = torch.cat([inputs["input_ids"], end], 1)
        inputs |= {"input_ids": whole, "labels": labels, "attention_mask": torch.ones_like(whole)}
        if name.startswith("mllama"):
            last = inputs["cross_attention_mask"][:, -1:].expand(-1, end.shape[1], -1, -1)
            inputs["cross_attention_mask"] = torch.cat([inputs["cross_attention_mask"], last], 1)
    else:
        inputs = processor(text=[f"<image>{text}"], images=[image], suffix=[answer], return_tensors="pt")
    labels = inputs["labels"]
    return model(**inputs).loss * (labels != -100).sum(), int((labels != -100).sum())


def sized_inputs(name, model, images, image, text, answer):
    """As the families' processors write them."""
    words, shown = listening_words[name], image.resize((32, 32), 3)
    if name.startswith("qwen"):
        given = dict(images([shown], return_tensors="pt"))
        before, after = "<|im_start|>user\n<|vision_start|>", f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
        said, places = f"{answer}<|im_end|>", 4
    else:
        given = dict(images([[shown]], do_image_splitting=False, return_tensors="pt"))
        before = "<s><|im_start|>User:<fake_token_around_image><global-img>"
        after = f"<fake_token_around_image>{text}<end_of_utterance>\nAssistant:"
        said, places = f" {answer}<end_of_utterance>", 4
    before, after, said = (words(part, add_special_tokens=False)["input_ids"] for part in (before, after, said))
    before = before if not name.startswith("qwen") else [1, *before]
    number = model.config.image_token_id
    ids = torch.tensor([[*before, *[number] * places, *after, *said]])
    labels = torch.cat([torch.full((1, ids.shape[1] - len(said)), -100), ids[:, -len(said) :]], 1)
    if name.startswith("qwen"):
        given["mm_token_type_ids"] = (ids == number).int()
    return given | {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def heard_inputs(model, processor, sound, text, answer):
    """As Qwen2-Audio's processor writes them: as many places as the sound has pairs of pairs of frames."""
    given = dict(
        processor.feature_extractor(
            sound.waveform, sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="pt"
        )
    )
    given["feature_attention_mask"] = given.pop("attention_mask")
    places = ((int(given["feature_attention_mask"].sum()) - 1) // 2 + 1 - 2) // 2 + 1
    asked = [{"role": "user", "content": [{"type": "audio", "audio_url": ""}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    parts = (*f"<s>{prompt}".split("<|AUDIO|>"), f"{answer}<|im_end|>")
    before, after, said = (processor.tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
    ids = torch.tensor([[*before, *[model.config.audio_token_id] * places, *after, *said]])
    labels = torch.cat([torch.full((1, ids.shape[1] - len(said)), -100), ids[:, -len(said) :]], 1)
    return given | {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def read_loss(name, model, processor, shown, text, answer):
    """Of those that read by cross-attention; BLIP's own loss is smoothed, so the logits alone are its own."""
    start, end = (1, 2) if name == "whisper" else (5, 3)
    asked, said = (processor.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, answer))
    said = said if name != "whisper" else processor.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[start, *asked, *said, end]])
    if name == "blip":
        pixels = processor.image_processor([shown[0].convert("RGB")], return_tensors="pt")["pixel_values"]
        logits = model(pixel_values=pixels, input_ids=ids).logits
    elif name == "blip_vqa":
        pixels = processor.image_processor([shown[0].convert("RGB")], return_tensors="pt")["pixel_values"]
        ids, found = torch.tensor([[start, *said, end]]), []
        hook = model.text_decoder.cls.register_forward_hook(lambda _, __, out: found.append(out))
        model(pixel_values=pixels, input_ids=torch.tensor([[2, *asked, 3]]), decoder_input_ids=ids)
        hook.remove()
        (logits,) = found
    else:
        features = processor.feature_extractor(shown.waveform, sampling_rate=16_000, return_tensors="pt")
        logits = model(input_features=features["input_features"], decoder_input_ids=ids).logits
    count = len(said) + 1
    return torch.nn.functional.cross_entropy(logits[0, -count - 1 : -1], ids[0, -count:], reduction="sum"), count


@torch.no_grad()
def test_the_loss_is_the_models_own(speaking):
    name, backbone, task, model, processor = speaking
    shown, targets = shown_to(name, 1, 1, 1), task.targets({"said": ANSWERS})
    ours = adapted(backbone, task, LORA)
    ground = Frontier(dict.fromkeys((*KINDS, ANSWER), 0))
    logits = ours(given(backbone, shown), ground)
    own = [own_loss(name, model, processor, *row) for row in zip(shown, ASKED, ANSWERS, strict=True)]
    assert [count for _, count in own] == task.row_weights(targets).tolist()
    expected = sum(loss for loss, _ in own) / sum(count for _, count in own)
    torch.testing.assert_close(task.loss(logits, targets), expected, atol=2e-5, rtol=1e-5)
    other = ours(given(backbone, shown[::-1]), ground)
    assert (other - logits).abs().max() > 1e-3, "another picture changes what is said"
    ours.detach()


@torch.no_grad()
def test_from_every_cut_the_logits_are_the_same(speaking):
    name, backbone, task, _, _ = speaking
    ours = adapted(backbone, task)
    streams, names = given(backbone, shown_to(name, 1, 0, 1)), (*KINDS, ANSWER)
    ground = Frontier(dict.fromkeys(names, 0))
    expected = ours(streams, ground)
    seeing, trunk = backbone.tower("image").depth, backbone.trunk.depth
    cuts = [Frontier({"image": k, "text": 0, ANSWER: 0}) for k in range(seeing + 1)]
    below = max(1, backbone.trunk.first)
    cuts += [Frontier({"image": seeing, "text": 0, ANSWER: 0}, k) for k in range(below, trunk + 1)]
    for cut in cuts:
        assert torch.equal(ours(backbone.advance(streams, ground, cut), cut), expected), cut
    ours.detach()


@torch.no_grad()
def test_no_place_reads_an_answer_that_comes_later(speaking):
    """Prompts are the same whatever is answered, and what is said of a token the same whatever follows it."""
    name, backbone, task, _, _ = speaking
    shown = shown_to(name, 1, 1, 1)
    behind = {"where": "trunk", "adapter": "cross_modal", "config": {"bottleneck_dim": 8, "heads": 2}}
    ours = adapted(backbone, task, LORA if name in (*READERS, *ENCODED) else behind)
    for parameter in ours.trainable().values():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    ground = Frontier(dict.fromkeys((*KINDS, ANSWER), 0))
    one = ours(given(backbone, shown, ["it is light or"] * 3), ground)
    two = ours(given(backbone, shown, ["it is dark or"] * 3), ground)
    first, second = (task.words.ids(text) for text in ("it is light or", "it is dark or"))
    same = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert same > 1 and torch.equal(one[:, : same + 1], two[:, : same + 1])
    assert (one[:, same + 1 : len(second)] - two[:, same + 1 : len(second)]).abs().max() > 1e-3
    ours.detach()
    bare = ours(given(backbone, shown, ["it is light or"] * 3), ground)
    assert (bare - one).abs().max() > 1e-3, "the adapter is heard"


def test_exact_match_is_that_of_greedy_decoding(speaking):
    """Token by token, each behind what was said before it."""
    name, backbone, task, _, _ = speaking
    ours = adapted(backbone, task)
    shown, ground = shown_to(name, 1, 1, 1), Frontier(dict.fromkeys((*KINDS, ANSWER), 0))
    tower, image = backbone.tower(ANSWER), backbone.trunk.composite.image_id
    said = [[] for _ in ASKED]
    with torch.no_grad():
        for _ in range(4):
            streams = given(backbone, shown, [None] * 3)
            streams[ANSWER] = type(streams[ANSWER])(
                torch.tensor([row or [0] for row in said]).unsqueeze(-1),
                torch.full((3, max(1, len(said[0]))), bool(said[0])),
            )
            logits = without_places(ours(streams, ground)[:, len(said[0])], image)
            for row, best in zip(said, logits.argmax(-1).tolist(), strict=True):
                row.append(best)
        targets = torch.tensor(said)
        streams[ANSWER] = type(streams[ANSWER])(targets[:, :-1, None], torch.ones(3, 3, dtype=torch.bool))
        logits = without_places(ours(streams, ground), image)
        kept = task.kept(logits, targets)
        assert task.per_sample(kept, targets)["exact_match"].tolist() == [1, 1, 1]
        wrong = targets.clone()
        wrong[0, 2] = (wrong[0, 2] + 1) % 10
        assert task.per_sample(kept, wrong)["exact_match"].tolist() == [0, 1, 1]
    assert tower.text(said[0]) is not None
    ours.detach()


def test_what_is_kept_is_no_vocabulary(speaking):
    _, _, task, _, _ = speaking
    targets = task.targets({"said": [*ANSWERS, "it is light it is light"]})
    logits = torch.randn(3, 6, 400)
    kept = task.kept(logits, targets[:3])
    assert kept.shape == (3, targets.shape[1], 2)
    own = torch.stack([
        torch.nn.functional.cross_entropy(row, wanted[:6], ignore_index=-100)
        for row, wanted in zip(logits, targets, strict=False)
    ])  # fmt: skip
    torch.testing.assert_close(-torch.from_numpy(task.per_sample(kept, targets[:3])["log_likelihood"]), own)
    tokens = task.row_weights(targets[:3])
    mean = (own * tokens).sum() / tokens.sum()
    torch.testing.assert_close(task.loss(logits, targets[:3]), mean)
    assert task.aggregates(kept, targets[:3])["perplexity"] == pytest.approx(mean.exp().item(), rel=1e-4)


def test_cut_answers_have_no_end_and_are_told(tmp_path):
    saved_llava(tmp_path)
    _, task = listening(tmp_path, 3)
    short, long = task.words.read(["a", "it is light or dark and so on"])
    assert not short.cut and short.ids[-1] in task.words.stops
    assert long.cut and len(long.ids) == 3 and long.tokens > 3 and long.ids[-1] not in task.words.stops
    assert task.words.text(short.ids) == "a"


def test_a_text_that_names_a_place_for_a_picture_is_refused(tmp_path):
    saved_llava(tmp_path)
    backbone, task = listening(tmp_path)
    for tell in (lambda: backbone.tower("text").prepare(["which <image> is it"]), lambda: task.words.ids("<image>")):
        with pytest.raises(FusetuneError, match="<image>.*holds the token that stands for a picture"):
            tell()


def test_a_long_question_is_cut_and_its_prompt_is_not(tmp_path):
    saved_llava(tmp_path)
    source = CompositeSource(str(tmp_path), prompt="{image} say {} now: {answer}", max_tokens=14)
    words = Backbone.from_composite(source, KINDS).tower("text")
    ids = words.prepare(["what is the grey of this picture, which one is it, and why is it so"]).values[0, :, 0]
    said = words.processor.decode(ids)
    assert len(ids) <= 14 and said.endswith(" now:") and "say what" in said, said
    assert words.prompt.answer == " {}"


def test_the_frontier_is_that_of_the_plan_and_the_answer_lies_with_it(speaking):
    name, backbone, task, _, _ = speaking
    ours = adapted(backbone, task, LORA)
    found = frontier(ours, given(backbone, shown_to(name, 1, 1, 1)))
    assert found == Frontier({"image": backbone.tower("image").depth, "text": 0, ANSWER: 0}, backbone.trunk.depth - 2)
    ours.detach()


def test_saved_by_reference_it_says_the_same(speaking, tmp_path):
    """With its prompt and the size of its pictures."""
    name, backbone, task, _, _ = speaking
    backbone.part(list(KINDS)).save_pretrained(tmp_path)
    again = Backbone.from_pretrained(tmp_path).take_answers(ANSWER, 16)
    assert again.fingerprint(list(KINDS)) == backbone.fingerprint(list(KINDS))
    ground, streams = Frontier(dict.fromkeys((*KINDS, ANSWER), 0)), given(backbone, shown_to(name, 1, 1, 1))
    with torch.no_grad():
        first, second = (adapted(one, task)(streams, ground) for one in (backbone, again))
    assert torch.equal(first, second)


def test_presets_mean_language_blocks(speaking):
    """Every second one for questions, all for captions; of the encoder as of any other tower."""
    name, backbone, task, _, _ = speaking
    every = list(range(8 if name in ENCODED else 4))
    for preset, expected in (("vqa", every[1::2]), ("image_captioning", every), ("language_only", every)):
        ours = adapted(backbone, task, {**LORA, "blocks": preset})
        assert f"trunk blocks {', '.join(map(str, expected))} (" in ours.resolved[0], ours.resolved
        ours.detach()
    with pytest.raises(FusetuneError, match="'vision_only' matches no block"):
        adapted(backbone, task, {**LORA, "blocks": "vision_only"})
    both = {"where": "towers", "adapter": "bottleneck", "blocks": "vqa"}
    ours = adapted(backbone, task, both)
    sees = name not in HEARS
    assert ("image blocks" in ours.resolved[0]) == sees and "trunk blocks 1, 3" in ours.resolved[0], ours.resolved
    ours.detach()


def test_what_has_no_place_is_told(speaking):
    name, backbone, task, _, _ = speaking
    if name in (*READERS, "blip_vqa"):
        placed = {"where": "trunk", "adapter": "cross_modal", "config": {"bottleneck_dim": 8, "heads": 2}}
        with pytest.raises(FusetuneError, match="read by cross-attention no stream of the picture can be changed"):
            adapted(backbone, task, placed)
    with pytest.raises(FusetuneError, match="behind the last language block nothing reads what 'wander'.*where: trunk"):
        adapted(backbone, task, {"where": "junction", "adapter": "wander"})
    with pytest.raises(FusetuneError, match="max_answer_tokens: expected at most [0-9]+ with this model, found 500"):
        backbone.take_answers(ANSWER, 500)
    with pytest.raises(FusetuneError, match="row 1: expected an answer, a text, found None"):
        task.targets({"said": ["a", None]})
    with pytest.raises(FusetuneError, match="answers in words need a model that speaks"):
        Backbone({}).take_answers(ANSWER, 8)
