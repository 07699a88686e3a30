"""A tower is entered and left at any depth exactly: max abs difference 0 in float32, with masks and ragged lengths."""

import json

import numpy as np
import pytest
import torch
from encoders import FAMILIES, SMALL, pictures, siglip_text, siglip_vision, sounds, tokenizer, vit, whisper

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.trunk import StreamSettings, Trunk, TrunkSettings
from fusetune.errors import FusetuneError
from fusetune.manifest.schema import Audio
from fusetune.tokens import Tokens, pad


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.manual_seed(0)
    make, samples = FAMILIES[request.param]
    return make(), samples()


@torch.no_grad()
def test_every_depth_resumes_exactly(family):
    tower, samples = family
    inputs = tower.prepare(samples)
    whole = tower.advance(inputs, 0, tower.depth)
    assert not whole.mask[2].any() and whole.values[whole.mask].abs().sum() > 0
    for depth in range(tower.depth + 1):
        below = tower.advance(inputs, 0, depth)
        again = tower.advance(pad(below.ragged()), depth, tower.depth)  # as the store keeps it: real tokens alone
        assert torch.equal(again.mask, whole.mask[:, : again.mask.shape[1]])
        assert (again.values[again.mask] - whole.values[whole.mask]).abs().max() == 0, depth


@torch.no_grad()
def test_a_batch_in_which_nobody_has_the_modality_stays_empty(family):
    tower, _ = family
    out = tower.advance(tower.prepare([None, None]), 0, tower.depth)
    assert not out.mask.any() and out.width == tower.width and len(out.values) == 2
    if tower.depth > 1:
        assert not tower.advance(out, tower.depth - 1, tower.depth).mask.any()


def test_gradients_of_the_suffix_are_those_of_the_whole(family):
    tower, samples = family
    inputs = tower.prepare(samples)
    if not any(True for _ in tower.parameters()):
        pytest.skip("nothing in this tower could be trained")
    tower.requires_grad_(False)
    last = tower.blocks()[-1].requires_grad_(True)

    def gradients(states: Tokens, start: int):
        tower.zero_grad()
        out = tower.advance(states, start, tower.depth)
        out.values[out.mask].square().sum().backward()
        return [p.grad.clone() for p in last.parameters() if p.grad is not None]  # a pooler has none

    with torch.no_grad():
        below = tower.advance(inputs, 0, tower.depth - 1)
    found = gradients(inputs, 0)
    assert found
    for whole, suffix in zip(found, gradients(below, tower.depth - 1), strict=True):
        assert torch.equal(whole, suffix)


def test_saved_and_loaded_gives_the_same_outputs_and_fingerprint(family, tmp_path):
    tower, samples = family
    tower.save_pretrained(tmp_path / "tower")
    loaded = type(tower).from_pretrained(tmp_path / "tower")
    tower.prepare(samples)  # using a tokenizer sets its truncation; the fingerprint must not see it
    assert loaded.fingerprint() == tower.fingerprint()
    inputs = tower.prepare(samples)
    with torch.no_grad():
        assert torch.equal(
            loaded.advance(loaded.prepare(samples), 0, loaded.depth).values,
            tower.advance(inputs, 0, tower.depth).values,
        )
    with torch.no_grad():
        next(iter(tower.state_dict().values())).view(-1)[0] += 1e-3
    assert loaded.fingerprint() != tower.fingerprint()


@torch.no_grad()
def test_the_trunk_resumes_exactly_and_takes_missing_streams():
    torch.manual_seed(0)
    trunk = Trunk(TrunkSettings({m: StreamSettings(8, 6) for m in "abc"}, 16, 3, 2)).eval()
    streams = {
        m: pad([torch.randn(n, 8) for n in lengths]) for m, lengths in {"a": (6, 2), "b": (0, 3), "c": (1, 4)}.items()
    }
    whole = trunk.advance(streams, 0, 3)
    for depth in range(1, 4):
        again = trunk.advance(trunk.advance(streams, 0, depth), depth, 3)
        assert all(torch.equal(again[m].values, whole[m].values) for m in streams)
    assert all(torch.isfinite(whole[m].values).all() for m in streams)
    # a sample without modality b is treated as if there were no stream b
    without = trunk.advance({m: Tokens(t.values[:1], t.mask[:1]) for m, t in streams.items() if m != "b"}, 0, 3)
    torch.testing.assert_close(without["a"].values, whole["a"].values[:1])


def test_a_clip_folder_is_a_backbone_by_one_name(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = tokenizer()
    text = dict(**SMALL, vocab_size=len(words), max_position_embeddings=16, eos_token_id=words.sep_token_id)
    config = CLIPConfig(text_config=text, vision_config=dict(**SMALL, image_size=32, patch_size=16))
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    words.save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "clip"
    )
    backbone = Backbone.from_pretrained(tmp_path / "clip")
    backbone.save_pretrained(tmp_path / "base")
    assert not list((tmp_path / "base").rglob("*.safetensors")), "a foreign backbone is kept by reference"
    again = Backbone.from_pretrained(tmp_path / "base")
    inputs = again.prepare({"image": pictures(1, 2), "text": ["one", "the first"]})
    out = again.advance(inputs, Frontier({"image": 0, "text": 0}), again.full_depth(["image", "text"]))
    assert out["image"].values.shape == (2, 10, 32) and out["image"].mask.sum() == 15
    assert out["text"].width == 32


@pytest.mark.parametrize(("name", "cls"), [("siglip", "SiglipModel"), ("whisper", "WhisperForConditionalGeneration")])
def test_the_encoder_of_a_modality_is_taken_out_of_a_composite_checkpoint(tmp_path, name, cls):
    import transformers

    if name == "siglip":
        vision, words = siglip_vision(), siglip_text()
        config = transformers.SiglipConfig(
            text_config=words.model.config.to_dict(), vision_config=vision.model.config.to_dict()
        )
        towers = {"image": (vision, pictures(1)), "text": (words, ["one"])}
    else:
        sound = whisper()
        config = sound.model.config
        config.decoder_layers, config.decoder_attention_heads, config.vocab_size = 1, 2, 64
        config.pad_token_id = config.bos_token_id = config.eos_token_id = config.decoder_start_token_id = 1
        towers = {"audio": (sound, sounds(1600))}
    model = getattr(transformers, cls)(config).eval()
    model.save_pretrained(tmp_path)
    for kind, (tower, samples) in towers.items():
        tower.processor.save_pretrained(tmp_path)
        inner = {"image": "vision_model", "text": "text_model", "audio": "model.encoder"}[kind]
        tower.model.load_state_dict(model.get_submodule(inner).state_dict())
        loaded = Backbone.from_pretrained(tmp_path, {kind: kind}).tower(kind)
        with torch.no_grad():
            expected = tower.advance(tower.prepare(samples), 0, tower.depth)
            assert torch.equal(loaded.advance(loaded.prepare(samples), 0, loaded.depth).values, expected.values)


def test_weights_that_a_checkpoint_lacks_are_refused_where_outputs_depend_on_them(tmp_path):
    from safetensors.torch import load_file, save_file

    tower = vit()
    tower.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name: value for name, value in weights.items() if ".1." not in name}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FusetuneError, match=r"has no weights for layers\.1\..* and \d+ more, so they would be random"):
        type(tower).from_pretrained(tmp_path)


def test_a_sound_at_another_rate_is_resampled(tmp_path):
    pytest.importorskip("soxr")
    tower = FAMILIES["wav2vec2"][0]()
    seconds = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    there = tower.prepare([Audio(tone, 16_000)]).values
    back = tower.prepare([Audio(tone[::2].copy(), 8_000)]).values
    assert back.shape == there.shape and (there - back)[0, 200:-200].abs().max() < 0.02


def test_the_class_of_the_processor_is_part_of_the_fingerprint():
    """Two classes with the same settings resize differently."""
    tower = vit()
    before = tower.fingerprint()
    tower.processor.__class__ = type("Faster", (type(tower.processor),), {})
    assert tower.preprocessing()["class"] == "Faster" and tower.fingerprint() != before


def test_a_backbone_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(FusetuneError, match=r"backbone '.*nowhere'.*can't be loaded.*local folder"):
        Backbone.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "backbone.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(FusetuneError, match="format 9, this version reads 3"):
        Backbone.from_pretrained(tmp_path)
