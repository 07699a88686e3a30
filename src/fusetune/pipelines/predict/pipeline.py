from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.predict.nodes import predict


def create_pipeline() -> Pipeline:
    parameters = ["params:predict", "params:register", "params:data", "params:evaluate"]
    inputs = ["validated_manifest", "bases", *parameters]
    return Pipeline([Node(predict, inputs, ["scored", "scored_metrics"], name="predict")])
