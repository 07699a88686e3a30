"""Node functions of `validate`."""

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def check_manifest(
    manifest: Any, data: Mapping[str, Any], validate: Mapping[str, Any], experiment: str
) -> tuple[Any, Any, dict[str, Any], str]:
    """The sound rows, the quarantine, the report, and the report as a page."""
    from fusetune.config import build
    from fusetune.features.source import Source
    from fusetune.manifest.checks import ValidationSettings
    from fusetune.manifest.contents import with_constants, with_digests
    from fusetune.manifest.validation import validate as run_checks
    from fusetune.pipelines.progress import DecodeProgress
    from fusetune.pipelines.tracking import log_dict, log_text
    from fusetune.report.validation_page import validation_page
    from fusetune.training.data import DataSettings, faults_of, make_task

    settings = build(DataSettings, data, "data")
    task = make_task(settings.task)
    problems = task.problems()
    label = getattr(task.config, "label", None)
    table = with_constants(manifest, settings.modalities)
    with DecodeProgress() as progress:
        outcome = run_checks(
            table,
            settings.modalities,
            [label] if label and label not in problems else [],
            build(ValidationSettings, validate, "validate"),
            progress,
            task.columns(),
            problems,
            lambda some: faults_of(task, Source(some, settings.modalities)),
        )
    page = validation_page(outcome.report, f"Validation of {experiment}")
    log_dict(outcome.report, "validation.json")
    log_text(page, "validation.html")
    return with_digests(outcome.sound, settings.modalities), outcome.quarantine, outcome.report, page


def _files(inputs: Mapping[str, Any]) -> list[str]:
    """Hashes of the media files that the manifest points to, which can change while it doesn't."""
    import pyarrow.parquet as pq

    from fusetune.manifest.contents import names_files, readable_digests
    from fusetune.manifest.schema import MEDIA, modalities_of
    from fusetune.on_disk import read_parquet

    file, found = inputs["manifest"], []
    schema = pq.read_schema(file) if file.is_file() else None
    for name, modality in modalities_of(inputs["params:data"]).items():
        column = modality.column_of(name)
        if modality.kind in MEDIA and schema and column in schema.names and names_files(schema.field(column).type):
            cells = read_parquet(file, [column])[column]
            found += ["unreadable" if d is None else d.hex() for d in readable_digests(modality, cells)]
    return found


check_manifest.outside = _files  # type: ignore[attr-defined]


def accept_manifest(checked: Any, report: Mapping[str, Any]) -> Any:
    """The sound rows, where the report lets them pass; raises FusetuneError with a table of what failed otherwise."""
    from fusetune.errors import FusetuneError

    if not report["stopped_by"]:
        if report["quarantined_rows"]:
            aside = [c for c in report["checks"] if c["severity"] == "quarantine"]
            told = (f"{c['check']} ({c['column']}) {c['rows']}, e.g. {_example(c['examples'][0])}" for c in aside)
            counts = report["quarantined_rows"], report["rows"]
            logger.warning("validation: %d of %d rows set aside (quarantine.parquet): %s", *counts, "; ".join(told))
        return checked
    lines = []
    for c in report["checks"]:
        found = f"{c['rows']:>6} rows, e.g. {_example(c['examples'][0])}"
        lines.append(f"  {c['severity']:<10} {c['check']:<18} {c['column']:<12} {found}")
    raise FusetuneError(
        f"validation: stopped by {'; '.join(report['stopped_by'])}.\n" + "\n".join(lines) + "\nMend the data, or "
        "`validate.severity` and `validate.max_quarantined`. The report is validation.html, the rows set aside are in "
        "quarantine.parquet; nothing downstream was touched."
    )


def _example(example: Mapping[str, Any]) -> str:
    return f"row {example['row']}: {example['value']}" if example["row"] >= 0 else str(example["value"])
