"""A dual encoder as it is: our embeddings are those of `transformers`, and training starts from what they say."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from dual_encoders import saved
from encoders import pictures

from fusetune.backbones.backbone import Backbone
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.runs.run import train_and_test
from fusetune.training.data import DataSettings
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings
from fusetune.training.zero_shot import zero_shot

TEXTS = ["the first", "a much longer text of several words", "one", "several"]


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_embeddings_are_the_models_own(tmp_path, name):
    model, words, processor = saved(tmp_path, name)
    backbone = Backbone.from_pretrained(tmp_path, {"image": "image", "text": "text"})
    spaces = backbone.spaces(["image", "text"])
    assert spaces["image"].identity == spaces["text"].identity
    assert spaces["image"].log_scale == pytest.approx(1.5)
    shown = pictures(1, 1, 1, 1)
    streams = backbone.prepare({"image": shown, "text": TEXTS})
    top = backbone.full_depth(["image", "text"])
    streams = backbone.advance_towers(streams, {"image": 0, "text": 0}, top.towers)
    found = backbone.embed(streams, ["image", "text"])
    padding = {"padding": "max_length", "max_length": 16} if name == "siglip" else {"padding": True}
    pixels = processor(images=[several[0] for several in shown], return_tensors="pt")["pixel_values"]
    ids = words(TEXTS, return_tensors="pt", **padding)
    mask = {} if name == "siglip" else {"attention_mask": ids["attention_mask"]}
    with torch.no_grad():
        out = model(input_ids=ids["input_ids"], pixel_values=pixels, **mask)
    assert (out.image_embeds - out.image_embeds[:1]).abs().max() > 1e-3, "pictures can differ"
    assert (out.text_embeds - out.text_embeds[:1]).abs().max() > 1e-3, "and so can texts"
    torch.testing.assert_close(found["image"], out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["text"], out.text_embeds, atol=1e-5, rtol=0)


def test_missing_and_several_pictures(tmp_path):
    saved(tmp_path, "clip")
    tower = Backbone.from_pretrained(tmp_path, {"image": "image"}).tower("image")
    shown = pictures(2, 0, 1)
    both = tower.embed(tower.advance(tower.prepare(shown), 0, tower.depth))
    alone = tower.embed(tower.advance(tower.prepare([[p] for p in shown[0]]), 0, tower.depth))
    torch.testing.assert_close(both[0], alone.sum(0), atol=1e-5, rtol=0)
    assert not both[1].any() and both[2].any()


def test_the_space_is_part_of_the_fingerprint(tmp_path):
    model, _, _ = saved(tmp_path, "clip")
    before = Backbone.from_pretrained(tmp_path, {"image": "image"}).fingerprint()
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert Backbone.from_pretrained(tmp_path, {"image": "image"}).fingerprint() != before


@pytest.fixture
def pairs(tmp_path):
    """Pictures of eight greys and their names; a base whose space knows nothing of them."""
    from PIL import Image

    saved(tmp_path / "clip", "clip")
    rng, rows = np.random.default_rng(0), []
    names = ["the", "first", "a", "much", "longer", "text", "of", "several"]
    for i in range(160):
        grey = i % 8
        values = (30 * grey + rng.integers(0, 12, (32, 32, 3))).astype(np.uint8)
        file = tmp_path / f"{i}.png"
        Image.fromarray(values).save(file)
        split = "train" if i < 96 else "val" if i < 128 else "test"
        rows.append({"sample_id": f"s{i}", "split": split, "group_id": f"{split}{grey}", "image": file.name,
                     "text": f"{names[grey]} one"})  # fmt: skip
    return pa.Table.from_pylist(rows), tmp_path


def experiment(pairs, placements=(), **task):
    table, folder = pairs
    modalities = {"image": {"kind": "image", "root": str(folder)}, "text": {"kind": "text"}}
    data = build(
        DataSettings, {"modalities": modalities, "task": {"name": "retrieval", **task}, "use_trunk": False}, "d"
    )
    plan = build(Plan, {"placements": [*placements, {"where": "head", "adapter": "linear"}]}, "p")
    backbone = Backbone.from_pretrained(folder / "clip", {"image": "image", "text": "text"})
    return Experiment(table, backbone, data, plan, 0, "toy")


def trained(pairs, settings, placements=(), **task):
    one, folder = experiment(pairs, placements, **task), pairs[1]
    features = one.extract(folder / "store", CacheSettings(dtype="float32"), lambda *_: None, torch.device("cpu"))
    result = train_and_test(
        one, features, folder / "store", settings, EvaluationSettings(bootstrap_samples=20), folder / "checkpoints",
        Reporter(), "toy", {},
    )  # fmt: skip
    return one, result, one.split("test", features, folder / "store", torch.device("cpu"))


LORA = {"where": "towers", "adapter": "lora", "config": {"rank": 2, "targets": ["query", "value"]}}


@pytest.mark.parametrize("placements", [(), (LORA,)], ids=["head", "lora"])
def test_training_starts_from_what_the_space_says_and_beats_it(pairs, placements):
    settings = TrainSettings(epochs=30, batch_size=32, learning_rate=0.02, patience=30)
    one, result, test = trained(pairs, settings, placements)
    metrics = result.metrics
    before = one.task.metrics(zero_shot(one.model, test, 32), test.targets)
    assert metrics["before_training"] == before["recall_at_1"] < 0.6
    assert metrics["test"]["recall_at_1"] > metrics["before_training"] + 0.2 and metrics["best_epoch"] > 0
    assert f"before any training {before['recall_at_1']:.3f}" in result.sentence()
    fresh = experiment(pairs, placements)
    start = fresh.frontier
    states = test.features.batch(torch.arange(32))
    torch.testing.assert_close(fresh.model(states, start), zero_shot(one.model, test, 32), atol=1e-4, rtol=1e-4)
    loaded = result.artifact.build(pairs[1] / "clip")
    torch.testing.assert_close(loaded(states, start), one.model(states, start))


def test_training_that_makes_it_worse_is_not_kept(pairs):
    """Steps so small that nothing is learned: what is kept is the model as it was."""
    settings = TrainSettings(epochs=1, batch_size=96, learning_rate=1e-9, patience=3)
    _, result, _ = trained(pairs, settings)
    assert result.metrics["best_epoch"] == 0
    assert result.metrics["test"]["recall_at_1"] == result.metrics["before_training"]
    assert "which no epoch beats on validation" in result.sentence()


def test_a_space_of_their_own_is_asked_for_where_there_is_none(pairs):
    assert not hasattr(experiment(pairs, space="learned").model.head, "embeds")
    table, folder = pairs
    from encoders import bert

    bert().save_pretrained(folder / "words")
    backbone = Backbone.from_pretrained(folder / "clip", {"image": "image"})
    other = Backbone.from_pretrained(folder / "words", {"text": "text"})
    mixed = Backbone({"image": backbone.tower("image"), "text": other.tower("text")})
    modalities = {"image": {"kind": "image", "root": str(folder)}, "text": {"kind": "text"}}
    task = {"name": "retrieval", "space": "own"}
    data = build(DataSettings, {"modalities": modalities, "task": task, "use_trunk": False}, "d")
    with pytest.raises(FusetuneError, match="have no common space of their own"):
        Experiment(
            table, mixed, data, build(Plan, {"placements": [{"where": "head", "adapter": "linear"}]}, "p"), 0, "toy"
        )
