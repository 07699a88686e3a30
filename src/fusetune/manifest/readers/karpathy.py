"""COCO Captions and Flickr30k in Karpathy's split: pictures with five sentences each.

From https://cs.stanford.edu/people/karpathy/deepimagesent (`dataset_coco.json`, `dataset_flickr30k.json`):

    {"images": [{"filename", "filepath" (COCO: train2014 or val2014), "imgid", "split": train | restval | val | test,
                 "sentences": [{"raw", "sentid"}]}]}

and the pictures in one folder (Flickr30k) or below `train2014` and `val2014` (COCO).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.config import build
from fusetune.manifest.readers.layouts import field, manifest, read_json


@dataclass(frozen=True)
class KarpathySettings:
    """
    Attributes:
        file: `dataset_coco.json` or `dataset_flickr30k.json`.
        captions: rows per picture, at most; 0 is one for each caption.
        tested: the same of validation and test pictures: 1 where what a model says is measured against all references.
    """

    file: str
    captions: int = 0
    tested: int = 0


def sources(settings: Mapping[str, Any]) -> list[str]:
    return [str(settings.get("file"))]


def read(settings: Mapping[str, Any], where: str) -> pa.Table:
    """One row a sentence: image (a path below the pictures' folder), text, and all sentences of its picture."""
    chosen, rows = build(KarpathySettings, settings, where), []
    for picture in field(read_json(Path(chosen.file)), "images", chosen.file):
        name = field(picture, "filename", chosen.file)
        at = f"{chosen.file}, {name}"
        split = field(picture, "split", at)
        sentences = field(picture, "sentences", at)
        everything = [str(field(sentence, "raw", at)) for sentence in sentences]
        most = chosen.tested if chosen.tested and split in ("val", "test") else chosen.captions
        for sentence, text in list(zip(sentences, everything, strict=True))[: most or None]:
            rows.append(
                {
                    "sample_id": str(field(sentence, "sentid", at)),
                    "split": "train" if split == "restval" else split,
                    "group_id": str(field(picture, "imgid", at)),
                    "image": f"{picture['filepath']}/{name}" if picture.get("filepath") else name,
                    "text": text,
                    "references": everything,
                }
            )
    return manifest(rows, where)
