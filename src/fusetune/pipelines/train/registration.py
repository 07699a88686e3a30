"""Registering a trained adapter in MLflow: its files, its version, and whether it is the champion now."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fusetune.pipelines.hashing import content_hash
from fusetune.pipelines.registry import SCORES, Decision, RegisterSettings, Registry
from fusetune.pipelines.tracking import active_run, log_dict, log_metrics, log_tags

logger = logging.getLogger(__name__)
EXAMPLE_ROWS = 2
FOUND_BY = ("method", "metric", "base_fingerprint", "data_sha256", "test_data_sha256")  # tags of the run, too


@dataclass(frozen=True)
class Trained:
    """What a training run has left behind.

    Attributes:
        adapter, figures, base: folders.
        predictions: of the test split, one row a sample.
        data: `data` of conf, which says where files are.
        scores: of validation and test samples, with their groups and targets.
    """

    method: str
    adapter: Path
    metrics: Mapping[str, Any]
    predictions: Any
    scores: Any
    figures: Path
    base: Path
    manifest: Any
    experiment: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def artifact(self) -> Any:
        from fusetune.bank.artifact import Artifact

        return Artifact.from_pretrained(self.adapter)


def register_version(
    trained: Trained,
    settings: RegisterSettings,
    evaluation: Mapping[str, Any],
    limits: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Log the adapter as a pyfunc model in the active run and register it; the same bytes make no second version.

    Args:
        limits: of a request to the served model; see `bank.budget.RequestLimits`.

    Returns:
        Name, version, run id, and the champion decision with its numbers.
    """
    registry = Registry(settings, evaluation)
    method, adapter_hash = trained.method, content_hash(trained.adapter)
    _log_report(trained)
    tags = _tags(trained, adapter_hash)
    log_tags({name: tags[name] for name in FOUND_BY})
    with registry.locked():
        known = registry.same_bytes(adapter_hash)
        if known:
            logger.info("%s: these very bytes are version %s of %s", method, known.version, settings.model_name)
            version = str(known.version)
        else:
            version = registry.create(_logged(trained, limits or {}), tags)
        decision = registry.challenge(version)
    logger.info("%s: version %s of %s, %s", method, version, settings.model_name, decision.reason)
    log_decision(decision)
    run = active_run()
    return {"model_name": settings.model_name, "run_id": run.info.run_id if run else None, **asdict(decision)}


def log_decision(decision: Decision) -> None:
    """The decision and its numbers, with the active run."""
    log_dict(asdict(decision), "champion_decision.json")
    numbers = {"gain": decision.gain, "gain_low": decision.low, "gain_high": decision.high}
    log_metrics({f"champion_{name}": value for name, value in numbers.items() if value is not None})


def _logged(trained: Trained, limits: Mapping[str, Any]) -> str:
    """The address of the logged model: the adapter's folder and its scores; the base by reference only."""
    import mlflow
    import pyarrow.parquet as pq

    from fusetune.bank import mlflow_model
    from fusetune.training.data import with_roots

    data = with_roots(trained.artifact.data(), trained.data)
    example = _example(trained.manifest, data)
    with tempfile.TemporaryDirectory() as folder:
        files, scores = Path(folder, "adapter"), Path(folder, SCORES)
        shutil.copytree(trained.adapter, files)  # under one name, whatever the method is called
        pq.write_table(trained.scores, scores)
        logged = mlflow.pyfunc.log_model(
            name="adapter",
            python_model=str(Path(mlflow_model.__file__)),
            artifacts={"adapter": str(files), "evaluation": str(scores)},
            model_config={"base": str(trained.base.resolve()), "limits": dict(limits)},
            signature=_signature(trained, example),
            input_example=example,
            metadata={"columns": {name: modality.kind for name, modality in data.modalities.items()}},
            pip_requirements=[f"fusetune=={_version()}"],
        )
    numbers = {f"test_{name}": value for name, value in trained.metrics["test"].items() if isinstance(value, float)}
    mlflow.log_metrics(numbers, model_id=logged.model_id)
    return str(logged.model_uri)


def _tags(trained: Trained, adapter_hash: str) -> dict[str, str]:
    from fusetune.features.source import Source

    artifact, metrics, run = trained.artifact, trained.metrics, active_run()
    around = {key: value for key, value in (run.data.tags if run else {}).items() if key.startswith(("git.", "dvc."))}
    return around | {
        "method": trained.method,
        "experiment": trained.experiment,
        "frontier": str(artifact.frontier),
        "adapter_sha256": adapter_hash,
        "base_fingerprint": artifact.config["base_fingerprint"],
        "data_sha256": Source(trained.manifest, artifact.data().modalities).digest(metrics["target_columns"]),
        "validation_data_sha256": _data_of(trained, "val"),
        "test_data_sha256": _data_of(trained, "test"),
        "metric": metrics["metric"],
        "value": repr(metrics["test"][metrics["metric"]]),
        "validation_value": repr(_mean(trained, "val")),
        "trainable_parameters": str(metrics["trainable_parameters"]),
    }


def _log_report(trained: Trained) -> None:
    if not active_run():
        return
    import mlflow

    mlflow.log_dict(dict(trained.metrics), "metrics.json")
    mlflow.log_artifacts(str(trained.figures), "figures")
    mlflow.log_table(trained.predictions.slice(0, 200).to_pandas(), "predictions_first_200.json")


def _data_of(trained: Trained, split: str) -> str:
    """Identity of a split's data: which samples, which targets; not what was predicted."""
    from fusetune.config import digest

    rows = _of_split(trained, split).sort_by("sample_id")
    names = ["sample_id", *trained.metrics["target_columns"]]
    return digest([trained.metrics["metric"], {name: rows[name].to_pylist() for name in names}])


def _mean(trained: Trained, split: str) -> float:
    return float(_of_split(trained, split)["score"].to_numpy().mean())


def _of_split(trained: Trained, split: str) -> Any:
    import pyarrow.compute as pc

    return trained.scores.filter(pc.equal(trained.scores["split"], split))


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


def _signature(trained: Trained, example: Any) -> Any:
    """Of answers and params, from what the model answers to the example.

    Columns of requests are left out: MLflow would drop, without a word, those that the schema doesn't name, a
    misspelled modality as well as one that only another adapter of the bank takes. The model itself refuses them.
    """
    from types import SimpleNamespace
    from typing import get_type_hints

    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    from fusetune.bank.mlflow_model import AdapterModel
    from fusetune.tasks.decoding import Decoding

    model = AdapterModel()
    files = {"adapter": str(trained.adapter)}
    model.load_context(SimpleNamespace(artifacts=files, model_config={"base": str(trained.base)}))
    outputs = infer_signature(model_output=model.predict(None, example)).outputs
    types = {int: DataType.long, float: DataType.double, int | None: DataType.long}
    decoding = [ParamSpec(name, types[hint], default=None) for name, hint in get_type_hints(Decoding).items()]
    adapter = ParamSpec("adapter", DataType.string, default="")
    return ModelSignature(outputs=outputs, params=ParamSchema([adapter, *decoding]))


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
