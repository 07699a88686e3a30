"""IEMOCAP in the MulT release: utterances as words, voice and face, with four emotions, each there or not.

From https://github.com/yaohungt/Multimodal-Transformer (Tsai et al., ACL 2019), `iemocap_data.pkl` or
`iemocap_data_noalign.pkl`: a pickle of

    {train | valid | test: {text (n, t, 300), audio (n, t, 74), vision (n, t, 35), labels (n, 4, 2), id (n) or none}}

`labels[:, e, 1]` says whether emotion e is there: neutral, happy, sad, angry.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.layouts import FileSettings, field, manifest, one_file, read_pickle
from fusetune.manifest.readers.mmsa import PARTS

EMOTIONS = ("neutral", "happy", "sad", "angry")


sources = one_file


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns words, audio and vision (sequences), one column an emotion, yes or no, and emotions: a list of those."""
    file = Path(build(FileSettings, settings, where).file)
    published, rows = read_pickle(file), []
    for part, split in PARTS.items():
        data, at = field(published, part, str(file)), f"{file}, '{part}'"
        streams = {ours: np.asarray(field(data, theirs, at), np.float32)
                   for ours, theirs in (("words", "text"), ("audio", "audio"), ("vision", "vision"))}  # fmt: skip
        labels = np.asarray(field(data, "labels", at))
        if labels.ndim != 3 or labels.shape[1:] != (len(EMOTIONS), 2):
            raise FusetuneError(f"{at}: expected labels of shape (n, 4, 2), found {labels.shape}.")
        for row in range(len(labels)):
            name = f"{part}-{row}"
            told = {emotion: "yes" if labels[row, e, 1] else "no" for e, emotion in enumerate(EMOTIONS)}
            sequences = {stream: np.nan_to_num(values[row], posinf=0, neginf=0) for stream, values in streams.items()}
            there = [emotion for emotion, said in told.items() if said == "yes"]
            rows.append({"sample_id": name, "split": split, "group_id": name, **sequences, **told, "emotions": there})
    return manifest(rows, where)
