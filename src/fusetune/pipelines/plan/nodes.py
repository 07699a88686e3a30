"""Node functions of `plan`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusetune.pipelines.cache_features.nodes import open_experiment, trained_before


def make_plan(methods: Sequence[str]):
    """The node function that says where each method's frontier lies and what it costs."""

    def plan(manifest: Any, base: Path, data: Mapping[str, Any], cache: Mapping[str, Any], *settings: Any) -> Any:
        from fusetune.config import build
        from fusetune.errors import FusetuneError
        from fusetune.features.index import CacheSettings
        from fusetune.pipelines.tracking import log_dict, log_metrics
        from fusetune.training.account import account

        found: dict[str, Any] = {}
        for name, method in zip(methods, settings, strict=True):
            try:
                experiment = open_experiment(manifest, base, data, method, name)
                found[name] = account(experiment, build(CacheSettings, cache, "cache")).plain()
            except FusetuneError as error:  # one method that doesn't fit the data hides none of the others
                found[name] = {"error": str(error)}
        log_dict(found, "plan.json")
        log_metrics({f"{name}_flop_ratio": row["flop_ratio"] for name, row in found.items() if "error" not in row})
        return found

    plan.outside = trained_before  # type: ignore[attr-defined]
    return plan


def show_plan(plan: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the plan as a table."""
    from rich import get_console
    from rich.table import Table

    table = Table(title="Where each method's features are cached, and what an epoch costs from there")
    for heading in ("method", "frontier", "trainable", "cache MB", "MFLOP", "uncached", "ratio"):
        table.add_column(heading, justify="left" if heading in ("method", "frontier") else "right")
    for name, row in plan.items():
        if "error" in row:
            table.add_row(name, f"does not fit: {row['error']}")
            continue
        table.add_row(
            name,
            row["frontier"].replace(", ", "\n"),
            f"{row['trainable_parameters']:,}",
            f"{row['cache_bytes'] / 1e6:.1f}",
            f"{row['flops_per_sample'] / 1e6:.2f}",
            f"{row['flops_per_sample_uncached'] / 1e6:.2f}",
            f"{row['flop_ratio']:.1f}",
        )
    table.caption = "MFLOP: forward and backward of one training sample, from the cache and from the raw inputs"
    get_console().print(table)
