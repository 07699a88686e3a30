from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.plan.nodes import make_estimate, make_plan, show_plan


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    return Pipeline(
        [
            Node(
                make_plan(methods),
                [
                    "validated_manifest",
                    "base",
                    "input_lengths",
                    "params:data",
                    "params:cache",
                    "params:train",
                    *(f"params:{method}" for method in methods),
                ],
                "plan",
                name="plan",
            ),
            Node(show_plan, ["plan", "input_report"], None, name="show_plan"),
        ]
    )


def create_estimate_pipeline(methods: Sequence[str]) -> Pipeline:
    return Pipeline(
        [
            Node(
                make_estimate(methods),
                ["params:estimate", "params:cache", *(f"params:{method}" for method in methods)],
                "estimate",
                name="estimate",
            ),
            Node(show_plan, "estimate", None, name="show_estimate"),
        ]
    )
