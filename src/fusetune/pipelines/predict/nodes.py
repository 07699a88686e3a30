"""Node functions of `predict`."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusetune.config import check

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictSettings:
    """
    Attributes:
        adapter: NAME@ALIAS or NAME/VERSION of a registered model, or an adapter's folder; None: the champion of this
            experiment.
        samples: a Parquet, CSV, TSV or JSON Lines file with a column for each modality; None: the experiment's
            validated manifest. With the task's columns in it, metrics are reported too.
        roots: modality -> folder of the files that its column names; else `data.modalities` says where they are.
        split: of the manifest; None: all rows. A file of samples without a column `split` is taken whole.
        batch_size: samples per pass.
        device: auto, cpu, cuda or cuda:N.
    """

    adapter: str | None = None
    samples: str | None = None
    roots: Mapping[str, str] = field(default_factory=dict)
    split: str | None = "test"
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self.batch_size > 0, f"predict.batch_size: expected at least 1, found {self.batch_size}.")


def predict(
    manifest: Any,
    bases: Path,
    predict: Mapping[str, Any],
    register: Mapping[str, Any],
    data: Mapping[str, Any],
    evaluate: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """What was predicted for each row, with which adapter, from which bytes; and how much of it is right, if known."""
    import pyarrow as pa

    from fusetune.bank.artifact import Artifact
    from fusetune.bank.scoring import score
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.features.source import Source
    from fusetune.pipelines.progress import Bar
    from fusetune.pipelines.tracking import log_metrics, log_tags
    from fusetune.training.evaluation import EvaluationSettings

    settings = build(PredictSettings, predict, "predict")
    reference, folder = adapter_of(settings, register)
    artifact = Artifact.from_pretrained(folder)
    source = Source(_table(settings, manifest), _modalities(settings, artifact, data))
    rows = _rows(settings, source.table)
    model = artifact.build(artifact.base_in(bases))
    with Bar() as bar:
        scored = score(
            model, source, rows, settings.batch_size, pick_device(settings.device),
            lambda done, count: bar.show("predict", done, count, reference),
        )  # fmt: skip
    keys = source.readable_keys()
    told = lineage(reference, folder, keys, artifact)
    columns = _columns(source, keys, rows, scored, model.task)
    columns["adapter"] = pa.array([reference] * len(rows)).dictionary_encode()
    columns["adapter_sha256"] = pa.array([told["adapter_sha256"]] * len(rows)).dictionary_encode()
    log_tags(told)
    log_metrics({"rows": len(rows), "rows_with_errors": len(scored.errors)})
    logger.info("%s: %d rows predicted, %d could not be read", reference, len(scored.rows), len(scored.errors))
    for row, error in list(scored.errors.items())[:3]:
        logger.warning("row %d: %s", row, error)
    metrics = score_answers(model.task, source, keys, scored, build(EvaluationSettings, evaluate, "evaluate"))
    log_metrics({name: value for name, value in metrics.get("metrics", {}).items() if isinstance(value, float)})
    labels = {name: json.dumps(labels) for name, (labels, _) in model.task.probabilities(scored.outputs).items()}
    return pa.table(columns).replace_schema_metadata({**told, **labels}), {"adapter": reference, **metrics}


def score_answers(task: Any, source: Any, keys: Mapping[str, Any], scored: Any, settings: Any) -> dict[str, Any]:
    """Metrics of the rows whose targets are there and known; says what was left out."""
    from fusetune.training.data import task_columns
    from fusetune.training.evaluation import evaluate, main_metric

    lacking = [name for name in task.columns() if name not in source.table.column_names]
    if lacking:
        return {"evaluated_rows": 0, "why": f"the samples have no column {', '.join(map(repr, lacking))}"}
    columns = {name: [values[row] for row in scored.rows] for name, values in task_columns(task, source, keys).items()}
    known = [i for i, takes in enumerate(task.known(columns)) if takes]
    left_out = len(scored.rows) - len(known)
    if left_out:
        i = sorted(set(range(len(scored.rows))) - set(known))[0]
        found = ", ".join(f"{name} {columns[name][i]!r}" for name in task.columns())
        logger.warning(
            "%d of %d rows are left out of the metrics: no target, or none that the training knew (row %d: %s)",
            left_out, len(scored.rows), scored.rows[i], found,
        )  # fmt: skip
    if not known:
        return {"evaluated_rows": 0, "why": "no row has a target that the training knew"}
    picked = {name: [values[i] for i in known] for name, values in columns.items()}
    kind, groups = getattr(task.config, "question_type", None), None
    if "group_id" in source.table.column_names:
        of_rows = source.table["group_id"].to_pylist()
        groups = [of_rows[scored.rows[i]] for i in known]
    kinds = picked[kind] if kind else None
    metrics = evaluate(task, scored.outputs[known], task.truths(picked), settings, kinds, groups)
    name = main_metric(task, metrics)
    logger.info(
        "%s %.3f (%.3f to %.3f) on %d rows", name, metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"],
        len(known),
    )  # fmt: skip
    return {"metric": name, "evaluated_rows": len(known), "rows_left_out": left_out, "metrics": metrics}


def adapter_of(settings: PredictSettings, register: Mapping[str, Any]) -> tuple[str, Path]:
    """What the adapter is called in the output, version and all, and its folder."""
    named = settings.adapter or f"{register['model_name']}@champion"
    if Path(named).is_dir():
        return named, Path(named)
    from fusetune.bank.mlflow_model import registered_folder, registered_version

    version = registered_version(named)
    return version, registered_folder(version)


def lineage(reference: str, folder: Path, keys: Mapping[str, Any], artifact: Any) -> dict[str, str]:
    """From a table of predictions back to bytes: data, adapter, base."""
    from fusetune.config import digest
    from fusetune.pipelines.hashing import content_hash

    return {
        "adapter": reference,
        "adapter_sha256": content_hash(folder),
        "base_fingerprint": artifact.config["base_fingerprint"],
        "data_sha256": digest(keys),
    }


def read_outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the node reads that no catalog knows: the adapter and the user's own file of samples."""
    from fusetune.bank.artifact import Artifact
    from fusetune.config import build
    from fusetune.features.source import Source
    from fusetune.hooks import use_tracking
    from fusetune.pipelines.conf_source import project_root
    from fusetune.pipelines.hashing import content_hash

    settings = build(PredictSettings, inputs["params:predict"], "predict")
    use_tracking(project_root())
    reference, folder = adapter_of(settings, inputs["params:register"])
    found: dict[str, Any] = {"adapter": [reference, content_hash(folder)]}
    if settings.samples and Path(settings.samples).is_file():
        modalities = _modalities(settings, Artifact.from_pretrained(folder), inputs["params:data"])
        keys = Source(_table(settings, None), modalities).readable_keys()
        found["samples"] = [content_hash(Path(settings.samples)), keys]
    return found


predict.outside = read_outside  # type: ignore[attr-defined]


def _table(settings: PredictSettings, manifest: Any) -> Any:
    from fusetune.manifest.readers.table import read

    if not settings.samples:
        return manifest
    check(
        Path(settings.samples).is_file(),
        f"predict.samples: no file '{settings.samples}'. Expected a table with a column for each modality.",
    )
    return read({"file": settings.samples}, "predict.samples")


def _modalities(settings: PredictSettings, artifact: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's, with the folders of this machine."""
    from fusetune.manifest.schema import MEDIA
    from fusetune.training.data import with_roots

    modalities = artifact.data().modalities
    for name in settings.roots:
        kind = modalities[name].kind if name in modalities else None
        media = [n for n, modality in modalities.items() if modality.kind in MEDIA]
        check(kind in MEDIA, f"predict.roots: '{name}' has no files; those that have: {', '.join(media) or 'none'}.")
    return dict(with_roots(artifact.data(), data, settings.roots).modalities)


def _rows(settings: PredictSettings, table: Any) -> list[int]:
    if settings.split is None or "split" not in table.column_names:
        return list(range(table.num_rows))
    rows = [row for row, split in enumerate(table["split"].to_pylist()) if split == settings.split]
    check(bool(rows), f"predict.split: no row of split '{settings.split}'.")
    return rows


def _columns(source: Any, keys: Mapping[str, Any], rows: list[int], scored: Any, task: Any) -> dict[str, Any]:
    """By column; rows that could not be read have an error and nothing else."""
    import pyarrow as pa

    from fusetune.config import digest
    from fusetune.training.data import sample_columns

    asked = [name for name in task.columns() if name in source.table.column_names]
    told = {n: source.table[n].to_pylist() for n in asked} | sample_columns(task, source, keys)
    contents = task.contents({name: [values[row] for row in scored.rows] for name, values in told.items()})
    ids = source.table["sample_id"].to_pylist() if "sample_id" in source.table.column_names else None
    at = {row: i for i, row in enumerate(scored.rows)}
    names = [str(ids[row]) if ids else str(row) for row in scored.rows]
    decoded = task.answers(scored.outputs, names, contents)
    shares = {name: values.tolist() for name, (_, values) in task.probabilities(scored.outputs).items()}
    columns: dict[str, Any] = {
        "sample_id": [ids[row] if ids else str(row) for row in rows],
        "content_sha256": [digest({name: column[row] for name, column in keys.items()}) for row in rows],
    }
    for name in decoded[0]:
        columns[name] = [decoded[at[row]][name] if row in at else None for row in rows]
    for name, values in shares.items():
        columns[name] = [values[at[row]] if row in at else None for row in rows]
    columns["error"] = pa.array([scored.errors.get(row) for row in rows], pa.string())
    return columns
