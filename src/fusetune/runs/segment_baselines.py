"""What a plain model of a single segment of time is fitted to: plain numbers of each stream in each segment."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusetune.backbones.aligned_towers import AlignedAudio, AlignedImage, AlignedSettings, segmented
from fusetune.tasks.token_times import WHOLE
from fusetune.training.data import TaskRows


def segment_numbers(rows: TaskRows, splits: Sequence[Sequence[int]], segments: int) -> dict[str, list[np.ndarray]]:
    """By modality with a time, (rows, segments, numbers) of each split."""
    return {
        name: [_numbers(modality.kind, rows.source.decoded(name, split), segments) for split in splits]
        for name, modality in rows.data.modalities.items()
        if modality.kind not in WHOLE
    }


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
