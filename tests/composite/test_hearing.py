"""Sounds of their own length in a composite model: as many states as they are long, at every depth."""

import pytest
import torch
from encoders import sounds
from speaking import saved_qwen2_audio

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.tokens import Tokens

LENGTHS = (16_000, 5_000, 0, 9_800)  # of a second; the last has an odd number of states inside the encoder


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2_audio")
    model, processor = saved_qwen2_audio(folder)
    backbone = Backbone.from_composite(CompositeSource(str(folder)), {"sound": "audio", "text": "text"})
    return backbone, model, processor


@torch.no_grad()
def test_places_are_those_of_the_models_own_features(hearing):
    backbone, model, processor = hearing
    tower, given = backbone.tower("sound"), sounds(*LENGTHS)
    found = tower.advance(tower.prepare(given), 0, tower.depth)
    counts = found.mask.sum(1).tolist()
    assert counts[2] == 0 and counts[0] > counts[3] > counts[1] > 1
    for row, sound in enumerate(given):
        if sound is None:
            continue
        made = processor.feature_extractor(
            sound.waveform, sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="pt"
        )
        frames = made["attention_mask"].sum(1)
        inside, places = model.model.audio_tower._get_feat_extract_output_lengths(frames)
        assert counts[row] == int(places)
        there = torch.arange(50)[None] < inside[:, None]
        mask = torch.zeros(1, 1, 50, 50).masked_fill(~there[:, None, None], torch.finfo(torch.float32).min)
        own = model.model.audio_tower(made["input_features"], attention_mask=mask).last_hidden_state
        own = model.model.multi_modal_projector(own)[0, : int(places)]
        torch.testing.assert_close(found.values[row][found.mask[row]], own, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_kept_of_each_depth_is_enough(hearing):
    tower = hearing[0].tower("sound")
    whole = tower.prepare(sounds(*LENGTHS))
    top = tower.advance(whole, 0, tower.depth)
    inside = tower.advance(whole, 0, 1)
    assert inside.mask.sum(1).tolist() == [50, 16, 0, 31], "half of the frames that are there"
    for depth in range(1, tower.depth):
        at = tower.advance(whole, 0, depth)
        assert not at.values[~at.mask].any(), "nothing of the padding is kept"
        found = tower.advance(at, depth, tower.depth)
        assert torch.equal(found.values, top.values) and torch.equal(found.mask, top.mask), depth
        alone = Tokens(at.values[1:2, :16], at.mask[1:2, :16])
        one = tower.advance(alone, depth, tower.depth)
        torch.testing.assert_close(one.values[0], top.values[1, : one.values.shape[1]], rtol=1e-4, atol=1e-5)
    others = tower.advance(tower.prepare(sounds(16_000, 5_001, 0, 9_800)[::-1]), 0, tower.depth)
    assert (others.values[0, :3] - top.values[0, :3]).abs().max() > 1e-3, "another sound, other states"


@torch.no_grad()
def test_a_moment_has_two_places(hearing):
    tower = hearing[0].tower("sound")
    assert tower.advance(tower.prepare(sounds(100)), 0, tower.depth).mask.sum(1).tolist() == [2]


@torch.no_grad()
def test_a_batch_without_a_sound(hearing):
    backbone = hearing[0]
    streams = backbone.prepare({"sound": [None, None], "text": ["one", "which one"]})
    out = backbone.advance(streams, Frontier({"sound": 0, "text": 0}), backbone.full_depth(["sound", "text"]))
    assert out["text"].values.isfinite().all() and not out["sound"].mask.any()
