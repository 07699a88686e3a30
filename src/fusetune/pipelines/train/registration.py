"""Registering a trained adapter in MLflow: its files, its version, and whether it is the champion now."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusetune.pipelines.hashing import content_hash
from fusetune.pipelines.registry import SCORES, Decision, RegisterSettings, Registry
from fusetune.pipelines.tracking import active_run

logger = logging.getLogger(__name__)
EXAMPLE_ROWS = 2


def register_version(
    method: str,
    adapter: Path,
    metrics: Mapping[str, Any],
    predictions: Any,
    figures: Path,
    base: Path,
    manifest: Any,
    experiment: str,
    settings: RegisterSettings,
    evaluation: Mapping[str, Any],
) -> dict[str, Any]:
    """Log the adapter as a pyfunc model in the active run and register it; the same bytes make no second version.

    Returns:
        Name, version, run id, and the champion decision with its numbers.
    """
    registry = Registry(settings, evaluation)
    adapter_hash = content_hash(adapter)
    _log_report(metrics, predictions, figures)
    with registry.locked():
        known = registry.same_bytes(adapter_hash)
        if known:
            logger.info("%s: these very bytes are version %s of %s", method, known.version, settings.model_name)
            version = str(known.version)
        else:
            tags = _tags(method, adapter, adapter_hash, metrics, predictions, manifest, experiment)
            version = registry.create(_logged(adapter, base, manifest, predictions, metrics), tags)
        decision = registry.challenge(version)
    logger.info("%s: version %s of %s, %s", method, version, settings.model_name, decision.reason)
    log_decision(decision)
    run = active_run()
    return {"model_name": settings.model_name, "run_id": run.info.run_id if run else None, **asdict(decision)}


def log_decision(decision: Decision) -> None:
    """The decision and its numbers, with the active run."""
    if not active_run():
        return
    import mlflow

    mlflow.log_dict(asdict(decision), "champion_decision.json")
    numbers = {"gain": decision.gain, "gain_low": decision.low, "gain_high": decision.high}
    mlflow.log_metrics({f"champion_{name}": value for name, value in numbers.items() if value is not None})


def _logged(adapter: Path, base: Path, manifest: Any, predictions: Any, metrics: Mapping[str, Any]) -> str:
    """The address of the logged model: the adapter's folder and its scores; the base by reference only."""
    import mlflow
    import pyarrow.parquet as pq

    from fusetune.bank import mlflow_model
    from fusetune.bank.artifact import Artifact

    data = Artifact.from_pretrained(adapter).data()
    example = _example(manifest, data)
    with tempfile.TemporaryDirectory() as folder:
        files, scores = Path(folder, "adapter"), Path(folder, SCORES)
        shutil.copytree(adapter, files)  # under one name, whatever the method is called
        pq.write_table(predictions.select(["sample_id", "score"]), scores)
        logged = mlflow.pyfunc.log_model(
            name="adapter",
            python_model=str(Path(mlflow_model.__file__)),
            artifacts={"adapter": str(files), "evaluation": str(scores)},
            model_config={"base": str(base.resolve())},
            signature=_signature(adapter, base, example),
            input_example=example,
            metadata={"columns": {name: modality.kind for name, modality in data.modalities.items()}},
            pip_requirements=[f"fusetune=={_version()}"],
        )
    numbers = {f"test_{name}": value for name, value in metrics["test"].items() if isinstance(value, float)}
    mlflow.log_metrics(numbers, model_id=logged.model_id)
    return str(logged.model_uri)


def _tags(
    method: str,
    adapter: Path,
    adapter_hash: str,
    metrics: Mapping[str, Any],
    predictions: Any,
    manifest: Any,
    experiment: str,
) -> dict[str, str]:
    from fusetune.bank.artifact import Artifact
    from fusetune.features.source import Source

    artifact = Artifact.from_pretrained(adapter)
    run = active_run()
    around = {key: value for key, value in (run.data.tags if run else {}).items() if key.startswith(("git.", "dvc."))}
    frontier = artifact.config["frontier"]
    depths = [f"{name} {depth}" for name, depth in frontier["towers"].items()]
    return around | {
        "method": method,
        "experiment": experiment,
        "frontier": ", ".join([*depths, f"trunk {frontier['trunk']}"] if frontier["trunk"] else depths),
        "adapter_sha256": adapter_hash,
        "base_fingerprint": artifact.config["base_fingerprint"],
        "data_sha256": Source(manifest, artifact.data().modalities).digest(metrics["target_columns"]),
        "test_data_sha256": _data_hash(predictions, metrics),
        "metric": metrics["metric"],
        "value": repr(metrics["test"][metrics["metric"]]),
        "trainable_parameters": str(metrics["trainable_parameters"]),
    }


def _log_report(metrics: Mapping[str, Any], predictions: Any, figures: Path) -> None:
    if not active_run():
        return
    import mlflow

    mlflow.log_dict(dict(metrics), "metrics.json")
    mlflow.log_artifacts(str(figures), "figures")
    mlflow.log_table(predictions.slice(0, 200).to_pandas(), "predictions_first_200.json")


def _data_hash(predictions: Any, metrics: Mapping[str, Any]) -> str:
    """Identity of the test data: which samples, which targets; not what was predicted."""
    from fusetune.config import digest

    names = ["sample_id", *metrics["target_columns"]]
    return digest([metrics["metric"], {name: predictions[name].to_pylist() for name in names}])


def _example(manifest: Any, data: Any) -> Any:
    """The first rows as a request holds them, a DataFrame."""
    import pandas as pd

    from fusetune.manifest.schema import MEDIA

    rows = manifest.slice(0, EXAMPLE_ROWS)
    columns: dict[str, Any] = {}
    for name, modality in data.modalities.items():
        cells = rows[modality.column_of(name)].to_pylist()
        columns[name] = [_as_sent(modality, cell) for cell in cells] if modality.kind in MEDIA else cells
    return pd.DataFrame(columns)


def _signature(adapter: Path, base: Path, example: Any) -> Any:
    """Of answers and params, from what the model answers to the example.

    Columns of requests are left out: MLflow would drop, without a word, those that the schema doesn't name, a
    misspelled modality as well as one that only another adapter of the bank takes. The model itself refuses them.
    """
    from types import SimpleNamespace

    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    from fusetune.bank.mlflow_model import AdapterModel

    model = AdapterModel()
    files = {"adapter": str(adapter)}
    model.load_context(SimpleNamespace(artifacts=files, model_config={"base": str(base)}))
    outputs = infer_signature(model_output=model.predict(None, example)).outputs
    return ModelSignature(outputs=outputs, params=ParamSchema([ParamSpec("adapter", DataType.string, default="")]))


def _as_sent(modality: Any, cell: Any) -> Any:
    """A media cell as a request holds it: base64 text, of pictures a list."""
    import base64

    from fusetune.manifest.files import read_media

    if cell is None:
        return None
    items = cell if isinstance(cell, list) else [cell]
    sent = [base64.b64encode(read_media(modality.root, item, "example")).decode() for item in items]
    return sent if modality.kind == "image" else sent[0]


def _version() -> str:
    from fusetune import __version__

    return __version__
