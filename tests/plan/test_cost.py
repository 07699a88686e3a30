"""Where features are cached: bytes against arithmetic, the disk, and the user's word."""

import pytest

from fusetune.backbones.backbone import Frontier
from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.plan.cost import BATCH, LAUNCH, RATES, READ, WRITE, CutCost, choose
from fusetune.plan.plan import Plan
from fusetune.runs.account import EstimateSettings, estimate

QV = {"rank": 32, "targets": ["query", "value"]}


def cost(name, megabytes, seconds, faster, trunk=0):
    return CutCost(name, Frontier({"image": 1}, trunk), int(megabytes * 1e6), 0, 0, seconds, faster)


INPUTS, ENCODER, TOWERS = cost("inputs", 1.4, 100, 1), cost("encoder", 1.2, 96, 1.04), cost("towers", 4.7, 95, 1.05)


def llava(blocks, **cache):
    plan = {"placements": [{"where": "trunk", "adapter": "lora", "config": QV, "blocks": blocks},
                           {"where": "head", "adapter": "linear"}]}  # fmt: skip
    settings = EstimateSettings(model="llava", answer_tokens=30, batch_size=1)
    return estimate(build(Plan, plan, "p"), "p", settings, CacheSettings(**cache)).cut


def test_a_deep_frontier_is_where_features_are_cached():
    chosen = llava({"take": "top", "count": 4})
    assert chosen.cut.depths.trunk == 28 and chosen.cut.faster > 4.5
    assert [one.name for one in chosen.costs] == ["inputs", "encoder", "towers", "frontier"]
    places, words = 576, 32 + 29
    assert chosen.cut.bytes == (places + words) * 4096 * 2 and "5.22 MB a sample" in str(chosen)
    encoder = chosen.costs[1]
    assert encoder.bytes == places * 1024 * 2 + words * 8 and 1 < encoder.faster < 1.1


def test_where_caching_hardly_pays_the_small_cut_is_taken_and_said():
    chosen = llava("all")
    assert chosen.cut.name == "encoder" and "caching hardly pays" in chosen.why


def test_seconds_are_those_of_the_formula():
    few, many = (llava({"take": "top", "count": 4}, readings=n) for n in (1, 11))
    top, inputs = few.costs[-1], few.costs[0]
    each = (many.costs[-1].seconds - top.seconds) / 10 / 100_000
    once = top.seconds / 100_000 - each - top.bytes / WRITE
    launched = once - top.below / RATES["cpu"]
    assert 1000 < launched * BATCH / LAUNCH < 10_000, "operations of an encoder and 28 language blocks"
    trained = each - top.bytes / READ
    assert top.faster == pytest.approx((once + trained) / trained, rel=1e-6) and inputs.below == 0


def test_what_the_disk_does_not_hold_is_not_chosen():
    costs = [INPUTS, ENCODER, TOWERS, cost("frontier", 5.2, 20, 5, 28)]
    assert choose(costs, "auto", 1000, None).cut.name == "frontier"
    assert choose(costs, "auto", 1000, int(5.3e9)).cut.name == "frontier"
    chosen = choose(costs, "auto", 1000, int(5e9))
    assert chosen.cut.name == "towers" and "at the frontier 5.2 GB don't" in chosen.why
    with pytest.raises(
        FusetuneError, match=r"no cut fits the disk: the least is encoder .* takes 1.2 GB, 1.0 GB are free"
    ):
        choose(costs, "auto", 1000, int(1e9))


def test_a_frontier_of_many_bytes_is_left_where_reading_them_costs_more():
    costs = [INPUTS, cost("frontier", 500, 130, 3)]
    assert "1.3 times cheaper than the frontier" in choose(costs, "auto", 1000, None).why


def test_an_order_is_obeyed():
    costs = [INPUTS, TOWERS, cost("frontier", 5.2, 20, 5, 28)]
    assert [choose(costs, order, 10, None).cut.name for order in ("inputs", "encoder", "towers", "frontier")] == [
        "inputs", "towers", "towers", "frontier"]  # fmt: skip
    with pytest.raises(FusetuneError, match="cut: expected auto or one of inputs, encoder, towers, frontier"):
        CacheSettings(cut="top")
