"""A folder with a folder of media for each label, as a table."""

import csv
from pathlib import Path

from fusetune.config import check
from fusetune.manifest.guessing import SUFFIXES
from fusetune.manifest.schema import SPLITS

ALL = frozenset().union(*SUFFIXES.values())


def listed(folder: Path, file: Path) -> str:
    """Write a CSV of the media files below a folder: `file`, `label`, and `split` where the folders of labels lie in
    folders called train, val and test. Returns the column of labels.

    Raises:
        FusetuneError: nothing of the kind is there.
    """
    top = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    with_splits = set(SPLITS) <= top
    rows = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in ALL and len(parts) == 2 + with_splits:
            rows.append(["/".join(parts), parts[-2], *(parts[:1] if with_splits else ())])
    check(
        len({row[1] for row in rows}) > 1,
        f"new.table: {folder} holds no media in folders called after their labels (dog/1.png, or train/dog/1.png "
        "beside val and test). Expected those, or a .parquet, .csv, .tsv or .jsonl file.",
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["file", "label", *(["split"] if with_splits else [])], *rows])
    return "label"
