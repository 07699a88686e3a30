"""Digits seen and heard: recordings of the Free Spoken Digit Dataset, each beside a handwritten digit of the same kind.

From github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0) and scikit-learn's `load_digits`. Expected below
`folder`:

    recordings/<digit>_<speaker>_<index>.wav
    digit_images.npz       image (n, 8, 8), 0 to 16
    av_pairs.parquet       file, digit, speaker, split, image_id (the row in digit_images)
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build
from fusetune.manifest.readers.layouts import manifest, there


@dataclass(frozen=True)
class AVDigitsSettings:
    """
    Attributes:
        folder: holds recordings, pictures and pairs.
    """

    folder: str


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(Path(str(settings.get("folder")), name)) for name in ("av_pairs.parquet", "digit_images.npz")]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns image (PNG bytes), sound (paths below `folder`), label, speaker."""
    import pyarrow.parquet as pq
    from PIL import Image

    folder = Path(build(AVDigitsSettings, settings, where).folder)
    pairs = pq.read_table(there(folder / "av_pairs.parquet"))
    with np.load(there(folder / "digit_images.npz"), allow_pickle=False) as opened:
        drawn = opened["image"]
    rows = []
    for pair in pairs.to_pylist():
        buffer = io.BytesIO()
        Image.fromarray(drawn[pair["image_id"]] * 15).save(buffer, "png")  # 16 steps of grey
        rows.append(
            {
                "sample_id": pair["file"],
                "split": pair["split"],
                "group_id": pair["file"],
                "image": buffer.getvalue(),
                "sound": f"recordings/{pair['file']}",
                "label": str(pair["digit"]),
                "speaker": pair["speaker"],
            }
        )
    return manifest(rows, where)
