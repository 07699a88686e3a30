from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.ingest.nodes import read_manifest


def create_pipeline() -> Pipeline:
    return Pipeline([Node(read_manifest, "params:ingest", "manifest", name="ingest")])
