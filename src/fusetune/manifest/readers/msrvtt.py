"""MSR-VTT: short videos, twenty captions each, a category; with or without features of pre-trained experts.

From Xu et al., CVPR 2016. Expected: `train_val_videodatainfo.json` (and `test_videodatainfo.json`) with

    {"videos": [{"video_id", "split", "category", ...}], "sentences": [{"video_id", "caption", "sen_id"}]}

and `<videos>/<video_id>.mp4`. For video-text retrieval on 1k-A (Yu et al., ECCV 2018) also `MSRVTT_JSFUSION_test.csv`
with columns `video_id` and `sentence`: its thousand pairs are the test split, all other videos are trained on, but for
`val_share` of them. Experts (Liu et al., BMVC 2019, and Gabeur et al., ECCV 2020, use seven): one pickle each
of ``{video_id: array (tokens, width) or (width,)}``, read by an unpickler that admits numpy arrays and nothing else; a
video that an expert has nothing for is a missing modality.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build
from fusetune.manifest.readers import layouts

SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}


@dataclass(frozen=True)
class MSRVTTSettings:
    """
    Attributes:
        annotations: the JSON files.
        videos: folder of the `.mp4` files, as the paths in the manifest begin; they are not opened here.
        experts: modality -> its pickle.
        captions: per video, at most; 0 is all of them.
        pairs: the CSV file of 1k-A; None: the splits of the annotations.
        val_share: with `pairs`, of the other videos, drawn by a hash of their names.
    """

    annotations: tuple[str, ...]
    videos: str = "videos"
    experts: Mapping[str, str] = field(default_factory=dict)
    captions: int = 0
    pairs: str | None = None
    val_share: float = 0.05


def sources(settings: Mapping[str, Any]) -> list[str]:
    pairs = [str(settings["pairs"])] if settings.get("pairs") else []
    return [*map(str, settings.get("annotations") or ()), *map(str, (settings.get("experts") or {}).values()), *pairs]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """One row a caption: video (a path), text, category, video_id, and a column an expert."""
    chosen = build(MSRVTTSettings, settings, where)
    experts = {name: layouts.read_pickle(Path(file)) for name, file in chosen.experts.items()}
    features = {name: {key: _tokens(value) for key, value in found.items()} for name, found in experts.items()}
    pairs, rows = _pairs(chosen), []
    for name in chosen.annotations:
        published = layouts.read_json(Path(name))
        videos = {layouts.field(v, "video_id", name): v for v in layouts.field(published, "videos", name)}
        told: dict[str, int] = {}
        for sentence in layouts.field(published, "sentences", name):
            video = str(layouts.field(sentence, "video_id", name))
            told[video] = told.get(video, 0) + 1
            first = told[video] == 1
            if video not in videos or (chosen.captions and told[video] > chosen.captions):
                continue
            if video in pairs and not first:
                continue  # one sentence each, that of the list
            split = layouts.field(videos[video], "split", f"{name}, {video}")
            if pairs:
                drawn = layouts.is_drawn(video, chosen.val_share)
                split = "test" if video in pairs else "val" if drawn else "train"
            rows.append(
                {
                    "sample_id": f"{video}-{layouts.field(sentence, 'sen_id', name)}",
                    "split": SPLITS.get(split, split),
                    "group_id": video,
                    "video": f"{chosen.videos}/{video}.mp4",
                    "text": pairs.get(video) or str(layouts.field(sentence, "caption", name)),
                    "category": str(videos[video].get("category", "")),
                    "video_id": video,
                    **{expert: known.get(video) for expert, known in features.items()},
                }
            )
    return layouts.manifest(rows, where)


def _pairs(chosen: MSRVTTSettings) -> dict[str, str]:
    """By test video of 1k-A, its sentence."""
    if not chosen.pairs:
        return {}
    with layouts.there(Path(chosen.pairs)).open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    return {layouts.field(row, "video_id", chosen.pairs): layouts.field(row, "sentence", chosen.pairs) for row in rows}


def _tokens(value: Any) -> np.ndarray:
    return np.atleast_2d(np.asarray(value, np.float32))
