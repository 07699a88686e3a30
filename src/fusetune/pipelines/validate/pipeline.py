from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.validate.nodes import validate_manifest


def create_pipeline() -> Pipeline:
    return Pipeline(
        [
            Node(
                validate_manifest,
                ["manifest", "params:data", "params:validate"],
                ["validated_manifest", "validation_report"],
                name="validate",
            )
        ]
    )
