"""What the explorer says of a setting before it is trained, against what is there."""

import numpy as np
import pytest

from conftest import WANDER
from fusetune.comparison.explorer import Explorer
from fusetune.comparison.statistics import power_law
from fusetune.comparison.summary import Summary
from fusetune.config import to_plain

HEAD = {"where": "head", "adapter": "linear"}
LORA = {"where": "towers", "adapter": "lora", "blocks": "all", "config": {"rank": 2}}
PATH = "placements.0.config.rank"


def explorer(toy, **more) -> Explorer:
    methods = {"wander": [WANDER, HEAD], "lora": [LORA, HEAD], "probe": [HEAD]}
    parameters = {name: {"placements": placements} for name, placements in methods.items()}
    return Explorer(toy.table, toy.base, {"data": to_plain(toy.data), "cache": {}, **parameters}, **more)


def test_rank_and_blocks_change_what_the_plan_costs_and_nothing_is_trained(toy):
    found = explorer(toy)
    assert found.size_path("wander") == PATH and found.size_path("probe") is None
    small, large = (found.account("lora", rank).trainable["left"] for rank in (2, 6))
    assert large == 3 * small
    sparse, every = found.account("lora", 2, "sparse"), found.account("lora", 2)
    assert sparse.trainable["left"] < small and sparse.frontier.towers["left"] > every.frontier.towers["left"]
    assert found.account("probe", 7, "sparse").trainable.keys() == {"head"}
    assert found.expected("probe", None, 10) is None, "nothing was measured"


def test_it_predicts_by_the_law_and_otherwise_tells_of_the_nearest_variant(toy):
    points = [{"size": r, "samples": n, "error": 0.1 + 0.3 / r + 20 / n} for r in (1, 2, 4, 8) for n in (100, 400)]
    law = power_law([p["size"] for p in points], [p["samples"] for p in points], [p["error"] for p in points])
    rows = {
        f"lora, rank {r}": {"method": "lora", "mean": 0.5 + r / 100, "trainable_parameters": 100 * r, "seeds": 3}
        for r in (1, 8)
    }
    summary = Summary("accuracy", 40, rows, {}, [], [], points, law, ("", ""))
    found = explorer(toy, summary=summary, scaling={"method": "wander", "path": PATH})
    expected = found.expected("wander", 16, 999)
    assert expected.score == pytest.approx(1 - (0.1 + 0.3 / 16 + 20 / 400), abs=0.01) and "power law" in expected.why
    assert found.measured("wander") == [(r, pytest.approx(1 - (0.1 + 0.3 / r + 20 / 400))) for r in (1, 2, 4, 8)]
    near = found.expected("lora", 6, 600)
    assert near.score == 0.58 and near.why == "measured: lora, rank 8, 800 parameters, 3 seeds"
    assert found.measured("lora") == [] and np.isfinite(expected.score)
