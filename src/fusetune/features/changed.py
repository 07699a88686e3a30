"""Samples with a change made to each: noise of a level, a crop, misprints."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fusetune.config import digest
from fusetune.features.source import Source
from fusetune.keys import Keys
from fusetune.manifest.augmentations import make_augmentation
from fusetune.manifest.schema import Modality


class ChangedSource(Source):
    """A source whose samples are changed, each by a generator that its own content seeds; so are their content keys.

    Args:
        changes: by modality, ``{name: ..., <its settings>}`` of the registry of augmentations.
        where: what `changes` is called for the user.
    """

    def __init__(
        self,
        table: pa.Table,
        modalities: Mapping[str, Modality],
        changes: Mapping[str, Mapping[str, Any]],
        where: str = "changes",
    ) -> None:
        super().__init__(table, modalities)
        self.changes = {name: dict(settings) for name, settings in changes.items()}
        self._made = {
            name: make_augmentation(settings, modalities[name].kind, f"{where}.{name}")
            for name, settings in self.changes.items()
        }

    def decoded(self, name: str, rows: Sequence[int], keys: Sequence[str] | None = None) -> list[Any]:
        samples = super().decoded(name, rows, keys)
        change = self._made.get(name)
        if change is None:
            return samples
        column = self.column(name)
        return [
            sample if sample is None else change(sample, _generator(self._content(name, row, column[row])))
            for row, sample in zip(rows, samples, strict=True)
        ]

    def _hashed(self, name: str) -> Keys:
        keys, change = super()._hashed(name), self.changes.get(name)
        return keys if change is None else Keys.of(key and digest([key, change]) for key in keys)

    def _content(self, name: str, row: int, cell: Any) -> str:
        key = super()._content(name, row, cell)
        return digest([key, self.changes[name]]) if key and name in self.changes else key


def _generator(key: str) -> np.random.Generator:
    return np.random.default_rng(int(key[:16], 16))
