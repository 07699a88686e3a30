"""Node functions of `plan`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import disk_usage
from typing import Any

from fusetune.pipelines.cache_features.nodes import open_experiment, trained_before


def make_plan(methods: Sequence[str]):
    """The node function that says where each method's frontier lies and what it costs."""

    def plan(
        manifest: Any,
        base: Path,
        lengths: Mapping[str, int],
        data: Mapping[str, Any],
        cache: Mapping[str, Any],
        train: Mapping[str, Any],
        *settings: Any,
    ) -> Any:
        from fusetune.config import build
        from fusetune.features.index import CacheSettings
        from fusetune.runs.account import account
        from fusetune.training.settings import of_method

        # of the disk with the bases: the store is no input, what is cached depends on no plan; a run asks its own disk
        stored, free = build(CacheSettings, cache, "cache"), disk_usage(base.parent).free

        def one(name: str, method: Mapping[str, Any]) -> Any:
            batch_size = of_method(train, method, name).batch_size
            return account(
                open_experiment(manifest, base, lengths, data, method, name), stored, batch_size, free
            ).plain()

        return accounts(methods, settings, one, "plan.json")

    plan.outside = trained_before  # type: ignore[attr-defined]
    return plan


def make_estimate(methods: Sequence[str]):
    """The node function that accounts for each method on a model that is known by its configuration alone."""

    def estimate_costs(estimate: Mapping[str, Any], cache: Mapping[str, Any], *settings: Any) -> Any:
        from fusetune.config import build
        from fusetune.features.index import CacheSettings
        from fusetune.plan.plan import Plan
        from fusetune.runs import account
        from fusetune.runs.scale import at_scale

        chosen = build(account.EstimateSettings, estimate, "estimate")
        stored = build(CacheSettings, cache, "cache")

        def one(name: str, method: Mapping[str, Any]) -> Any:
            found = account.estimate(build(Plan, method, name), name, chosen, stored)
            if not chosen.fleet.devices:
                return found.plain()
            scaled = at_scale(found, chosen.samples, chosen.batch_size, chosen.fleet, stored)
            return found.plain() | {"scale": scaled.plain()}

        return accounts(methods, settings, one, "estimate.json")

    return estimate_costs


def accounts(methods: Sequence[str], settings: Sequence[Any], one: Callable[..., Any], file: str) -> dict[str, Any]:
    """The account of each method, or why it doesn't fit: one that doesn't hides none of the others."""
    from fusetune.errors import FusetuneError
    from fusetune.pipelines.tracking import log_dict, log_metrics

    found: dict[str, Any] = {}
    for name, method in zip(methods, settings, strict=True):
        try:
            found[name] = one(name, method)
        except FusetuneError as error:
            found[name] = {"error": str(error)}
    log_dict(found, file)
    fits = {name: row for name, row in found.items() if "error" not in row}
    told = ("trainable_parameters", "flop_ratio", "memory_bytes")
    log_metrics({f"{name}_{key}": row[key] for name, row in fits.items() for key in told})
    return found


def _show_scale(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what a fleet needs for each method."""
    from rich import get_console
    from rich.table import Table

    if not rows:
        return
    table = Table(title="The same on the fleet of estimate.fleet")
    headings = (
        "method",
        "features, GB",
        "files",
        "extraction, h",
        "waits for",
        "an epoch, s",
        "waits for",
        "in",
        "price",
    )
    for heading in (*headings, "uncached"):
        table.add_column(heading, justify="left" if heading in ("method", "waits for", "in") else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['bytes'] / 1e9:,.1f}",
            f"{row['shards']:,}",
            f"{row['extraction_seconds'] / 3600:,.2f}",
            row["extraction_waits_for"],
            f"{row['epoch_seconds']:,.1f}",
            row["epoch_waits_for"],
            row["place"],
            f"{row['price']:,.2f}",
            f"{row['price_uncached']:,.2f}",
        )
    table.caption = "price: of extraction and one training; uncached: of one training from the raw inputs"
    get_console().print(table)


def show_plan(plan: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Any] | None = None) -> None:
    """Print the plan as a table, and what of the texts doesn't reach the base."""
    from rich import get_console
    from rich.table import Table

    table = Table(title="Where each method's features are cached, and what an epoch costs from there")
    headings = ("method", "frontier", "trainable", "% of base", "cache MB", "MFLOP", "below", "ratio", "memory MB")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("method", "frontier") else "right")
    misfits = []
    for name, row in plan.items():
        if "error" in row:
            misfits.append(f"{name} does not fit: {row['error']}")
            continue
        table.add_row(
            name,
            row["frontier"].replace(", ", "\n"),
            "\n".join(f"{site} {count:,}" for site, count in row["trainable_by_site"].items()),
            "-" if row["percent_of_base"] is None else f"{row['percent_of_base']:.2f}",
            f"{row['cache_bytes'] / 1e6:.1f}",
            f"{row['flops_per_sample'] / 1e6:.2f}",
            f"{row['flops_per_sample_below'] / 1e6:.2f}",
            f"{row['flop_ratio']:.1f}",
            f"{row['memory_bytes'] / 1e6:.0f}",
        )
    table.caption = (
        "MFLOP: of one training sample, forward and backward, from the cache; below: forward once, to fill it; ratio: "
        "of an epoch from the raw inputs to one from the cache; memory: of training, float32, without what lives for a "
        "moment only"
    )
    get_console().print(table)
    _show_scale({name: row["scale"] for name, row in plan.items() if "scale" in row})
    for name, row in plan.items():
        if "cut" in row:
            get_console().print(f"{name}: {row['cut']}", markup=False, soft_wrap=True)
    for misfit in misfits:
        get_console().print(misfit, markup=False)
    if inputs:
        from fusetune.features.inputs import told

        for sentence in told(inputs):
            get_console().print(sentence, markup=False)
