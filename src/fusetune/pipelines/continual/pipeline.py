from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.continual.nodes import make_continual


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    parameters = ["continual", "data", "cache", "train", "evaluate", *methods]
    inputs = ["validated_manifest", "base", "input_lengths", "feature_store", "checkpoints"]
    outputs = ["continual", "continual_figures"]
    node = Node(
        make_continual(methods), [*inputs, *(f"params:{name}" for name in parameters)], outputs, name="continual"
    )
    return Pipeline([node])
