"""The embedded model that speaks: pretrained here, opened by transformers as any other."""

from collections import Counter

import pytest
import torch

from fusetune.backbones.characters import as_characters
from fusetune.backbones.pretraining_llava import PretrainLlavaSettings, pretrain_llava
from fusetune.backbones.spoken_scenes import OF_ONE, SIDE
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.glyphs import ORDINALS, char_of, read
from fusetune.manifest.readers.unicode_facts import description

SMALL = {
    "image": {"width": 48, "depth": 2, "heads": 4, "patch": 16}, "width": 64, "depth": 2,
    "sight_steps": 80, "speech_steps": 260, "speech_batch": 32,
}  # fmt: skip
KINDS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Characters of the few commonest descriptions, and a model that has looked at them for some seconds."""
    table = read({"view": "characters", "faces": ["DejaVuSans", "DejaVuSans-Bold"]})
    told = [description(char_of(code)) for code in table["group_id"].to_pylist()]
    common = {text for text, _ in Counter(told).most_common(KINDS)}
    kept = [row for row, text in enumerate(told) if text in common]
    rows, folder = as_characters(table.take(kept)), tmp_path_factory.mktemp("llava")
    losses = []
    pretrain_llava(
        rows, [told[row] for row in kept], ["which is the  character"], build(PretrainLlavaSettings, SMALL, "small"),
        lambda phase, step, steps, loss: losses.append((phase, loss["loss"])), torch.device("cpu"), folder,
    )  # fmt: skip
    return folder, rows, [told[row] for row in kept], losses


def scene(rows, picked):
    from PIL import Image

    whole = Image.new("L", (SIDE, SIDE))
    for place, row in enumerate(picked):
        whole.paste(rows.pictures[row], (32 * (place % 2), 32 * (place // 2)))
    return whole.convert("RGB")


def test_transformers_opens_it_and_it_says_what_it_sees(made):
    """By the checkpoint's own processor and template; other pictures are the control."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, rows, told, losses = made
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(told), (48, 4), generator=generator).tolist()
    asked, wanted = [], []
    for number, rows_ in enumerate(picked):
        text = OF_ONE[0].format(ORDINALS[number % 4])
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        asked.append(processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False))
        wanted.append(told[rows_[number % 4]])
    shown = [[scene(rows, rows_)] for rows_ in picked]

    def right(pictures):
        inputs = processor(text=asked, images=pictures, padding=True, return_tensors="pt", add_special_tokens=False)
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(ids, skip_special_tokens=True)
        return sum(text.strip() == true for text, true in zip(texts, wanted, strict=True)) / len(wanted)

    own, others = right(shown), right(shown[1:] + shown[:1])
    assert own > others + 0.2, (own, others, losses[-1])


def test_it_can_write_anything(made):
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(made[0])
    text = "Grinning Face – naïve 😀"
    assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(FusetuneError, match="speech_steps: expected a positive number, found 0"):
        PretrainLlavaSettings(speech_steps=0)
    with pytest.raises(FusetuneError, match="image.patch: expected pixels that divide a character's 32, found 12"):
        build(PretrainLlavaSettings, {"image": {"patch": 12}}, "pretrain_llava")
