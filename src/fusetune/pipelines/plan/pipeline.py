from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.plan.nodes import make_plan, show_plan


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    return Pipeline(
        [
            Node(
                make_plan(methods),
                ["validated_manifest", "base", "params:data", "params:cache", *(f"params:{m}" for m in methods)],
                "plan",
                name="plan",
            ),
            Node(show_plan, "plan", None, name="show_plan"),
        ]
    )
