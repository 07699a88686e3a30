"""Classification by prompts: zero-shot is the dual encoder's own, training starts there and keeps what beats it."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from dual_encoders import saved

from fusetune.backbones.backbone import Backbone
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.features.storage import Store
from fusetune.plan.plan import Plan
from fusetune.runs.alone import unimodal_metrics
from fusetune.runs.experiment import Experiment
from fusetune.runs.run import train_and_test
from fusetune.runs.workplace import Workplace
from fusetune.training.data import DataSettings, make_task
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings
from fusetune.training.zero_shot import zero_shot

WORDS = ["the", "first", "a_much", "longer", "text", "of"]
TEMPLATES = ["{} one", "several of {}"]
CPU, HEAD = torch.device("cpu"), {"where": "head", "adapter": "linear"}
WANDER = {"where": "junction", "adapter": "wander", "config": {"bottleneck_dim": 4, "rank": 2, "token_rank": 2}}
LORA = {"where": "towers", "adapter": "lora", "config": {"rank": 2, "targets": ["query", "value"]}}


@pytest.fixture(params=["clip", "siglip"])
def greys(request, tmp_path):
    """Pictures of six greys, with captions that say nothing; a tiny dual encoder of random weights."""
    from PIL import Image

    model, words, processor = saved(tmp_path / "model", request.param)
    rng, rows = np.random.default_rng(0), []
    for i in range(120):
        grey = i % 6
        values = (40 * grey + rng.integers(0, 12, (32, 32, 3))).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
        split = "train" if i < 72 else "val" if i < 96 else "test"
        rows.append({"sample_id": f"s{i}", "split": split, "group_id": f"s{i}", "image": f"{i}.png",
                     "text": "one" if i % 5 else "several", "label": WORDS[grey]})  # fmt: skip
    return pa.Table.from_pylist(rows), tmp_path, (model, words, processor, request.param)


def settings_of(folder, names=("image",), **prompts):
    kinds = {"image": {"kind": "image", "root": str(folder)}, "text": {"kind": "text"}}
    task = {"name": "classification", "label": "label", "prompts": {"templates": TEMPLATES, **prompts}}
    return build(DataSettings, {"modalities": {n: kinds[n] for n in names}, "task": task, "use_trunk": False}, "d")


def experiment(greys, placements=(), names=("image",), **prompts):
    table, folder, _ = greys
    data = settings_of(folder, names, **prompts)
    backbone = Backbone.from_pretrained(folder / "model", {name: name for name in names})
    plan = build(Plan, {"placements": [*placements, HEAD]}, "p")
    one = Experiment(table, backbone, data, plan, 0, "toy")
    one.begin(folder / "store", CacheSettings(dtype="float32"), lambda *_: None)
    return one


def split(one, folder, name="test"):
    features = one.extract(folder / "store", CacheSettings(dtype="float32"), lambda *_: None, CPU)
    return features, one.split(name, features, folder / "store", CPU)


def the_models_own(greys, which):
    """Softmax over labels as `transformers`' users have it: mean directions of the prompts, cosines, the scale."""
    from PIL import Image

    table, folder, (model, words, processor, name) = greys
    rows = [row for row in table.to_pylist() if row["split"] == which]
    shown = [Image.open(folder / row["image"]).convert("RGB") for row in rows]
    labels = sorted(set(table["label"].to_pylist()))
    texts = [template.replace("{}", label.replace("_", " ")) for label in labels for template in TEMPLATES]
    padding = {"padding": "max_length", "max_length": 16} if name == "siglip" else {"padding": True}
    ids = words(texts, return_tensors="pt", **padding)
    mask = {} if name == "siglip" else {"attention_mask": ids["attention_mask"]}
    with torch.no_grad():
        out = model(
            input_ids=ids["input_ids"],
            pixel_values=processor(images=shown, return_tensors="pt")["pixel_values"],
            **mask,
        )
    of_labels = out.text_embeds.unflatten(0, (len(labels), -1)).mean(1)
    of_labels = of_labels / of_labels.norm(dim=-1, keepdim=True)
    return (out.image_embeds @ of_labels.T * model.logit_scale.exp()).softmax(-1)


def test_zero_shot_is_the_models_own(greys):
    one = experiment(greys)
    _, test = split(one, greys[1])
    found, expected = zero_shot(one.model, test, 32).softmax(-1), the_models_own(greys, "test")
    assert (expected - expected[:1]).abs().max() > 1e-4 and (expected[:, :1] - expected).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert torch.equal(one.model.head.labels, experiment(greys).model.head.labels), "out of the store"


@pytest.mark.parametrize("placements", [(), (LORA,)], ids=["head", "lora"])
def test_training_starts_there_and_beats_it(greys, placements):
    one = experiment(greys, placements)
    features, test = split(one, greys[1])
    before = zero_shot(one.model, test, 32)
    states, start = test.features.batch(torch.arange(24)), test.features.frontier
    torch.testing.assert_close(one.model.eval()(states, start), before, atol=1e-4, rtol=1e-4)
    result = train_and_test(
        one, features, greys[1] / "store", TrainSettings(epochs=30, batch_size=24, learning_rate=0.02),
        EvaluationSettings(bootstrap_samples=20), greys[1] / "checkpoints", Reporter(), "toy", {},
    )  # fmt: skip
    known = one.task.metrics(before, test.targets)["accuracy"]
    assert result.metrics["before_training"] == known < 0.6
    assert result.metrics["test"]["accuracy"] > known + 0.2
    assert f"linear models of all {result.metrics['linear_models']:.3f}, before any training" in result.sentence()
    torch.testing.assert_close(zero_shot(one.model, test, 32), before, atol=1e-4, rtol=1e-4)
    loaded = result.artifact.build(greys[1] / "model")
    found = one.model(states, start)
    assert not torch.allclose(found, before, atol=0.1)
    torch.testing.assert_close(loaded(states, start), found)


def test_names_stand_beside_what_the_junction_makes(greys):
    """Streams are fused and may change their width; what is compared with names is the tower's own."""
    one = experiment(greys, (WANDER,), ("image", "text"))
    _, test = split(one, greys[1])
    expected = the_models_own(greys, "test")
    torch.testing.assert_close(zero_shot(one.model, test, 32).softmax(-1), expected, atol=1e-4, rtol=1e-3)


def test_each_modality_alone_is_asked_only_where_it_has_names(greys):
    table, folder, _ = greys
    data = settings_of(folder, ("image", "text"))
    assert "prompts" in data.alone("image").task and "prompts" not in data.alone("text").task
    found, _ = unimodal_metrics(
        table, folder / "model", data, build(Plan, {"placements": [HEAD]}, "p"), TrainSettings(epochs=2, batch_size=24),
        Workplace(
            Store(folder / "store"), CacheSettings(dtype="float32"), folder / "checkpoints", lambda *_: None,
            torch.device("cpu"),
        ),
    )  # fmt: skip
    assert set(found) == {"image", "text"} and found["image"] > found["text"]


def test_words_are_read_in_the_place_of_labels():
    task = make_task({"name": "classification", "label": "n", "prompts": {"templates": ["a {}."], "words": {1: "one"}}})
    task.fit({"n": [1, 2, "big_three"]})
    assert task.prompt_texts() == [["a one."], ["a 2."], ["a big three."]]


@pytest.mark.parametrize(
    "prompts, message",
    [
        ({"templates": ["a photo"]}, r"prompts.templates\[0\]: expected one \{\}, where a label's words go"),
        ({"templates": []}, "expected at least one text"),
        ({"modality": "picture"}, "prompts.modality: no modality 'picture'. Known: image"),
        (
            {"words": {"twelfth": "12"}},
            "'twelfth' is no label of the training rows in 'label'. Expected some of a_much",
        ),
    ],
)
def test_what_cannot_be_asked_is_named(greys, prompts, message):
    with pytest.raises(FusetuneError, match=message):
        experiment(greys, **prompts)


def test_a_tower_of_no_dual_encoder_cannot_be_asked(greys):
    from encoders import vit

    table, folder, _ = greys
    vit().save_pretrained(folder / "plain")
    backbone = Backbone.from_pretrained(folder / "plain", {"image": "image"})
    with pytest.raises(FusetuneError, match="'image' has no common space with texts. Expected the tower of a dual"):
        Experiment(table, backbone, settings_of(folder), build(Plan, {"placements": [HEAD]}, "p"), 0, "toy")


def test_among_several_tasks_nobody_is_asked():
    own = {"name": "classification", "label": "a", "prompts": {}}
    with pytest.raises(FusetuneError, match="tasks.one.prompts: among several tasks nobody is asked"):
        make_task({"name": "multi_task", "tasks": {"one": own, "two": {"name": "classification", "label": "b"}}})
