"""Batch scoring and merging by the real command, on what `train_wander` and `train_lora` have left."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from conftest import kedro
from fusetune.bank.artifact import Artifact
from fusetune.bank.bank import Bank
from fusetune.pipelines.hashing import content_hash

SCORED = "data/07_model_output/ci/scored.parquet"


@pytest.fixture(scope="module")
def project(trained_project, tmp_path_factory):
    return Path(shutil.copytree(trained_project, tmp_path_factory.mktemp("after") / "project", symlinks=True))


def run(project, *arguments):
    done = kedro(project, "run", "--env", "ci", *arguments)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_the_champion_predicts_what_it_predicted_in_training(project):
    code, text = run(project, "--pipeline", "predict")
    assert code == 0 and "fusetune-ci/1: 128 rows predicted, 0 could not be read" in text
    scored = pq.read_table(project / SCORED)
    trained = pq.read_table(project / "data/07_model_output/ci/wander/predictions.parquet")
    assert scored["sample_id"].to_pylist() == trained["sample_id"].to_pylist()
    assert scored["prediction"].to_pylist() == trained["prediction"].to_pylist()
    labels = json.loads(scored.schema.metadata[b"probabilities"])
    for row in scored.slice(0, 10).to_pylist():
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == pytest.approx(row["probabilities"][labels.index(row["prediction"])])
    adapter = content_hash(project / "data/06_models/ci/wander")
    assert set(scored["adapter_sha256"].to_pylist()) == {adapter}, "from a prediction back to the adapter's bytes"
    config = json.loads((project / "data/06_models/ci/wander/adapter_config.json").read_text())
    assert scored.schema.metadata[b"base_fingerprint"].decode() == config["base_fingerprint"]
    metrics = json.loads((project / "data/08_reporting/ci/wander/metrics.json").read_text())
    told = json.loads((project / "data/08_reporting/ci/scored_metrics.json").read_text())
    assert told["metrics"]["accuracy"] == metrics["test"]["accuracy"] and told["evaluated_rows"] == 128
    assert "predict: up to date" in run(project, "--pipeline", "predict")[1]


def test_a_table_of_ones_own_in_which_some_rows_are_broken(project, tmp_path):
    manifest = pq.read_table(project / "data/03_primary/ci/manifest.parquet").slice(0, 6)
    images = manifest["image"].to_pylist()
    images[1], images[2] = [b"no picture"], None
    texts = manifest["text"].to_pylist()
    texts[2], texts[3] = None, None
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"image": pa.array(images, manifest["image"].type), "text": texts}), file)
    asked = ("--pipeline", "predict", "--params", f"predict.samples={file},predict.adapter=fusetune-ci@champion")
    code, text = run(project, *asked)
    assert code == 0 and "4 rows predicted, 2 could not be read" in text
    first = pq.read_table(project / SCORED)
    rows = first.to_pylist()
    assert [row["prediction"] is None for row in rows] == [False, True, True, False, False, False]
    assert "row 1, column 'image': 10 bytes are no readable image" in rows[1]["error"]
    assert "row 2: no modality is given" in rows[2]["error"]
    assert len({row["content_sha256"] for row in rows}) == 6
    images[5] = images[4]
    pq.write_table(pa.table({"image": pa.array(images, manifest["image"].type), "text": texts}), file)
    assert run(project, *asked)[0] == 0
    second = pq.read_table(project / SCORED)
    changed = [a != b for a, b in zip(rows, second.to_pylist(), strict=True)]
    assert changed == [False] * 5 + [True], "another file is another result, and only the changed row differs"
    assert first.schema.metadata[b"data_sha256"] != second.schema.metadata[b"data_sha256"]


def written(rows, folder, right=True):
    """Test rows as a CSV beside a folder of their first pictures; or with each picture in the place of another."""
    folder.mkdir()
    order = list(range(len(rows))) if right else [*range(1, len(rows)), 0]
    for i, place in enumerate(order):
        (folder / f"{i}.png").write_bytes(rows[place]["image"][0])
    lines = [f"{i};{row['text']};{i}.png;{row['answer']};{row['question_type']}" for i, row in enumerate(rows)]
    file = folder / "samples.csv"
    file.write_text("\n".join(["number;text;image;answer;question_type", *lines]) + "\n")
    return file


def test_a_second_set_elsewhere_is_scored_with_its_own_pictures_and_evaluated(project, tmp_path):
    manifest = pq.read_table(project / "data/03_primary/ci/manifest.parquet").to_pylist()
    rows = [row for row in manifest if row["split"] == "test"]
    config = json.loads((project / "data/06_models/ci/wander/adapter_config.json").read_text())
    assert "root" not in json.dumps(config["data"]), "where files are is no part of an adapter"
    report, found = project / "data/08_reporting/ci/scored_metrics.json", {}
    for right in (True, False):
        file = written(rows, tmp_path / str(right), right)
        asked = f"predict.samples={file},predict.roots.image={file.parent}"
        code, text = run(project, "--pipelines", "predict", "--params", asked)
        assert code == 0 and "128 rows predicted, 0 could not be read" in text, text
        found[right] = pq.read_table(project / SCORED)["prediction"].to_pylist()
        told = json.loads(report.read_text())
        assert told["evaluated_rows"] == 128 and told["rows_left_out"] == 0
        right_ones = [a == row["answer"] for a, row in zip(found[right], rows, strict=True)]
        assert told["metrics"]["accuracy"] == pytest.approx(sum(right_ones) / 128)
        assert set(told["metrics"]["by_group"]) == {row["question_type"] for row in rows}
    assert found[False] != found[True], "the pictures of the folder that was asked for"
    (file.parent / "3.png").write_bytes(b"")
    file.write_text(file.read_text().replace(f";{rows[5]['answer']};", ";never seen;", 1))
    code, text = run(project, "--pipelines", "predict", "--params", asked)
    told = json.loads(report.read_text())
    assert code == 0 and "127 rows predicted, 1 could not be read" in text and "are left out of the metrics" in text
    assert told["rows_left_out"] >= 1 and told["evaluated_rows"] + told["rows_left_out"] == 127


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("predict.roots.text=/nowhere", "predict.roots: 'text' has no files; those that have: image"),
        ("predict.adapter=fusetune-ci/9", "adapter 'fusetune-ci/9'"),
        ("predict.samples=nowhere.parquet", "predict.samples: no file 'nowhere.parquet'"),
        ("predict.split=tset", "predict.split: no row of split 'tset'"),
        ("predict.adapter=conf", "expected an adapter's folder with adapter_config.json"),
    ],
)
def test_a_mistake_is_one_line(project, params, message):
    code, text = run(project, "--pipeline", "predict", "--params", params)
    assert code == 1 and message in text and "Traceback" not in text


def test_merging_reports_each_task_before_and_after(project):
    assert run(project, "--pipeline", "train_lora")[0] == 0
    one = Artifact.from_pretrained(project / "data/06_models/ci/lora")
    torch.manual_seed(0)
    noise = {n: t + torch.randn_like(t) * 0.05 * ("lora_" in n) for n, t in one.tensors.items()}
    replace(one, tensors=noise).save_pretrained(project / "other")
    with (project / "conf/ci/parameters.yml").open("a") as file:
        file.write(
            "merge:\n  how: ties\n  density: 0.5\n  adapters:\n"
            "    first: {adapter: data/06_models/ci/lora, weight: 0.6}\n"
            "    second: {adapter: other, manifest: data/03_primary/ci/manifest.parquet, weight: 0.4}\n"
        )
    code, text = run(project, "--pipeline", "merge")
    assert code == 0 and "first: test accuracy" in text
    report = json.loads((project / "data/08_reporting/ci/merge.json").read_text())
    metrics = json.loads((project / "data/08_reporting/ci/lora/metrics.json").read_text())
    assert report["tasks"]["first"]["before"] == pytest.approx(metrics["test"]["accuracy"], abs=0.02)
    assert set(report["tasks"]["second"]) == {"metric", "before", "after", "weight"} and report["how"] == "ties"
    bank = Bank(project / "data/06_models/ci/base.json")
    for name in ("first", "second"):
        bank.load(name, project / "data/06_models/ci/merged" / name)
    change = [bank.model(name).placed[0].adapter.delta() for name in ("first", "second")]
    assert change[0].keys() == change[1].keys()
    for name in change[0]:
        torch.testing.assert_close(change[0][name], change[1][name])
    assert "merge: up to date" in run(project, "--pipeline", "merge")[1]


def test_merging_nothing_says_how_it_is_asked_for(trained_project):
    code, text = run(trained_project, "--pipeline", "merge")
    assert code == 1 and "merge.adapters: expected at least one, e.g." in text


def test_a_student_learns_from_the_champion_and_is_asked_without_it(project):
    """Pictures alone, with few labels, by all parts of the loss; what is kept knows nothing of a teacher."""
    settings = {
        "modalities": ["image"],
        "labels": [1.0, 0.2],
        "seeds": [0, 1],
        "method": "perceiver_resampler",
        "shares": {"features": 0.1, "relations": 0.1},
    }
    (project / "conf/ci/parameters_distil.yml").write_text(json.dumps({"distil": settings}))
    code, text = run(project, "--pipeline", "distil")
    assert code == 0, text
    told = json.loads((project / "data/08_reporting/ci/distilled/metrics.json").read_text())
    trained = json.loads((project / "data/08_reporting/ci/wander/metrics.json").read_text())
    assert told["teacher"] == "fusetune-ci/1"
    assert told["teacher_test"] == pytest.approx(trained["test"]["accuracy"], abs=0.02)  # features are of 16 bits
    assert told["labels"]["1"]["rows"] == 512 and 60 < told["labels"]["0.2"]["rows"] < 150
    for own in told["labels"].values():
        assert set(own["alone"]) == set(own["taught"]) == {"0", "1"}
    assert any(own["alone"] != own["taught"] for own in told["labels"].values()), "with few labels, if not with all"
    assert (project / "data/08_reporting/ci/distilled/figures/distilled.png").stat().st_size > 5_000
    student = json.loads((project / "data/06_models/ci/student/adapter_config.json").read_text())
    assert student["data"]["task"]["name"] == "vqa" and list(student["data"]["modalities"]) == ["image"]
    code, text = run(project, "--pipeline", "predict", "--params", "predict.adapter=data/06_models/ci/student")
    assert code == 0 and "128 rows predicted" in text, text
    scored = json.loads((project / "data/08_reporting/ci/scored_metrics.json").read_text())
    assert scored["metrics"]["accuracy"] == pytest.approx(told["labels"]["1"]["taught"]["0"], abs=0.02)
    code, text = run(project, "--pipeline", "distil")
    assert "distil: up to date" in text
    code, text = run(project, "--pipeline", "distil", "--params", "distil.method=linear_probe")
    assert code and "'linear_probe' places nothing there" in text, "it would learn nothing from them"
    code, text = run(project, "--pipeline", "distil", "--params", "distil.modalities=[sound]")
    assert code and "distil.modalities: no modality 'sound'. Known: text, image" in text, text
