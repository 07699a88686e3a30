"""Node functions of `pretrain`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusetune.pipelines.hashing import content_hash
from fusetune.pipelines.ingest.nodes import files_read, read_manifest

logger = logging.getLogger(__name__)
OURS = ("pretrain", "align")  # sources that are made here


@dataclass(frozen=True)
class BackboneSettings:
    """
    Attributes:
        source: ``pretrain`` for the embedded base model; ``align`` for small towers that are fitted to the training
            rows of `pretraining_data` without labels; else a hub id or a local folder of `transformers`.
        modalities: name -> kind of the towers, for everything but ``pretrain``.
        roots: of modalities whose cells are paths, for ``align``.
    """

    source: str = "pretrain"
    modalities: Mapping[str, str] | None = None
    roots: Mapping[str, str] = field(default_factory=dict)


def read_source(pretraining_data: Mapping[str, Any], backbone: Mapping[str, Any]) -> Any:
    """What the backbone is made from; an empty table where it comes from elsewhere."""
    table = read_manifest(pretraining_data)
    return table if backbone["source"] in OURS else table.slice(0, 0)


read_source.outside = files_read  # type: ignore[attr-defined]


def make_base(
    source_manifest: Any,
    bases: Path,
    backbone: Mapping[str, Any],
    pretrain: Mapping[str, Any],
    align: Mapping[str, Any],
) -> Path:
    """The folder of the backbone: made here, made before by another experiment, or taken from `backbone.source`."""
    from fusetune.backbones.backbone import Backbone
    from fusetune.backbones.bases import made_before, remember_recipe, save_base
    from fusetune.config import build, digest
    from fusetune.pipelines.hashing import code_hash, table_hash

    chosen = build(BackboneSettings, backbone, "backbone")
    if chosen.source not in OURS:
        return save_base(Backbone.from_pretrained(chosen.source, chosen.modalities), bases)
    settings = {"pretrain": pretrain, "align": align}[chosen.source]
    recipe = digest([code_hash(make_base), chosen, settings, table_hash(source_manifest)])
    known = made_before(bases, recipe)
    if known:
        logger.info("base: %s was made from these very settings and data before", known.name[:12])
        return known
    make = {"pretrain": _pretrained, "align": _aligned}[chosen.source]
    folder = save_base(make(source_manifest, chosen, settings), bases)
    remember_recipe(bases, recipe, folder)
    return folder


def _source_files(inputs: Mapping[str, Any]) -> str | None:
    """Contents of the local folder that the backbone is taken from, which can change under its name."""
    source = Path(inputs["params:backbone"].get("source", ""))
    return content_hash(source) if source.is_dir() else None


make_base.outside = _source_files  # type: ignore[attr-defined]


def _pretrained(table: Any, chosen: BackboneSettings, pretrain: Mapping[str, Any]) -> Any:
    from fusetune.backbones.pretraining import PretrainSettings
    from fusetune.backbones.pretraining import pretrain as run
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.manifest.readers.glyphs import QUESTIONS, as_characters
    from fusetune.pipelines.progress import StepProgress

    phrases = [phrase.format("") for phrases in QUESTIONS.values() for phrase in phrases]
    with StepProgress() as progress:
        settings = build(PretrainSettings, pretrain, "pretrain")
        return run(as_characters(table), phrases, settings, progress, pick_device("auto"))


def _aligned(table: Any, chosen: BackboneSettings, align: Mapping[str, Any]) -> Any:
    from fusetune.backbones.alignment import AlignSettings
    from fusetune.backbones.alignment import align as run
    from fusetune.config import build
    from fusetune.features.source import Source
    from fusetune.manifest.schema import Modality
    from fusetune.pipelines.progress import StepProgress

    kinds = dict(chosen.modalities or {})
    source = Source(table, {name: Modality(kind, root=chosen.roots.get(name, ".")) for name, kind in kinds.items()})
    train = [row for row, split in enumerate(table["split"].to_pylist()) if split == "train"]
    samples = {name: source.decoded(name, train) for name in kinds}
    with StepProgress() as progress:
        return run(samples, kinds, build(AlignSettings, align, "align"), progress)
