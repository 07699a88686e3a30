"""`--env speak` and `--env describe`: the embedded model that speaks, from pretraining to answers, at a small size."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from conftest import copy_project, kedro, ran

SMALL = (
    "pretrain_llava.sight_steps=4,pretrain_llava.speech_steps=4,ingest.settings.samples.train=96,"
    "ingest.settings.samples.val=48,ingest.settings.samples.test=48,validate.min_rows_per_split=10,train.epochs=1,"
    "evaluate.bootstrap_samples=50,evaluate.answered=20"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("speak"))


def test_questions_and_captions_share_one_model(project):
    ran(project, "speak", "--pipelines", "train_lora", "--params", f"{SMALL},lora.train.epochs=1")
    bases = project / "data/06_models/bases"
    made = [folder.name for folder in bases.glob("llava-*")]
    assert len(made) == 1 and (bases / made[0] / "chat_template.jinja").is_file()
    adapter = json.loads((project / "data/06_models/speak/lora/adapter_config.json").read_text())
    assert set(adapter["streams"]) == {"image", "text"}
    predictions = pq.read_table(project / "data/07_model_output/speak/lora/predictions.parquet")
    assert predictions.num_rows == 48
    said = [row for row in predictions.to_pylist() if row["prediction"] is not None]
    metrics = json.loads((project / "data/08_reporting/speak/lora/metrics.json").read_text())
    assert metrics["said"]["samples"] == len(said) == 20 and set(metrics["said"]["by_group"]) <= set(
        predictions["question_type"].to_pylist()
    )
    right = sum(row["prediction"] == row["answer"] for row in said) / len(said)
    assert metrics["said"]["exact_match"] == pytest.approx(right)
    assert sum(row["score"] for row in said) / len(said) == pytest.approx(right), "what teacher forcing counts"
    text = ran(project, "describe", "--pipelines", "train_lora", "--params", SMALL)
    assert f"{made[0]} was made from these very settings and data before" in text
    assert [folder.name for folder in bases.glob("llava-*")] == made
    manifest = pq.read_table(project / "data/03_primary/describe/manifest.parquet")
    assert all(len(row) == 1 for row in manifest["image"].to_pylist()), "one picture of four characters"
    assert all(text.count(" , ") == 3 for text in manifest["description"].to_pylist())


def test_a_method_that_trains_the_head_alone_is_refused(project):
    done = kedro(project, "run", "--env", "speak", "--pipelines", "train_linear_probe", "--params", SMALL)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0 and "linear_probe: it trains nothing, since the head" in text, text


def test_the_base_moves_with_its_folder(project, tmp_path):
    """Its index names the model by a relative path: `dvc pull` on another machine finds it."""
    from fusetune.backbones.backbone import Backbone

    reference = project / "data/06_models/speak/base.json"
    fingerprint = Backbone.from_pretrained(reference).fingerprint()
    moved = tmp_path / "data/06_models"
    shutil.copytree(project / "data/06_models", moved)
    shutil.move(project / "data/06_models/bases", project / "data/06_models/elsewhere")
    try:
        assert Backbone.from_pretrained(moved / "speak/base.json").fingerprint() == fingerprint
    finally:
        shutil.move(project / "data/06_models/elsewhere", project / "data/06_models/bases")
