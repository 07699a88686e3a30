from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.validate.nodes import accept_manifest, check_manifest


def create_pipeline() -> Pipeline:
    return Pipeline(
        [
            Node(
                check_manifest,
                ["manifest", "params:data", "params:validate", "params:experiment"],
                ["checked_manifest", "quarantine", "validation_report", "validation_page"],
                name="check_manifest",
            ),
            Node(
                accept_manifest,
                ["checked_manifest", "validation_report"],
                "validated_manifest",
                name="validate",
            ),
        ]
    )
