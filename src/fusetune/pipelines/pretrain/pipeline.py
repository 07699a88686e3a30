from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.pretrain.nodes import make_base, read_source


def create_pipeline() -> Pipeline:
    return Pipeline(
        [
            Node(read_source, ["params:pretraining_data", "params:backbone"], "source_manifest", name="ingest_source"),
            Node(
                make_base,
                ["source_manifest", "bases", "params:backbone", "params:pretrain", "params:align"],
                "base",
                name="pretrain",
            ),
        ]
    )
