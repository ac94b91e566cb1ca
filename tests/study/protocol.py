"""The test that the published claims were compared by: docs/results/claims.md has its protocol."""

import numpy as np

_NUM_DRAWS = 99_999  # the observed statistic makes it a round number


def compare(base, variants):
    """Compares the errors of variants `[n]` with those of the base, without pairing or pooling.

    Welch's t of log(errors + 0.5) is compared, as in Dunnett's test, with the largest |t| of all
    variants, whose distribution is simulated with the measured variances.

    Returns:
      For each variant: the ratio of its errors to the base's, low and high ends of its 95 %
      interval, p, and the number of errors that would have been found four times in five.
    """
    groups = [np.log(np.add(group, 0.5)) for group in (base, *variants)]
    means, sizes = np.array([(group.mean(), len(group)) for group in groups]).T
    errors = np.array([group.std(ddof=1) for group in groups]) / np.sqrt(sizes)
    shifts, scales = means[1:] - means[0], np.hypot(errors[1:], errors[0])
    rng = np.random.default_rng(0)
    drawn = errors * rng.standard_normal((_NUM_DRAWS, len(groups)))
    variances = errors**2 * rng.chisquare(sizes - 1, drawn.shape) / (sizes - 1)
    drawn_shifts = drawn[:, 1:] - drawn[:, :1]
    drawn_scales = np.sqrt(variances[:, 1:] + variances[:, :1])
    maxima = np.sort(np.abs(drawn_shifts / drawn_scales).max(axis=1))
    critical = maxima[round(0.95 * (_NUM_DRAWS + 1))]
    p = (1 + _NUM_DRAWS - np.searchsorted(maxima, np.abs(shifts) / scales)) / (_NUM_DRAWS + 1)
    detectable = np.quantile(critical * drawn_scales - drawn_shifts, 0.8, axis=0)
    ends = np.exp([shifts, shifts - critical * scales, shifts + critical * scales])
    return np.stack([*ends, p, np.expm1(detectable) * np.exp(means[0])], axis=1)
