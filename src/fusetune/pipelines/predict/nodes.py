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
        decoders: processes that decode ahead of the model; None: as `cache.decoders` has it.
    """

    adapter: str | None = None
    samples: str | None = None
    roots: Mapping[str, str] = field(default_factory=dict)
    split: str | None = "test"
    batch_size: int = 64
    device: str = "auto"
    decoders: int | None = None

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
    from fusetune.bank.artifact import Artifact
    from fusetune.bank.predictions import predictions, score_answers
    from fusetune.bank.scoring import score
    from fusetune.config import build
    from fusetune.device import pick_device
    from fusetune.features.source import Source
    from fusetune.pipelines.progress import Bar
    from fusetune.pipelines.tracking import log_metrics, log_tags
    from fusetune.training.data import sample_columns
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
            lambda done, count: bar.show("predict", done, count, reference), settings.decoders,
        )  # fmt: skip
    keys = source.readable_keys()
    told, origin = sample_columns(model.task, source, keys), lineage(reference, folder, keys, artifact)
    table = predictions(model.task, source, keys, told, rows, scored)
    table = table.append_column("adapter", _same(reference, len(rows)))
    table = table.append_column("adapter_sha256", _same(origin["adapter_sha256"], len(rows)))
    log_tags(origin)
    log_metrics({"rows": len(rows), "rows_with_errors": len(scored.errors)})
    logger.info("%s: %d rows predicted, %d could not be read", reference, len(scored.rows), len(scored.errors))
    for row, error in list(scored.errors.items())[:3]:
        logger.warning("row %d: %s", row, error)
    metrics = score_answers(model.task, source, told, scored, build(EvaluationSettings, evaluate, "evaluate"))
    log_metrics({name: value for name, value in metrics.get("metrics", {}).items() if isinstance(value, float)})
    labels = {name: json.dumps(labels) for name, (labels, _) in model.task.probabilities(scored.outputs[:1]).items()}
    return table.replace_schema_metadata({**origin, **labels}), {"adapter": reference, **metrics}


def _same(text: str, count: int) -> Any:
    """A column with the same text in each row."""
    import numpy as np
    import pyarrow as pa

    from fusetune.on_disk import full

    return pa.DictionaryArray.from_arrays(full(count, 0, np.int32), [text])


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
    from fusetune.features.source import listed_digest
    from fusetune.pipelines.hashing import content_hash

    return {
        "adapter": reference,
        "adapter_sha256": content_hash(folder),
        "base_fingerprint": artifact.config["base_fingerprint"],
        "data_sha256": listed_digest(keys),
    }


def read_outside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the node reads that no catalog knows: the adapter and the user's own file of samples."""
    from fusetune.bank.artifact import Artifact
    from fusetune.config import build
    from fusetune.features.source import Source, listed_digest
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
        found["samples"] = [content_hash(Path(settings.samples)), listed_digest(keys)]
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


def _rows(settings: PredictSettings, table: Any) -> Any:
    import numpy as np

    from fusetune.training.data import rows_in

    if settings.split is None or "split" not in table.column_names:
        return np.arange(table.num_rows)
    rows = rows_in(table["split"], settings.split)
    check(len(rows) > 0, f"predict.split: no row of split '{settings.split}'.")
    return rows
