"""What a fleet needs: each stage by hand, what is waited for, and where the features lie."""

from dataclasses import replace

import pytest

from fusetune.config import build
from fusetune.errors import FusetuneError
from fusetune.features.index import CacheSettings
from fusetune.plan.plan import Plan
from fusetune.runs.account import EstimateSettings, estimate
from fusetune.runs.scale import Fleet, at_scale

FLEET = Fleet(devices=8)
WANDER = {"placements": [{"where": "junction", "adapter": "wander"}, {"where": "head", "adapter": "linear"}]}


def scaled(samples: int, fleet: Fleet = FLEET):
    plan, cache = build(Plan, WANDER, "p"), CacheSettings()
    account = estimate(plan, "p", EstimateSettings(samples=samples), cache)
    return account, at_scale(account, samples, 64, fleet, cache)


def test_each_stage_is_what_one_gets_by_hand():
    account, found = scaled(1_000_000)
    assert found.extraction == pytest.approx(
        {
            "decoding": 1e6 / (8 * 16 * 180),
            "arithmetic": 1e6 * account.flops_below / (8 * 2e14),
            "writing": account.cache_bytes / (8 * 5e8),
        }
    )
    assert found.extraction_seconds == max(found.extraction.values())
    steps = 1e6 / (8 * 64)
    assert found.epoch["launches"] == pytest.approx(account.launches * FLEET.launch * steps)
    assert found.epoch["exchange"] == pytest.approx(8 * account.trainable_parameters / 2.5e10 * steps)
    assert found.uncached > found.epoch_seconds and found.price < found.price_uncached
    assert found.shards == 2 * -(-1_000_000 // CacheSettings().shard_size)


def test_twice_the_samples_take_twice_as_long_and_twice_the_devices_half():
    _, one = scaled(10**8)
    _, two = scaled(2 * 10**8)
    _, half = scaled(10**8, replace(FLEET, devices=16))
    assert two.extraction_seconds == pytest.approx(2 * one.extraction_seconds)
    assert two.epoch_seconds == pytest.approx(2 * one.epoch_seconds)
    assert half.extraction_seconds == pytest.approx(one.extraction_seconds / 2)
    assert half.price == pytest.approx(one.price)


def test_a_device_without_cores_decodes_itself_and_alone_it_exchanges_nothing():
    _, found = scaled(100_000, Fleet(devices=1, cores=0))
    assert found.extraction_seconds == pytest.approx(sum(found.extraction.values()))
    assert found.epoch["exchange"] == 0


@pytest.mark.parametrize(("samples", "place"), [(10**6, "device memory"), (4 * 10**6, "main memory"), (10**8, "disk")])
def test_the_features_lie_where_a_share_of_them_fits(samples, place):
    assert scaled(samples, Fleet(devices=1 if samples == 10**8 else 7))[1].place == place


def test_a_rate_of_zero_is_refused():
    with pytest.raises(FusetuneError, match="estimate.fleet.flops: expected a positive number, found 0"):
        Fleet(flops=0.0)
