"""Charades-STA: sentences about half-minute videos of people at home, and when they are true.

From https://github.com/jiyanggao/TALL (Gao et al., ICCV 2017) and https://prior.allenai.org/projects/charades. Expected
below `folder`:

    charades_sta_train.txt  charades_sta_test.txt      lines such as  3MSZA 24.3 30.4##person turn a light on.
    Charades_v1_train.csv   Charades_v1_test.csv       with columns id and length (seconds)
    <videos>/3MSZA.mp4

There is no validation part: `val_share` of the training videos is ours.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.layouts import field, is_drawn, manifest, there


@dataclass(frozen=True)
class CharadesSTASettings:
    """
    Attributes:
        folder: holds the text files, the tables and the folder of videos.
        videos: folder of the `.mp4` files, as the paths in the manifest begin.
        val_share: of the training videos, drawn by a hash of their names.
    """

    folder: str
    videos: str = "Charades_v1_480"
    val_share: float = 0.1


def _files(folder: str, part: str) -> tuple[Path, Path]:
    return Path(folder, f"charades_sta_{part}.txt"), Path(folder, f"Charades_v1_{part}.csv")


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(file) for part in ("train", "test") for file in _files(str(settings.get("folder")), part)]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns video (a path below `folder`), text, span (start, end) and duration, both in seconds."""
    chosen, rows = build(CharadesSTASettings, settings, where), []
    for part in ("train", "test"):
        said, table = _files(chosen.folder, part)
        with there(table).open(encoding="utf-8", newline="") as opened:
            lengths = {field(row, "id", str(table)): field(row, "length", str(table)) for row in csv.DictReader(opened)}
        for number, line in enumerate(there(said).read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                when, text = line.split("##", 1)
                video, start, end = when.split()
                span, duration = [float(start), float(end)], float(lengths[video])
            except (ValueError, KeyError) as error:
                raise FusetuneError(
                    f"{said}, line {number}: expected VIDEO START END##SENTENCE of a video whose length {table.name} "
                    f"has, found {line[:60]!r} ({type(error).__name__})."
                ) from None
            split = part if part == "test" else "val" if is_drawn(video, chosen.val_share) else "train"
            rows.append(
                {
                    "sample_id": f"{part}-{number:05d}",
                    "split": split,
                    "group_id": video,
                    "video": f"{chosen.videos}/{video}.mp4",
                    "text": text.strip(),
                    "span": span,
                    "duration": duration,
                }
            )
    return manifest(rows, where)
