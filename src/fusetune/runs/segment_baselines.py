"""Plain models of single segments of time: a logistic regression on what a stream is in a segment."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusetune.backbones.aligned_towers import AlignedAudio, AlignedImage, AlignedSettings, segmented
from fusetune.training.data import TaskRows


def segment_outputs(rows: TaskRows, splits: Sequence[Sequence[int]]) -> dict[str, list[np.ndarray]]:
    """By modality with a time, log-probabilities (rows, segments, labels) of validation and test rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task: Any = rows.task
    found = {}
    for name, modality in rows.data.modalities.items():
        if modality.kind in ("text", "vector"):
            continue
        parts = [_numbers(modality.kind, rows.source.decoded(name, split), task.count) for split in splits]
        wanted = rows.targets(splits[0]).numpy().reshape(-1)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        model.fit(parts[0].reshape(-1, parts[0].shape[-1]), wanted)
        outputs = []
        for part in parts[1:]:
            logs = np.full((len(part) * task.count, len(task.labels)), np.log(1e-9))
            logs[:, model.classes_] = np.log(model.predict_proba(part.reshape(-1, part.shape[-1])) + 1e-9)
            outputs.append(logs.reshape(len(part), task.count, -1))
        found[name] = outputs
    return found


def _numbers(kind: str, samples: Sequence[Any], segments: int) -> np.ndarray:
    """(rows, segments, numbers); zeros for a sample that lacks the modality."""
    each = [None if sample is None else _of_one(kind, sample, segments) for sample in samples]
    shape = next(values.shape for values in each if values is not None)
    return np.stack([np.zeros(shape, np.float32) if values is None else values for values in each])


def _of_one(kind: str, sample: Any, segments: int) -> np.ndarray:
    if kind == "audio":
        return (
            AlignedAudio(AlignedSettings(1, segments=segments, mlp=False)).numbers(sample).numpy().reshape(segments, -1)
        )
    if kind in ("image", "video"):
        tower = AlignedImage(AlignedSettings(1, mlp=False))
        sample = np.stack([tower.numbers([picture]).numpy() for picture in sample])
    return segmented(np.asarray(sample, np.float32), segments).numpy().reshape(segments, -1)


def fused(parts: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The mean of the modalities' probabilities."""
    return [np.log(np.mean([np.exp(part) for part in several], 0)) for several in zip(*parts.values(), strict=True)]
