"""Measured against predicted: probabilities of a difference as large, and the level at which one is called a finding.

Symbols: S seeds of a cell, x their values, se = std(x)/sqrt(S).
"""

import numpy as np
import scipy.stats

LEVEL = 0.01  # of all comparisons of a run together: P(any `differs`), if every prediction holds
LEAST_SEEDS = 5  # Student's t of fewer allows, at this level, about any difference
LEAST_SEEDS_BY_LAW = 2  # where theory gives a run's law


def z_text(z: np.ndarray, of: np.ndarray) -> str:
    """The largest z, and the limit that the largest of all exceeds with probability LEVEL at most (Bonferroni)."""
    limit = scipy.stats.norm.isf(LEVEL / (2 * max(int(np.isfinite(of).sum()), 1)))
    return f"{np.nanmax(z, initial=0):.1f} (at most {limit:.1f} if the prediction holds)"


def z_scores(
    predicted: np.ndarray, samples: np.ndarray, left_out: np.ndarray | float, trials: np.ndarray | float = np.inf
) -> np.ndarray:
    """The z that is as improbable as t = (|mean - predicted| - left_out)+ / se of S - 1 degrees of freedom.

    NaN where either is missing. samples: (..., seeds).  predicted: (...).  left_out: what the prediction leaves out.
    trials: draws behind each sample where it is a share; se is then at least that of a share of the predicted size, so
    that samples that happen to agree are not taken for exact.
    """
    count = samples.shape[-1]
    share = np.clip(predicted, 0, 1)
    error = np.maximum(samples.std(-1, ddof=1) / count**0.5, np.sqrt(share * (1 - share) / (count * trials)))
    t = _ratio(np.maximum(np.abs(samples.mean(-1) - predicted) - left_out, 0), error)
    return np.where(np.isnan(t), np.nan, scipy.stats.norm.isf(scipy.stats.t.sf(t, count - 1)))


def t_probabilities(difference: np.ndarray, error: np.ndarray, seeds: int) -> np.ndarray:
    """Two-sided probability of a mean this far from its prediction, by Student's t. error: se."""
    return 2 * scipy.stats.t.sf(_ratio(np.abs(difference), error), seeds - 1)


def law_probabilities(difference: np.ndarray, sd: np.ndarray, skewness: np.ndarray, seeds: int) -> np.ndarray:
    """Two-sided probability of a mean this far from its prediction, where theory gives a run's law, at any S.

    sd, skewness: of one run. The mean of S has the skewness over sqrt(S), and about the shifted gamma law (Pearson III)
    of these moments, which a chi^2 and a normal have exactly. It ends on its short side, where the mean of a law that
    only resembles it does not: there the normal law is used.
    """
    z = _ratio(difference, sd / seeds**0.5)
    skew = np.sign(z) * skewness / seeds**0.5  # towards the difference
    gamma = scipy.stats.pearson3.sf(np.abs(z), np.maximum(skew, 0))
    return np.minimum(2 * gamma, 1)


def _ratio(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    """difference / error; 0 where there is no difference, infinite where only the error is 0, NaN where one is."""
    difference, error = np.asarray(difference, float), np.asarray(error, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = difference / error
    return np.where((difference == 0) & ~np.isnan(error), 0.0, ratio)
