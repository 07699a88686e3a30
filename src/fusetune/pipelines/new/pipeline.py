from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.new.nodes import new_experiment


def create_pipeline() -> Pipeline:
    return Pipeline([Node(new_experiment, "params:new", None, name="new")])
