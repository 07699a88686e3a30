"""Node functions of `export`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.config import check


@dataclass(frozen=True)
class ExportSettings:
    """
    Attributes:
        adapter: NAME@ALIAS or NAME/VERSION of a registered model, or an adapter's folder; None: the champion of this
            experiment.
        samples: test samples on which the written model has to answer as the adapter does.
    """

    adapter: str | None = None
    samples: int = 50

    def __post_init__(self) -> None:
        check(self.samples > 0, f"export.samples: expected at least 1, found {self.samples}.")


def export_adapter(
    manifest: Any, bases: Path, export: Mapping[str, Any], register: Mapping[str, Any], data: Mapping[str, Any]
) -> Any:
    """The base with the adapter in its weights, as a folder that `from_pretrained` opens."""
    from fusetune.bank.artifact import Artifact
    from fusetune.bank.export import Export
    from fusetune.config import build
    from fusetune.features.source import Source
    from fusetune.training.data import rows_in, with_roots

    settings = build(ExportSettings, export, "export")
    artifact = Artifact.from_pretrained(_folder(settings, register))
    source = Source(manifest, with_roots(artifact.data(), data).modalities)
    rows = rows_in(manifest["split"], "test")[: settings.samples].tolist()
    check(bool(rows), "export: the manifest has no test samples to compare answers on.")
    samples = {name: source.decoded(name, rows) for name in source.modalities}
    return Export(artifact, artifact.base_in(bases), samples)


def _folder(settings: ExportSettings, register: Mapping[str, Any]) -> Path:
    from fusetune.pipelines.predict.nodes import PredictSettings, adapter_of

    return adapter_of(PredictSettings(adapter=settings.adapter), register)[1]


def read_outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's content, which no catalog knows."""
    from fusetune.config import build
    from fusetune.hooks import use_tracking
    from fusetune.pipelines.conf_source import project_root
    from fusetune.pipelines.hashing import content_hash

    use_tracking(project_root())
    settings = build(ExportSettings, inputs["params:export"], "export")
    return {"adapter": content_hash(_folder(settings, inputs["params:register"]))}


export_adapter.outside = read_outside  # type: ignore[attr-defined]
