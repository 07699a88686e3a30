"""Where and when, by the real commands: from pictures with boxes to a served box, and to one in words."""

import base64
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageDraw
from serving import served
from speaking import saved_llava

from conftest import copy_project, experiment_in, kedro, ran

TARGETS = ["query", "key", "value", "attention_output", "mlp_input", "mlp_gate", "mlp_output"]
LORA = {
    "placements": [
        {"where": "towers", "adapter": "lora", "blocks": "all", "config": {"rank": 16, "targets": TARGETS}},
        {"where": "head", "adapter": "linear"},
    ],
    "train": {"epochs": 25, "patience": 25, "learning_rate": 0.004, "batch_size": 32},
}  # fmt: skip
SIZE = (48, 40)  # pixels; the model sees the middle square of it


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A light and a dark square on a grey ground, and a text that asks for one of them."""
    project = copy_project(tmp_path_factory.mktemp("places"))
    saved_llava(project / "llava")
    (project / "pictures").mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(420):
        picture = Image.new("L", SIZE, 128)
        drawn, left = {}, bool(rng.integers(2))
        for name, grey, half in (("light", 250, left), ("dark", 10, not left)):
            side = int(rng.integers(10, 16))
            x = int(rng.integers(0, 24 - side // 2) if half else rng.integers(24, 40 - side))
            y = int(rng.integers(2, 38 - side))
            ImageDraw.Draw(picture).rectangle([x, y, x + side - 1, y + side - 1], fill=grey)
            drawn[name] = [x, y, side, side]
        asked = ["light", "dark"][int(rng.integers(2))]
        picture.save(project / f"pictures/{i}.png")
        split = "train" if i < 300 else "val" if i < 350 else "test"
        box = drawn[asked] if i != 400 else [30, 10, 90, 90]  # beyond the picture
        rows.append({"file": f"{i}.png", "split": split, "asked": f"is it {asked}", "box": box})
    (project / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    modalities = {
        "image": {"kind": "image", "column": "file", "root": "pictures"},
        "text": {"kind": "text", "column": "asked"},
    }
    parameters = {
        "ingest": {"reader": "manifest", "settings": {"file": "samples.jsonl", "sample_id": "file"}},
        "backbone": {"source": str(project / "llava")},
        "data": {"modalities": modalities, "use_trunk": True, "task": {"name": "grounding", "format": "xywh"}},
        "validate": {"min_rows_per_split": 10, "severity": {"content.duplicate": "off"}},
    }  # fmt: skip
    words = {"name": "grounding_in_words", "format": "xywh", "max_answer_tokens": 40}
    in_words = {"data": {**parameters["data"], "task": words}, "evaluate": {"answered": 20}}
    for name, changed, epochs in (("boxes", {}, 25), ("words", in_words, 4)):
        folder = experiment_in(project, name, parameters | changed)
        (folder / "methods").mkdir()
        method = LORA | {"train": LORA["train"] | {"epochs": epochs}}
        (folder / "methods/lora.yml").write_text(yaml.safe_dump({"lora": method}, sort_keys=False))
    return project


def test_a_box_from_raw_data_to_a_served_answer(project):
    text = ran(project, "boxes", "--pipelines", "train_lora")
    assert "box.outside (box) 1, e.g. row 400: [30.0, 10.0, 90.0, 90.0]: not within 48 x 40 pixels" in text, text
    reported = project / "data/08_reporting/boxes/lora"
    metrics = json.loads((reported / "metrics.json").read_text())
    plain = max(metrics["plain"].values())
    assert metrics["test"]["accuracy_at_50"] > 0.5 > 2 * plain, metrics
    assert list(metrics["unimodal"]) == ["image"], "a text alone has no place to look at"
    assert (reported / "figures/located.png").stat().st_size > 10_000
    table = pq.read_table(project / "data/07_model_output/boxes/lora/predictions.parquet")
    assert {"box", "predicted_box"} <= set(table.column_names)
    assert table["box"].to_pylist() != table["predicted_box"].to_pylist(), (
        "what is right stands beside what was answered"
    )
    ran(project, "boxes", "--pipelines", "predict")
    scored = pq.read_table(project / "data/07_model_output/boxes/scored.parquet").to_pylist()
    right = {row["file"]: row["box"] for row in map(json.loads, (project / "samples.jsonl").read_text().splitlines())}
    near = [np.abs(np.array(r["box"]) - corners(right[r["sample_id"]])).max() for r in scored]
    assert np.median(near) < 5, "in pixels of the picture as it is, not of what the model sees"
    names = [row["sample_id"] for row in scored[:3]]
    asked = {row["file"]: row["asked"] for row in map(json.loads, (project / "samples.jsonl").read_text().splitlines())}
    rows = [{"image": encoded(project, name), "text": asked[name]} for name in names]
    with served(project, "models:/fusetune-boxes@champion") as ask:
        status, answer = ask(rows)
        assert status == 200, answer
        for found, row in zip(json.loads(answer)["predictions"], scored, strict=False):
            assert np.allclose(found["box"], row["box"], atol=1e-2)


def test_a_box_in_words_is_trained_and_predicted(project):
    text = ran(project, "words", "--pipelines", "train_lora")
    metrics = json.loads((project / "data/08_reporting/words/lora/metrics.json").read_text())
    assert {"accuracy_at_50", "mean_iou", "boxes"} <= set(metrics["said"]) and metrics["said"]["samples"] == 20
    assert metrics["test"]["token_accuracy"] > 0.4, "brackets, dots and commas are learned first"
    assert "reach beyond what the model sees; the part that it sees is said" in text
    ran(project, "words", "--pipelines", "predict")
    scored = pq.read_table(project / "data/07_model_output/words/scored.parquet").to_pylist()
    assert all(row["box"] is None or len(row["box"]) == 4 for row in scored)


def test_the_places_of_what_is_augmented_are_not_asked_for(project):
    done = kedro(
        project, "run", "--env", "boxes", "--pipelines", "train_lora", "--params",
        "data.modalities.image.augment.name=crop_flip,cache.views=2",
    )  # fmt: skip
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "what is asked for are places in 'image', and these would move" in text, text[-800:]


def corners(box):
    left, top, width, height = box
    return np.array([left, top, left + width, top + height])


def encoded(project, name):
    return base64.b64encode((project / "pictures" / name).read_bytes()).decode()
