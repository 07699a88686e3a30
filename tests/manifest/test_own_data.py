"""Data that a user brings without any Python: tables, array files, splits, and the whole chain from a folder."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from media import png

from conftest import copy_project, kedro
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.table import read
from fusetune.manifest.split_settings import SplitSettings
from fusetune.manifest.splits import with_splits

ROWS = [("007", "a cat, asleep", "cat"), ("008", 'a "dog"', "dog"), ("009", "", "cat")]


def written(folder, suffix: str):
    file = folder / f"samples{suffix}"
    if suffix in (".csv", ".tsv"):
        import csv

        with file.open("w", newline="", encoding="utf-8-sig") as handle:  # with a byte order mark, as Excel has it
            writer = csv.writer(handle, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([("id", "text", "label"), *ROWS])
    elif suffix == ".jsonl":
        lines = [json.dumps({"id": i, "text": t or None, "label": v}) for i, t, v in ROWS]
        file.write_text("\n".join(lines) + "\n\n")
    else:
        columns = zip(*ROWS, strict=True)
        pq.write_table(pa.table(dict(zip(("id", "text", "label"), map(list, columns), strict=True))), file)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_the_same_rows_from_every_format(tmp_path, suffix):
    table = read({"file": str(written(tmp_path, suffix)), "sample_id": "id"}, "ingest.settings")
    assert table["sample_id"].to_pylist() == ["007", "008", "009"] == table["group_id"].to_pylist()
    assert table["text"].to_pylist()[:2] == ["a cat, asleep", 'a "dog"']
    assert table["text"].to_pylist()[2] in (None, "") and table["label"].to_pylist() == ["cat", "dog", "cat"]


def test_rows_without_an_id_are_numbered(tmp_path):
    assert read({"file": str(written(tmp_path, ".csv"))}, "x")["sample_id"].to_pylist() == [
        "00000000", "00000001", "00000002",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_arrays_come_from_files(tmp_path, suffix):
    from safetensors.numpy import save_file

    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    sequences = np.arange(24, dtype=np.float64).reshape(4, 3, 2)
    for name, array in (("v", vectors), ("s", sequences)):
        file = tmp_path / f"{name}{suffix}"
        if suffix == ".npy":
            np.save(file, array)
        elif suffix == ".npz":
            np.savez(file, only=array)
        else:
            save_file({"only": array}, file)
    lines = [json.dumps({"id": str(i), "place": place}) for i, place in enumerate((2, 0, 2))]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    arrays = {
        "v": {"file": str(tmp_path / f"v{suffix}"), "key": "only"},
        "s": {"file": str(tmp_path / f"s{suffix}"), "key": "only", "index": "place"},
    }
    table = read({"file": str(tmp_path / "m.jsonl"), "sample_id": "id", "arrays": arrays}, "x")
    assert table["v"].to_pylist() == vectors.tolist()
    assert table["s"].to_pylist() == sequences[[2, 0, 2]].tolist()
    arrays["s"].pop("index")
    with pytest.raises(FusetuneError, match=r"x.arrays.s: 4 rows in .*, 3 in the manifest.*`index`"):
        read({"file": str(tmp_path / "m.jsonl"), "arrays": arrays}, "x")


def faulty(folder):
    """What is on disk, the settings, and what is said."""
    (folder / "latin.csv").write_bytes("id,text\n1,na\xefve\n".encode("latin-1"))
    (folder / "ragged.csv").write_text("id,text\n1,a\n2,b,c\n")
    (folder / "twice.csv").write_text("id,id\n1,2\n")
    (folder / "broken.jsonl").write_text('{"id": 1}\n{"id": \n')
    (folder / "list.jsonl").write_text("[1, 2]\n")
    (folder / "mixed.jsonl").write_text('{"v": [1.0]}\n{"v": [2.0]}\n{"v": "three"}\n')
    (folder / "fake.parquet").write_bytes(b"PAR1 no PAR1")
    (folder / "good.csv").write_text("id,text,place\n1,a,0\n2,b,9\n")
    np.save(folder / "objects.npy", np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    np.save(folder / "flat.npy", np.arange(3.0))
    np.save(folder / "two.npy", np.ones((2, 2)))
    good = str(folder / "good.csv")
    return {
        "no file": ({"file": "nowhere.csv"}, r"x.file: nowhere.csv is not there \(looked in"),
        "another format": ({"file": "a.xlsx"}, "x.file: expected .parquet, .csv, .tsv or .jsonl, or a folder.*a.xlsx"),
        "not UTF-8": ({"file": str(folder / "latin.csv")}, "latin.csv: no readable CSV in UTF-8"),
        "ragged lines": ({"file": str(folder / "ragged.csv")}, "ragged.csv: no readable CSV.*Expected 2 col"),
        "a column twice": ({"file": str(folder / "twice.csv")}, "twice.csv: the column 'id' stands there twice"),
        "broken JSON": ({"file": str(folder / "broken.jsonl")}, "broken.jsonl, line 2: no JSON"),
        "no object": ({"file": str(folder / "list.jsonl")}, "list.jsonl, line 1: expected an object"),
        "mixed types": ({"file": str(folder / "mixed.jsonl")}, "'v': expected a list in every row; row 2 holds a str"),
        "no Parquet": ({"file": str(folder / "fake.parquet")}, "fake.parquet: no readable Parquet"),
        "an unknown key": ({"file": good, "sampleid": "id"}, "x: unknown key 'sampleid'. Did you mean 'sample_id'"),
        "an unknown column": ({"file": good, "split": "fold"}, "x.split: no column 'fold'. There are id, text"),
        "a pickle": (
            {"file": good, "arrays": {"v": {"file": str(folder / "objects.npy")}}},
            "x.arrays.v: .*objects.npy has no array.*allow_pickle=False",
        ),
        "a flat array": (
            {"file": good, "arrays": {"v": {"file": str(folder / "flat.npy")}}},
            r"found float64 of shape \(3,\)",
        ),
        "an index too large": (
            {"file": good, "arrays": {"v": {"file": str(folder / "two.npy"), "index": "place"}}},
            "row 1 asks for 9 of 2 rows",
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *("no file", "another format", "not UTF-8", "ragged lines", "a column twice", "broken JSON", "no object"),
        *("mixed types", "no Parquet", "an unknown key", "an unknown column", "a pickle", "a flat array"),
        "an index too large",
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path, name):
    settings, message = faulty(tmp_path)[name]
    with pytest.raises(FusetuneError, match=message):
        read(settings, "x")


def people(order=None) -> pa.Table:
    rng = np.random.default_rng(0)
    groups = [f"p{i}" for i in range(300) for _ in range(int(rng.integers(1, 4)))]
    labels = ["rare" if int(g[1:]) % 10 == 0 else "common" for g in groups]
    table = pa.table({"sample_id": [f"s{i}" for i in range(len(groups))], "group_id": groups, "label": labels})
    return table if order is None else table.take(pa.array(order(table.num_rows)))


def test_splits_keep_groups_whole_labels_balanced_and_never_change():
    settings = SplitSettings(0.7, 0.1, 0.2, "label", 3)
    table = with_splits(people(), settings)
    frame = table.to_pandas()
    assert (frame.groupby("group_id")["split"].nunique() == 1).all()
    shares = frame["split"].value_counts(normalize=True)
    assert abs(shares["train"] - 0.7) < 0.01 and abs(shares["test"] - 0.2) < 0.01
    rare = frame[frame["label"] == "rare"]["split"].value_counts(normalize=True)
    assert abs(rare["train"] - 0.7) < 0.06 and abs(rare["test"] - 0.2) < 0.06
    shuffled = with_splits(people(np.random.default_rng(1).permutation), settings).to_pandas()
    assert dict(zip(shuffled["sample_id"], shuffled["split"], strict=True)) == dict(
        zip(frame["sample_id"], frame["split"], strict=True)
    )
    assert with_splits(people(), SplitSettings(0.7, 0.1, 0.2, "label", 4))["split"] != table["split"]
    digest = hashlib.sha256("".join(table["split"].to_pylist()).encode()).hexdigest()[:12]
    assert digest == "cf58ec9ce359", "the same on any machine"


def test_a_folder_of_pictures_and_a_csv_is_trained_on_without_python(tmp_path):
    """The README's example, word for word in its conf; one broken picture is set aside, and the rest is trained on."""
    import re

    from conftest import ROOT

    project = copy_project(tmp_path / "project")
    data = tmp_path / "mine"
    (data / "pictures").mkdir(parents=True)
    lines = ["file,caption,kind,author"]
    for row in range(240):
        kind = row % 2
        (data / "pictures" / f"{row}.png").write_bytes(png(row // 2 + 128 * kind, (40, 40)))
        lines.append(f"{row}.png,a picture of {'night' if kind else 'day'},{'dark' if kind else 'light'},a{row // 3}")
    (data / "pictures" / "7.png").write_bytes(b"no picture")
    (data / "samples.csv").write_text("\n".join(lines) + "\n")
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(# conf/mydata/.*?)```", readme, re.DOTALL)
    assert blocks, "the README shows conf/mydata"
    for part in re.split(r"^# (?=conf/mydata/)", blocks[0], flags=re.MULTILINE)[1:]:
        name, _, text = part.partition("\n")
        file = project / name.strip()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# from the README\n" + text.replace("/data/mydata", str(data)))
    small = "pretrain.contrast_steps=5,pretrain.trunk_steps=5,wander.train.epochs=3,train.epochs=2"
    done = kedro(project, "run", "--pipeline", "train_wander", "--env", "mydata", "--params", small)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    report = json.loads((project / "data/08_reporting/mydata/validation.json").read_text())
    assert report["quarantined_rows"] == 1 and report["checks"][-1]["check"] in ("image.decodes", "label.every_split")
    (line,) = pq.read_table(project / "data/08_reporting/mydata/quarantine.parquet").to_pylist()
    assert line["check"] == "image.decodes" and line["sample_id"] == "7.png"
    metrics = json.loads((project / "data/08_reporting/mydata/wander/metrics.json").read_text())
    assert metrics["train_samples"] + metrics["test_samples"] < 240
    again = kedro(project, "run", "--pipeline", "train_wander", "--env", "mydata", "--params", small)
    assert "everything is up to date" in " ".join((again.stdout + again.stderr).split())
    for row in range(40, 60):
        (data / "pictures" / f"{row}.png").write_bytes(b"")
    # the manifest is unchanged; what it points to is not
    refused = kedro(project, "run", "--pipeline", "train_wander", "--env", "mydata", "--params", small)
    said = " ".join((refused.stdout + refused.stderr).split())
    assert refused.returncode == 1 and "max_quarantined: 21 of 240 rows" in said and "path.empty" in said
    assert "Traceback" not in said


def test_few_labels_leave_so_many_training_rows_a_class_and_all_others():
    from fusetune.manifest.few_shot import few_shot
    from fusetune.manifest.split_settings import FewShotSettings

    table = with_splits(people(), SplitSettings(0.7, 0.1, 0.2, "label", 3))
    few = few_shot(table, FewShotSettings("label", 4, 0)).to_pandas()
    counts = few[few["split"] == "train"]["label"].value_counts()
    assert counts.to_dict() == {"rare": 4, "common": 4}
    whole = table.to_pandas()
    assert (few["split"] != "train").sum() == (whole["split"] != "train").sum()
    other = few_shot(table, FewShotSettings("label", 4, 1)).to_pandas()
    assert set(other["sample_id"]) != set(few["sample_id"])
    with pytest.raises(FusetuneError, match="few_shot.label: no column 'kind'"):
        few_shot(table, FewShotSettings("kind", 4))


def test_a_changed_source_file_is_noticed_by_every_node_that_reads_it(tmp_path):
    from fusetune.pipelines.ingest.nodes import read_manifest
    from fusetune.pipelines.pretrain.nodes import read_source

    file = written(tmp_path, ".csv")
    reader = {"reader": "manifest", "settings": {"file": str(file)}}
    inputs = {"params:pretraining_data": reader, "params:align": {"unlabelled": None}}
    before = read_manifest.outside({"params:ingest": reader}), read_source.outside(inputs)
    assert before[0] == before[1] and len(before[0]) == 1
    file.write_text("id\n1\n")
    assert read_source.outside(inputs) == read_manifest.outside({"params:ingest": reader}) != before[0]
    file.unlink()
    assert read_source.outside(inputs) == ["not there"]
    assert len(read_source.outside({**inputs, "params:align": {"unlabelled": reader}})) == 2
