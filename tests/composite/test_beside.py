"""A stream from elsewhere beside a model that sees and speaks: it passes the language blocks by, to the head."""

import pytest
import torch
from encoders import pictures
from speaking import TEXTS, saved_llava

from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.bases import save_base
from fusetune.backbones.composite.loading import CompositeSource
from fusetune.backbones.given_features import TOWERS
from fusetune.backbones.sources import BackboneSettings
from fusetune.config import build
from fusetune.errors import FusetuneError

KINDS = {"image": "image", "text": "text", "state": "vector"}
NAMES = list(KINDS)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    saved_llava(folder / "llava")
    whole = Backbone.from_composite(CompositeSource(str(folder / "llava")), {"image": "image", "text": "text"})
    state = TOWERS["vector"].fitted([torch.randn(1, 3).numpy() for _ in range(9)], "state")
    return whole.joined(Backbone({"state": state}), NAMES), whole, folder


def samples(backbone, names=NAMES):
    shown = {"image": pictures(1, 1), "text": TEXTS[:2], "state": [torch.ones(1, 3).numpy(), torch.zeros(1, 3).numpy()]}
    return backbone.prepare({name: shown[name] for name in names})


@torch.no_grad()
def test_the_model_is_as_it_was_and_the_other_stream_comes_along(joined):
    backbone, whole, _ = joined
    streams, ground = samples(backbone), Frontier(dict.fromkeys(NAMES, 0))
    top = backbone.full_depth(NAMES)
    found = backbone.advance(streams, ground, top)
    assert list(found) == NAMES and backbone.widths(NAMES) == {"image": 48, "text": 48, "state": 3}
    alone = whole.advance({name: streams[name] for name in whole.towers}, ground, whole.full_depth(list(whole.towers)))
    for name in whole.towers:
        assert torch.equal(found[name].values, alone[name].values)
    assert not torch.equal(found["state"].values[0], found["state"].values[1])
    middle = Frontier(top.towers, 2)
    reached = backbone.advance(streams, ground, middle)
    again = backbone.advance(reached, middle, top)
    assert all(torch.equal(again[name].values, found[name].values) for name in NAMES)


def test_saved_and_loaded_whole_and_in_parts(joined):
    backbone, whole, folder = joined
    base = save_base(backbone, folder / "bases")
    again = Backbone.from_pretrained(base)
    assert again.fingerprint() == backbone.fingerprint() and again.beside == ("state",)
    assert set(again.sources()) == {"image", "text"}
    one = Backbone.from_pretrained(base, {"state": "vector"})
    assert one.trunk is None and one.beside == ("state",)
    two = Backbone.from_pretrained(base, {"image": "image", "state": "vector"})
    assert two.trunk is not None and list(two.towers) == ["image", "state"]
    assert two.part(["image"]).beside == ()
    assert whole.fingerprint() != backbone.fingerprint()


def test_answers_in_words_never_meet_it_and_say_so(joined):
    with pytest.raises(FusetuneError, match="answers in words are the model's own, and it never meets state"):
        joined[0].part(NAMES).take_answers("answer", 4)


def test_whose_sources_they_are(joined):
    folder = str(joined[2] / "llava")
    settings = build(BackboneSettings, {"source": folder}, "backbone")
    assert settings.beside(KINDS) == ["state"] and settings.composite(KINDS).source == folder
    assert settings.beside({"image": "image", "text": "text"}) == []
