"""Node functions of `pretrain`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusetune.pipelines.hashing import content_hash
from fusetune.pipelines.ingest.nodes import files_read, read_manifest

logger = logging.getLogger(__name__)


def read_source(
    pretraining_data: Mapping[str, Any],
    backbone: Mapping[str, Any],
    data: Mapping[str, Any],
    align: Mapping[str, Any],
    ingest: Mapping[str, Any],
) -> tuple[Any, Any]:
    """What the embedded base is pretrained on, and more rows for `align`; empty tables where nothing needs them.

    Rows that `ingest.few_shot` leaves out of training are rows without labels: `align` sees them.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from fusetune.backbones.sources import EMBEDDED_LLAVA

    nothing = pa.table({})
    used = {chosen.source for chosen in _chosen(backbone, data)[1].values()}
    few = {**ingest, "few_shot": None} if ingest.get("few_shot") else None
    named = (align.get("unlabelled") or few) if "align" in used else None
    unlabelled = read_manifest(named) if named else None
    return (
        read_manifest(pretraining_data) if used & {"embedded", EMBEDDED_LLAVA} else nothing,
        nothing if unlabelled is None else unlabelled.filter(pc.equal(unlabelled["split"], "train")),
    )


def _files_read(inputs: Mapping[str, Any]) -> list[str]:
    more = {"unlabelled": inputs["params:align"].get("unlabelled") or {}}  # those of ingest stand among the inputs
    return files_read({**inputs, **more})


read_source.outside = _files_read  # type: ignore[attr-defined]


def make_base(
    manifest: Any,
    source_manifest: Any,
    unlabelled: Any,
    bases: Path,
    backbone: Mapping[str, Any],
    data: Mapping[str, Any],
    pretrain: Mapping[str, Any],
    pretrain_llava: Mapping[str, Any],
    align: Mapping[str, Any],
) -> Path:
    """The folder of the backbone: put together from the sources of its towers, or made by another experiment before."""
    from dataclasses import replace

    from fusetune.backbones.alignment import AlignSettings
    from fusetune.backbones.backbone import Backbone
    from fusetune.backbones.bases import save_base
    from fusetune.backbones.sources import EMBEDDED_LLAVA
    from fusetune.config import build
    from fusetune.features.composing import compose
    from fusetune.pipelines.progress import StepProgress
    from fusetune.training.data import DataSettings, fitting_rows

    settings, chosen = _chosen(backbone, data)
    kinds = {name: m["kind"] for name, m in data["modalities"].items()}
    if settings.is_embedded(kinds):
        return _embedded(source_manifest, bases, pretrain, data.get("use_trunk", True))
    if settings.source == EMBEDDED_LLAVA:
        settings = replace(settings, source=str(_embedded_llava(source_manifest, bases, pretrain_llava)))
    others, base = settings.beside(kinds), None
    if whole := settings.composite(kinds):
        base = Backbone.from_composite(whole, {name: kind for name, kind in kinds.items() if name not in others})
        if not others:
            return save_base(base, bases)
    rows = fitting_rows(manifest, build(DataSettings, data, "data"), unlabelled)
    with StepProgress() as progress:
        made = compose(
            {name: chosen[name] for name in others},
            rows,
            lambda: Backbone.from_pretrained(_embedded(source_manifest, bases, pretrain, use_trunk=False)),
            build(AlignSettings, align, "align"),
            progress,
        )
    return save_base(base.joined(made, kinds) if base else made, bases)


def _source_files(inputs: Mapping[str, Any]) -> list[str]:
    """Contents of the local folders that towers are taken from, which can change under their names."""
    backbone = inputs["params:backbone"]
    named = [backbone.get("source", ""), *(t.get("source", "") for t in (backbone.get("towers") or {}).values())]
    return [content_hash(Path(source)) for source in named if source and Path(source).is_dir()]


make_base.outside = _source_files  # type: ignore[attr-defined]


def _chosen(backbone: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Any, Any]:
    from fusetune.backbones.sources import BackboneSettings
    from fusetune.config import build

    settings = build(BackboneSettings, backbone, "backbone")
    return settings, settings.sources({name: modality["kind"] for name, modality in data["modalities"].items()})


def _embedded(table: Any, bases: Path, pretrain: Mapping[str, Any], use_trunk: bool) -> Path:
    """The folder of the embedded base, pretrained once for the same settings and data.

    Args:
        use_trunk: whether with a trunk, on towers that may have been made for another experiment.
    """
    from fusetune.backbones.backbone import Backbone
    from fusetune.backbones.bases import made_before, remember_recipe, save_base
    from fusetune.backbones.characters import as_characters
    from fusetune.backbones.pretraining import PretrainSettings, pretrain_towers, pretrain_trunk
    from fusetune.config import build, digest
    from fusetune.device import pick_device
    from fusetune.pipelines.hashing import code_hash, table_hash
    from fusetune.pipelines.progress import StepProgress

    of_part = {name: value for name, value in pretrain.items() if use_trunk or not name.startswith("trunk_")}
    recipe = digest([code_hash(make_base), of_part, table_hash(table), use_trunk])
    known = made_before(bases, recipe)
    if known:
        logger.info("base: %s was made from these very settings and data before", known.name[:12])
        return known
    towers = Backbone.from_pretrained(_embedded(table, bases, pretrain, use_trunk=False)) if use_trunk else None
    rows, settings, device = as_characters(table), build(PretrainSettings, pretrain, "pretrain"), pick_device("auto")
    with StepProgress() as progress:
        if towers:
            made = pretrain_trunk(towers, rows, settings, progress, device)
        else:
            made = pretrain_towers(rows, _phrases(), settings, progress, device)
    folder = save_base(made, bases)
    remember_recipe(bases, recipe, folder)
    return folder


def _embedded_llava(table: Any, bases: Path, pretrain_llava: Mapping[str, Any]) -> Path:
    """The folder of the embedded LLaVA, as a hub has one; pretrained once for the same settings and data."""
    import shutil

    from fusetune.backbones.bases import appear
    from fusetune.backbones.characters import as_characters
    from fusetune.backbones.pretraining_llava import PretrainLlavaSettings
    from fusetune.backbones.pretraining_llava import pretrain_llava as run
    from fusetune.config import build, digest
    from fusetune.device import pick_device
    from fusetune.manifest.readers.glyphs import char_of
    from fusetune.manifest.readers.unicode_facts import description
    from fusetune.pipelines.hashing import code_hash, table_hash
    from fusetune.pipelines.progress import StepProgress
    from fusetune.scratch import scratch

    folder = bases / f"llava-{digest([code_hash(make_base), pretrain_llava, table_hash(table)])[:16]}"
    if folder.is_dir():
        logger.info("base: %s was made from these very settings and data before", folder.name)
        return folder
    half = scratch(bases / f".{folder.name}")
    rows = as_characters(table)
    described = [description(char_of(notation)) for notation in rows.chars]
    try:
        with StepProgress() as progress:
            settings = build(PretrainLlavaSettings, pretrain_llava, "pretrain_llava")
            run(rows, described, _phrases(), settings, progress, pick_device("auto"), half)
        appear(half, folder, "config.json")
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def _phrases() -> list[str]:
    from fusetune.manifest.readers.glyphs import QUESTIONS

    return [phrase.format("") for phrases in QUESTIONS.values() for phrase in phrases]
