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


def rejects(check, *args, **kwargs):
    """Passes iff check(*args, **kwargs) fails by its z-test: the must-reject twin of a statistical check."""
    with pytest.raises(AssertionError, match=r"^z = "):
        check(*args, **kwargs)
