"""Node functions of `inputs`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def check_inputs(
    manifest: Any,
    base: Path,
    validation: Mapping[str, Any],
    data: Mapping[str, Any],
    validate: Mapping[str, Any],
    experiment: str,
) -> tuple[dict[str, Any], str]:
    """What of the sound rows reaches the base, and the validation report with it as a page."""
    from fusetune.config import build
    from fusetune.features.inputs import input_report, told
    from fusetune.features.source import Source
    from fusetune.manifest.checks import ValidationSettings
    from fusetune.pipelines.tracking import log_dict, log_metrics, log_text
    from fusetune.report.validation_page import validation_page
    from fusetune.training.data import DataSettings, load_backbone, make_task, meet, streams_of, with_derived

    settings = build(DataSettings, data, "data")
    task, backbone = make_task(settings.task), load_backbone(base, settings)
    meet(task, backbone)
    source = Source(with_derived(task, manifest, settings.modalities), streams_of(settings))
    report = input_report(source, backbone, build(ValidationSettings, validate, "validate"))
    for sentence in told(report):
        logger.warning("%s", sentence)
    for sample in report.get("supervised", ()):
        logger.info("row %(row)s: \033[90m%(prompt)s\033[32m%(answer)s\033[0m", sample)  # grey: shown, green: learned
    whole = {
        **validation,
        "checks": [*validation["checks"], *report["checks"]],
        "stopped_by": [*validation["stopped_by"], *report["stopped_by"]],
        "supervised": report.get("supervised", []),
    }
    page = validation_page(whole, f"Validation of {experiment}, as its base reads it")
    log_dict(report, "inputs.json")
    log_text(page, "validation_with_base.html")
    log_metrics({f"{name}_{share}": value for name, own in report["texts"].items() for share, value in own.items()})
    return report, page


def accept_inputs(report: Mapping[str, Any]) -> dict[str, int]:
    """The longest input of each modality; raises FusetuneError where the base can't read what is there."""
    from fusetune.config import check
    from fusetune.features.inputs import told

    lines = "\n  ".join(told(report))
    check(
        not report["stopped_by"],
        f"inputs: stopped by {'; '.join(report['stopped_by'])}.\n  {lines}\n{_advice(report)}",
    )
    return dict(report["lengths"])


def _advice(report: Mapping[str, Any]) -> str:
    stopping = [check["check"] for check in report["checks"] if check["severity"] == "error"]
    advice = {
        "text.prompt": "Mend these rows.",
        "input.pictures": "Leave pictures out, or take a prompt that puts nothing between them (backbone.prompt).",
        "input.context": "Expected fewer pictures, shorter texts (backbone.towers: max_tokens) or shorter answers.",
    }
    others = (
        "Take a base whose tokenizer knows these texts (backbone.towers: a hub id or a folder), or leave the modality "
        "out, or go on all the same: validate.severity: {text.mostly_unknown: warn}."
    )
    return " ".join(dict.fromkeys(advice.get(name, others) for name in stopping))
