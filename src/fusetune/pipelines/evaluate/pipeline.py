from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.evaluate.nodes import evaluate_adapters


def create_pipeline() -> Pipeline:
    parameters = ["evaluate_on", "evaluate_adapters", "register", "data", "validate", "cache", "evaluate"]
    inputs = ["validated_manifest", "adapters", "bases", "feature_store", *(f"params:{name}" for name in parameters)]
    outputs = ["second_sets", "second_predictions", "second_figures"]
    return Pipeline([Node(evaluate_adapters, inputs, outputs, name="evaluate")])
