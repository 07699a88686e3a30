"""What the embedded base is pretrained on: characters in all their modalities."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fusetune.manifest.decoders import decode


@dataclass
class Characters:
    """The pretraining rows, decoded: parallel lists."""

    chars: list[str]
    faces: list[str]
    names: list[str]
    pictures: list[Any]
    outlines: list[Any]
    metrics: list[Any]

    def by_face(self) -> dict[str, list[int]]:
        """The rows of each typeface."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, face in enumerate(self.faces):
            found[face].append(row)
        return found


def as_characters(table: pa.Table) -> Any:
    """A manifest of view `characters` as pretraining reads it."""

    def column(name: str, kind: str) -> list[Any]:
        return [decode(kind, cell, f"column '{name}'") for cell in table[name].to_pylist()]

    return Characters(
        chars=table["group_id"].to_pylist(),
        faces=table["face"].to_pylist(),
        names=table["text"].to_pylist(),
        pictures=[pictures[0] for pictures in column("image", "image")],
        outlines=column("outline", "sequence"),
        metrics=column("metrics", "vector"),
    )
