"""The pipelines by name. `train_<method>` exists for every `methods/<method>.yml` of base and of the environment."""

from kedro.pipeline import Pipeline

from fusetune.pipelines.cache_features.pipeline import create_pipeline as cache_pipeline
from fusetune.pipelines.compare.pipeline import create_pipeline as compare_pipeline
from fusetune.pipelines.conf_source import conf_env, conf_source, method_names
from fusetune.pipelines.continual.pipeline import create_pipeline as continual_pipeline
from fusetune.pipelines.cross_lingual.pipeline import create_pipeline as cross_lingual_pipeline
from fusetune.pipelines.distil.pipeline import create_pipeline as distil_pipeline
from fusetune.pipelines.dvc.pipeline import create_pipeline as dvc_pipeline
from fusetune.pipelines.evaluate.pipeline import create_pipeline as evaluate_pipeline
from fusetune.pipelines.export.pipeline import create_pipeline as export_pipeline
from fusetune.pipelines.ingest.pipeline import create_pipeline as ingest_pipeline
from fusetune.pipelines.inputs.pipeline import create_pipeline as inputs_pipeline
from fusetune.pipelines.merge.pipeline import create_pipeline as merge_pipeline
from fusetune.pipelines.new.pipeline import create_pipeline as new_pipeline
from fusetune.pipelines.plan.pipeline import create_estimate_pipeline as estimate_pipeline
from fusetune.pipelines.plan.pipeline import create_pipeline as plan_pipeline
from fusetune.pipelines.predict.pipeline import create_pipeline as predict_pipeline
from fusetune.pipelines.pretrain.pipeline import create_pipeline as pretrain_pipeline
from fusetune.pipelines.promote.pipeline import create_pipeline as promote_pipeline
from fusetune.pipelines.promote.pipeline import create_rollback_pipeline as rollback_pipeline
from fusetune.pipelines.rollout.pipeline import create_pipeline as rollout_pipeline
from fusetune.pipelines.search.pipeline import create_pipeline as search_pipeline
from fusetune.pipelines.train.pipeline import create_pipeline as train_pipeline
from fusetune.pipelines.unimodal.pipeline import create_pipeline as unimodal_pipeline
from fusetune.pipelines.validate.pipeline import create_pipeline as validate_pipeline

DEFAULT = "wander"


def register_pipelines() -> dict[str, Pipeline]:
    """Each `train_<method>` is the whole chain from raw data; what is up to date is left out when it runs."""
    methods = method_names(conf_source(), conf_env())
    validated = ingest_pipeline() + validate_pipeline()
    ready = validated + pretrain_pipeline() + inputs_pipeline()
    caches = {method: cache_pipeline(method) for method in methods}
    pipelines = {
        "new": new_pipeline(),
        "dvc": dvc_pipeline(),
        "ingest": ingest_pipeline(),
        "validate": validated,
        "pretrain": validated + pretrain_pipeline(),
        "inputs": ready,
        "plan": ready + plan_pipeline(methods),
        "estimate": estimate_pipeline(methods),
        "cache_features": sum(caches.values(), ready),
        "unimodal": ready + unimodal_pipeline(),
        "compare": ready + unimodal_pipeline() + compare_pipeline(methods),
        "promote": promote_pipeline(),
        "rollback": rollback_pipeline(),
        "rollout": rollout_pipeline(),
        "predict": predict_pipeline(),
        "continual": ready + continual_pipeline(methods),
        "search": ready + search_pipeline(methods),
        "cross_lingual": ready + cross_lingual_pipeline(methods),
        "distil": ready + distil_pipeline(methods),
        "evaluate": validated + evaluate_pipeline(),
        "merge": merge_pipeline(),
        "export": export_pipeline(),
    }
    for method in methods:
        pipelines[f"train_{method}"] = ready + unimodal_pipeline() + caches[method] + train_pipeline(method)
    return pipelines | {"__default__": pipelines[f"train_{DEFAULT}"]}
