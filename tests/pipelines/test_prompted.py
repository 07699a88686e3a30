"""A folder of pictures with named classes and a dual encoder: asked by prompts, trained, registered, served."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from dual_encoders import saved
from PIL import Image
from serving import served

from conftest import copy_project, experiment_in, ran

WORDS = ["the", "first", "longer", "text"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("prompted"))
    saved(project / "encoder", "clip")
    (project / "pictures").mkdir()
    rng, lines = np.random.default_rng(0), ["file,kind"]
    for i in range(160):
        grey = i % 4
        values = (60 * grey + rng.integers(0, 30, (32, 32, 3))).astype(np.uint8)
        Image.fromarray(values).save(project / f"pictures/{i}.png")
        lines.append(f"{i}.png,{WORDS[grey]}")
    (project / "samples.csv").write_text("\n".join(lines) + "\n")
    parameters = {
        "ingest": {"reader": "manifest", "settings": {"file": "samples.csv", "sample_id": "file"},
                   "split": {"train": 0.5, "val": 0.25, "test": 0.25, "stratify": "kind", "seed": 0}},
        "backbone": {"source": str(project / "encoder")},
        "data": {"modalities": {"image": {"kind": "image", "column": "file", "root": "pictures"}},
                 "task": {"name": "classification", "label": "kind", "prompts": {"templates": ["one {}"]}},
                 "use_trunk": False},
        "validate": {"min_rows_per_split": 10},
    }  # fmt: skip
    experiment_in(project, "greys", parameters)
    return project


def test_a_classifier_that_starts_from_its_labels_names(project):
    text = ran(project, "greys", "--pipelines", "train_linear_probe")
    metrics = json.loads((project / "data/08_reporting/greys/linear_probe/metrics.json").read_text())
    known = metrics["before_training"]
    assert f"before any training {known:.3f}" in text and metrics["test"]["accuracy"] > known + 0.1
    card = (project / "data/06_models/greys/linear_probe/README.md").read_text()
    assert f"| before any training | {known:.3f} |" in card
    ran(project, "greys", "--pipelines", "predict")
    scored = pq.read_table(project / "data/07_model_output/greys/scored.parquet").to_pylist()
    expected = {row["sample_id"]: row["prediction"] for row in scored}
    assert len(set(expected.values())) == 4
    assert "up to date" in ran(project, "greys", "--pipelines", "train_linear_probe")
    (project / "encoder" / "tokenizer.json").unlink()  # whoever serves needs no text side
    with served(project, "models:/fusetune-greys@champion") as ask:
        import base64

        names = list(expected)[:3]
        pictures = [base64.b64encode((project / "pictures" / name).read_bytes()).decode() for name in names]
        status, text = ask([{"image": picture} for picture in pictures])
        assert status == 200, text
        answers = [answer["prediction"] for answer in json.loads(text)["predictions"]]
        assert answers == [expected[name] for name in names]
