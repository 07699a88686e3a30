"""RefCOCO, RefCOCO+ and RefCOCOg: phrases that mean one object in a COCO picture, and its box.

From https://github.com/lichengunc/refer (Kazemzadeh et al., EMNLP 2014; Yu et al., ECCV 2016; Mao et al., CVPR 2016).
Expected below `folder`, as unpacked:

    <name>/refs(<by>).p       a pickle of [{ref_id, ann_id, image_id, split, category_id, sentences: [{sent, sent_id}]}]
    <name>/instances.json     COCO's {images: [{id, file_name, width, height}], annotations: [{id, bbox, ...}]}
    <images>/COCO_train2014_000000581857.jpg

with `name` refcoco, refcoco+ or refcocog and `by` unc (the first two), google or umd. The pickle is read by one
that admits plain containers and nothing that runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build, check
from fusetune.errors import FusetuneError
from fusetune.manifest.readers.layouts import field, manifest, read_json, read_pickle

NAMES = ("refcoco", "refcoco+", "refcocog")


@dataclass(frozen=True)
class RefCOCOSettings:
    """
    Attributes:
        folder: holds the folder of annotations and that of the pictures.
        name: refcoco, refcoco+ or refcocog.
        by: who drew the splits: unc, google or umd.
        test: the published parts that are our test split; the column `part` tells them apart.
        images: folder of the pictures, as the paths in the manifest begin.
    """

    folder: str
    name: str = "refcoco"
    by: str = "unc"
    test: tuple[str, ...] = ("testA", "testB", "test")
    images: str = "train2014"

    def __post_init__(self) -> None:
        check(self.name in NAMES, f"name: expected one of {', '.join(NAMES)}, found '{self.name}'.")


def _files(settings: Mapping[str, Any]) -> tuple[Path, Path]:
    folder = Path(str(settings.get("folder")), str(settings.get("name", "refcoco")))
    return folder / f"refs({settings.get('by', 'unc')}).p", folder / "instances.json"


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(file) for file in _files(settings)]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """One row a sentence: image (a path below `folder`), text, box (left, top, right, bottom, in pixels), part."""
    chosen = build(RefCOCOSettings, settings, where)
    refs_file, instances_file = _files({"folder": chosen.folder, "name": chosen.name, "by": chosen.by})
    instances, told = read_json(instances_file), str(instances_file)
    boxes = {field(one, "id", told): field(one, "bbox", told) for one in field(instances, "annotations", told)}
    pictures = {field(one, "id", told): field(one, "file_name", told) for one in field(instances, "images", told)}
    rows = []
    for ref in read_pickle(refs_file):
        part, number, picture = (field(ref, name, str(refs_file)) for name in ("split", "ann_id", "image_id"))
        if number not in boxes or picture not in pictures:
            raise FusetuneError(
                f"{refs_file}, ref {ref.get('ref_id')}: {told} has no annotation {number} or no picture {picture}."
            )
        left, top, width, height = boxes[number]
        for sentence in field(ref, "sentences", str(refs_file)):
            rows.append(
                {
                    "sample_id": str(field(sentence, "sent_id", str(refs_file))),
                    "split": "test" if part in chosen.test else part,
                    "group_id": str(picture),
                    "image": f"{chosen.images}/{pictures[picture]}",
                    "text": str(field(sentence, "sent", str(refs_file))),
                    "box": [left, top, left + width, top + height],
                    "part": part,
                }
            )
    return manifest(rows, where)
