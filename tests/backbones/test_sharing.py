"""Two modalities on one encoder: in memory once, and what is placed in one never reaches the other."""

import pytest
import torch
from encoders import bert, floats, pictures, vit

from fusetune.adapters.adapter import Stream
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.backbones.given_features import FeaturesVector
from fusetune.config import build
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.plan import Plan
from fusetune.tasks.classification import Classification, ClassificationConfig

NAMES = {"front": "image", "back": "image"}
HEAD = {"where": "head", "adapter": "linear"}


@pytest.fixture
def folder(tmp_path):
    vit().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def memory(backbone):
    return {p.data_ptr() for p in backbone.parameters()}


def outputs(backbone):
    streams = backbone.prepare({name: pictures(1, 1, 1) for name in NAMES})
    return backbone.advance(streams, Frontier(dict.fromkeys(NAMES, 0)), backbone.full_depth(list(NAMES)))


def adapted(backbone, *placements):
    task = Classification(ClassificationConfig("label"))
    task.labels = ["a", "b"]
    streams = {name: Stream(32, 5) for name in NAMES}
    return AdaptedModel(backbone, build(Plan, {"placements": [*placements, HEAD]}, "plan"), task, streams)


def test_weights_lie_in_memory_once_however_a_backbone_is_loaded(folder, tmp_path):
    one = Backbone.from_pretrained(folder, {"front": "image"})
    two = Backbone.from_pretrained(folder, NAMES)
    two.save_pretrained(tmp_path / "base")
    again = Backbone.from_pretrained(tmp_path / "base")
    for backbone in (two, again):
        assert backbone.tower("front") is not backbone.tower("back")
        assert len(memory(backbone)) == len(memory(one)) > 10
        assert backbone.fingerprint_of("front") == backbone.fingerprint_of("back") == one.fingerprint_of("front")
        assert backbone.sources() == {"front": str(folder), "back": str(folder)}


def test_towers_of_a_bases_own_are_shared_by_what_they_are(tmp_path):
    """As `features` and `align` make them: there is no source to know them by, but a fingerprint."""
    tower = FeaturesVector.fitted([floats(1, 1, 1, width=4)], "vector")
    Backbone({"a": tower, "b": tower}).save_pretrained(tmp_path)
    backbone = Backbone.from_pretrained(tmp_path)
    assert backbone.tower("a") is not backbone.tower("b")
    assert backbone.fingerprint_of("a") == backbone.fingerprint_of("b")


def test_other_encoders_are_not_shared(folder, tmp_path):
    torch.manual_seed(1)
    vit().save_pretrained(tmp_path / "other")
    one, other = (
        Backbone.from_pretrained(f, {n: "image"}) for f, n in ((folder, "front"), (tmp_path / "other", "back"))
    )
    Backbone({"front": one.tower("front"), "back": other.tower("back")}).save_pretrained(tmp_path / "base")
    backbone = Backbone.from_pretrained(tmp_path / "base")
    assert len(memory(backbone)) == 2 * len(memory(one))


def test_moved_to_another_dtype_or_device_they_stay_shared(folder):
    backbone = Backbone.from_pretrained(folder, NAMES)
    count = len(memory(backbone))
    backbone.to(torch.float64)
    assert len(memory(backbone)) == count and next(backbone.parameters()).dtype == torch.float64


@pytest.mark.parametrize(
    "placement",
    [
        {"where": "towers", "adapter": "lora", "blocks": {"modalities": ["front"]}, "config": {"rank": 2}},
        {"where": "towers", "adapter": "bottleneck", "blocks": {"modalities": ["front"]}},
        {"where": "towers", "adapter": "bitfit", "blocks": {"modalities": ["front"]}},
        {"where": "backbone", "adapter": "unfreeze", "config": {"parts": ["front"]}},
    ],
    ids=["lora", "bottleneck", "bitfit", "unfreeze"],
)
def test_what_is_trained_in_one_leaves_the_other_as_it_was(folder, placement):
    backbone = Backbone.from_pretrained(folder, NAMES)
    before = outputs(backbone)
    assert torch.equal(before["front"].values, before["back"].values)
    model = adapted(backbone, placement)
    optimizer = torch.optim.SGD(model.trainable().values(), 1.0)
    for _ in range(2):  # the first step moves what starts at zero
        streams = outputs(backbone)
        optimizer.zero_grad()
        streams["front"].values[..., :3].sum().backward()
        optimizer.step()
    after = outputs(backbone)
    assert not torch.allclose(after["front"].values, before["front"].values, atol=1e-3)
    assert torch.equal(after["back"].values, before["back"].values)


def test_an_adapter_that_is_merged_into_one_leaves_the_other_as_it_was(folder):
    backbone = Backbone.from_pretrained(folder, NAMES)
    before = outputs(backbone)
    config = {"where": "towers", "adapter": "lora", "blocks": {"modalities": ["front"]}, "config": {"rank": 2}}
    model = adapted(backbone, config)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1)
    trained = outputs(backbone)["front"].values
    assert not torch.allclose(trained, before["front"].values, atol=1e-3)
    model.merge()
    after = outputs(backbone)
    torch.testing.assert_close(after["front"].values, trained, atol=1e-5, rtol=1e-5)
    assert torch.equal(after["back"].values, before["back"].values)


def test_parameters_are_counted_once(folder):
    assert adapted(Backbone.from_pretrained(folder, NAMES)).base_count() == sum(
        p.numel() for p in Backbone.from_pretrained(folder, {"front": "image"}).parameters()
    )


def test_texts_too(tmp_path):
    bert().save_pretrained(tmp_path)
    backbone = Backbone.from_pretrained(tmp_path, {"question": "text", "context": "text"})
    assert len(memory(backbone)) == len(memory(Backbone.from_pretrained(tmp_path, {"question": "text"})))
