"""Measured against predicted: p-values and z-scores of a difference, and the level at which it is reported.

Symbols: S seeds of a cell, x their values, se = std(x)/sqrt(S).
"""

import numpy as np
import scipy.stats

LEVEL = 0.01  # family-wise, over all comparisons of a run: P(any `differs`) if every prediction holds
LEAST_SEEDS = 5  # with fewer, Student's t at this level accepts almost any difference
LEAST_SEEDS_BY_LAW = 2  # if theory gives the distribution of a run


def z_text(z: np.ndarray, of: np.ndarray) -> str:
    """The largest z as text, with the limit that the largest of all z exceeds with probability LEVEL (Bonferroni)."""
    limit = scipy.stats.norm.isf(LEVEL / (2 * max(int(np.isfinite(of).sum()), 1)))
    return f"{np.nanmax(z, initial=0):.1f} (at most {limit:.1f} if the prediction holds)"


def z_scores(
    predicted: np.ndarray, samples: np.ndarray, left_out: np.ndarray | float, trials: np.ndarray | float = np.inf
) -> np.ndarray:
    """The normal z with the tail probability of t = (|mean - predicted| - left_out)+ / se, S - 1 degrees of freedom.

    samples: (..., seeds).
    predicted: (...).
    left_out: bound on the error of the prediction itself.
    trials: number of draws behind each sample, if it is a proportion. Then se is at least the binomial standard error
    at the predicted value: samples that agree by chance must not give se = 0.
    Returns NaN where a sample or the prediction is NaN.
    """
    count = samples.shape[-1]
    share = np.clip(predicted, 0, 1)
    error = np.maximum(samples.std(-1, ddof=1) / count**0.5, np.sqrt(share * (1 - share) / (count * trials)))
    t = _ratio(np.maximum(np.abs(samples.mean(-1) - predicted) - left_out, 0), error)
    return np.where(np.isnan(t), np.nan, scipy.stats.norm.isf(scipy.stats.t.sf(t, count - 1)))


def t_probabilities(difference: np.ndarray, error: np.ndarray, seeds: int) -> np.ndarray:
    """Two-sided p-value of the difference of a mean from its prediction, by Student's t. error: se."""
    return 2 * scipy.stats.t.sf(_ratio(np.abs(difference), error), seeds - 1)


def law_probabilities(difference: np.ndarray, sd: np.ndarray, skewness: np.ndarray, seeds: int) -> np.ndarray:
    """Two-sided p-value of the difference of a mean of S runs from its prediction, if theory gives their distribution.

    sd, skewness: of one run. The mean has skewness / sqrt(S). Its distribution is approximated by the Pearson type III
    (shifted gamma) distribution with these moments, which is exact for chi^2 and normal runs. That distribution is
    bounded on its short side, the true one need not be: on that side the normal distribution is used.
    """
    z = _ratio(difference, sd / seeds**0.5)
    skew = np.sign(z) * skewness / seeds**0.5  # towards the difference
    gamma = scipy.stats.pearson3.sf(np.abs(z), np.maximum(skew, 0))
    return np.minimum(2 * gamma, 1)


def _ratio(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    """difference / error: 0 if the difference is 0, infinite if only the error is 0, NaN if either is NaN."""
    difference, error = np.asarray(difference, float), np.asarray(error, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = difference / error
    return np.where((difference == 0) & ~np.isnan(error), 0.0, ratio)
