"""Emotion recognition on the layouts that its data are published in: several emotions at once, classes, a strength."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from conftest import copy_project, experiment_in, ran

COUNTS = {"train": 160, "valid": 40, "test": 60}
STREAMS = {"words": "text", "audio": "audio", "vision": "vision"}  # ours: theirs


def iemocap():
    """Each emotion is heard in a channel of its own; several come together."""
    rng, published = np.random.default_rng(0), {}
    for part, count in COUNTS.items():
        there = rng.random((count, 4)) < 0.4
        streams = {name: rng.normal(0, 1, (count, 6, 8)) for name in STREAMS.values()}
        streams["audio"][:, :, :2] += 2 * there[:, None, :2]
        streams["vision"][:, :, :2] += 2 * there[:, None, 2:]
        published[part] = {**streams, "labels": np.stack([1 - there, there], -1).astype(float)}
    return published


def mosei():
    rng, published = np.random.default_rng(0), {}
    for part, count in COUNTS.items():
        strength = rng.uniform(-3, 3, count)
        streams = {name: rng.normal(0, 1, (count, 6, 8)) for name in STREAMS.values()}
        streams["audio"][:, :, 0] += strength[:, None]
        signs = np.sign(strength) * (abs(strength) > 0.5)
        kinds = [("Negative", "Neutral", "Positive")[int(sign) + 1] for sign in signs]
        published[part] = {**streams, "id": [f"{part}{i // 2}$_${i % 2}" for i in range(count)],
                           "raw_text": ["said"] * count, "annotations": kinds,
                           "regression_labels": strength}  # fmt: skip
    return published


LAYOUTS = {
    "emotions": ("iemocap", iemocap, {"name": "multi_label", "label": "emotions"}, "map", 0.8),
    "sad": ("iemocap", iemocap, {"name": "classification", "label": "sad"}, "accuracy", 0.8),
    "strength": ("mmsa", mosei, {"name": "regression", "label": "sentiment", "sentiment": True}, "r2", 0.8),
    "kinds": ("mmsa", mosei, {"name": "classification", "label": "label"}, None, 0.7),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = copy_project(tmp_path_factory.mktemp("emotions"))
    for name, (reader, make, task, _, _) in LAYOUTS.items():
        (project / f"{reader}.pkl").write_bytes(pickle.dumps(make()))
        parameters = {
            "ingest": {"reader": reader, "settings": {"file": f"{reader}.pkl"}},
            "backbone": {"source": "features"},
            "data": {"modalities": {s: {"kind": "sequence"} for s in STREAMS}, "task": task, "use_trunk": False},
            "validate": {"min_rows_per_split": 10},
        }
        experiment_in(project, name, parameters)
    return project


@pytest.mark.parametrize("env", LAYOUTS)
def test_a_published_layout_is_trained_on(project, env):
    _, _, _, metric, least = LAYOUTS[env]
    ran(project, env, "--pipelines", "train_late_fusion")
    metrics = json.loads((project / f"data/08_reporting/{env}/late_fusion/metrics.json").read_text())
    assert metric is None or metrics["metric"] == metric
    reached = metrics["test"][metrics["metric"]]
    assert reached > least and reached > metrics["plain"]["majority or mean"] + 0.2
    if env == "strength":
        assert {"acc_2", "acc_7", "f1_2"} <= set(metrics["test"])
    if env == "emotions":
        manifest = pq.read_table(project / f"data/03_primary/{env}/manifest.parquet")
        assert max(len(some) for some in manifest["emotions"].to_pylist()) > 1
