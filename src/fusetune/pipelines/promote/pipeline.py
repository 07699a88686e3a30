from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.promote.nodes import promote, roll_back


def create_pipeline() -> Pipeline:
    return Pipeline(
        [Node(promote, ["params:promote", "params:register", "params:evaluate"], "promotion", name="promote")]
    )


def create_rollback_pipeline() -> Pipeline:
    return Pipeline([Node(roll_back, ["params:register", "params:evaluate"], "rollback", name="rollback")])
