"""The statistics of a study, against SciPy, numbers worked out by hand, and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from mnist_flax.study.comparison import ALPHA, POWER, compare, mean_interval

BASE = {42: 48, 43: 94, 44: 49, 45: 46}
WORSE = {42: 116, 43: 199, 44: 140, 45: 120}
SIMILAR = {42: 60, 43: 80, 44: 45, 45: 52}


def test_the_interval_of_a_mean_by_hand():
    """1..5 have the mean 3 and the standard error 1.5811 / sqrt(5); t(0.975, 4) = 2.7764."""
    interval = mean_interval([1, 2, 3, 4, 5])
    assert (interval.mean, interval.n) == (3, 5)
    assert (interval.low, interval.high) == pytest.approx((1.03676, 4.96324), abs=1e-4)


@pytest.mark.parametrize("values", [[3], [3, 3]])
def test_equal_values_have_no_interval(values):
    interval = mean_interval(values)
    assert interval.mean == 3 and math.isnan(interval.low) and math.isnan(interval.high)


def test_one_variant_is_tested_as_by_scipy():
    result = compare(BASE, {"worse": WORSE})["worse"]
    own, base = (np.log([of[seed] + 0.5 for seed in BASE]) for of in (WORSE, BASE))
    test = stats.ttest_rel(own, base)
    assert result.p == pytest.approx(test.pvalue)
    limits = test.confidence_interval(0.95)
    assert (math.log(result.low), math.log(result.high)) == pytest.approx(limits)
    assert math.log(result.ratio) == pytest.approx((own - base).mean())
    assert result.correlation == pytest.approx(stats.pearsonr(own, base).statistic)
    assert result.is_found and result.n == 4


def test_ratio_by_hand():
    """With 0.5 added, 8 and 32 have the geometric mean 16; 32 and 256 have 90.51."""
    result = compare({1: 7.5, 2: 31.5}, {"a": {2: 255.5, 1: 31.5}})["a"]
    assert (result.base, result.ratio) == pytest.approx((16, 32**0.5))
    assert math.isnan(result.correlation)  # two points always lie on a line


def test_only_seeds_that_both_have_finished_are_paired():
    more = compare(BASE | {50: 7, 51: 900}, {"worse": {41: 1, **WORSE}})["worse"]
    assert more == compare(BASE, {"worse": WORSE})["worse"]
    assert compare(BASE, {"a": {1: 5}, "b": {}}) == {} == compare({}, {"worse": WORSE})


def test_holms_p_and_bonferronis_intervals_by_hand():
    """Holm multiplies the smallest of three p by 3, the next by 2; no p is below one before it."""
    variants = {"a": WORSE, "b": SIMILAR, "c": {seed: n * 1.01 for seed, n in SIMILAR.items()}}
    together = compare(BASE, variants)
    alone = {name: compare(BASE, {name: of})[name] for name, of in variants.items()}
    first, second, third = sorted(variants, key=lambda name: alone[name].p)
    assert first == "a"
    assert together["a"].p == pytest.approx(3 * alone["a"].p)
    assert together[second].p == pytest.approx(min(1, 2 * alone[second].p))
    assert together[third].p == pytest.approx(max(together[second].p, alone[third].p))
    own, base = (np.log([of[seed] + 0.5 for seed in BASE]) for of in (WORSE, BASE))
    limits = stats.ttest_rel(own, base).confidence_interval(1 - 0.05 / 3)
    assert np.log([together["a"].low, together["a"].high]) == pytest.approx(limits)


@pytest.mark.parametrize(
    "variant", [{42: 60}, {seed: n * 2 + 0.5 for seed, n in BASE.items()}, dict(BASE)]
)
def test_one_seed_or_a_constant_ratio_is_not_tested_and_counts_for_nothing(variant):
    """The constant ratio is 2, or 1; rounding must not make a spread of it."""
    results = compare(BASE, {"untested": variant, "worse": WORSE})
    untested = results["untested"]
    assert [*map(math.isnan, (untested.low, untested.p, untested.detectable))] == [True] * 3
    assert not untested.is_found
    assert results["worse"] == compare(BASE, {"worse": WORSE})["worse"]


def test_zero_errors_and_huge_ratios_are_no_errors_of_python():
    results = compare({1: 0, 2: 0.4, 3: 1}, {"a": {1: 0, 2: 0, 3: 0}, "b": {1: 900, 2: 0}})
    assert np.isfinite([results["a"].p, results["a"].high, results["b"].p]).all()
    many = {str(n): {1: 9_000, 2: n} for n in range(40)}  # at the level 0.05 / 40, exp overflows
    assert compare({1: 1, 2: 900}, many)["0"].high == math.inf


def test_random_studies_agree_with_what_is_claimed():
    """An interval excludes "no difference" only if p does; by the noncentral t distribution, a
    detectable difference is found with the power that is named.
    """
    rng, found = np.random.default_rng(1), []
    for n in range(3, 103):
        base, *variants = np.exp(rng.normal([4, 4.1, 4, 4.05], 0.2, (n, 4))).T
        named = {str(i): dict(enumerate(variant)) for i, variant in enumerate(variants)}
        for name, result in compare(dict(enumerate(base)), named).items():
            assert result.is_found >= (result.low > 1 or result.high < 1)
            assert result.low < result.ratio < result.high and 0 < result.p <= 1
            found.append(result.is_found)
            shifts = np.log(variants[int(name)] + 0.5) - np.log(base + 0.5)
            shift = math.log1p(result.detectable / result.base) / stats.sem(shifts)
            power = stats.nct.sf(stats.t.isf(ALPHA / 3 / 2, n - 1), n - 1, shift)
            assert power == pytest.approx(POWER, abs=1e-4)
    assert 20 < sum(found) < 280


@pytest.mark.parametrize("correlation", [0, 0.9])
def test_false_positives(correlation):
    """If no variant differs, about 5 % of studies find a difference, whatever the correlation."""
    rng, found, n = np.random.default_rng(0), [], 6
    for _ in range(800):
        own, shared = rng.normal(0, 0.12, (4, n)), rng.normal(0, 0.12, n)
        logs = 4 + correlation**0.5 * shared + (1 - correlation) ** 0.5 * own
        base, *variants = (dict(enumerate(errors)) for errors in np.exp(logs))
        results = compare(base, dict(zip("abc", variants, strict=True)))
        found.append(any(result.is_found for result in results.values()))
    assert np.mean(found) == pytest.approx(0.045, abs=3 * (0.05 * 0.95 / 800) ** 0.5)
