"""What a setting would cost and reach, before it is trained: the account, and what the comparison has measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.adapters import adapters
from fusetune.comparison.statistics import PowerLaw
from fusetune.comparison.summary import Summary
from fusetune.comparison.variants import changed
from fusetune.config import build
from fusetune.features.index import CacheSettings
from fusetune.plan.plan import Plan
from fusetune.runs.account import Account, account
from fusetune.runs.experiment import Experiment
from fusetune.training.data import DataSettings, load_backbone


@dataclass(frozen=True)
class Expected:
    """
    Attributes:
        score: of the test metric.
        why: where the number comes from.
    """

    score: float
    why: str


class Explorer:
    """
    Args:
        parameters: all of the project's, methods included.
        summary: of the comparison; None: nothing has been measured.
        scaling: the method and the path that were scaled.
    """

    def __init__(
        self,
        table: pa.Table,
        base: Path,
        parameters: Mapping[str, Any],
        summary: Summary | None = None,
        scaling: Mapping[str, str] | None = None,
    ) -> None:
        self.table, self.base, self.parameters = table, base, parameters
        self.summary, self.scaling = summary, scaling or {}
        self.data = build(DataSettings, parameters["data"], "data")

    def size_path(self, method: str) -> str | None:
        """Where the first placement's rank stands in the method's file; None for adapters without one."""
        first = self.parameters[method]["placements"][0]
        key = adapters.get(first["adapter"]).rank_key
        return f"placements.0.config.{key}" if key and first["where"] != "head" else None

    def settings(self, method: str, size: int | None = None, blocks: str | None = None) -> dict[str, Any]:
        """The method's file with another rank, or in other blocks (all, top, bottom, sparse, a preset)."""
        path = self.size_path(method)
        changes: dict[str, Any] = {}
        if size is not None and path:
            changes[path] = size
        if blocks is not None and "blocks" in self.parameters[method]["placements"][0]:
            changes["placements.0.blocks"] = blocks
        return changed(self.parameters[method], changes, method)

    def account(self, method: str, size: int | None = None, blocks: str | None = None) -> Account:
        """Parameters, frontier, cache and FLOPs on these data and this base; nothing is trained.

        Raises:
            FusetuneError: it doesn't fit.
        """
        plan = build(Plan, self.settings(method, size, blocks), method)
        experiment = Experiment(self.table, load_backbone(self.base, self.data), self.data, plan, 0, method)
        return account(experiment, build(CacheSettings, self.parameters["cache"], "cache"))

    def expected(self, method: str, size: int | None, trainable_parameters: int) -> Expected | None:
        """By the fitted law where it is of this method; else what its variant of the nearest size has reached."""
        law = self.law(method)
        if law is not None and size is not None and self.summary is not None:
            samples = max(point["samples"] for point in self.summary.points)
            told = f"the power law that was fitted to {law.points} runs of {method}"
            return Expected(1 - law.error(size, samples), told)
        rows = {n: row for n, row in (self.summary.rows if self.summary else {}).items() if row["method"] == method}
        if not rows:
            return None
        near = min(rows, key=lambda n: abs(math.log(rows[n]["trainable_parameters"] / trainable_parameters)))
        count = rows[near]["trainable_parameters"]
        return Expected(rows[near]["mean"], f"measured: {near}, {count:,} parameters, {rows[near]['seeds']} seeds")

    def measured(self, method: str) -> list[tuple[float, float]]:
        """Size and mean test score of the runs of the scaling that saw all samples."""
        if self.law(method) is None or self.summary is None:
            return []
        most = max(point["samples"] for point in self.summary.points)
        scores: dict[float, list[float]] = {}
        for point in self.summary.points:
            if point["samples"] == most:
                scores.setdefault(point["size"], []).append(1 - point["error"])
        return [(size, sum(values) / len(values)) for size, values in sorted(scores.items())]

    def law(self, method: str) -> PowerLaw | None:
        scaled = self.scaling.get("method") == method and self.scaling.get("path") == self.size_path(method)
        return self.summary.law if self.summary is not None and scaled else None
