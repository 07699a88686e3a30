"""Boxes as families write them: from the data's pixels through crop and resize into words, and back from them."""

import re

import numpy as np
import pytest
import torch
from speaking import saved_llava, saved_paligemma, saved_qwen2_5_vl, saved_qwen2_vl

from fusetune.backbones.backbone import Backbone
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.tasks.box_words import FORMATS, box_words
from fusetune.tasks.grounding_in_words import GroundingInWords, GroundingInWordsConfig
from fusetune.tasks.task import extent_column
from fusetune.training.data import ANSWER, meet

SIZES = [(64, 48), (40, 56), (32, 32)]
BOXES = [[20, 12, 44, 36.5], [5, 20, 30, 40], [1, 2, 30, 31]]
WRITTEN = {
    "llava": r"\[0\.\d{3}, 0\.\d{3}, [01]\.\d{3}, [01]\.\d{3}\]",
    "paligemma": r"(<loc\d{4}>){4}",
    "qwen2_vl": r"<\|box_start\|>\(\d+,\d+\),\(\d+,\d+\)<\|box_end\|>",
    "qwen2_5_vl": r"\[\d+, \d+, \d+, \d+\]",
}


@pytest.mark.parametrize("name", FORMATS)
def test_words_come_back_within_half_a_step(name):
    torch.manual_seed(0)
    words, size = box_words(name), (448, 336)
    corners = torch.rand(200, 4).view(200, 2, 2).sort(1).values.flatten(1)
    corners[0] = torch.tensor([0.0, 0, 1, 1])
    for box in corners.tolist():
        back = words.read(f"it is here: {words.write(box, size)}.", size)
        assert np.abs(np.array(back) - box).max() <= words.step(size) / 2 + 1e-9
    assert words.read("nowhere", size) is None and words.read("", size) is None
    assert len({words.write(box, size) for box in corners.tolist()}) == 200


def test_paligemma_begins_at_the_top_and_qwen_at_the_left():
    box = [0.25, 0.5, 0.75, 1.0]
    assert box_words("locations").write(box, (1, 1)) == "<loc0512><loc0256><loc1023><loc0767>"
    assert box_words("thousandths").write(box, (1, 1)) == "<|box_start|>(250,500),(750,1000)<|box_end|>"
    assert box_words("pixels").write(box, (200, 100)) == "[50, 50, 150, 100]"


@pytest.mark.parametrize("name", WRITTEN)
def test_a_box_goes_through_a_model_and_back_to_pixels(tmp_path, name):
    saved = {"llava": saved_llava, "paligemma": saved_paligemma, "qwen2_vl": saved_qwen2_vl}
    saved.get(name, saved_qwen2_5_vl)(tmp_path)
    backbone = Backbone.from_composite(CompositeSource(str(tmp_path)), {"image": "image", "text": "text"})
    backbone.take_answers(ANSWER, 64)
    task = GroundingInWords(GroundingInWordsConfig(max_answer_tokens=64))
    meet(task, backbone)
    columns = {"box": BOXES, extent_column("image"): SIZES}
    texts = task.derived(columns)["box in words"]
    for text in texts:
        assert re.fullmatch(WRITTEN[name], text), text
    ids = task.targets({**columns, "box in words": texts})
    rows = task.decode(ids, task.contents(columns))
    for row, box, size in zip(rows, BOXES, SIZES, strict=True):
        step = box_words(task._written).step(task.grounding._tower.seen_size()) * max(size)
        visible = box
        if name == "llava":  # its processor crops the middle square out
            cut = [(side - min(size)) / 2 for side in size]
            visible = np.clip(box, cut * 2, [cut[i % 2] + min(size) for i in range(4)])
        assert np.abs(np.array(row["box"]) - visible).max() <= step + 0.01 * max(size), (row, box)
    found = task.per_sample(ids, task.truths({**columns, "box in words": texts}))
    assert found["mean_iou"].tolist() == pytest.approx([1, 1, 1]) and found["boxes"].tolist() == [1, 1, 1]
    silent = torch.full_like(ids, task.no_token)
    found = task.per_sample(silent, task.truths({**columns, "box in words": texts}))
    assert found["mean_iou"].tolist() == [0, 0, 0] and found["boxes"].tolist() == [0, 0, 0]
    assert task.decode(silent, task.contents(columns))[0]["box"] is None
