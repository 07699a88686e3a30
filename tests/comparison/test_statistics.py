"""Statistics against scipy and statsmodels, and on results whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from fusetune.comparison.promotion import challenged, spent
from fusetune.comparison.statistics import all_differences, difference, holm, interval, power_law

rng = np.random.default_rng


def scores(seed: int, mean: float, seeds: int = 5, samples: int = 400, of_seed=0.0, hard=None) -> np.ndarray:
    """Right or wrong: samples differ in how hard they are, seeds in how good they are."""
    drawn = rng(seed)
    chance = mean + (hard if hard is not None else 0) + of_seed * drawn.standard_normal((seeds, 1))
    return (drawn.random((seeds, samples)) < chance).astype(float)


def test_with_one_seed_it_is_the_paired_t_test_of_scipy():
    a, b = scores(0, 0.7, 1), scores(1, 0.62, 1)
    found = difference(("a", a), ("b", b))
    expected = stats.ttest_rel(a[0], b[0])
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.value, found.low, found.high) == pytest.approx((a.mean() - b.mean(), low, high), rel=1e-9)


def test_groups_give_the_cluster_robust_error_of_statsmodels():
    sm = pytest.importorskip("statsmodels.api")
    groups = np.repeat(np.arange(100), 4)
    shift = np.repeat(rng(3).standard_normal(100), 4) * 0.2
    a, b = scores(4, 0.6, 1, hard=shift), scores(5, 0.5, 1)
    found = difference(("a", a), ("b", b), groups.tolist())
    fit = sm.OLS(a[0] - b[0], np.ones(400)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True, "df_correction": True}, use_t=True
    )
    # statsmodels' factor for the mean alone is G / (G - 1) times (N - 1) / (N - 1)
    assert found.p == pytest.approx(fit.pvalues[0], rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-6)


@pytest.mark.parametrize("of_seed", [0.0, 0.03], ids=["steady seeds", "seeds that differ"])
def test_equal_methods_give_false_alarms_at_the_stated_rate(of_seed):
    alarms, trials = 0, 1500
    for trial in range(trials):
        hard = rng(trial).normal(0, 0.15, 200)
        a = scores(2 * trial + 10_000, 0.6, 5, 200, of_seed, hard)
        b = scores(2 * trial + 10_001, 0.6, 5, 200, of_seed, hard)
        found = difference(("a", a), ("b", b))
        alarms += found.p < 0.05
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    # 5% of 1,500 is 75 +- 8.4; a t-test over the samples alone, seeds ignored, gives several times as many
    assert 45 <= alarms <= 105, alarms / trials


def test_a_test_that_ignores_seeds_would_raise_far_more_false_alarms():
    naive = 0
    for trial in range(300):
        a, b = (scores(2 * trial + i, 0.6, 5, 200, 0.06) for i in range(2))
        naive += stats.ttest_rel(a.mean(0), b.mean(0)).pvalue < 0.05
    assert naive / 300 > 0.15


def test_twelve_equal_methods_together_raise_a_false_alarm_once_in_twenty():
    alarms = 0
    for trial in range(200):
        hard = rng(trial).normal(0, 0.15, 150)
        methods = {str(i): scores(trial * 100 + i, 0.6, 3, 150, 0.02, hard) for i in range(12)}
        alarms += any(pair.adjusted < 0.05 for pair in all_differences(methods))
    assert alarms <= 20, alarms / 200


def test_a_real_difference_is_found_and_the_interval_holds_it():
    held = found = 0
    for trial in range(200):
        a, b = scores(trial, 0.70, 5, 1000, 0.01), scores(trial + 5000, 0.64, 5, 1000, 0.01)
        pair = difference(("a", a), ("b", b))
        held += pair.low <= 0.06 <= pair.high
        found += pair.adjusted != pair.adjusted and pair.p < 0.05
    assert held / 200 > 0.9 and found / 200 > 0.9


def test_holm_is_that_of_statsmodels():
    multi = pytest.importorskip("statsmodels.stats.multitest")
    values = rng(0).random(66).tolist() + [1e-9, 1e-4, 0.001]
    assert holm(values) == pytest.approx(multi.multipletests(values, method="holm")[1].tolist())
    assert holm([]) == []


def test_the_bootstrap_interval_agrees_with_scipys_for_one_seed_and_covers_the_mean():
    a = scores(8, 0.7, 1, 600)
    expected = stats.bootstrap((a[0],), np.mean, n_resamples=4000, method="percentile", rng=rng(1)).confidence_interval
    assert interval(a) == pytest.approx((expected.low, expected.high), abs=0.004)
    covered = 0
    for trial in range(200):
        low, high = interval(scores(trial, 0.7, 8, 200, 0.02), seed=trial)
        covered += low <= 0.7 <= high
    assert covered / 200 > 0.88  # eight seeds are few for a bootstrap


def test_groups_widen_the_interval():
    groups = np.repeat(np.arange(40), 10)
    shift = np.repeat(rng(3).normal(0, 0.3, 40), 10)
    a = scores(1, 0.5, 3, hard=shift)
    alone, grouped = interval(a), interval(a, groups.tolist())
    assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])


def test_the_power_law_finds_the_law_that_made_the_errors():
    points = [(size, n) for size in (1, 2, 4, 8, 16) for n in (500, 1000, 2000, 4000)]
    errors = [0.08 + 0.2 * size**-0.7 + 6.0 * n**-0.5 for size, n in points]
    law = power_law([s for s, _ in points], [n for _, n in points], errors)
    assert (law.floor, law.a, law.alpha, law.b, law.beta) == pytest.approx((0.08, 0.2, 0.7, 6.0, 0.5), rel=0.05)
    assert law.determination > 0.9999 and law.points == 20
    assert law.error(3, 700) == pytest.approx(0.08 + 0.2 * 3**-0.7 + 6.0 * 700**-0.5, rel=1e-3)
    assert power_law([1, 2], [10, 20], [0.5, 0.4]) is None
    assert power_law([1] * 8, range(10, 90, 10), [0.5] * 8) is None


def models(rng, groups, count):
    """Equally good models: a rate of its own in each group of samples."""
    rates = np.clip(0.6 + rng.normal(0, 0.25, (count, groups.max() + 1)), 0, 1)[:, groups]
    return (rng.random(rates.shape) < rates).astype(float)


@pytest.mark.parametrize("rows", [1, 20], ids=["rows alone", "20 rows a group"])
def test_equal_challengers_win_in_at_most_the_nominal_share_over_20_challenges(rows):
    """The champion is challenged 20 times on the same samples; how often does it ever lose?"""
    rng, groups, lost, naive = np.random.default_rng(1), np.repeat(np.arange(400 // rows), rows), 0, 0
    for _ in range(400):
        champion, *challengers = models(rng, groups, 21)
        for number, own in enumerate(challengers, start=1):
            if challenged(own, champion, groups, number, 0.95).low > 0:
                lost += 1
                break
        naive += any(difference(("c", c[None]), ("h", champion[None]), groups, 0.95).low > 0 for c in challengers)
    assert lost / 400 <= 0.025 + 2.5 * (0.025 * 0.975 / 400) ** 0.5, "within the error of the simulation"
    assert naive / 400 > 0.1, "the same test without a margin that grows is fooled"


def test_a_better_challenger_still_wins_late():
    rng = np.random.default_rng(0)
    champion, better = (rng.random(1000) < 0.5).astype(float), (rng.random(1000) < 0.65).astype(float)
    assert challenged(better, champion, None, 20, 0.95).low > 0
    assert sum(spent(number, 0.95) for number in range(1, 10_000)) == pytest.approx(0.025, rel=1e-3)
