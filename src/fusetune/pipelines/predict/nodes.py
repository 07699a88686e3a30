"""Node functions of `predict`."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
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
        samples: a Parquet file with a column for each modality; None: the experiment's validated manifest.
        split: of the manifest; None: all rows. A file of samples without a column `split` is taken whole.
        batch_size: samples per pass.
        device: auto, cpu, cuda or cuda:N.
    """

    adapter: str | None = None
    samples: str | None = None
    split: str | None = "test"
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self.batch_size > 0, f"predict.batch_size: expected at least 1, found {self.batch_size}.")


def predict(manifest: Any, bases: Path, predict: Mapping[str, Any], register: Mapping[str, Any]) -> Any:
    """A table: what was predicted for each row, with which adapter, from which bytes."""
    import pyarrow as pa

    from fusetune.bank.artifact import Artifact
    from fusetune.bank.scoring import score
    from fusetune.config import build
    from fusetune.features.source import Source
    from fusetune.pipelines.progress import Bar
    from fusetune.pipelines.tracking import log_metrics, log_tags
    from fusetune.training.device import pick_device

    settings = build(PredictSettings, predict, "predict")
    reference, folder = adapter_of(settings, register)
    artifact = Artifact.from_pretrained(folder)
    source = Source(_table(settings, manifest), artifact.data().modalities)
    rows = _rows(settings, source.table)
    model = artifact.build(artifact.base_in(bases))
    with Bar() as bar:
        scored = score(
            model, source, rows, settings.batch_size, pick_device(settings.device),
            lambda done, count: bar.show("predict", done, count, reference),
        )  # fmt: skip
    told = lineage(reference, folder, source, artifact)
    columns = _columns(source, rows, scored, model.task)
    columns["adapter"] = pa.array([reference] * len(rows)).dictionary_encode()
    columns["adapter_sha256"] = pa.array([told["adapter_sha256"]] * len(rows)).dictionary_encode()
    log_tags(told)
    log_metrics({"rows": len(rows), "rows_with_errors": len(scored.errors)})
    logger.info("%s: %d rows predicted, %d could not be read", reference, len(scored.rows), len(scored.errors))
    for row, error in list(scored.errors.items())[:3]:
        logger.warning("row %d: %s", row, error)
    labels = {name: json.dumps(labels) for name, (labels, _) in model.task.probabilities(scored.outputs).items()}
    return pa.table(columns).replace_schema_metadata({**told, **labels})


def adapter_of(settings: PredictSettings, register: Mapping[str, Any]) -> tuple[str, Path]:
    """What the adapter is called in the output, version and all, and its folder."""
    named = settings.adapter or f"{register['model_name']}@champion"
    if Path(named).is_dir():
        return named, Path(named)
    from fusetune.bank.mlflow_model import registered_folder, registered_version

    version = registered_version(named)
    return version, registered_folder(version)


def lineage(reference: str, folder: Path, source: Any, artifact: Any) -> dict[str, str]:
    """From a table of predictions back to bytes: data, adapter, base."""
    from fusetune.pipelines.hashing import content_hash

    return {
        "adapter": reference,
        "adapter_sha256": content_hash(folder),
        "base_fingerprint": artifact.config["base_fingerprint"],
        "data_sha256": source.digest(),
    }


def read_outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the node reads that no catalog knows: the adapter and the user's own file of samples."""
    from fusetune.config import build
    from fusetune.hooks import use_tracking
    from fusetune.pipelines.hashing import content_hash
    from fusetune.pipelines.parameters import conf_folder

    settings = build(PredictSettings, inputs["params:predict"], "predict")
    use_tracking(conf_folder().parent)
    reference, folder = adapter_of(settings, inputs["params:register"])
    samples = Path(settings.samples) if settings.samples else None
    return {
        "adapter": [reference, content_hash(folder)],
        "samples": content_hash(samples) if samples and samples.is_file() else None,
    }


predict.outside = read_outside  # type: ignore[attr-defined]


def _table(settings: PredictSettings, manifest: Any) -> Any:
    import pyarrow.parquet as pq

    if not settings.samples:
        return manifest
    file = Path(settings.samples)
    check(file.is_file(), f"predict.samples: no file '{file}'. Expected Parquet with a column for each modality.")
    return pq.read_table(file)


def _rows(settings: PredictSettings, table: Any) -> list[int]:
    if settings.split is None or "split" not in table.column_names:
        return list(range(table.num_rows))
    rows = [row for row, split in enumerate(table["split"].to_pylist()) if split == settings.split]
    check(bool(rows), f"predict.split: no row of split '{settings.split}'.")
    return rows


def _columns(source: Any, rows: list[int], scored: Any, task: Any) -> dict[str, Any]:
    """By column; rows that could not be read have an error and nothing else."""
    import pyarrow as pa

    from fusetune.config import digest

    keys = source.content_keys()
    ids = source.table["sample_id"].to_pylist() if "sample_id" in source.table.column_names else None
    at = {row: i for i, row in enumerate(scored.rows)}
    decoded = task.decode(scored.outputs)
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
