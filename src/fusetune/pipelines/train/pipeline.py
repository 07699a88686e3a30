from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.train.nodes import register_method, train_method


def create_pipeline(method: str) -> Pipeline:
    return Pipeline(
        [
            Node(
                train_method(method),
                [
                    "validated_manifest",
                    "base",
                    "input_lengths",
                    "feature_store",
                    "checkpoints",
                    f"{method}_features",
                    "unimodal",
                    "baselines",
                    "params:data",
                    "params:train",
                    "params:evaluate",
                    "params:cache",
                    f"params:{method}",
                ],
                [
                    f"{method}_adapter",
                    f"{method}_metrics",
                    f"{method}_curve",
                    f"{method}_predictions",
                    f"{method}_scores",
                    f"{method}_figures",
                ],
                name=f"train_{method}",
            ),
            Node(
                register_method(method),
                [
                    f"{method}_adapter",
                    f"{method}_metrics",
                    f"{method}_predictions",
                    f"{method}_scores",
                    f"{method}_figures",
                    "base",
                    "validated_manifest",
                    "params:experiment",
                    "params:register",
                    "params:evaluate",
                    "params:serve",
                    "params:data",
                ],
                f"{method}_registration",
                name=f"register_{method}",
                tags="mlflow",
            ),
        ]
    )
