from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.cache_features.nodes import cache_features_of


def create_pipeline(method: str) -> Pipeline:
    return Pipeline(
        [
            Node(
                cache_features_of(method),
                [
                    "validated_manifest",
                    "base",
                    "input_lengths",
                    "feature_store",
                    "params:data",
                    "params:cache",
                    f"params:{method}",
                ],
                f"{method}_features",
                name=f"cache_features_{method}",
            )
        ]
    )
