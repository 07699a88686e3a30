"""Node functions of `pretrain`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BackboneSettings:
    """
    Attributes:
        source: ``pretrain`` for the embedded base model, else a hub id or a local folder of `transformers`.
        modalities: name -> kind of the towers to take from such a source.
    """

    source: str = "pretrain"
    modalities: Mapping[str, str] | None = None


def read_source(pretraining_data: Mapping[str, Any], backbone: Mapping[str, Any]) -> Any:
    """The characters to pretrain on; an empty table where the backbone comes from elsewhere."""
    from fusetune.pipelines.ingest.nodes import read_manifest

    table = read_manifest(pretraining_data)
    return table if backbone["source"] == "pretrain" else table.slice(0, 0)


def make_base(source_manifest: Any, backbone: Mapping[str, Any], pretrain: Mapping[str, Any]) -> Any:
    """The backbone, pretrained on the source typefaces or taken from `backbone.source`."""
    from fusetune.backbones.backbone import Backbone
    from fusetune.backbones.pretraining import PretrainSettings
    from fusetune.backbones.pretraining import pretrain as run
    from fusetune.config import build
    from fusetune.manifest.readers.glyphs import QUESTIONS, as_characters
    from fusetune.pipelines.progress import StepProgress
    from fusetune.training.device import pick_device

    chosen = build(BackboneSettings, backbone, "backbone")
    if chosen.source != "pretrain":
        return Backbone.from_pretrained(chosen.source, chosen.modalities)
    phrases = [phrase.format("") for phrases in QUESTIONS.values() for phrase in phrases]
    with StepProgress() as progress:
        settings = build(PretrainSettings, pretrain, "pretrain")
        return run(as_characters(source_manifest), phrases, settings, progress, pick_device("auto"))
