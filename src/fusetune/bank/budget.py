"""What one request may cost: counted from headers, before anything is decoded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from fusetune.config import check
from fusetune.errors import FusetuneError
from fusetune.manifest import headers
from fusetune.manifest.schema import Modality


@dataclass(frozen=True)
class RequestLimits:
    """
    Attributes:
        rows: of a request.
        bytes: of one picture, sound or video, as encoded.
        pixels: of all pictures, and of the frames that are taken from videos.
        samples: of all sounds, all channels.
        frames: of all videos; each has to be decoded to find those that are taken.
        characters: of all texts.
        values: of all sequences and vectors.
        slice_rows: rows that are decoded and answered at once.
        seconds: after which no further slice is begun.
    """

    rows: int = 1024
    bytes: int = 16_777_216
    pixels: int = 100_000_000
    samples: int = 30_000_000
    frames: int = 20_000
    characters: int = 10_000_000
    values: int = 10_000_000
    slice_rows: int = 32
    seconds: int = 300

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            check(value > 0, f"serve.{field.name}: expected at least 1, found {value}.")


class TooLarge(FusetuneError):
    """A request that asks for more than its budget; nothing of it was decoded."""


class Budget:
    """Counts what the cells of one request will take; raises TooLarge when a limit is passed."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits, self._taken = limits, Counter[str]()

    def take(self, what: str, count: int, where: str) -> None:
        self._taken[what] += count
        most = getattr(self.limits, what)
        if self._taken[what] > most:
            raise TooLarge(
                f"{where}: with this the request has {self._taken[what]:,} {what}, at most {most:,} are taken. Send "
                f"fewer or smaller rows, or raise serve.{what}."
            )

    def take_cell(self, modality: Modality, cell: Any, where: str) -> None:
        """A cell as it will be decoded: bytes of media (pictures as a list of them), text, lists of floats."""
        if modality.kind == "image":
            for item in cell:
                self.take("pixels", headers.pixels(item, where), where)
        elif modality.kind == "audio":
            self.take("samples", headers.samples(cell, where), where)
        elif modality.kind == "video":
            count, size = headers.frames(cell, where)
            self.take("frames", count, where)
            self.take("pixels", min(count, modality.frames) * size, where)
        elif modality.kind == "text":
            self.take("characters", len(cell) if isinstance(cell, str) else 0, where)
        else:
            self.take("values", _values(cell), where)


def _values(cell: Sequence[Any]) -> int:
    return sum(len(item) if isinstance(item, list) else 1 for item in cell)
