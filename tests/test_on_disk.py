"""Rows of which main memory is said to hold next to nothing: the same numbers as of those that it holds."""

import errno
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from conftest import WANDER, Toy
from fusetune import keys as keys_module
from fusetune import on_disk
from fusetune.config import build, digest
from fusetune.errors import FusetuneError
from fusetune.features import dataset
from fusetune.features.index import CacheSettings
from fusetune.features.orders import batches
from fusetune.features.source import Source
from fusetune.manifest import validation
from fusetune.manifest.checks import ValidationSettings
from fusetune.manifest.readers.table import read, sources
from fusetune.manifest.schema import Modality
from fusetune.manifest.split_settings import SplitSettings
from fusetune.manifest.splits import with_splits
from fusetune.runs.run import train_and_test
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings

LITTLE = ((on_disk, "KEPT", 0), (on_disk, "ROWS", 7), (on_disk, "AT_ONCE", 5), (keys_module, "TOGETHER", 16),
          (keys_module, "AT_ONCE", 9), (validation, "BLOCK", 11))  # fmt: skip


@pytest.fixture
def little(monkeypatch, tmp_path):
    """Makes everything that has a place for each row a file, and works on a few rows at once."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def make() -> None:
        for module, name, value in LITTLE:
            monkeypatch.setattr(module, name, value)

    return make


def trained(folder, monkeypatch, shuffle: str):
    toy = Toy(folder)
    monkeypatch.setattr(dataset, "free_memory", lambda _: 0)  # all is read from the map
    experiment = toy.experiment(WANDER)
    cache = CacheSettings(dtype="float32", batch_size=16, shard_size=8, cut="frontier")
    experiment.begin(toy.store, cache, lambda *_: None)
    features = experiment.extract(toy.store, cache, lambda *_: None, toy.device)
    features.save(folder / "features.arrow")
    features = type(features).load(folder / "features.arrow")
    settings = TrainSettings(epochs=3, batch_size=8, device="cpu", shuffle=shuffle, length_buckets=shuffle == "rows")
    key = experiment.key(features, settings)
    result = train_and_test(
        experiment, features, toy.store, settings, EvaluationSettings(), folder / "checkpoints", Reporter(), "toy", {}
    )
    return key, features, result


@pytest.mark.parametrize("shuffle", ["rows", "blocks"])
def test_a_run_is_the_same_with_rows_on_disk(tmp_path, monkeypatch, little, shuffle):
    key, features, whole = trained(tmp_path / "whole", monkeypatch, shuffle)
    little()
    assert isinstance(on_disk.array(1, np.int64), np.memmap)
    same_key, same, little_by_little = trained(tmp_path / "little", monkeypatch, shuffle)
    assert same_key == key and same == features and whole.metrics == little_by_little.metrics
    assert whole.predictions.equals(little_by_little.predictions) and whole.scores.equals(little_by_little.scores)
    tensors = little_by_little.artifact.tensors
    assert all(torch.equal(value, tensors[name]) for name, value in whole.artifact.tensors.items()) and tensors
    assert len(set(whole.predictions["probability"].to_pylist())) > 10


@pytest.mark.parametrize("options", [{}, {"lengths": True}, {"blocks": True}, {"lengths": True, "blocks": True}])
def test_an_order_is_the_same_a_few_rows_at_a_time(options, little):
    drawn = np.random.default_rng(0)
    own = {name: drawn.integers(0, 40 if name == "blocks" else 9, 1000) for name in options}
    whole = [index.tolist() for index in batches(1000, 16, torch.Generator().manual_seed(3), **own)]
    in_turn = [index.tolist() for index in batches(1000, 16, lengths=own.get("lengths"))]
    little()
    assert [index.tolist() for index in batches(1000, 16, torch.Generator().manual_seed(3), **own)] == whole
    assert [index.tolist() for index in batches(1000, 16, lengths=own.get("lengths"))] == in_turn
    assert sorted(row for index in whole for row in index) == list(range(1000)) and whole[0] != sorted(whole[0])


def spoilt(rows: int) -> pa.Table:
    """A manifest in which nearly everything is wrong somewhere."""
    draw = random.Random(rows)
    names = [draw.choice([f"s{i}"] * 8 + [f"s{draw.randrange(rows)}", None]) for i in range(rows)]
    return pa.table(
        {
            "sample_id": pa.array(names, pa.string()),
            "group_id": [draw.choice([f"q{i}"] * 8 + [f"g{draw.randrange(rows // 30)}"]) for i in range(rows)],
            "split": [draw.choice(["train"] * 5 + ["val", "test", "odd"]) for _ in range(rows)],
            "label": [draw.choice(["a", "b"] * 9 + ["A ", "c", None, "1", "true"]) for _ in range(rows)],
            "text": [
                draw.choice([f"u{i}"] * 5 + [f"t{draw.randrange(rows // 20)}"] * 4 + ["", None]) for i in range(rows)
            ],
            "numbers": [
                draw.choice([[1.0, float(i % 2), 2.0]] * 9 + [[1.0], [float("nan")] * 3, None]) for i in range(rows)
            ],
        }
    )


def told(table: pa.Table) -> str:
    """Its rows, as text: a number that is none is like itself."""
    return str(table.to_pylist())


def test_validation_finds_the_same_a_few_rows_at_a_time(little):
    modalities = {"text": Modality("text"), "numbers": Modality("vector")}
    settings = build(ValidationSettings, {"max_quarantined": 1.0, "severity": {"label.trained": "warn"}}, "validate")
    whole = validation.validate(spoilt(300), modalities, ["label"], settings)
    little()
    parts = validation.validate(spoilt(300), modalities, ["label"], settings)
    assert {c["check"] for c in whole.report["checks"]} >= {
        "sample_id.missing", "sample_id.unique", "split.known", "group.leakage", "content.duplicate", "label.missing",
        "label.mixed", "label.alike", "cell.missing", "text.empty", "numbers.finite", "numbers.width",
    }  # fmt: skip
    assert 0 < whole.sound.num_rows < 300 and told(parts.sound) == told(whole.sound)

    def lines(outcome):
        return sorted(map(str, outcome.quarantine.to_pylist()))

    assert lines(parts) == lines(whole) and parts.quarantine.schema == whole.quarantine.schema
    few = [  # where more rows fail, which of them are shown depends on the order in which they are looked at
        {**report, "checks": [c if c["rows"] < 5 else {**c, "examples": []} for c in report["checks"]]}
        for report in (whole.report, parts.report)
    ]
    assert few[0] == few[1] and json.dumps(parts.report)


def test_labels_that_may_be_missing_are_none(little):
    table = pa.table({"sample_id": ["a", "b", "c", "d"], "group_id": ["a", "b", "c", "d"], "text": ["k", "l", "m", "n"],
                      "split": ["train", "train", "val", "test"], "label": ["x", "y", None, "x"]})  # fmt: skip
    warned = ValidationSettings(severity={"label.missing": "warn"}, max_quarantined=1.0)
    outcome = validation.validate(table, {"text": Modality("text")}, ["label"], warned)
    found = {c["check"]: [e["value"] for e in c["examples"]] for c in outcome.report["checks"]}
    assert found["label.every_split"] == ["val lacks x, y", "test lacks y"] and "label.trained" not in found
    assert outcome.sound.num_rows == 4 and list(outcome.report["labels"]["label"]) == ["x", "y"]


@pytest.mark.parametrize("stratify", [None, "label"])
def test_splits_are_the_same_a_few_rows_at_a_time(stratify, little):
    draw = random.Random(0)
    groups = [f"g{draw.randrange(90)}" if draw.random() < 0.7 else "large" for _ in range(400)]
    table = pa.table({"group_id": groups, "label": [draw.choice("abc") for _ in groups]})
    settings = SplitSettings(0.7, 0.2, 0.1, stratify, 5)
    whole = with_splits(table, settings)["split"].to_pylist()
    little()
    assert with_splits(table, settings)["split"].to_pylist() == whole and len(set(whole)) == 3
    by_group = {group: {s for g, s in zip(groups, whole, strict=True) if g == group} for group in set(groups)}
    assert all(len(splits) == 1 for splits in by_group.values())


def test_shards_of_a_manifest_are_read_in_their_order(tmp_path, little):
    whole = spoilt(60).drop_columns(["split"])
    for number in range(3):
        pq.write_table(whole.slice(number * 20, 20), tmp_path / f"part-{number}.parquet", row_group_size=8)
    little()
    pattern = {"file": str(tmp_path / "part-*.parquet")}
    assert told(read(pattern, "x")) == told(whole)
    assert sources(pattern) == [str(tmp_path / f"part-{number}.parquet") for number in range(3)]
    assert told(read({"file": str(tmp_path)}, "x")) == told(whole), "a folder"
    (tmp_path / "part-1.csv").write_text("label\na\n")
    with pytest.raises(
        FusetuneError, match=r"a folder of one kind of them, found .* with part-0\.parquet, part-1\.csv"
    ):
        read({"file": str(tmp_path)}, "x")
    with pytest.raises(FusetuneError, match=r"nothing-\*\.csv is not there"):
        read({"file": str(tmp_path / "nothing-*.csv")}, "x")
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "part-3.parquet")
    with pytest.raises(
        FusetuneError, match=r"part-3\.parquet, column 'sample_id': no such column, where .*part-0\.par"
    ):
        read(pattern, "x")


def test_tables_and_columns_come_out_as_they_went_in(little):
    whole, rows = spoilt(100), [3, 4, 4, 99]
    expected = whole.take(rows)
    little()
    batches = iter(whole.to_batches(max_chunksize=9))
    assert told(on_disk.table(batches, whole.schema)) == told(whole)
    assert told(on_disk.rows_of(whole, rows)) == told(expected)
    kept = np.arange(100) % 3 == 0
    assert told(on_disk.filtered(whole, kept)) == told(whole.filter(pa.array(kept)))
    cells = on_disk.Cells(whole["label"], np.array(rows))
    assert list(cells) == expected["label"].to_pylist() == [cells[i] for i in range(4)] and len(cells[1:3]) == 2
    assert list(on_disk.Cells(whole["label"])[90:]) == whole["label"].to_pylist()[90:]


def test_the_digest_of_data_is_that_of_its_lists(little):
    table = spoilt(60)
    modalities = {"numbers": Modality("vector"), "text": Modality("text")}
    lists = [{name: table[name].to_pylist() for name in ("sample_id", "split", "label")}]
    lists.append({name: list(keys) for name, keys in Source(table, modalities).content_keys().items()})
    little()
    assert Source(table, modalities).digest(["label"]) == digest(lists) != Source(table, modalities).digest()


def test_a_full_disk_is_one_sentence(monkeypatch, little):
    little()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(FusetuneError, match="the disk is full; 0.80 GB or more were asked for, .* TMPDIR"):
        on_disk.array(10**8, np.int64)
