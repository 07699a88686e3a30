"""What adapters show of a batch is told by sample, whatever rows their layers run on."""

import pytest
import torch
from encoders import pictures, vit

from fusetune.adapters.adapter import Stream
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import build
from fusetune.plan.adapted import AdaptedModel
from fusetune.plan.plan import Plan
from fusetune.tasks.classification import Classification, ClassificationConfig


@pytest.fixture
def model():
    torch.manual_seed(0)
    task = Classification(ClassificationConfig("label"))
    task.labels = ["a", "b"]
    gated = {"where": "towers", "adapter": "unipelt", "config": {"bottleneck_dim": 4, "prefix_hidden": 0}}
    plan = build(Plan, {"placements": [gated, {"where": "head", "adapter": "linear"}]}, "plan")
    made = AdaptedModel(Backbone({"image": vit()}), plan, task, {"image": Stream(32, 20)}).eval()
    for parameter in made.trainable().values():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)  # gates begin half open, whatever is seen
    return made


@torch.no_grad()
def seen(model, samples):
    model(model.backbone.prepare({"image": samples}), Frontier({"image": 0}))
    return model.observed(len(samples))["image_block1_prefix"]


def test_of_several_pictures_it_is_the_mean_and_of_none_nothing(model):
    one, two, three = pictures(1, 1, 1)
    alone = [seen(model, [sample])[0] for sample in (one, two, three)]
    assert (alone[0] - alone[1]).abs() > 1e-5, "pictures differ"
    found = seen(model, [[*one, *two], None, three])
    assert found.shape == (3, 1) and found[1].isnan()
    torch.testing.assert_close(found[0], (alone[0] + alone[1]) / 2)
    torch.testing.assert_close(found[2], alone[2])


def test_a_batch_without_any_shows_nothing_of_the_batch_before(model):
    assert not seen(model, pictures(1, 1)).isnan().any()
    assert seen(model, [None, None, None]).isnan().all()
