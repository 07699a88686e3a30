from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.unimodal.nodes import plain_baselines, test_each_alone


def create_pipeline() -> Pipeline:
    return Pipeline(
        [
            Node(
                test_each_alone,
                [
                    "validated_manifest",
                    "base",
                    "input_lengths",
                    "feature_store",
                    "checkpoints",
                    "params:data",
                    "params:cache",
                    "params:train",
                    "params:late_fusion",
                ],
                ["unimodal", "unimodal_features"],
                name="unimodal",
            ),
            Node(plain_baselines, ["validated_manifest", "params:data"], "baselines", name="baselines"),
        ]
    )
