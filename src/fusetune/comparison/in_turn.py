"""How the methods of a comparison take one task after another: what each forgets is a number beside its metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusetune.comparison.jobs import Shared, told
from fusetune.comparison.sentences import listed
from fusetune.comparison.variants import Variant
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.storage import Store
from fusetune.plan.plan import Plan
from fusetune.runs.continual import Learner, in_one_way
from fusetune.runs.workplace import Workplace
from fusetune.tasks.metric_names import metric_told

MEASURES = ("average", "forgetting", "backward", "forward")  # see `runs.continual`
Rows = Mapping[str, Mapping[str, Any]]


@torch.enable_grad()
def in_turn(shared: Shared, variant: Variant, seed: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Of each way what `runs.continual` measures, or why the method can't go it (`refused`); {} where none is asked."""
    settings = shared.settings.continual
    if not shared.in_turn(variant):
        return {}
    learner = Learner(
        shared.table,
        shared.base,
        settings.of_each(shared.data),
        build(Plan, variant.settings, variant.method),
        shared.training(variant, seed, str(device)),
        shared.evaluation,
        Workplace(Store(shared.store), shared.cache, Path(shared.folder, "checkpoints"), lambda *_: None, device),
        shared.lengths,
    )
    apart, found = learner.apart(seed), {}
    for way in settings.ways:
        try:
            found[way] = in_one_way(learner, way, seed, apart, settings.orthogonal_weight)
        except FusetuneError as error:
            found[way] = {"refused": told(error)}
    return found


def over_seeds(several: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of each way the means over seeds, and how far seeds lie apart in what they forget."""
    found: dict[str, dict[str, Any]] = {}
    for way, first in several[0].items():
        refused = next((one[way]["refused"] for one in several if "refused" in one[way]), None)
        if refused:
            found[way] = {"refused": refused}
            continue
        values = {name: [one[way][name] for one in several] for name in MEASURES}
        found[way] = {name: float(np.mean(own)) for name, own in values.items()}
        found[way] |= {"forgetting_deviation": float(np.std(values["forgetting"], ddof=1)) if len(several) > 1 else 0.0}
        found[way] |= {"bytes": first["bytes"]}
    return found


def sentences(rows: Rows, metric: str) -> list[str]:
    """One a way that anything can be forgotten on: who forgets least, who has the most in the end.

    Args:
        rows: of the summary, the winner first.
    """
    winner, found = next(iter(rows)), []
    for way in rows[winner]["continual"]:
        own = {name: row["continual"][way] for name, row in rows.items() if "average" in row["continual"].get(way, {})}
        if way == "apart" or not own:
            continue
        points = {name: f"{100 * one['forgetting']:.1f}" for name, one in own.items()}  # lost; below 0: gained
        fewest, most = min(points.values(), key=float), max(own, key=lambda n: own[n]["average"])
        least = [name for name in own if points[name] == fewest]
        ends = ", ".join(f"{own[name]['average']:.3f}" for name in least)
        forget = "forgets" if len(least) == 1 else "forget"
        text = (
            f"One task after another ({way}), {listed(least)} {forget} least: {fewest} points of "
            f"{metric_told(metric)}, {ends} on average in the end"
        )
        for name in dict.fromkeys(name for name in (most, winner) if name in own and name not in least):
            kept = "most, " if name == most else ""
            text += f"; {name} forgets {points[name]} and has {kept}{own[name]['average']:.3f}"
        found.append(text + ".")
    return found
