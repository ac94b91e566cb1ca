"""Statistics of a study: confidence intervals of means, and comparisons of variants with a base."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special, stats

ALPHA = 0.05  # the probability of finding any difference in a study where there is none
POWER = 0.8  # the probability of finding a difference of `Comparison.detectable`

_ROUNDING = 1e-9  # logarithms that differ by less are equal


@dataclasses.dataclass(frozen=True)
class Interval:
    """The mean of n values and the limits of its 95 % confidence interval."""

    mean: float
    low: float  # NaN if all values are equal
    high: float
    n: int


@dataclasses.dataclass
class Comparison:
    """A variant's errors compared with the base's, over the seeds that both have finished.

    What is NaN by default stays so if the difference cannot be tested: with one seed, or if the
    ratio is the same for every seed.
    """

    n: int  # seeds
    base: float  # geometric mean of the base's errors + 0.5
    ratio: float  # geometric mean of the variant's errors + 0.5, divided by `base`
    correlation: float = math.nan  # of log(errors + 0.5), -1..1; NaN with fewer than 3 seeds
    low: float = math.nan  # the ratio's confidence interval, by Bonferroni's method: all intervals
    high: float = math.nan  # contain their true ratios in 1 - ALPHA of studies
    p: float = math.nan  # 0..1, adjusted by Holm's method for all comparisons of the study
    detectable: float = math.nan  # errors: a difference so large is found with probability POWER

    @property
    def is_found(self) -> bool:
        """Whether there is a difference, at the level ALPHA over all comparisons."""
        return self.p < ALPHA


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean of values `[n]`, with its interval by Student's t distribution."""
    low = high = math.nan
    if np.ptp(values) > 0:
        low, high = map(float, stats.ttest_1samp(values, 0).confidence_interval(1 - ALPHA))
    return Interval(float(np.mean(values)), low, high, len(values))


def compare(
    base: Mapping[int, float], variants: Mapping[str, Mapping[int, float]]
) -> dict[str, Comparison]:
    """Compares variants with their base by paired t tests of log(errors + 0.5).

    Replicas with the same seed form a pair: they start from the same numbers and see the same
    batches, as far as their recipes allow. The 0.5 gives zero errors a logarithm.

    Args:
      base: the errors of the base's replicas, 0 or more, by seed.
      variants: the same for each variant, by name.

    Returns:
      A comparison for each variant that shares a seed with the base.
    """
    logs = {}
    for name, errors in variants.items():
        if pairs := [(base[seed], errors[seed]) for seed in base if seed in errors]:
            logs[name] = np.log(np.transpose(pairs) + 0.5)
    tested = [name for name, (of_base, own) in logs.items() if np.ptp(own - of_base) > _ROUNDING]
    found = {}
    for name, (of_base, own) in logs.items():
        center, ratio = np.exp([of_base.mean(), (own - of_base).mean()]).tolist()
        found[name] = Comparison(len(own), center, ratio)
        if len(own) > 2 and min(np.ptp(of_base), np.ptp(own)) > _ROUNDING:
            found[name].correlation = float(np.corrcoef(of_base, own)[0, 1])
        if name in tested:
            _test(found[name], of_base, own, ALPHA / len(tested))
    adjusted = 0.0
    for rank, comparison in enumerate(sorted((found[name] for name in tested), key=lambda c: c.p)):
        adjusted = min(1.0, max(adjusted, (len(tested) - rank) * comparison.p))  # Holm (1979)
        comparison.p = adjusted
    return found


def _test(comparison: Comparison, base: np.ndarray, variant: np.ndarray, alpha: float) -> None:
    """Tests logarithms `[n]` against the base's at the level `alpha`, with p not yet adjusted."""
    test = stats.ttest_rel(variant, base)
    comparison.p = float(test.pvalue)
    # With this noncentrality, |t| exceeds its critical value with probability POWER.
    noncentrality = special.nctdtrinc(test.df, 1 - POWER, stats.t.isf(alpha / 2, test.df))
    shifts = [*test.confidence_interval(1 - alpha), noncentrality * stats.sem(variant - base)]
    with np.errstate(over="ignore"):  # two replicas may leave almost any ratio possible
        comparison.low, comparison.high, ratio = np.exp(shifts).tolist()
    comparison.detectable = (ratio - 1) * comparison.base
