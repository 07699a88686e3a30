"""What `kedro viz` shows of datasets: it goes by the return types' names."""

import base64
import inspect
import json

import pyarrow as pa

from fusetune.pipelines.datasets import CSVDataset, FiguresDataset, JSONDataset, TableDataset
from fusetune.report.figures import Figures, blank


def kind(dataset) -> str:
    return inspect.signature(dataset.preview).return_annotation.__name__


def test_a_table_shows_its_first_rows_and_counts_bytes(tmp_path):
    rows = {"sample_id": [f"s{i}" for i in range(50)], "image": [b"1234"] * 50, "text": ["x" * 100] + [None] * 49}
    dataset = TableDataset(filepath=str(tmp_path / "t.parquet"))
    dataset.save(pa.table({**rows, "value": [0.5] * 50}))
    shown = dataset.preview()
    assert kind(dataset) == "TablePreview" and shown["columns"] == ["sample_id", "image", "text", "value"]
    assert shown["index"] == list(range(20)) and shown["data"][0] == ["s0", "4 bytes", "x" * 57 + "...", 0.5]
    assert shown["data"][1][2] is None and json.dumps(shown)
    dataset.save(pa.table({"sample_id": pa.array([], pa.string())}))
    assert dataset.preview()["data"] == []


def test_numbers_and_curves(tmp_path):
    metrics, curve = JSONDataset(filepath=str(tmp_path / "m.json")), CSVDataset(filepath=str(tmp_path / "c.csv"))
    metrics.save({"accuracy": 0.5})
    curve.save([{"epoch": i, "val_metric": i / 10} for i in range(1, 31)])
    assert kind(metrics) == "JSONPreview" and json.loads(metrics.preview()) == {"accuracy": 0.5}
    shown = curve.preview()
    assert kind(curve) == "TablePreview" and shown["columns"] == ["epoch", "val_metric"] and len(shown["data"]) == 20


def test_a_folder_of_figures_shows_the_one_that_the_catalog_names(tmp_path):
    dataset = FiguresDataset(filepath=str(tmp_path / "figures"))
    dataset.save(Figures({"a": lambda: blank(2, 2), "b": lambda: blank(3, 2)}))
    files = {name: (tmp_path / "figures" / f"{name}.png").read_bytes() for name in "ab"}
    assert kind(dataset) == "ImagePreview" and files["a"] != files["b"]
    assert base64.b64decode(dataset.preview(figure="b")) == files["b"]
    assert base64.b64decode(dataset.preview()) == base64.b64decode(dataset.preview(figure="none")) == files["a"]
