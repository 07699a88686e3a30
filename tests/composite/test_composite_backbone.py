"""A model that sees and speaks as a backbone: its streams are the model's own states, at every depth."""

import pytest
import torch
from encoders import pictures
from speaking import MODELS, TEXTS, saved_llava

from fusetune.adapters.adapter import Stream
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.frontier import frontier
from fusetune.plan.plan import Plan
from fusetune.tasks.classification import Classification, ClassificationConfig

KINDS = {"image": "image", "text": "text"}
NAMES = list(KINDS)
ASKED = [TEXTS[0], "one", TEXTS[2]]


@pytest.fixture(scope="module", params=MODELS)
def speaking(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = MODELS[request.param](folder)
    return request.param, Backbone.from_composite(CompositeSource(str(folder)), KINDS), model, processor, folder


def through(backbone, streams, frontier):
    start = Frontier(dict.fromkeys(streams, 0))
    return backbone.advance(streams, start, frontier)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 3)], ids=["one each", "several"])
def test_the_streams_are_the_models_own_states(speaking, counts):
    """Against the checkpoint's own processor, chat template and forward, one sample at a time."""
    name, backbone, model, processor, _ = speaking
    shown = pictures(*counts)
    found = through(backbone, backbone.prepare({"image": shown, "text": ASKED}), backbone.full_depth(NAMES))
    image_id = model.config.image_token_id
    for i, (picture, text) in enumerate(zip(shown, ASKED, strict=True)):
        images = [one.convert("RGB") for one in picture]
        if name == "llava":
            said = [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]}]
            whole = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
            inputs = processor(text=[whole], images=[images], return_tensors="pt", add_special_tokens=False)
        else:
            whole = "<image>" * len(images) + text
            inputs = processor(text=[whole], images=[images], return_tensors="pt", add_special_tokens=False)
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        own = model.model(**{k: v for k, v in inputs.items() if k != "labels"}).last_hidden_state[0]
        at_picture = inputs["input_ids"][0] == image_id
        for stream, expected in (("image", own[at_picture]), ("text", own[~at_picture])):
            tokens = found[stream]
            assert int(tokens.mask[i].sum()) == len(expected)
            torch.testing.assert_close(tokens.values[i][tokens.mask[i]], expected, atol=2e-5, rtol=1e-4)
    other = through(backbone, backbone.prepare({"image": shown[::-1], "text": ASKED}), backbone.full_depth(NAMES))
    assert (other["text"].values - found["text"].values).abs().max() > 1e-3, "another picture changes what texts become"


def cuts(backbone):
    seeing, trunk = backbone.tower("image").depth, backbone.trunk.depth
    yield from (Frontier({"image": k, "text": 0}) for k in range(seeing + 1))
    yield from (Frontier({"image": seeing, "text": 0}, k) for k in range(1, trunk + 1))


@torch.no_grad()
@pytest.mark.parametrize(
    "counts", [(1, 1, 1), (1, 0, 1), (0, 0, 0), (2, 0, 3)], ids=["all", "one without", "none", "several"]
)
def test_every_depth_is_exact(speaking, counts):
    _, backbone, _, _, _ = speaking
    top = backbone.full_depth(NAMES)
    streams = backbone.prepare({"image": pictures(*counts), "text": [*ASKED[:2], None if counts[2] else ASKED[2]]})
    expected = through(backbone, streams, top)
    for cut in cuts(backbone):
        reached = through(backbone, streams, cut)
        found = backbone.advance(reached, cut, top)
        for name in NAMES:
            assert torch.equal(found[name].values[found[name].mask], expected[name].values[expected[name].mask]), cut
            assert torch.equal(found[name].mask, expected[name].mask)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_one_side_alone(speaking, name):
    folder = speaking[4]
    alone = Backbone.from_composite(CompositeSource(str(folder)), {name: name})
    streams = alone.prepare({name: pictures(1, 1) if name == "image" else ASKED[:2]})
    top = alone.full_depth([name])
    expected = through(alone, streams, top)
    assert expected[name].values.isfinite().all()
    middle = Frontier({name: alone.tower(name).depth}, 2)
    found = alone.advance(through(alone, streams, middle), middle, top)
    assert torch.equal(found[name].values, expected[name].values)


def test_saved_by_reference_and_refused_when_it_has_changed(speaking, tmp_path):
    name, backbone, model, _, folder = speaking
    backbone.save_pretrained(tmp_path / "base")
    assert {file.name for file in (tmp_path / "base").iterdir()} == {"backbone.json"}
    again = Backbone.from_pretrained(tmp_path / "base")
    assert again.fingerprint() == backbone.fingerprint() and again.sources()["image"] == str(folder)
    one = Backbone.from_pretrained(tmp_path / "base", {"text": "text"})
    assert list(one.towers) == ["text"] and one.trunk.image == ""
    changed = tmp_path / "changed"
    MODELS[name](changed)
    moved = Backbone.from_composite(CompositeSource(str(changed)), KINDS)
    moved.save_pretrained(tmp_path / "moved")
    with torch.no_grad():
        model.get_submodule("model.language_model.norm").weight.add_(1)
        model.save_pretrained(changed)
        model.get_submodule("model.language_model.norm").weight.sub_(1)
    with pytest.raises(FusetuneError, match="has changed since; run `pretrain` again"):
        Backbone.from_pretrained(tmp_path / "moved")


def test_prompts_are_the_templates_or_ones_own(tmp_path):
    saved_llava(tmp_path)
    own = Backbone.from_composite(CompositeSource(str(tmp_path), prompt="look: {image} and say {}"), KINDS)
    words = own.tower("text")
    read = lambda ids: words.processor.decode(ids)  # noqa: E731
    ids = words.prepare(["one"]).values[0, :, 0]
    assert read(ids) == "<s>look:  and say one" and read(ids[: words.offset]) == "<s>look: "
    theirs = Backbone.from_composite(CompositeSource(str(tmp_path)), KINDS).tower("text")
    assert read(theirs.prepare(["one"]).values[0, :, 0]) == "<s>user: oneassistant: "
    for prompt, message in (("{image} what", "expected one {} for a sample's text"), ("{}", "{image} for its picture"),
                            ("{} {image}", "expected {image} in front of {}")):  # fmt: skip
        with pytest.raises(FusetuneError, match=message):
            Backbone.from_composite(CompositeSource(str(tmp_path), prompt=prompt), KINDS)


def test_what_is_cut_is_told(tmp_path):
    saved_llava(tmp_path)
    words = Backbone.from_composite(CompositeSource(str(tmp_path), max_tokens=12), KINDS).tower("text")
    short, long = words.read(["one", TEXTS[0]])
    assert len(long.ids) == 12 and long.cut and len(short.ids) <= 12
    assert words.prepare([TEXTS[0]]).values.shape[1] == 12


def test_other_modalities_and_families_are_refused_by_name(speaking, tmp_path):
    from encoders import SMALL
    from transformers import BertConfig, BertModel

    folder = speaking[4]
    with pytest.raises(FusetuneError, match="data.modalities.sound: this composite model takes one image and one text"):
        Backbone.from_composite(CompositeSource(str(folder)), {**KINDS, "sound": "audio"})
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(FusetuneError, match="is of BertModel, no composite model that can be entered. Known: Blip2"):
        Backbone.from_composite(CompositeSource(str(tmp_path)), KINDS)


def test_adapters_behind_language_blocks_are_cached_below_and_tell_places_apart(speaking):
    """From the cache at the frontier as from the inputs; both streams are changed, and detached nothing is."""
    folder = speaking[4]
    backbone = Backbone.from_composite(CompositeSource(str(folder)), KINDS)
    task = Classification(ClassificationConfig("label"))
    task.labels = ["a", "b"]
    streams = backbone.prepare({"image": pictures(1, 0, 1), "text": ASKED})
    sizes = {"image": Stream(48, 16), "text": Stream(48, streams["text"].values.shape[1])}
    where = {"where": "trunk", "adapter": "cross_modal", "config": {"bottleneck_dim": 8, "heads": 2}}
    placed = {**where, "blocks": {"take": "explicit", "explicit": {"trunk": [1, 3]}}}
    plan = build(Plan, {"placements": [placed, {"where": "head", "adapter": "linear"}]}, "plan")
    ground, top = Frontier(dict.fromkeys(NAMES, 0)), backbone.full_depth(NAMES)
    with torch.no_grad():
        bare = through(backbone, streams, top)
        model = AdaptedModel(backbone, plan, task, sizes)
        reached = frontier(model, streams)
        assert reached.trunk == 2, "behind block 1 is in front of block 2"
        torch.testing.assert_close(through(backbone, streams, top)["text"].values, bare["text"].values)
        for parameter in model.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        cached = through(backbone, streams, reached)
        changed = through(backbone, streams, top)
        for name in NAMES:
            assert (changed[name].values - bare[name].values).abs().max() > 1e-2
        assert torch.equal(model.eval()(cached, reached), model(streams, ground))
        model.detach()
        assert torch.equal(through(backbone, streams, top)["text"].values, bare["text"].values)
