from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from fusetune.pipelines.compare.nodes import make_compare
from fusetune.pipelines.compare.report_nodes import log_report, report_comparison
from fusetune.pipelines.compare.second_nodes import compare_on_second_sets


def create_pipeline(methods: Sequence[str]) -> Pipeline:
    return Pipeline(
        [
            Node(
                make_compare(methods),
                [
                    "validated_manifest",
                    "base",
                    "input_lengths",
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
            Node(
                compare_on_second_sets,
                [
                    "comparison",
                    "comparison_cells",
                    "validated_manifest",
                    "base",
                    "feature_store",
                    "params:evaluate_on",
                    "params:data",
                    "params:validate",
                    "params:cache",
                    "params:evaluate",
                ],
                "comparison_second_sets",
                name="compare_on_second_sets",
            ),
            Node(
                report_comparison,
                [
                    "comparison",
                    "comparison_cells",
                    "validated_manifest",
                    "unimodal",
                    "baselines",
                    "comparison_second_sets",
                    "params:experiment",
                    "params:data",
                    "params:evaluate",
                ],
                [
                    "comparison_metrics",
                    "comparison_summary",
                    "comparison_table",
                    "comparison_page",
                    "comparison_figures",
                    "comparison_winner",
                ],
                name="report_comparison",
            ),
            Node(
                log_report,
                ["comparison_summary", "comparison_page", "comparison_figures"],
                "comparison_log",
                name="log_comparison",
                tags="mlflow",
            ),
        ]
    )
