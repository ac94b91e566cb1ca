"""Statistics of a study, SciPy's: intervals of means, and paired differences to the base."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean of n values and its confidence interval; None where n is 1, or all are equal."""

    mean: float
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """The mean of n paired differences.

    Attributes:
      mean: of the differences.
      low: of its confidence interval, which holds for all comparisons at once; None if untestable.
      high: likewise.
      p: of the paired t-test, corrected for the number of comparisons, 0..1; likewise.
      n: how many pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    @property
    def is_found(self) -> bool:
        """Whether there is a difference, at the level of `CONFIDENCE` for all comparisons."""
        return self.p is not None and self.p < 1 - CONFIDENCE


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean's interval by Student's t distribution, of values `[n]`."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2 or np.ptp(values) == 0:
        return Interval(mean, None, None, n)
    low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=stats.sem(values))
    return Interval(mean, float(low), float(high), n)


def paired_difference(
    values: Sequence[float], base: Sequence[float], num_comparisons: int
) -> Difference:
    """Compares pairs by the paired t-test (Student, 1908), `scipy.stats.ttest_rel`.

    Bonferroni's correction for `num_comparisons` of them: p is multiplied by their number, and the
    interval has the level 1 - (1 - CONFIDENCE) / num_comparisons, so that it leaves out 0 just
    where p is below 1 - CONFIDENCE.

    Args:
      values: `[n]`.
      base: `[n]`, what each is compared with.
      num_comparisons: how many such tests there are.

    Returns:
      Of `values - base`; without an interval if there are fewer than two pairs, or if all
      differences are equal, which leaves nothing to judge them by.
    """
    differences = np.subtract(values, base)
    mean, n = float(np.mean(differences)), len(differences)
    if n < 2 or np.ptp(differences) == 0:
        return Difference(mean, None, None, None, n)
    result = stats.ttest_rel(values, base)
    interval = result.confidence_interval(1 - (1 - CONFIDENCE) / num_comparisons)
    p = min(1.0, float(result.pvalue) * num_comparisons)
    return Difference(mean, float(interval.low), float(interval.high), p, n)
