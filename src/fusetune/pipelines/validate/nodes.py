"""Node functions of `validate`."""

from collections.abc import Mapping
from typing import Any


def validate_manifest(
    manifest: Any, data: Mapping[str, Any], validate: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The manifest, if it passes, and the report; raises FusetuneError with every check that failed."""
    from fusetune.config import build
    from fusetune.manifest.validation import ValidationSettings
    from fusetune.manifest.validation import validate as run_checks
    from fusetune.training.experiment import DataSettings, make_task

    settings = build(DataSettings, data, "data")
    labels = make_task(settings.task).columns()
    report = run_checks(manifest, settings.modalities, labels, build(ValidationSettings, validate, "validate"))
    return manifest, report
