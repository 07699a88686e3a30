"""UPMC Food-101: pictures of dishes and the titles of the web pages that they stood on, 101 classes.

From https://visiir.isir.upmc.fr (Wang et al., ICME 2015). Expected below `folder`:

    images/train/<class>/<name>.jpg    images/test/<class>/<name>.jpg
    texts/train_titles.csv             texts/test_titles.csv         lines: <name>.jpg,<title>,<class>; no header

The published split has no validation part: name shares in `ingest.split`, or set `val_share` of the training pictures.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.layouts import is_drawn, manifest, there


@dataclass(frozen=True)
class Food101Settings:
    """
    Attributes:
        folder: holds `images` and `texts`.
        val_share: of the training pictures, drawn by a hash of their names.
    """

    folder: str
    val_share: float = 0.1


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(Path(str(settings.get("folder")), "texts", f"{part}_titles.csv")) for part in ("train", "test")]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """Columns image (paths below `folder`), text (the title), label."""
    chosen, rows = build(Food101Settings, settings, where), []
    for part in ("train", "test"):
        file = there(Path(chosen.folder, "texts", f"{part}_titles.csv"))
        with file.open(newline="", encoding="utf-8") as lines:
            for number, line in enumerate(csv.reader(lines)):
                if len(line) != 3:
                    raise FusetuneError(
                        f"{file}, line {number + 1}: expected name,title,class, found {len(line)} fields."
                    )
                name, title, label = (cell.strip() for cell in line)
                split = "val" if part == "train" and is_drawn(name, chosen.val_share) else part
                path = f"images/{part}/{label}/{name}"
                rows.append(dict(sample_id=name, split=split, group_id=name, image=path, text=title, label=label))
    return manifest(rows, where)
