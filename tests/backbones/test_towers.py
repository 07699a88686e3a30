"""A tower is entered and left at any depth exactly: max abs difference 0 in float32, with masks and ragged lengths."""

import json

import pytest
import torch
from PIL import Image

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.feature_towers import FeatureTowerSettings, SequenceTower, VectorTower
from fusetune.backbones.tokenizer import train_tokenizer
from fusetune.backbones.transformers_tower import ImageTower, TextTower
from fusetune.backbones.trunk import StreamSettings, Trunk, TrunkSettings
from fusetune.errors import FusetuneError
from fusetune.tokens import Tokens, pad

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
TEXTS = ["the first", "a much longer text of several words", None, "one"]


def tokenizer():
    return train_tokenizer(["the first a much longer text of several words one"], 50, 16)


def pictures(*counts: int):
    generator = torch.Generator().manual_seed(0)
    return [
        [
            Image.fromarray(torch.randint(0, 255, (32, 32), generator=generator, dtype=torch.uint8).numpy())
            for _ in range(n)
        ]
        or None
        for n in counts
    ]


def vit():
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    return ImageTower(ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=16), add_pooling_layer=False), processor)


def clip_vision():
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    return ImageTower(CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=32, patch_size=16)), processor)


def bert():
    from transformers import BertConfig, BertModel

    words = tokenizer()
    config = BertConfig(**SMALL, vocab_size=len(words), max_position_embeddings=16)
    return TextTower(BertModel(config, add_pooling_layer=False), words)


def clip_text():
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer()
    config = CLIPTextConfig(
        **SMALL, vocab_size=len(words), max_position_embeddings=16, eos_token_id=words.sep_token_id, bos_token_id=2
    )
    return TextTower(CLIPTextModel(config), words)


def sequence():
    return SequenceTower(FeatureTowerSettings(5, 32, 3, 2, 16)).eval()


def vector():
    return VectorTower(FeatureTowerSettings(6, 32)).eval()


def floats(*lengths, width):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, width, generator=generator).numpy() if n else None for n in lengths]


FAMILIES = {
    "vit": (vit, lambda: pictures(2, 1, 0, 3)),
    "clip_vision": (clip_vision, lambda: pictures(2, 1, 0, 3)),
    "bert": (bert, lambda: TEXTS),
    "clip_text": (clip_text, lambda: TEXTS),
    "sequence": (sequence, lambda: floats(4, 7, 0, 1, width=5)),
    "vector": (vector, lambda: floats(1, 1, 0, 1, width=6)),
}


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
    tower.requires_grad_(False)
    last = tower.blocks()[-1].requires_grad_(True)

    def gradients(states: Tokens, start: int):
        tower.zero_grad()
        out = tower.advance(states, start, tower.depth)
        out.values[out.mask].square().sum().backward()
        return [p.grad.clone() for p in last.parameters()]

    with torch.no_grad():
        below = tower.advance(inputs, 0, tower.depth - 1)
    for whole, suffix in zip(gradients(inputs, 0), gradients(below, tower.depth - 1), strict=True):
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
        next(tower.parameters()).view(-1)[0] += 1e-3
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


def test_a_backbone_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(FusetuneError, match=r"backbone '.*nowhere'.*can't be loaded.*local folder"):
        Backbone.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "backbone.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(FusetuneError, match="format 9, this version reads 1"):
        Backbone.from_pretrained(tmp_path)
