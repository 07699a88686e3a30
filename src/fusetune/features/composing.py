"""A backbone put together from towers that come from different places; some of them are fitted to the rows here."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusetune.backbones.aligned_towers import AlignedTower
from fusetune.backbones.alignment import AlignSettings, StepProgress, align
from fusetune.backbones.backbone import Backbone
from fusetune.backbones.given_features import TOWERS
from fusetune.backbones.sources import TowerSource, embedded_name, towers_from
from fusetune.backbones.tower import Tower
from fusetune.features.source import Source
from fusetune.on_disk import RowNumbers, taken
from fusetune.tasks.linear_models import fit_one
from fusetune.tasks.linear_space import compared, fit_space
from fusetune.tasks.task import LinearPart

logger = logging.getLogger(__name__)
CHUNK = 1024  # samples that are decoded at once
SURE = 2.0  # standard errors of a gain that counts as one


@dataclass(frozen=True)
class FittingRows:
    """What towers are fitted to.

    Attributes:
        source: the experiment's own rows.
        train, val: rows of these splits.
        part: the task, for the linear probe that says whether `align` helped; None where it has no targets that a
            linear model could be fitted to.
        targets: of rows, for the same.
        unlabelled: more rows for `align`, all of them for training; None: the training rows of `source`.
    """

    source: Source
    train: RowNumbers
    val: RowNumbers
    part: LinearPart | None = None
    targets: Callable[[RowNumbers], Tensor] | None = None
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
    aligned = by_source.pop("align", [])
    for name in by_source.pop("features", []):
        towers[name] = _given(name, rows, chosen[name])
    loaded = [name for names in by_source.values() for name in names]
    towers |= towers_from({name: chosen[name] for name in loaded}, kinds)
    if aligned:
        towers |= _aligned(aligned, rows, towers, settings, progress)
    return Backbone({name: towers[name] for name in chosen})


def _given(name: str, rows: FittingRows, chosen: TowerSource) -> Tower:
    cls = TOWERS[rows.source.modalities[name].kind]
    tower = cls.fitted(_decoded(rows.source, name, rows.train), f"data.modalities.{name}", chosen.max_tokens)
    if tower.constant:
        logger.info("%s: %d of %d features are constant in training, and left out", name, tower.constant, tower.width)
    return tower


def _aligned(
    names: Sequence[str],
    rows: FittingRows,
    others: Mapping[str, Tower],
    settings: AlignSettings,
    progress: StepProgress,
) -> dict[str, Any]:
    source = rows.unlabelled or rows.source
    picked = range(len(source)) if rows.unlabelled else rows.train
    samples = {name: source.decoded(name, list(picked)) for name in names}
    backbone = align(samples, {name: source.modalities[name].kind for name in names}, settings, progress)
    found: dict[str, Any] = {name: backbone.tower(name) for name in names}
    if rows.part is None:
        logger.warning("align: this task has no targets for a linear probe; whether it helped is not known")
        return found
    pair = rows.part.task.content_modalities() if rows.part.pairs else []
    for name, tower in list(found.items()):
        if pair and name not in pair:
            continue
        if pair:
            aligned, plain = _compared([tower, tower.plain()], name, {**others, **found}, rows)
        else:
            aligned, plain = _probed(tower, name, rows), _probed(tower.plain(), name, rows)
        more = aligned - plain
        loses = bool(more.mean() <= SURE * more.std() / len(more) ** 0.5)
        told = "gives the aligned ones"
        if loses:
            told = "gives the plain numbers" if settings.keep == "better" else f"{told} (align.keep: always)"
        logger.info(
            "align, %s: a linear probe on validation rows scores %.3f behind it, %.3f before; the tower %s",
            name,
            aligned.mean(),
            plain.mean(),
            told,
        )
        if loses and settings.keep == "better":
            found[name] = tower.plain()
        found[name].probe = {"behind": float(aligned.mean()), "before": float(plain.mean())}
    return found


def _probed(tower: AlignedTower, name: str, rows: FittingRows) -> np.ndarray:
    """Scores of the validation rows that have this modality, one by one."""
    assert rows.part is not None and rows.targets is not None
    task, outputs, select = rows.part.task, rows.part.outputs, rows.part.select
    train, val = (_present(rows.source, name, split) for split in (rows.train, rows.val))
    streams = [_pooled(tower, rows.source, name, split) for split in (train, val)]
    groups = taken(rows.source.table["group_id"], train).to_pylist()
    found = fit_one(streams[0], select(rows.targets(train)), streams[1], task.loss, outputs, groups)
    return task.per_sample(found, select(rows.targets(val)))[task.metric].astype(float)


def _compared(
    candidates: Sequence[Tower], name: str, towers: Mapping[str, Tower], rows: FittingRows
) -> list[np.ndarray]:
    """The same for each candidate where two modalities are compared: of validation rows that have both.

    The other modality's tower is run once for all candidates.
    """
    assert rows.part is not None and rows.targets is not None
    task, names = rows.part.task, rows.part.task.content_modalities()
    splits = [_present(rows.source, names[1], _present(rows.source, names[0], s)) for s in (rows.train, rows.val)]
    train_targets, val_targets = (rows.targets(split) for split in splits)
    groups = taken(rows.source.table["group_id"], splits[0]).to_pylist()

    def streams(tower: Tower, modality: str) -> list[Tensor]:
        return [_pooled(tower, rows.source, modality, split) for split in splits]

    known = {other: streams(towers[other], other) for other in names if other != name}
    found = []
    for tower in candidates:
        both = known | {name: streams(tower, name)}
        train, val = ({side: both[side][part] for side in names} for part in (0, 1))
        space = fit_space(train, train_targets, task.loss, rows.part.outputs, groups)
        found.append(task.per_sample(compared(space, val), val_targets)[task.metric].astype(float))
    return found


@torch.no_grad()
def _pooled(tower: Tower, source: Source, name: str, rows: RowNumbers) -> Tensor:
    return torch.cat(
        [tower.advance(tower.prepare(part), 0, tower.depth).pooled() for part in _decoded(source, name, rows)]
    )


def _present(source: Source, name: str, rows: RowNumbers) -> list[int]:
    cells = taken(source.column(name), rows)
    return [row for row, cell in zip(rows, cells, strict=True) if cell.is_valid]


def _decoded(source: Source, name: str, rows: RowNumbers) -> Iterator[list[Any]]:
    for start in range(0, len(rows), CHUNK):
        yield source.decoded(name, list(map(int, rows[start : start + CHUNK])))
