"""Llama that reads pictures by gated cross-attention, tile by tile (Mllama): what other families don't have."""

import pytest
import torch
from encoders import pictures
from speaking import TEXTS, saved_mllama
from test_answering import ANSWERS, KINDS, adapted, given, own_loss

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.tasks.generation import Generation, GenerationConfig
from fusetune.training.data import ANSWER

GROUND = Frontier(dict.fromkeys((*KINDS, ANSWER), 0))


def opened(folder, side):
    model, processor = saved_mllama(folder)
    backbone = Backbone.from_composite(CompositeSource(str(folder), picture_side=side), KINDS).take_answers(ANSWER, 16)
    task = Generation(GenerationConfig("said", max_answer_tokens=16))
    task.meet(backbone.tower(ANSWER))
    return model, processor, backbone, task


@torch.no_grad()
@pytest.mark.parametrize(("side", "tiles"), [(32, 1), (64, 4), (48, 4)])
def test_a_picture_of_several_tiles_is_the_checkpoints_own(tmp_path, side, tiles):
    model, processor, backbone, task = opened(tmp_path, side)
    shown = pictures(1, 1, 1)
    logits = adapted(backbone, task)(given(backbone, shown), GROUND)
    square = [[one.convert("RGB").resize((side, side), 3)] for (one,) in shown]
    made = processor.image_processor(square, return_tensors="pt")
    assert made["aspect_ratio_mask"].sum(-1).flatten().tolist() == [tiles] * 3
    rows = zip(square, [TEXTS[0], "one", TEXTS[2]], ANSWERS, strict=True)
    own = [own_loss("mllama, as it is", model, processor, *row) for row in rows]
    expected = sum(loss for loss, _ in own) / sum(count for _, count in own)
    torch.testing.assert_close(task.loss(logits, task.targets({"said": ANSWERS})), expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_without_a_picture_no_word_stands_for_one_and_no_block_reads_any(tmp_path):
    """A row beside others, and a batch without any picture: as the checkpoint's own pass over words alone."""
    model, processor, backbone, task = opened(tmp_path, 32)
    words = backbone.tower("text").prepare(["one"]).values[0, :, 0]
    place = backbone.trunk.composite.image_id
    assert (words == place).sum() == 1 and place == processor.tokenizer.convert_tokens_to_ids("<|image|>")
    own = model(input_ids=words[words != place][None]).logits[0, -1]
    for shown in (pictures(1, 0, 1), [None] * 3):
        logits = adapted(backbone, task)(given(backbone, shown), GROUND)
        torch.testing.assert_close(logits[1, 0], own, atol=1e-5, rtol=1e-5)
    other = given(backbone, pictures(1, 1, 1))
    assert (adapted(backbone, task)(other, GROUND)[1, 0] - own).abs().max() > 1e-3, "a picture is read"
