import numpy as np
import pytest
from scipy import integrate, special, stats

from mnist_flax.study import comparison
from mnist_flax.study.comparison import CONFIDENCE, POWER, compare, mean_interval

LAYER_NORM, BASE = [177, 116, 170, 199], [48, 94, 49, 46]
SPREADS = {  # standard deviations of the errors of the base and of three variants
    "all recipes vary equally": (5, 5, 5, 5),
    "the base varies more": (15, 5, 5, 5),
    "one variant varies more": (5, 15, 5, 5),
    "all variants vary more": (5, 15, 15, 15),
}


def standardized(n, mean=0.0, deviation=1.0):
    """Returns `n` errors whose log(errors + 0.5) have exactly this mean and deviation."""
    z = np.linspace(-1, 1, n)
    return np.exp(mean + deviation * z / z.std(ddof=1)) - 0.5


def critical_value(result, errors):
    return np.log(result.high / result.low) / 2 / np.hypot(*errors)


def test_interval_by_hand():
    """1..5 have the mean 3 and the standard error 1.5811 / sqrt(5); t(0.975, 4) = 2.7764."""
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval == pytest.approx((3, 3 - 2.7764 * 0.70711, 3 + 2.7764 * 0.70711, 5), rel=1e-4)


def test_interval_contains_the_truth_as_often_as_claimed():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(7, 2, 4)) for _ in range(2_000)]
    share = np.mean([low < 7 < high for _, low, high, _ in intervals])
    assert share == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_equal_values_have_no_interval():
    assert mean_interval([3]) == (3, None, None, 1)
    assert mean_interval([3, 3]) == (3, None, None, 2)


def test_ratio_by_hand():
    """With 0.5 added, 8 and 32 have the geometric mean 16; 32 and 128 have 64."""
    (result,) = compare([7.5, 31.5], [[31.5, 127.5]])
    assert (result.ratio, result.base) == pytest.approx((4, 16))
    assert (result.n, result.n_base) == (2, 2)
    assert result.difference(result.ratio) == pytest.approx(48)
    # Both means have the standard error log(4) / 2; log(ratio) is the centre of its interval.
    assert result.low * result.high == pytest.approx(16)


@pytest.mark.parametrize(("num_variants", "expected"), [(1, 1.96), (2, 2.21), (3, 2.35), (9, 2.69)])
def test_many_replicas_have_the_critical_values_of_dunnetts_table(num_variants, expected):
    """Source: Dunnett (1964), two-sided, 5 %, infinite degrees of freedom."""
    group = standardized(4_000)
    result, *_ = compare(group, [group] * num_variants)
    assert critical_value(result, [4_000**-0.5] * 2) == pytest.approx(expected, abs=0.02)


def test_one_variant_is_tested_as_by_welch():
    base, variant = standardized(12), standardized(16, 0.9, 1.5)
    (result,) = compare(base, [variant])
    welch = stats.ttest_ind(np.log(variant + 0.5), np.log(base + 0.5), equal_var=False)
    assert result.p == pytest.approx(welch.pvalue, rel=0.03)
    low, high = welch.confidence_interval()
    assert (np.log(result.low), np.log(result.high)) == pytest.approx((low, high), abs=0.01)


def test_many_equal_spreads_are_tested_as_by_dunnett():
    base, *variants = (standardized(60, 4 + shift, 0.2) for shift in (0, 0.05, 0.08, 0.11))
    results = compare(base, variants)
    logs = [np.log(variant + 0.5) for variant in variants]
    dunnett = stats.dunnett(*logs, control=np.log(base + 0.5), rng=0)
    assert [result.p for result in results] == pytest.approx(dunnett.pvalue.tolist(), abs=0.005)
    limits = dunnett.confidence_interval(CONFIDENCE)
    assert [np.log(result.low) for result in results] == pytest.approx(limits.low, abs=0.002)
    assert [np.log(result.high) for result in results] == pytest.approx(limits.high, abs=0.002)


def probability_of_smaller(t, errors, degrees):
    """Computes the probability that no |t| exceeds `t`, by integration.

    Given the mean and the variance of the base, the variants are independent. Given its variance
    too, a variant's mean is normal. The variances are integrated over their quantiles.
    """
    quantiles, weights = np.polynomial.legendre.leggauss(40)
    quantiles, weights = (quantiles + 1) / 2, weights / 2
    variances = [
        error**2 * stats.chi2.ppf(quantiles, degree) / degree
        for error, degree in zip(errors, degrees, strict=True)
    ]

    def of_base(z):
        result = np.ones(len(quantiles))
        for variance, error in zip(variances[1:], errors[1:], strict=True):
            limit = t * np.sqrt(variances[0][:, None] + variance)
            center = errors[0] * z
            inside = special.ndtr((center + limit) / error) - special.ndtr((center - limit) / error)
            result *= inside @ weights
        return result @ weights * stats.norm.pdf(z)

    return integrate.quad(of_base, -8, 8)[0]


def test_simulated_distribution_agrees_with_integration():
    sizes, deviations = (5, 4, 6, 5), (0.3, 0.1, 0.2, 0.4)
    base, *variants = (
        standardized(n, mean, deviation)
        for n, mean, deviation in zip(sizes, (4, 4.5, 4.3, 4.2), deviations, strict=True)
    )
    errors = np.array(deviations) / np.sqrt(sizes)
    degrees = np.array(sizes) - 1
    results = compare(base, variants)
    for result, error in zip(results, errors[1:], strict=True):
        t = np.log(result.ratio) / np.hypot(errors[0], error)
        expected = 1 - probability_of_smaller(t, errors, degrees)
        assert result.p == pytest.approx(expected, abs=0.005)
        critical = critical_value(result, (errors[0], error))
        assert probability_of_smaller(critical, errors, degrees) == pytest.approx(0.95, abs=0.002)


def test_obvious_difference_is_found():
    """With four replicas each, the paired t-test with Bonferroni's correction gave p = 0.104."""
    others = [60, 55, 70, 48], [52, 60, 41, 77]
    result, *rest = compare(BASE, [LAYER_NORM, *others])
    assert result.is_found and result.p < 0.01 and result.is_apart
    # The logarithms of errors + 0.5 have the means 4.04290 and 5.09285.
    assert result.ratio == pytest.approx(np.exp(5.09285 - 4.04290), rel=1e-4)
    assert 1.4 < result.low < result.high < 5.6
    assert not any(other.is_found or other.is_apart for other in rest)


def test_p_and_interval_agree():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(30):
        base, *variants = np.exp(rng.normal([4, 4.3, 4, 4.2, 4], 0.2, (6, 5))).T
        for result in compare(base, variants):
            assert result.is_found == (result.low > 1 or result.high < 1)
            assert result.low < result.ratio < result.high and 0 < result.p <= 1
            # An observed difference of a size that is found four times in five must be found.
            if abs(result.difference(result.ratio)) >= result.detectable:
                assert result.is_found
            found.append(result.is_found)
    assert 10 < sum(found) < 100


def test_equal_data_give_equal_results():
    assert compare(BASE, [LAYER_NORM]) == compare(BASE, [LAYER_NORM])


def test_more_variants_raise_p():
    alone, together = compare(BASE, [LAYER_NORM])[0], compare(BASE, [LAYER_NORM] * 5)[0]
    assert alone.p < together.p and alone.low > together.low
    assert alone.detectable < together.detectable


@pytest.mark.parametrize(
    ("base", "variant"), [([2, 4], [3]), ([2], [3, 5]), ([2], [3]), ([2, 2], [3, 3])]
)
def test_untestable_variants_are_not_tested(base, variant):
    (result,) = compare(base, [variant])
    assert (result.low, result.high, result.p, result.detectable) == (None,) * 4
    assert not result.is_found
    assert result.ratio == pytest.approx(
        stats.gmean(np.add(variant, 0.5)) / stats.gmean(np.add(base, 0.5))
    )


def test_untestable_variants_leave_the_others_alone():
    alone = compare(BASE, [LAYER_NORM])[0]
    one, result = compare(BASE, [[70], LAYER_NORM])
    assert one.p is None and result == alone
    assert compare(BASE, []) == []


def test_unequal_numbers_zero_errors_and_means_over_epochs():
    results = compare([0, 0.4, 1], [[0, 0, 0, 0], [30.2, 29.6], [0, 1]])
    assert all(np.isfinite([r.ratio, r.low, r.high, r.p, r.detectable]).all() for r in results)
    assert [result.is_found for result in results] == [False, True, False]
    assert [(result.n, result.n_base) for result in results] == [(4, 3), (2, 3), (2, 3)]


@pytest.fixture
def found(monkeypatch):
    """Returns a function that simulates studies: bool `[studies, variants]`, found or not.

    Each study has its own seed, so a few hundred draws are enough: p is exact for any number of
    draws. Only if all studies had the same seed would many draws be needed.
    """
    monkeypatch.setattr(comparison, "_NUM_DRAWS", 999)

    def simulate(sample, num_studies):
        rows = []
        for seed in range(num_studies):
            monkeypatch.setattr(comparison, "_SEED", seed)
            base, *variants = sample()
            rows.append([result.is_found for result in compare(base, variants)])
        return np.array(rows)

    return simulate


def normal(rng, means, deviations, n):
    """Draws whole numbers of errors from normal distributions."""
    return rng.normal(means, deviations, (n, len(means))).round().clip(0).T


def lognormal(rng, mean, deviations, n):
    """Draws errors with the same geometric mean, so that no recipe differs from the base."""
    return mean * np.exp(rng.normal(0, np.divide(deviations, mean), (n, len(deviations)))).T


@pytest.mark.parametrize("deviations", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("n", [3, 5])
def test_false_positives(found, n, deviations):
    """If there is no difference, at most 5 % of studies find one."""
    rng, num_studies = np.random.default_rng(n), 3_000
    share = found(lambda: lognormal(rng, 62, deviations, n), num_studies).any(1).mean()
    assert share < 0.05 + 3 * (0.05 * 0.95 / num_studies) ** 0.5


def pooled_t(samples):
    """Returns Dunnett's statistics `[studies, variants]` of samples `[recipes, studies, n]`."""
    n = samples.shape[-1]
    logs = np.log(samples + 0.5)
    scale = np.sqrt(logs.var(axis=-1, ddof=1).mean(axis=0) * 2 / n)
    means = logs.mean(axis=-1)
    return ((means[1:] - means[0]) / scale).T


def test_dunnetts_test_itself_has_more_false_positives_where_variances_differ():
    """This is why `compare` does not pool: 13 % if the base varies three times as much.

    The critical value for three comparisons and 16 degrees of freedom is 2.59 (Dunnett, 1964).
    """
    rng = np.random.default_rng(0)
    shares = []
    for deviations in SPREADS.values():
        samples = 62 * np.exp(
            rng.normal(0, np.divide(deviations, 62), (4_000, 5, 4)).transpose(2, 0, 1)
        )
        statistics = np.abs(pooled_t(samples))
        shares.append((statistics > 2.59).any(1).mean())
        for study in range(5):
            base, *variants = np.log(samples[:, study] + 0.5)
            result = stats.dunnett(*variants, control=base, rng=0)
            assert np.abs(result.statistic) == pytest.approx(statistics[study])
            assert ((result.pvalue < 0.05) == (statistics[study] > 2.59)).all()
    assert shares[0] == pytest.approx(0.05, abs=0.011)  # three standard errors
    assert shares[1] > 0.11 and shares[2] > 0.06 and shares[3] < 0.04


@pytest.mark.parametrize(("n", "least"), [(3, 0.09), (5, 0.33), (8, 0.65)])
def test_power(found, n, least):
    """The base makes 62 ± 5 errors, and one of three variants makes 8 more.

    The paired t-test with Bonferroni's correction finds the difference in 0.08, 0.24 and 0.55 of
    studies, Welch's t-test with the same correction in 0.09, 0.32 and 0.67.
    """
    rng = np.random.default_rng(n)
    shares = found(lambda: normal(rng, [62, 70, 62, 62], 5, n), 1_500).mean(0)
    assert shares[0] > least
    assert shares[1:].max() < 0.05


@pytest.mark.parametrize(("deviations", "n"), [((0.1, 0.1), 5), ((0.2, 0.1), 8), ((0.1, 0.2), 8)])
@pytest.mark.parametrize("sign", [1, -1])
def test_detectable_difference_is_found_four_times_in_five(monkeypatch, found, deviations, n, sign):
    means = np.log([62, 62, 62, 62])
    all_deviations = np.array([deviations[0], deviations[1], 0.1, 0.1])
    with monkeypatch.context() as context:
        context.setattr(comparison, "_NUM_DRAWS", 99_999)
        base, *variants = map(standardized, [n] * 4, means, all_deviations)
        ratio = 1 + compare(base, variants)[0].detectable / 62
    means[1] += sign * np.log(ratio)
    rng, num_studies = np.random.default_rng(n), 1_500
    shares = found(
        lambda: np.exp(rng.normal(means, all_deviations, (n, 4))).T - 0.5, num_studies
    ).mean(0)
    # Three standard errors, and a bit for the power that is lost with only 999 draws.
    assert shares[0] == pytest.approx(POWER, abs=3 * (0.16 / num_studies) ** 0.5 + 0.01)
