from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.dvc.nodes import write_stages


def create_pipeline() -> Pipeline:
    return Pipeline([Node(write_stages, ["params:experiment", "params:compare"], None, name="dvc")])
