"""Node functions of `validate`."""

from collections.abc import Mapping
from typing import Any


def check_manifest(
    manifest: Any, data: Mapping[str, Any], validate: Mapping[str, Any], experiment: str
) -> tuple[Any, Any, dict[str, Any], str]:
    """The sound rows, the quarantine, the report, and the report as a page."""
    from fusetune.config import build
    from fusetune.manifest.checks import ValidationSettings
    from fusetune.manifest.validation import validate as run_checks
    from fusetune.pipelines.progress import DecodeProgress
    from fusetune.pipelines.tracking import log_dict, log_text
    from fusetune.report.validation_page import validation_page
    from fusetune.training.experiment import DataSettings, make_task

    settings = build(DataSettings, data, "data")
    task = make_task(settings.task)
    label = getattr(task.config, "label", None)  # type: ignore[attr-defined]
    with DecodeProgress() as progress:
        outcome = run_checks(
            manifest,
            settings.modalities,
            [label] if label else [],
            build(ValidationSettings, validate, "validate"),
            progress,
            task.columns(),
        )
    page = validation_page(outcome.report, f"Validation of {experiment}")
    log_dict(outcome.report, "validation.json")
    log_text(page, "validation.html")
    return outcome.sound, outcome.quarantine, outcome.report, page


def accept_manifest(checked: Any, report: Mapping[str, Any]) -> Any:
    """The sound rows, where the report lets them pass; raises FusetuneError with a table of what failed otherwise."""
    from fusetune.errors import FusetuneError

    if not report["stopped_by"]:
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
