"""QVHighlights: queries about 150 seconds of a video, and all the moments that answer them.

From https://github.com/jayleicn/moment_detr (Lei et al., NeurIPS 2021). Expected below `folder`:

    highlight_train_release.jsonl  highlight_val_release.jsonl
        lines of {qid, query, duration, vid, relevant_windows: [[start, end], ...], ...}
    <features>/<vid>.npz            an array `features` (clips of two seconds, width), for each kind of features

The moments of the official test part are not public: its validation part becomes our test split, `val_share` of the
training videos our validation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as made_by
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.layouts import field, is_drawn, manifest, there


@dataclass(frozen=True)
class QVHighlightsSettings:
    """
    Attributes:
        folder: holds the JSON lines and what else is named.
        features: modality -> folder of its `.npz` files, such as {clip: clip_features, slowfast: slowfast_features}.
        videos: folder of the `.mp4` files, as the paths in the manifest begin; they are not opened here.
        val_share: of the training videos, drawn by a hash of their names.
    """

    folder: str
    features: Mapping[str, str] = made_by(default_factory=dict)
    videos: str = "videos"
    val_share: float = 0.1


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(Path(str(settings.get("folder")), f"highlight_{part}_release.jsonl")) for part in ("train", "val")]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """One row a query: video, text, span (a list of windows), duration, and a column a kind of features."""
    chosen, rows = build(QVHighlightsSettings, settings, where), []
    for part in ("train", "val"):
        file = there(Path(chosen.folder, f"highlight_{part}_release.jsonl"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            at = f"{file}, line {number}"
            try:
                told = json.loads(line)
            except ValueError as error:
                raise FusetuneError(f"{at}: no JSON ({error}).") from None
            video = str(field(told, "vid", at))
            source = video.rsplit("_", 2)[0]  # several stretches of one video
            split = "test" if part == "val" else "val" if is_drawn(source, chosen.val_share) else "train"
            rows.append(
                {
                    "sample_id": str(field(told, "qid", at)),
                    "split": split,
                    "group_id": source,
                    "video": f"{chosen.videos}/{video}.mp4",
                    "text": str(field(told, "query", at)),
                    "span": [[float(v) for v in window] for window in field(told, "relevant_windows", at)],
                    "duration": float(field(told, "duration", at)),
                    **{name: _features(Path(chosen.folder, f, f"{video}.npz")) for name, f in chosen.features.items()},
                }
            )
    return manifest(rows, where)


def _features(file: Path) -> np.ndarray | None:
    """(clips, width); None where there are none for a video."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as opened:
        if "features" not in opened:
            raise FusetuneError(f"{file}: expected an array 'features', found {', '.join(opened) or 'none'}.")
        return np.asarray(opened["features"], np.float32)
