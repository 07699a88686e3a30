"""Out of the house and into it: a LoRA on a whole model by `peft`, and the model with an adapter in its weights.

What leaves is asked by `transformers` alone: the checkpoint's processor, its forward, token by token.
"""

import json

import numpy as np
import peft
import pytest
import torch
import transformers as tf
from encoders import sounds
from PIL import Image
from safetensors.torch import load_file
from speaking import TEXTS
from test_answering import SPEAKING, adapted, listening, shown_to

from fusetune.backbones.backbone import Frontier
from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.bank.export import Export
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.plan.frontier import frontier
from fusetune.plan.speaking import spoken
from fusetune.tasks.decoding import Decoding
from fusetune.training.data import ANSWER, DataSettings

# causal, read by cross-attention, encoder and decoder of words
NAMES = ["llava", "blip", "mllama", "whisper", "blip2_t5"]
MOST, ROWS = 4, 50
EVERYWHERE = {"where": "towers", "adapter": "lora", "config": {"rank": 4, "alpha": 6, "targets": ["query", "value"]}}
FUSED = {"where": "towers", "adapter": "lora", "config": {"rank": 4, "alpha": 6, "targets": ["attention_output"]}}
AUTO = {
    "llava": tf.AutoModelForImageTextToText,
    "blip": tf.AutoModelForImageTextToText,
    "mllama": tf.AutoModelForImageTextToText,
    "blip2_t5": tf.AutoModelForImageTextToText,
    "whisper": tf.AutoModelForSpeechSeq2Seq,
}


def many(name):
    if name == "whisper":
        return sounds(*(range(4000, 4000 + 150 * ROWS, 150)))
    rng = np.random.default_rng(0)
    return [[Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))] for _ in range(ROWS)]


def data_of(name):
    kinds = {"image": {"kind": "audio" if name == "whisper" else "image"}, "text": {"kind": "text"}}
    task = {"name": "generation", "answer": "said", "max_answer_tokens": MOST}
    return build(DataSettings, {"modalities": kinds, "task": task, "use_trunk": True}, "data")


def shaken(backbone, task, *placements):
    model = adapted(backbone, task, *placements)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def said_by(model, shown):
    """Ids up to an answer's end, a row each."""
    streams = model.backbone.prepare({"image": shown, "text": [TEXTS[i % 3] for i in range(len(shown))]})
    found = spoken(model, streams, Frontier(dict.fromkeys(streams, 0)), Decoding()).tolist()
    return [[i for i in row if i >= 0] for row in found]


@torch.no_grad()
def said_by_transformers(name, model, processor, shown):
    """The same without a line of ours."""
    rows = []
    for number, sample in enumerate(shown):
        text = TEXTS[number % 3]
        if name == "whisper":
            words = processor.tokenizer
            media = processor.feature_extractor(sample.waveform, sampling_rate=16_000, return_tensors="pt")
            ids, stop, key = [1, *words(text, add_special_tokens=False)["input_ids"]], 2, "decoder_input_ids"
            media = {"input_features": media["input_features"]}
        elif name == "blip":
            media = dict(processor.image_processor([sample[0].convert("RGB")], return_tensors="pt"))
            ids, stop, key = [5, *processor.tokenizer(text, add_special_tokens=False)["input_ids"]], 3, "input_ids"
        elif name == "blip2_t5":
            media = dict(processor.image_processor([sample[0].convert("RGB")], return_tensors="pt"))
            asked = processor.tokenizer(f"Question: {text} Answer:</s>", add_special_tokens=False)["input_ids"]
            media["input_ids"] = torch.tensor([[*[model.config.image_token_id] * 5, *asked]])
            ids, stop, key = [0], 2, "decoder_input_ids"
        else:
            asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            picture = sample[0].convert("RGB")
            picture = picture.resize((32, 32), 3) if name == "mllama" else picture
            inputs = processor(text=[prompt], images=[picture], return_tensors="pt", add_special_tokens=False)
            media, ids = dict(inputs), inputs["input_ids"][0].tolist()
            del media["input_ids"], media["attention_mask"]
            stop, key = 2, "input_ids"
        said = []
        while len(said) < MOST and stop not in said:
            if said and "cross_attention_mask" in media:
                read = media["cross_attention_mask"]
                media["cross_attention_mask"] = torch.cat([read, read[:, -1:]], 1)
            logits = model(**media, **{key: torch.tensor([ids + said])}).logits[0, -1]
            if name in ("llava", "blip2_t5"):
                logits[3] = -torch.inf
            said.append(int(logits.argmax()))
        rows.append(said)
    return rows


@pytest.fixture(scope="module", params=NAMES)
def known(request, tmp_path_factory):
    """An artifact of a LoRA everywhere, what it says of fifty samples, and what the bare model says."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    model, processor = SPEAKING[name](folder / "checkpoint")
    backbone, task = listening(folder / "checkpoint", MOST, name=name)
    backbone.part(["image", "text"]).save_pretrained(folder / "base")
    shown = many(name)
    bare = said_by_transformers(name, model, processor, shown)
    made = shaken(backbone, task, FUSED if name.startswith("blip") else EVERYWHERE)
    expected = said_by(made, shown)
    assert sum(a != b for a, b in zip(expected, bare, strict=True)) > ROWS / 2, "the adapter is heard"
    assert len({tuple(row) for row in expected}) > 3, "samples differ"
    place = frontier(made, backbone.prepare({"image": shown[:2], "text": TEXTS[:2], ANSWER: ["it", "is"]}))
    Artifact.of(made, data_of(name), "lora", "", place).save_pretrained(folder / "adapter")
    made.detach()
    return name, folder, shown, expected


def test_a_lora_opens_in_peft_on_the_whole_model(known):
    name, folder, shown, expected = known
    assert [path.name for path in (folder / "adapter/peft").iterdir()] == ["model"]
    model = AUTO[name].from_pretrained(folder / "checkpoint").eval()
    opened = peft.PeftModel.from_pretrained(model, str(folder / "adapter/peft/model"))
    processor = tf.AutoProcessor.from_pretrained(folder / "checkpoint")
    assert said_by_transformers(name, opened, processor, shown) == expected


def test_the_exported_model_answers_the_same_without_us(known):
    name, folder, shown, expected = known
    artifact = Artifact.from_pretrained(folder / "adapter")
    samples = {"image": shown, "text": [TEXTS[i % 3] for i in range(ROWS)]}
    report = Export(artifact, folder / "base", samples).save_pretrained(folder / "exported")
    assert report["same_answers"] == report["samples"] == ROWS and report["logits_differ_by"] < 1e-5
    assert json.loads((folder / "exported/fusetune_export.json").read_text()) == report
    model = AUTO[name].from_pretrained(folder / "exported").eval()
    processor = tf.AutoProcessor.from_pretrained(folder / "exported")
    assert said_by_transformers(name, model, processor, shown) == expected
    bank = Bank(folder / "base")
    bank.load("lora", folder / "adapter")
    found = bank.outputs(["lora"] * ROWS, samples)
    assert [[int(i) for i in row if i >= 0] for row in found] == expected


def test_half_precision_stays(tmp_path):
    SPEAKING["llava"](tmp_path / "first")
    model = tf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "first", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tf.AutoProcessor.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "half")
    artifact = saved(tmp_path, "half", EVERYWHERE)
    samples = {"image": many("llava")[:5], "text": TEXTS[:1] * 5}
    report = Export(artifact, tmp_path / "base", samples).save_pretrained(tmp_path / "exported")
    assert report["dtype"] == "bfloat16" and 0 < report["logits_differ_by"] < 0.1
    assert {t.dtype for t in load_file(tmp_path / "exported/model.safetensors").values()} == {torch.bfloat16}


def saved(folder, checkpoint, *placements):
    """An artifact on a base in a folder, of a LLaVA in another one there."""
    backbone, task = listening(folder / checkpoint, MOST)
    backbone.part(["image", "text"]).save_pretrained(folder / "base")
    made = shaken(backbone, task, *placements)
    place = Frontier({"image": 0, "text": 0, ANSWER: 0})
    Artifact.of(made, data_of("llava"), "method", "", place).save_pretrained(folder / "adapter")
    return Artifact.from_pretrained(folder / "adapter")


def test_what_is_no_change_of_weights_is_not_exported_and_nothing_is_left(tmp_path):
    SPEAKING["llava"](tmp_path / "checkpoint")
    artifact = saved(tmp_path, "checkpoint", {"where": "trunk", "adapter": "bottleneck"})
    export = Export(artifact, tmp_path / "base", {"image": shown_to("llava", 1), "text": TEXTS[:1]})
    with pytest.raises(FusetuneError, match="'method': .*can't be merged.*LoRA and its kin.*can be folded in"):
        export.save_pretrained(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_of_peft_on_the_whole_model_is_where_ours_begins(name, tmp_path, caplog):
    model, processor = SPEAKING[name](tmp_path / "checkpoint")
    parts = {
        "llava": "q_proj|v_proj",
        "blip": "projection|output.dense",
        "mllama": "q_proj|v_proj",
        "blip2_t5": r"(SelfAttention\.o|projection)",
        "whisper": "q_proj|v_proj",
    }[name]
    blocks = {
        "llava": r".*(vision_tower|language_model)\..*layers\.\d+\.self_attn",
        "mllama": r".*(vision_model\.transformer\.layers\.\d+\.self_attn|language_model\.layers\.\d+\.\w+_attn)",
        "blip": r".*(vision_model.encoder.layers\.\d+\.self_attn|text_decoder\..*layer\.\d+\.attention)",
        "blip2_t5": r".*(vision_model.encoder.layers\.\d+\.self_attn|block\.\d+\.layer\.0)",
        "whisper": r".*(encoder|decoder)\.layers\.\d+\.self_attn",
    }[name]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=rf"{blocks}\.({parts})", init_lora_weights=False)
    torch.manual_seed(1)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    shown = many(name)[:10]
    expected = said_by_transformers(name, theirs, processor, shown)
    backbone, task = listening(tmp_path / "checkpoint", MOST, name=name)
    bare = said_by(adapted(backbone, task), shown)
    begin = {"pretrained": str(tmp_path / "theirs")}
    everywhere = FUSED if name.startswith("blip") else EVERYWHERE
    with pytest.raises(FusetuneError, match="it also changes .*; choose them too"):
        adapted(backbone, task, {**everywhere, "where": "trunk", "config": everywhere["config"] | begin})
    with caplog.at_level(
        "INFO"
    ):  # a LLaVA reads what is in front of the last block of its encoder; peft changes that too
        ours = adapted(backbone, task, {**everywhere, "config": everywhere["config"] | begin}).eval()
    assert ("what nobody reads: model.vision_tower.encoder.layers.2" in caplog.text) == (name == "llava")
    assert said_by(ours, shown) == expected != bare
