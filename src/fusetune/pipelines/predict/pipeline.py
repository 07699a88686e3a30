from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.predict.nodes import predict


def create_pipeline() -> Pipeline:
    inputs = ["validated_manifest", "bases", "params:predict", "params:register"]
    return Pipeline([Node(predict, inputs, "scored", name="predict")])
