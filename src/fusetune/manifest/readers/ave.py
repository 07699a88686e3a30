"""AVE: audio-visual events in ten-second videos, with the seconds in which the event is seen and heard.

From https://github.com/YapengTian/AVE-ECCV18 (Tian et al., ECCV 2018). Expected below `folder`:

    AVE/<video>.mp4      trainSet.txt  valSet.txt  testSet.txt

Each line of the text files: Category&VideoID&Quality&StartTime&EndTime (`Annotations.txt` holds them all). What is
asked of a video as a whole is `label`; of each of its ten seconds, `segments` (the task of that name).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.layouts import manifest, there

SECONDS, BACKGROUND = 10, "background"  # of a video; where there is no event


@dataclass(frozen=True)
class AVESettings:
    """
    Attributes:
        folder: holds the text files and the folder `AVE`.
    """

    folder: str


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(Path(str(settings.get("folder")), f"{split}Set.txt")) for split in ("train", "val", "test")]


def seconds(label: str, start: float, end: float) -> list[str]:
    """Of each second of a video, what is seen and heard in it."""
    return [label if start <= second and second + 1 <= end else BACKGROUND for second in range(SECONDS)]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns video and audio (the same file's pictures and its sound), label, start and end (seconds), and
    `segments`: of each second, the label if it lies between them, else background."""
    folder, rows = Path(build(AVESettings, settings, where).folder), []
    for split in ("train", "val", "test"):
        file = there(folder / f"{split}Set.txt")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
            if not line.strip() or line.startswith("Category&"):
                continue
            parts = line.strip().split("&")
            try:
                label, video, _, start, end = parts
                times = float(start), float(end)
            except ValueError:
                raise FusetuneError(
                    f"{file}, line {number + 1}: expected Category&VideoID&Quality&StartTime&EndTime, found "
                    f"{line[:60]!r}."
                ) from None
            path = f"AVE/{video}.mp4"
            rows.append(
                dict(sample_id=f"{video}-{start}", split=split, group_id=video, video=path, audio=path, label=label,
                     start=times[0], end=times[1], segments=seconds(label, *times))
            )  # fmt: skip
    return manifest(rows, where)
