"""Registering an adapter in MLflow: version, tags, alias `challenger`, and `champion` if it wins."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusetune.config import check
from fusetune.pipelines.hashing import content_hash
from fusetune.pipelines.tracking import active_run

logger = logging.getLogger(__name__)
CHALLENGER, CHAMPION = "challenger", "champion"
EXAMPLE_ROWS = 2


@dataclass(frozen=True)
class RegisterSettings:
    """
    Attributes:
        model_name: the registered model's name; every method of an experiment is a version of it.
        min_gain: how much better than the champion a version has to be on the same test data.
    """

    model_name: str
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        check(bool(self.model_name), "register.model_name: expected a name, found ''.")
        check(self.min_gain >= 0, f"register.min_gain: expected a number of at least 0, found {self.min_gain}.")


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
) -> dict[str, Any]:
    """Log the adapter as a pyfunc model in the active run and register it; the same bytes make no second version.

    Returns:
        Name, version, run id, aliases and the champion decision with its numbers.
    """
    import mlflow

    from fusetune.bank import mlflow_model
    from fusetune.bank.artifact import Artifact

    adapter_hash = content_hash(adapter)
    data_hash = _data_hash(predictions, metrics)
    client = mlflow.MlflowClient()
    run = active_run()
    _log_report(metrics, predictions, figures)
    known = _same_bytes(client, settings.model_name, adapter_hash)
    if known:
        logger.info("%s: these very bytes are version %s of %s", method, known.version, settings.model_name)
        version = known.version
    else:
        data = Artifact.from_pretrained(adapter).data()
        example, signature = _example(manifest, data)
        logged = mlflow.pyfunc.log_model(
            name="adapter",
            python_model=str(Path(mlflow_model.__file__)),
            artifacts={"adapter": str(adapter)},
            model_config={"base": str(base.resolve())},
            signature=signature,
            input_example=example,
            pip_requirements=[f"fusetune=={_version()}"],
            registered_model_name=settings.model_name,
        )
        version = str(logged.registered_model_version)
        tags = {
            "method": method,
            "experiment": experiment,
            "adapter_sha256": adapter_hash,
            "test_data_sha256": data_hash,
            "metric": metrics["metric"],
            "value": repr(metrics["test"][metrics["metric"]]),
        }
        for key, value in tags.items():
            client.set_model_version_tag(settings.model_name, version, key, value)
    client.set_registered_model_alias(settings.model_name, CHALLENGER, version)
    decision = _decide(client, settings, version, metrics, data_hash)
    logger.info("%s: version %s of %s, %s", method, version, settings.model_name, decision["reason"])
    run_id = run.info.run_id if run else None
    return {"model_name": settings.model_name, "version": version, "run_id": run_id, **decision}


def _log_report(metrics: Mapping[str, Any], predictions: Any, figures: Path) -> None:
    if not active_run():
        return
    import mlflow

    mlflow.log_dict(dict(metrics), "metrics.json")
    mlflow.log_artifacts(str(figures), "figures")
    mlflow.log_table(predictions.slice(0, 200).to_pandas(), "predictions_first_200.json")


def _decide(
    client: Any, settings: RegisterSettings, version: str, metrics: Mapping[str, Any], data_hash: str
) -> dict[str, Any]:
    """Move `champion` to the version if it is better on the same test data, or if there is no champion."""
    from mlflow.exceptions import MlflowException

    value = metrics["test"][metrics["metric"]]
    try:
        champion = client.get_model_version_by_alias(settings.model_name, CHAMPION)
    except MlflowException:
        champion = None
    if champion is None:
        wins, reason = True, "the first champion"
    elif str(champion.version) == str(version):
        wins, reason = False, "the champion already"
    elif champion.tags.get("test_data_sha256") != data_hash:
        wins, reason = False, f"champion {champion.version} was tested on other data: no comparison, it stays"
    else:
        held = float(champion.tags["value"])
        wins = value > held + settings.min_gain
        verb = "beats" if wins else "does not beat"
        reason = f"{metrics['metric']} {value:.4f} {verb} champion {champion.version} ({held:.4f})"
    if wins:
        client.set_registered_model_alias(settings.model_name, CHAMPION, version)
    client.set_model_version_tag(settings.model_name, version, "champion_decision", reason)
    return {"champion": wins or reason == "the champion already", "reason": reason}


def _same_bytes(client: Any, name: str, adapter_hash: str) -> Any:
    versions = client.search_model_versions(f"name = '{name}' and tag.adapter_sha256 = '{adapter_hash}'")
    return next(iter(versions), None)


def _data_hash(predictions: Any, metrics: Mapping[str, Any]) -> str:
    """Identity of the test data: which samples, which targets; not what was predicted."""
    from fusetune.config import digest

    names = ["sample_id", *metrics["target_columns"]]
    return digest([metrics["metric"], {name: predictions[name].to_pylist() for name in names}])


def _example(manifest: Any, data: Any) -> tuple[Any, Any]:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from fusetune.manifest.schema import MEDIA

    kinds: dict[str, Any] = {
        "text": DataType.string,
        "image": Array(DataType.string),
        "audio": DataType.string,
        "video": DataType.string,
        "vector": Array(DataType.double),
        "sequence": Array(Array(DataType.double)),
    }
    rows = manifest.slice(0, EXAMPLE_ROWS)
    columns: dict[str, Any] = {}
    for name, modality in data.modalities.items():
        cells = rows[modality.column_of(name)].to_pylist()
        columns[name] = [_as_sent(modality, cell) for cell in cells] if modality.kind in MEDIA else cells
    inputs: list[Any] = [ColSpec(kinds[m.kind], name, required=False) for name, m in data.modalities.items()]
    return pd.DataFrame(columns), ModelSignature(inputs=Schema(inputs))


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
