from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.cross_lingual.nodes import make_cross_lingual


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    parameters = ["cross_lingual", "data", "cache", "train", "evaluate", *methods]
    inputs = ["validated_manifest", "base", "feature_store", "checkpoints", *(f"params:{name}" for name in parameters)]
    outputs = ["cross_lingual", "cross_lingual_figures", "language_adapters"]
    return Pipeline([Node(make_cross_lingual(methods), inputs, outputs, name="cross_lingual")])
