"""A backbone put together from towers that come from different places; some of them are fitted to the rows here."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusetune.backbones.aligned_towers import AlignedTower
from fusetune.backbones.alignment import AlignSettings, StepProgress, align
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.given_features import TOWERS
from fusetune.backbones.ridge_probe import ridge_score
from fusetune.backbones.sources import TowerSource, embedded_name, from_source
from fusetune.backbones.tower import Tower
from fusetune.features.source import Source

logger = logging.getLogger(__name__)
CHUNK = 1024  # samples that are decoded at once


@dataclass(frozen=True)
class FittingRows:
    """What towers are fitted to.

    Attributes:
        source: the experiment's own rows.
        train, val: rows of these splits.
        targets: of rows, for the linear probe that says whether `align` helped; None where the task has no targets that
            a linear model could be fitted to.
        unlabelled: more rows for `align`, all of them for training; None: the training rows of `source`.
    """

    source: Source
    train: Sequence[int]
    val: Sequence[int]
    targets: Callable[[Sequence[int]], Tensor] | None = None
    unlabelled: Source | None = None


def compose(
    chosen: Mapping[str, TowerSource],
    rows: FittingRows,
    embedded: Callable[[], Backbone],
    settings: AlignSettings,
    progress: StepProgress,
) -> Backbone:
    """The towers of all modalities of `rows`, each from its source.

    Args:
        chosen: by modality.
        embedded: loads or makes the embedded base; called where it is needed.
        settings: of `align`.
    """
    kinds = {name: modality.kind for name, modality in rows.source.modalities.items()}
    by_source: dict[str, list[str]] = {}
    for name, source in chosen.items():
        by_source.setdefault(source.source, []).append(name)
    towers: dict[str, Tower] = {}
    if own := by_source.pop("embedded", []):
        base = embedded()
        towers |= {name: base.tower(str(embedded_name(name, kinds[name], chosen[name]))) for name in own}
    if own := by_source.pop("align", []):
        towers |= _aligned(own, rows, settings, progress)
    for name in by_source.pop("features", []):
        towers[name] = _given(name, rows, chosen[name])
    for name in (name for names in by_source.values() for name in names):
        towers[name] = from_source(chosen[name], kinds[name], name)
    return Backbone({name: towers[name] for name in chosen})


def _given(name: str, rows: FittingRows, chosen: TowerSource) -> Tower:
    cls = TOWERS[rows.source.modalities[name].kind]
    tower = cls.fitted(_decoded(rows.source, name, rows.train), f"data.modalities.{name}", chosen.max_tokens)
    if tower.constant:
        logger.info("%s: %d of %d features are constant in training, and left out", name, tower.constant, tower.width)
    return tower


def _aligned(
    names: Sequence[str], rows: FittingRows, settings: AlignSettings, progress: StepProgress
) -> dict[str, Any]:
    source = rows.unlabelled or rows.source
    picked = range(len(source)) if rows.unlabelled else rows.train
    samples = {name: source.decoded(name, list(picked)) for name in names}
    backbone = align(samples, {name: source.modalities[name].kind for name in names}, settings, progress)
    found: dict[str, Any] = {name: backbone.tower(name) for name in names}
    if rows.targets is None:
        logger.warning("align: this task has no targets for a linear probe; whether it helped is not known")
        return found
    for name, tower in found.items():
        aligned, plain = _probed(tower, name, rows), _probed(tower.plain(), name, rows)
        loses = aligned < plain
        told = "keeps the plain numbers" if loses and settings.keep == "better" else "takes the aligned ones"
        logger.info(
            "align, %s: a linear probe on validation rows reaches %.3f behind it and %.3f on the plain numbers; the "
            "tower %s%s",
            name, aligned, plain, told, " (align.keep: always)" if loses and settings.keep == "always" else "",
        )  # fmt: skip
        if loses and settings.keep == "better":
            found[name] = tower.plain()
    return found


def _probed(tower: AlignedTower, name: str, rows: FittingRows) -> float:
    assert rows.targets is not None
    parts = []
    for split in (rows.train, rows.val):
        present = [row for row, cell in zip(split, _cells(rows.source, name, split), strict=True) if cell.is_valid]
        parts += [_pooled(tower, rows.source, name, present), rows.targets(present)]
    return ridge_score(*parts)


@torch.no_grad()
def _pooled(tower: AlignedTower, source: Source, name: str, rows: Sequence[int]) -> Tensor:
    return torch.cat(
        [tower.advance(tower.prepare(part), 0, tower.depth).pooled() for part in _decoded(source, name, rows)]
    )


def _cells(source: Source, name: str, rows: Sequence[int]) -> Any:
    return source.column(name).take(list(rows))


def _decoded(source: Source, name: str, rows: Sequence[int]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), CHUNK):
        yield source.decoded(name, list(rows[start : start + CHUNK]))
