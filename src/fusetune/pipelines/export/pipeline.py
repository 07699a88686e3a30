from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.export.nodes import export_adapter


def create_pipeline() -> Pipeline:
    inputs = ["validated_manifest", "bases", "params:export", "params:register", "params:data"]
    return Pipeline([Node(export_adapter, inputs, "exported", name="export")])
