"""Questions about videos: frames are pictures, one behind another, to a model whose prompt takes several."""

import pyarrow as pa
import pytest
import torch
from media import clip
from speaking import saved_blip, saved_llava, saved_qwen2_vl
from test_answering import adapted
from test_prompted_conversations import SYSTEM

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.errors import FusetuneError
from fusetune.features.inputs import input_lengths, input_report
from fusetune.features.source import Source
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.schema import Modality
from fusetune.tasks.generation import Generation, GenerationConfig
from fusetune.training.data import ANSWER

FRAMES = 3


def watching(folder, kind):
    backbone = Backbone.from_composite(CompositeSource(str(folder)), {"image": kind, "text": "text"})
    backbone.take_answers(ANSWER, 16)
    task = Generation(GenerationConfig("said", max_answer_tokens=16))
    task.meet(backbone.tower(ANSWER))
    return backbone, task


def videos(frames=FRAMES):
    table = {"image": [clip(0), None, clip(30)], "text": ["one", "which one", "is it light"], "said": ["dark"] * 3}
    modalities = {"image": Modality("video", frames=frames), "text": Modality("text"), ANSWER: Modality("text", "said")}
    return Source(pa.table({**table, "sample_id": ["a", "b", "c"]}), modalities)


@torch.no_grad()
def test_a_video_is_what_its_frames_are_as_pictures(tmp_path):
    saved_llava(tmp_path, template=SYSTEM)
    source, ground = videos(), Frontier({"image": 0, "text": 0, ANSWER: 0})
    samples = {name: source.decoded(name, [0, 1, 2]) for name in ("image", "text", ANSWER)}
    found = {}
    for kind in ("video", "image"):
        backbone, task = watching(tmp_path, kind)
        found[kind] = adapted(backbone, task)(backbone.prepare(samples), ground)
        turned = {**samples, "image": [frames and frames[::-1] for frames in samples["image"]]}
        other = adapted(backbone, task)(backbone.prepare(turned), ground)
        assert (other[0] - found[kind][0]).abs().max() > 1e-4, "the order of frames is seen"
    assert torch.equal(found["video"], found["image"])
    assert backbone.tower("image").kind == "image" and watching(tmp_path, "video")[0].tower("image").kind == "video"


def test_frames_are_counted_before_anything_is_trained(tmp_path):
    saved_llava(tmp_path, template=SYSTEM)
    backbone, _ = watching(tmp_path, "video")
    assert input_lengths(videos(), backbone)["image"] == FRAMES
    assert not input_report(videos(), backbone, ValidationSettings())["checks"]
    many = input_report(videos(7), backbone, ValidationSettings())["checks"]
    told = next(check for check in many if check["check"] == "input.pictures")
    assert "7 pictures, 6 are taken" in str(told) and told["column"] == "image", told


@pytest.mark.parametrize("saved", [saved_blip, saved_qwen2_vl])
def test_a_model_of_one_picture_says_so(tmp_path, saved):
    saved(tmp_path)
    with pytest.raises(FusetuneError, match="data.modalities.image: frames of a video are several pictures.*LLaVA"):
        watching(tmp_path, "video")
