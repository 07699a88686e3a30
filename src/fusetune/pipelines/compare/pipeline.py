from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.compare.nodes import make_compare


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    return Pipeline(
        [
            Node(
                make_compare(methods),
                [
                    "validated_manifest",
                    "base",
                    "feature_store",
                    "comparison_cells",
                    "params:data",
                    "params:cache",
                    "params:train",
                    "params:evaluate",
                    "params:compare",
                    *(f"params:{method}" for method in methods),
                ],
                ["comparison", "comparison_features"],
                name="compare",
            ),
        ]
    )
