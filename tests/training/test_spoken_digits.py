"""Real sounds and pictures through encoders of `transformers`: spoken digits beside handwritten ones."""

import io

import numpy as np
import pytest
import torch

from conftest import SHARED, WANDER
from fusetune.backbones.backbone import Backbone, Frontier
from fusetune.config import build
from fusetune.features.index import CacheSettings
from fusetune.plan.plan import Plan
from fusetune.runs.experiment import Experiment
from fusetune.training.data import DataSettings
from fusetune.training.epochs import Reporter
from fusetune.training.loop import train
from fusetune.training.predicting import predict
from fusetune.training.settings import TrainSettings

FSDD = SHARED / "fsdd"
pytestmark = pytest.mark.skipif(not FSDD.is_dir(), reason=f"the spoken digits are not at {FSDD}")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def table():
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    pairs = pq.read_table(FSDD / "av_pairs.parquet").to_pylist()[::4]
    drawn = np.load(FSDD / "digit_images.npz")["image"]

    def picture(number: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(drawn[number] * 15).save(buffer, "png")
        return buffer.getvalue()

    return pa.table(
        {
            "sample_id": [row["file"] for row in pairs],
            "split": [row["split"] for row in pairs],
            "sound": [f"recordings/{row['file']}" for row in pairs],
            "image": [picture(row["image_id"]) for row in pairs],
            "digit": [str(row["digit"]) for row in pairs],
        }
    )


@pytest.mark.parametrize("audio", [pytest.param("wav2vec2", marks=pytest.mark.slow), "ast"])
def test_sounds_and_pictures_are_cached_and_learned(table, tmp_path, audio):
    from encoders import FAMILIES, vit

    torch.manual_seed(0)
    backbone = Backbone({"sound": FAMILIES[audio][0](), "image": vit()})
    data = build(
        DataSettings,
        {
            "modalities": {"sound": {"kind": "audio", "root": str(FSDD)}, "image": {"kind": "image"}},
            "task": {"name": "classification", "label": "digit"},
        },
        "data",
    )
    plan = build(Plan, {"placements": [WANDER, {"where": "head", "adapter": "mlp"}]}, "digits")
    experiment = Experiment(table, backbone, data, plan, 0, "digits")
    depth = backbone.tower("sound").depth
    assert experiment.frontier == Frontier({"sound": depth, "image": 3}, 0)
    cache = CacheSettings(batch_size=32)
    features = experiment.extract(tmp_path, cache, lambda *_: None, CPU)
    splits = {name: experiment.split(name, features, tmp_path, CPU) for name in ("train", "val", "test")}
    longest = max(int(split.features.lengths()["sound"].max()) for split in splits.values())
    assert longest == experiment.model.streams["sound"].max_tokens
    settings = TrainSettings(epochs=15, batch_size=32, patience=15, learning_rate=5e-3, device="cpu")
    train(experiment.model, splits["train"], splits["val"], settings, "key", tmp_path / "checkpoint", Reporter())
    outputs, _ = predict(experiment.model, splits["test"], 32)
    found = experiment.task.metrics(outputs, splits["test"].targets)["accuracy"]
    assert found > 0.5, "towers with random weights are enough for more than half of ten digits"
