"""Node functions of `merge`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusetune.config import check

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merging:
    """One adapter that is to be merged.

    Attributes:
        adapter: its folder.
        manifest: the validated manifest of its task; None: that of this experiment.
        weight: of its task vector; a negative one forgets.
    """

    adapter: str
    manifest: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class MergePipelineSettings:
    """
    Attributes:
        adapters: by the name that each has in the result.
        how, density, rank, seed: see `bank.merging.MergeSettings`.
        batch_size, device: of the evaluation before and after.
    """

    adapters: Mapping[str, Merging] = field(default_factory=dict)
    how: str = "linear"
    density: float = 0.2
    rank: int | None = None
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"


def merge_adapters(
    manifest: Any, bases: Path, merge: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The merged adapters, one for each task, and each task's test metrics before and after."""
    import pyarrow.parquet as pq

    from fusetune.bank.artifact import Artifact
    from fusetune.bank.merging import MergeSettings
    from fusetune.bank.task_vectors import merge as merged_by
    from fusetune.config import build
    from fusetune.pipelines.tracking import log_dict, log_metrics

    settings = build(MergePipelineSettings, merge, "merge")
    check(
        bool(settings.adapters),
        "merge.adapters: expected at least one, e.g. {lora: {adapter: data/06_models/vqa/lora, weight: 0.5}}, found "
        "none.",
    )
    way = MergeSettings(settings.how, settings.density, settings.rank, settings.seed)
    given = {name: Artifact.from_pretrained(one.adapter) for name, one in settings.adapters.items()}
    base = next(iter(given.values())).base_in(bases)
    merged = merged_by(given, [one.weight for one in settings.adapters.values()], base, way)
    report: dict[str, Any] = {"how": settings.how, "low_rank_error": merged.error, "tasks": {}}
    for name, one in settings.adapters.items():
        check(
            one.manifest is None or Path(one.manifest).is_file(),
            f"merge.adapters.{name}.manifest: no file '{one.manifest}'.",
        )
        table = pq.read_table(one.manifest) if one.manifest else manifest
        metric, before = _test_metric(given[name], table, base, settings, data)
        after = _test_metric(merged.artifacts[name], table, base, settings, data)[1]
        report["tasks"][name] = {"metric": metric, "before": before, "after": after, "weight": one.weight}
        logger.info("%s: test %s %.3f before merging, %.3f after", name, metric, before, after)
        log_metrics({f"{name}_before": before, f"{name}_after": after})
    log_dict(report, "merge.json")
    return merged, report


def _test_metric(
    artifact: Any, table: Any, base: Path, settings: MergePipelineSettings, data: Mapping[str, Any]
) -> tuple[str, float]:
    from fusetune.bank.scoring import score
    from fusetune.device import pick_device
    from fusetune.features.source import Source
    from fusetune.training.data import columns_of_rows, rows_in, sample_columns, told_of_rows, with_roots

    model = artifact.build(base)
    source = Source(table, with_roots(artifact.data(), data).modalities)
    device = pick_device(settings.device)
    scored = score(model, source, rows_in(table["split"], "test"), settings.batch_size, device)
    told = told_of_rows(model.task, table, sample_columns(model.task, source))
    columns = columns_of_rows(model.task.columns(), table, scored.rows, told)
    return model.task.metric, model.task.metrics(scored.outputs, model.task.targets(columns))[model.task.metric]


def read_outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of the adapters and manifests that the settings name."""
    from fusetune.pipelines.hashing import content_hash

    named = (inputs["params:merge"].get("adapters") or {}).values()
    paths = [Path(one[key]) for one in named for key in ("adapter", "manifest") if one.get(key)]
    return {str(path): content_hash(path) if path.exists() else None for path in paths}


merge_adapters.outside = read_outside  # type: ignore[attr-defined]
