"""Judging a random quantity by its standard error, and a check that must reject."""

import numpy as np
import pytest
import scipy.stats


def assert_mean_close(samples, expected, *, resolution, alpha=1e-6):
    """z-test of E[samples] = expected, entry by entry; a true claim fails w.p. ~alpha at any seed.

    samples: (n, ...), one draw a row. An entry that never varies (range <= 1e-12) must equal the expectation to 1e-12
    absolute. A standard error above `resolution` is refused: such a test could not see a gap of that size.
    """
    x = np.asarray(samples, np.float64)
    expected = np.broadcast_to(np.asarray(expected, np.float64), x.shape[1:])
    assert len(x) > 1 and np.isfinite(x).all() and np.isfinite(expected).all(), "samples and expected must be finite"
    se = x.std(0, ddof=1) / len(x) ** 0.5
    fixed = np.ptp(x, axis=0) <= 1e-12
    assert se.max() <= resolution, f"draw more: standard error {se.max():.2e} > {resolution}"
    error = np.abs(np.where(fixed, x[0], x.mean(0)) - expected)
    z = np.where(fixed, np.where(error <= 1e-12, 0.0, np.inf), error / np.where(fixed, 1.0, se))
    limit = scipy.stats.norm.isf(alpha / (2 * z.size))
    assert z.max() <= limit, f"z = {z.max():.1f} > {limit:.1f}"


def assert_same_law(x, y, *, alpha=1e-6):
    """Two-sample tests, column by column, of one law behind the rows of x (n, c) and y (m, c): z-tests of means and of
    variances, and Kolmogorov-Smirnov; a true claim fails w.p. ~alpha.

    A column that never varies must be the same in both. Values are rounded to 9 digits of the largest, so that atoms
    stay atoms. With n = m a shift of about 5.5 sqrt(2/n) standard deviations is seen.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.ndim == y.ndim == 2 and np.isfinite(x).all() and np.isfinite(y).all(), "samples must be finite"
    scale = np.maximum(np.abs(x).max(0), np.abs(y).max(0))
    x, y = (np.round(s / np.where(scale > 0, scale, 1), 9) for s in (x, y))
    z = []
    for a, b in zip(x.T, y.T, strict=True):
        for s, t in ((a, b), ((a - a.mean()) ** 2, (b - b.mean()) ** 2)):
            error = np.hypot(s.std(ddof=1) / len(s) ** 0.5, t.std(ddof=1) / len(t) ** 0.5)
            gap = abs(s.mean() - t.mean())
            z.append(gap / error if error > 1e-12 else np.inf if gap > 1e-8 else 0.0)
        z.append(scipy.stats.norm.isf(scipy.stats.ks_2samp(a, b, method="asymp").pvalue / 2))
    limit = scipy.stats.norm.isf(alpha / (2 * len(z)))
    assert max(z) <= limit, f"z = {max(z):.1f} > {limit:.1f} (column, test: {divmod(int(np.argmax(z)), 3)})"


def rejects(check, *args, **kwargs):
    """Passes iff check(*args, **kwargs) fails by its z-test: the must-reject twin of a statistical check."""
    with pytest.raises(AssertionError, match=r"^z = "):
        check(*args, **kwargs)
