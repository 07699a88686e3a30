"""CMU-MOSI and CMU-MOSEI in the MMSA release: sentences of video blogs as words, voice and face, with their sentiment.

From https://github.com/thuiar/MMSA (Yu et al.), `aligned_50.pkl` or `unaligned_50.pkl`: a pickle of

    {train | valid | test: {raw_text (n), text (n, 50, 768), audio (n, t, d), vision (n, t, d), id (n),
     audio_lengths (n), vision_lengths (n)  (unaligned only), annotations (n), regression_labels (n)}}

It is read by an unpickler that admits numpy arrays and plain containers and nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build
from fusetune.manifest.readers.layouts import FileSettings, field, manifest, one_file, read_pickle

PARTS = {"train": "train", "valid": "val", "test": "test"}


sources = one_file


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns text (raw), words, audio and vision (sequences), sentiment (-3 to 3), label (its three classes)."""
    file = Path(build(FileSettings, settings, where).file)
    published, rows = read_pickle(file), []
    for part, split in PARTS.items():
        data, at = field(published, part, str(file)), f"{file}, '{part}'"
        columns = {name: field(data, name, at) for name in ("raw_text", "text", "audio", "vision", "id", "annotations",
                                                            "regression_labels")}  # fmt: skip
        for row, name in enumerate(columns["id"]):
            name = str(name)
            rows.append(
                {
                    "sample_id": name,
                    "split": split,
                    "group_id": name.rsplit("$_$", 1)[0],  # the video that the sentence was said in
                    "text": str(columns["raw_text"][row]),
                    "words": np.asarray(columns["text"][row], np.float32),
                    "audio": _real(columns["audio"][row], data.get("audio_lengths"), row),
                    "vision": _real(columns["vision"][row], data.get("vision_lengths"), row),
                    "sentiment": float(np.asarray(columns["regression_labels"][row]).reshape(-1)[0]),
                    "label": str(columns["annotations"][row]),
                }
            )
    return manifest(rows, where)


def _real(tokens: Any, lengths: Any, row: int) -> np.ndarray:
    """Without the padding, where the release says how long a sequence is; infinities of COVAREP become 0."""
    values = np.asarray(tokens, np.float32)
    values = values[: max(1, int(lengths[row]))] if lengths is not None else values
    return np.where(np.isfinite(values), values, 0.0).astype(np.float32)
