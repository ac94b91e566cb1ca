import numpy as np
import pytest

from mnist_flax.study.comparison import mean_interval, paired_difference


def test_interval_by_hand():
    """Of 1..5: mean 3, standard deviation 1.5811, its error 0.7071; t(0.975, 4) = 2.7764."""
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval == pytest.approx((3, 3 - 2.7764 * 0.70711, 3 + 2.7764 * 0.70711, 5), rel=1e-4)


def test_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(7, 2, 4)) for _ in range(2_000)]
    share = np.mean([low < 7 < high for _, low, high, _ in intervals])
    assert share == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_what_does_not_vary_has_no_interval():
    assert mean_interval([3]) == (3, None, None, 1)
    assert mean_interval([3, 3]) == (3, None, None, 2)


def test_paired_difference_by_hand():
    """Differences 1..5: t = 3 / 0.7071 = 4.2426, which a table of t with 4 degrees puts at 0.0132.

    Of three comparisons: p is three times that, and the interval has t(1 - 0.05 / 6, 4) = 3.9608.
    """
    base, values = [10, 30, 20, 50, 40], [13, 31, 25, 52, 44]
    alone = paired_difference(values, base, 1)
    assert alone == pytest.approx(
        (3, 3 - 2.7764 * 0.70711, 3 + 2.7764 * 0.70711, 0.01324, 5), rel=1e-3
    )
    corrected = paired_difference(values, base, 3)
    assert corrected.p == pytest.approx(3 * 0.01324, rel=1e-3)
    assert corrected.high == pytest.approx(3 + 3.9608 * 0.70711, rel=1e-3)
    assert alone.is_found and corrected.is_found
    assert not paired_difference(values, base, 5).is_found


def test_p_and_interval_agree():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        difference = paired_difference(rng.normal(1, 1, 6), rng.normal(0, 1, 6), 4)
        assert difference.is_found == (difference.low > 0 or difference.high < 0)
        assert difference.p <= 1
        found.append(difference.is_found)
    assert 10 < sum(found) < 190


@pytest.mark.parametrize("values", [[3], [3, 5], [2, 4]])
def test_what_cannot_be_tested_is_not(values):
    difference = paired_difference(values, [2, 4][: len(values)], 2)
    assert difference.p is None and difference.low is None and not difference.is_found
    assert difference.mean == values[0] - 2
