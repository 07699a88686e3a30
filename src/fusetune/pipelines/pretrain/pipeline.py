from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.pretrain.nodes import make_base, read_source


def create_pipeline() -> Pipeline:
    return Pipeline(
        [
            Node(
                read_source,
                ["params:pretraining_data", "params:backbone", "params:data", "params:align", "params:ingest"],
                ["source_manifest", "unlabelled_rows"],
                name="ingest_source",
            ),
            Node(
                make_base,
                [
                    "validated_manifest",
                    "source_manifest",
                    "unlabelled_rows",
                    "bases",
                    "params:backbone",
                    "params:data",
                    "params:pretrain",
                    "params:pretrain_llava",
                    "params:align",
                ],
                "base",
                name="pretrain",
            ),
        ]
    )
