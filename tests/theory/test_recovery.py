"""Align, predict, contrast (X7) against the top coordinates that each method finds in the exact covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from mmcl_theory.theory import recovery

pytestmark = pytest.mark.slow

jitted = jax.jit(recovery)


def top_subspaces(k, gx, gy, eta, hx, hy):
    """For CCA, reduced-rank regression and PLS: is the leading image subspace that of the signal coordinates?"""
    s_xx, s_yy = np.diag(np.r_[k**2 + gx, hx]), np.diag(np.r_[k**2 + gy, hy])
    s_xy = np.diag(np.r_[k**2, eta])
    rotate_x, rotate_y = (np.linalg.qr(np.random.default_rng(i).normal(size=s_xx.shape))[0] for i in (0, 1))
    s_xx, s_yy, s_xy = rotate_x @ s_xx @ rotate_x.T, rotate_y @ s_yy @ rotate_y.T, rotate_x @ s_xy @ rotate_y.T
    root_x, root_y = (np.linalg.inv(scipy.linalg.sqrtm(s)) for s in (s_xx, s_yy))
    found = []
    for matrix, back in ((root_x @ s_xy @ root_y, root_x), (root_x @ s_xy, root_x), (s_xy, np.eye(len(s_xx)))):
        u = back @ np.linalg.svd(matrix)[0][:, : len(k)]
        inside = rotate_x[:, : len(k)].T @ np.linalg.qr(u)[0]
        found.append(np.linalg.svd(inside, compute_uv=False).min() > 0.5)
    return found


def test_criteria_are_what_the_decompositions_find():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        k, gx, gy = rng.uniform(0.3, 1.5, 2), rng.uniform(0, 2, 2), rng.uniform(0, 2, 2)
        hx, hy = rng.uniform(0.2, 3, 3), rng.uniform(0.2, 3, 3)
        eta = rng.uniform(0, 1, 3) * np.sqrt(hx * hy)
        got = jitted(k, gx, gy, eta, hx, hy)
        ratios = np.array([got.align, got.predict, got.contrast])
        want = top_subspaces(k, gx, gy, eta, hx, hy)
        assert ((ratios > 1) == want).all()
        seen.add(tuple(bool(x) for x in want))
        assert got.regime == 2 * want[0] + want[1]
    assert len(seen) >= 6  # of the 8 ways in which three methods can succeed or fail


def test_each_method_can_be_the_only_one_right():
    """Own image noise hurts prediction less than alignment; own text variance fools prediction and contrast alone."""
    only_contrast = recovery(1.0, 4.0, 4.0, 0.9, 0.95, 0.95)
    assert only_contrast.contrast > 1 > only_contrast.align and only_contrast.predict < 1
    only_align = recovery(1.0, 0.1, 0.1, 2.0, 4.0, 4.0)
    assert only_align.align > 1 > only_align.contrast and only_align.predict < 1
    assert only_align.regime == 2


def test_nothing_shared_but_the_signal_is_always_recovered():
    got = recovery(1.0, 3.0, 3.0, 0.0, 1.0, 1.0)
    assert got.align == got.predict == got.contrast == jnp.inf and got.regime == 3


def test_arrays_broadcast_over_leading_axes():
    eta = np.linspace(0.1, 0.9, 5)[:, None]
    got = recovery(np.array([[1.0, 0.8]]), 0.3, 0.2, eta, 1.0, 1.0)
    assert got.align.shape == (5,)
    for i, value in enumerate(eta[:, 0]):
        np.testing.assert_allclose(got.align[i], recovery(np.array([1.0, 0.8]), 0.3, 0.2, value, 1.0, 1.0).align)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0.0, 1, 1, 0.1, 1, 1), "signal must be"),
        ((1, -1.0, 1, 0.1, 1, 1), "gx must be"),
        ((1, 1, 1, 0.1, 0.0, 1), "hx must be"),
        ((1, 1, 1, 1.1, 1, 1), r"eta must be <= sqrt\(hx hy\)"),
    ],
)
def test_wrong_values_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        recovery(*args)
