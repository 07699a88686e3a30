"""Node functions of `distil`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.config import check
from fusetune.pipelines.cache_features.nodes import trained_before

logger = logging.getLogger(__name__)


def make_distil(methods: Sequence[str]):
    """The node function that trains students of the method that `distil.method` names."""

    def distil(
        manifest: Any,
        base: Path,
        lengths: Mapping[str, int],
        bases: Path,
        store: Path,
        checkpoints: Path,
        distil: Mapping[str, Any],
        register: Mapping[str, Any],
        data: Mapping[str, Any],
        cache: Mapping[str, Any],
        train: Mapping[str, Any],
        evaluate: Mapping[str, Any],
        *settings: Any,
    ) -> tuple[dict[str, Any], Any, Any]:
        """What teacher and students reach, a figure of it, and a student's adapter."""
        from fusetune.bank.artifact import Artifact
        from fusetune.config import build
        from fusetune.device import pick_device
        from fusetune.features.index import CacheSettings
        from fusetune.features.storage import Store
        from fusetune.pipelines.predict.nodes import PredictSettings, adapter_of
        from fusetune.pipelines.progress import ExtractionProgress
        from fusetune.pipelines.tracking import describe, log_dict, log_figures, log_metrics
        from fusetune.plan.plan import Plan
        from fusetune.report.distilled_figure import students
        from fusetune.report.figures import Figures
        from fusetune.runs.distilling import DistilSettings, heard_teacher, taught_and_alone
        from fusetune.runs.workplace import Workplace
        from fusetune.training.data import DataSettings, with_roots
        from fusetune.training.evaluation import EvaluationSettings
        from fusetune.training.settings import of_method

        chosen, known = build(DistilSettings, distil, "distil"), dict(zip(methods, settings, strict=True))
        check(chosen.method in known, f"distil.method: no method '{chosen.method}'. Known: {', '.join(known)}.")
        reference, folder = adapter_of(PredictSettings(adapter=chosen.teacher), register)
        artifact = Artifact.from_pretrained(folder)
        teacher, own = artifact.build(artifact.base_in(bases)), build(DataSettings, data, "data")
        caching, device = build(CacheSettings, cache, "cache"), pick_device(train.get("device", "auto"))
        with ExtractionProgress() as progress:
            work = Workplace(Store(store), caching, checkpoints, progress, device)
            heard = heard_teacher(
                artifact, teacher, manifest, with_roots(artifact.data(), data), work, chosen.shares.of_features
            )  # fmt: skip
            teacher.detach()
            method = known[chosen.method]
            plan, how = build(Plan, method, chosen.method), of_method(train, method, chosen.method)
            found = taught_and_alone(
                manifest, Path(chosen.base) if chosen.base else base, own, plan, heard, teacher.task, chosen,
                how, build(EvaluationSettings, evaluate, "evaluate"), work,
                lambda text: logger.info("distil: %s", text),
                None if chosen.base else lengths,
            )  # fmt: skip
        told = {"teacher": reference, "teacher_parameters": artifact.config["kept_parameters"], **found.told}
        logger.info("distil: %s", sentence(told))
        describe(f"distil {chosen.method}", sentence(told), method=chosen.method, teacher=reference)
        log_dict(told, "distilled.json")
        log_metrics({"teacher": told["teacher_test"]} | {
            f"{arm}_{share}": value for share, own in means(told).items() for arm, value in own.items()
        })  # fmt: skip
        log_figures(figures := Figures({"distilled": lambda: students(told)}))
        return told, figures, found.student

    distil.outside = _outside  # type: ignore[attr-defined]
    return distil


def sentence(told: Mapping[str, Any]) -> str:
    """'teacher 0.61; 1% of the labels (64 rows): alone 0.31, taught 0.48; ...'"""
    parts = [f"teacher {told['metric']} {told['teacher_test']:.3f}"]
    for share, own in means(told).items():
        rows = told["labels"][share]["rows"]
        parts.append(
            f"{float(share):.4g} of the labels ({rows} rows): alone {own['alone']:.3f}, taught {own['taught']:.3f}"
        )
    return "; ".join(parts)


def means(told: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By share of labels and arm, over seeds."""
    from statistics import mean

    return {
        share: {arm: mean(own[arm].values()) for arm in ("alone", "taught")} for share, own in told["labels"].items()
    }


def _outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher, which no catalog knows."""
    from fusetune.config import build
    from fusetune.hooks import use_tracking
    from fusetune.pipelines.conf_source import project_root
    from fusetune.pipelines.hashing import content_hash
    from fusetune.pipelines.predict.nodes import PredictSettings, adapter_of
    from fusetune.runs.distilling import DistilSettings

    use_tracking(project_root())
    teacher = build(DistilSettings, inputs["params:distil"], "distil").teacher
    reference, folder = adapter_of(PredictSettings(adapter=teacher), inputs["params:register"])
    return {"teacher": [reference, content_hash(folder)], **trained_before(inputs)}
