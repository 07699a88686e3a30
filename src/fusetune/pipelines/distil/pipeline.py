from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.distil.nodes import make_distil


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    parameters = ["distil", "register", "data", "cache", "train", "evaluate", *methods]
    inputs = ["validated_manifest", "base", "input_lengths", "bases", "feature_store", "checkpoints"]
    outputs = ["distilled", "distilled_figures", "student"]
    return Pipeline(
        [Node(make_distil(methods), [*inputs, *(f"params:{name}" for name in parameters)], outputs, name="distil")]
    )
