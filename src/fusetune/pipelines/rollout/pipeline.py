from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.rollout.nodes import roll_out


def create_pipeline() -> Pipeline:
    parameters = ["params:rollout", "params:register", "params:evaluate"]
    return Pipeline([Node(roll_out, ["bases", *parameters], ["rolled_out", "rolled_out_figures"], name="rollout")])
