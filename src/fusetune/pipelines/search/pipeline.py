from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.search.nodes import make_search


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    parameters = ["search", "data", "cache", "train", "evaluate", *methods]
    inputs = ["validated_manifest", "base", "input_lengths", "feature_store", "checkpoints"]
    outputs = ["searched", "searched_method", "searched_figures"]
    return Pipeline(
        [Node(make_search(methods), [*inputs, *(f"params:{name}" for name in parameters)], outputs, name="search")]
    )
