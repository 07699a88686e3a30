from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.merge.nodes import merge_adapters


def create_pipeline() -> Pipeline:
    inputs = ["validated_manifest", "bases", "params:merge", "params:data"]
    return Pipeline([Node(merge_adapters, inputs, ["merged", "merge_report"], name="merge")])
