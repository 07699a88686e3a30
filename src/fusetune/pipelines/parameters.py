"""Which parameters there are and what each must look like; checked before the first node runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from fusetune.config import build, check_keys
from fusetune.manifest.split_settings import FewShotSettings, SplitSettings
from fusetune.pipelines.conf_source import conf_env, conf_source, method_names

# top-level parameter -> the dataclass that it, or each of its values, becomes (imported when a run uses it); None for
# plain values
SCHEMAS: dict[str, str | None] = {
    "experiment": None,
    "force": None,
    "ingest": "fusetune.pipelines.parameters:ReaderSettings",
    "pretraining_data": "fusetune.pipelines.parameters:ReaderSettings",
    "data": "fusetune.training.data:DataSettings",
    "validate": "fusetune.manifest.checks:ValidationSettings",
    "backbone": "fusetune.backbones.sources:BackboneSettings",
    "pretrain": "fusetune.backbones.pretraining:PretrainSettings",
    "pretrain_llava": "fusetune.backbones.pretraining_llava:PretrainLlavaSettings",
    "align": "fusetune.backbones.alignment:AlignSettings",
    "estimate": "fusetune.runs.account:EstimateSettings",
    "cache": "fusetune.features.index:CacheSettings",
    "train": "fusetune.training.settings:TrainSettings",
    "evaluate": "fusetune.training.evaluation:EvaluationSettings",
    "evaluate_on": "each fusetune.manifest.second_sets:SecondSet",
    "evaluate_adapters": None,
    "compare": "fusetune.comparison.settings:CompareSettings",
    "promote": "fusetune.pipelines.promote.nodes:PromoteSettings",
    "predict": "fusetune.pipelines.predict.nodes:PredictSettings",
    "continual": "fusetune.runs.continual:ContinualSettings",
    "search": "fusetune.runs.placement_search:SearchSettings",
    "cross_lingual": "fusetune.runs.language_rows:CrossLingualSettings",
    "rollout": "fusetune.pipelines.rollout.nodes:RolloutPipelineSettings",
    "distil": "fusetune.runs.distilling:DistilSettings",
    "new": "fusetune.pipelines.new.nodes:NewSettings",
    "merge": "fusetune.pipelines.merge.nodes:MergePipelineSettings",
    "export": "fusetune.pipelines.export.nodes:ExportSettings",
    "serve": "fusetune.bank.budget:RequestLimits",
    "register": "fusetune.pipelines.registry:RegisterSettings",
}
EACH = "each "
PLAN = "fusetune.plan.plan:Plan"


@dataclass(frozen=True)
class ReaderSettings:
    """
    Attributes:
        reader: name in the registry of readers.
        settings: the reader's own.
        split: shares and seed of splits to draw; None: the data has a column `split`.
        few_shot: keep only so many training rows per class; None: all.
    """

    reader: str
    settings: Mapping[str, Any]
    split: SplitSettings | None = None
    few_shot: FewShotSettings | None = None


def check_names(catalog: CatalogProtocol) -> None:
    """Raise FusetuneError for an unknown key at the top of the parameters."""
    check_keys(catalog.load("parameters"), _schemas(), "parameters")


def check_parameters(catalog: CatalogProtocol, pipeline: Pipeline) -> None:
    """Raise FusetuneError for an unknown key, or a value that can't be, at any level of what the pipeline's nodes use.

    It imports what the values become, torch among it.
    """
    known = _schemas()
    for name in sorted(pipeline.inputs()):
        key = name.removeprefix("params:")
        schema = known.get(key)
        if name.startswith("params:") and schema:
            check_values(schema, catalog.load(name), key)


def _schemas() -> dict[str, str | None]:
    return dict(SCHEMAS) | dict.fromkeys(method_names(conf_source(), conf_env()), PLAN)


def check_values(schema: str, values: Any, where: str) -> None:
    """Raise FusetuneError unless a parameter's values, or each of them, become what `schema` names."""
    module, _, attribute = schema.removeprefix(EACH).partition(":")
    cls = getattr(import_module(module), attribute)
    parts = {f"{where}.{name}": value for name, value in values.items()} if EACH in schema else {where: values}
    for place, value in parts.items():
        build(cls, value, place)
