from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.inputs.nodes import accept_inputs, check_inputs


def create_pipeline() -> Pipeline:
    return Pipeline(
        [
            Node(
                check_inputs,
                [
                    "validated_manifest",
                    "base",
                    "validation_report",
                    "params:data",
                    "params:validate",
                    "params:experiment",
                ],
                ["input_report", "input_page"],
                name="check_inputs",
            ),
            Node(accept_inputs, "input_report", "input_lengths", name="inputs"),
        ]
    )
