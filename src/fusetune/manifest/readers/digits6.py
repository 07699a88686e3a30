"""Handwritten digits in six views (UCI "Multiple Features", Duin 1998), as the multi-view literature uses them.

Expected: `digits6.npz` with `label` (n), `split` (n: train, val, test) and the views (n, width): pix 240 (15 x 16 means
of pixels), fou 76 (Fourier), fac 216 (profiles), zer 47 (Zernike moments), kar 64 (Karhunen-Loeve), mor 6 (morphology).
Made from `handwritten_6views.mat` of github.com/hanmenghan/TMC.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import build
from fusetune.manifest.readers.layouts import FileSettings, one_file, there
from fusetune.manifest.readers.table import ArrayFile, load_array, nested

VIEWS = ("pix", "fou", "fac", "zer", "kar", "mor")


sources = one_file


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """A column a view, and label."""
    file = there(Path(build(FileSettings, settings, where).file))
    with np.load(file, allow_pickle=False) as opened:
        labels, splits = opened["label"], opened["split"]
    names = [f"digit{row:05d}" for row in range(len(labels))]
    columns = {view: nested(load_array(ArrayFile(str(file), view), f"{where}, {view}")) for view in VIEWS}
    texts = {
        "sample_id": names,
        "group_id": names,
        "split": [str(s) for s in splits],
        "label": [str(v) for v in labels],
    }
    return pa.table({**{name: pa.array(values) for name, values in texts.items()}, **columns})
