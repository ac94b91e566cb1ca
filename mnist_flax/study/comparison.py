"""Statistics of a study: confidence intervals of means, and comparisons of variants with a base."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8

_NUM_DRAWS = 99_999  # the observed statistic makes it a round number
_SEED = 0


class Interval(NamedTuple):
    """The mean of n values and its confidence limits: None if n is 1 or all values are equal."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Comparison(NamedTuple):
    """A comparison of a variant's errors with the base's.

    `low`, `high`, `p` and `detectable` are None if the variant cannot be tested.

    Attributes:
      ratio: the geometric mean of the variant's errors + 0.5, divided by that of the base.
      low: the lower end of the ratio's confidence interval. With probability `CONFIDENCE`, all
        intervals of a study contain their true ratios.
      high: its upper end.
      p: the p value, 0..1, adjusted for all comparisons of the study. It is below 1 - `CONFIDENCE`
        exactly where the interval excludes 1.
      detectable: a difference of this many errors or more, in either direction, is found with
        probability `POWER` or more (0.74 or more with three replicas) if the groups vary as much
        as measured.
      base: the geometric mean of the base's errors + 0.5.
      n: the number of replicas of the variant.
      n_base: the number of replicas of the base.
      is_apart: whether all replicas of the variant are better, or all worse, than all of the base.
    """

    ratio: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    base: float
    n: int
    n_base: int
    is_apart: bool

    @property
    def is_found(self) -> bool:
        """Whether a difference was found, at the level `CONFIDENCE` over all comparisons."""
        return self.p is not None and self.p < 1 - CONFIDENCE

    def difference(self, ratio: float) -> float:
        """Converts a ratio to a difference from the base's geometric mean, in errors."""
        return (ratio - 1) * self.base


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of values `[n]`, with its interval by Student's t distribution."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2 or np.ptp(values) == 0:
        return Interval(mean, None, None, n)
    low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=stats.sem(values))
    return Interval(mean, float(low), float(high), n)


def compare(base: Sequence[float], variants: Sequence[Sequence[float]]) -> list[Comparison]:
    """Compares several variants with one base at once, without pairing and without pooling.

    The statistic is Welch's t (Welch, 1938) of log(errors + 0.5); the 0.5 gives zero errors a
    logarithm. As in Dunnett's test (Dunnett, 1955), p is the probability that the largest |t| of
    all variants is at least as large when none differs from the base that they share. Dunnett
    assumes equal variances; here each group keeps its own. With n = 5, three variants and a base
    that varies three times as much, his test finds a difference where there is none in 12 % of
    studies, and this one in 5 %. With two replicas against five, this one may do so in 11 %.

    A variant is left out of the test if it or the base has only one replica, or if neither varies.

    Args:
      base: the errors of the base's replicas, `[n_base]`, 0 or more.
      variants: the errors of each variant's replicas, `[n]` each.

    Returns:
      A comparison for each variant, in the same order.
    """
    logs = [np.log(np.add(values, 0.5)) for values in (base, *variants)]
    center = logs[0]
    testable = [
        min(len(center), len(log)) > 1 and (np.ptp(center) > 0 or np.ptp(log) > 0)
        for log in logs[1:]
    ]
    tested = [log for log, is_testable in zip(logs[1:], testable, strict=True) if is_testable]
    results = iter(_test(center, tested) if tested else [])
    comparisons = []
    for log, is_testable in zip(logs[1:], testable, strict=True):
        low, high, p, detectable = next(results) if is_testable else (None, None, None, None)
        comparisons.append(
            Comparison(
                ratio=float(np.exp(log.mean() - center.mean())),
                low=low,
                high=high,
                p=p,
                detectable=detectable,
                base=float(np.exp(center.mean())),
                n=len(log),
                n_base=len(center),
                is_apart=bool(log.min() > center.max() or log.max() < center.min()),
            )
        )
    return comparisons


def _test(
    base: np.ndarray, variants: Sequence[np.ndarray]
) -> list[tuple[float, float, float, float]]:
    """Returns `low`, `high`, `p` and `detectable` for each variant, from log(errors + 0.5).

    The distribution of the largest |t| is simulated for groups with equal means and the measured
    variances: a parametric bootstrap (Krishnamoorthy, Lu and Mathew, 2007). The draws are the same
    in every call, so equal data give equal results.
    """
    groups = [base, *variants]
    degrees = np.array([len(group) - 1 for group in groups])
    # NumPy may return a rounding error instead of 0 for equal values.
    deviations = [group.std(ddof=1) if np.ptp(group) > 0 else 0 for group in groups]
    errors = np.array(deviations) / np.sqrt(degrees + 1)
    shifts = np.array([variant.mean() - base.mean() for variant in variants])
    scales = np.hypot(errors[1:], errors[0])

    rng = np.random.default_rng(_SEED)
    means = errors * rng.standard_normal((_NUM_DRAWS, len(groups)))
    variances = errors**2 * rng.chisquare(degrees, means.shape) / degrees
    drawn_shifts = means[:, 1:] - means[:, :1]
    drawn_scales = np.sqrt(variances[:, 1:] + variances[:, :1])
    maxima = np.sort(np.abs(drawn_shifts / drawn_scales).max(axis=1))

    # Both critical and p count the observed value as one more draw, so that p < 1 - CONFIDENCE
    # exactly where |t| > critical.
    critical = maxima[round(CONFIDENCE * (_NUM_DRAWS + 1))]
    at_least = _NUM_DRAWS - np.searchsorted(maxima, np.abs(shifts) / scales)
    p = (1 + at_least) / (_NUM_DRAWS + 1)
    # A true shift s is found in a draw where drawn_shifts + s > critical * drawn_scales.
    detectable = np.quantile(critical * drawn_scales - drawn_shifts, POWER, axis=0)
    with np.errstate(over="ignore"):  # two replicas may leave almost any ratio possible
        low, high = np.exp(shifts - critical * scales), np.exp(shifts + critical * scales)
        results = np.stack([low, high, p, np.expm1(detectable) * np.exp(base.mean())], 1)
    return [(low, high, p, detectable) for low, high, p, detectable in results.tolist()]
