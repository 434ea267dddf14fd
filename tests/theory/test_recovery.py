"""Align, predict, contrast (X7) against the top coordinates that each method finds in the exact covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_theory.theory import recovery
from proofs_checks.x7 import cases, recovered_by_decompositions

pytestmark = pytest.mark.slow

jitted = jax.jit(recovery)


def test_criteria_are_what_the_decompositions_find():
    seen = set()
    for case in zip(*cases(200, seed=1), strict=True):
        got, want = jitted(*case), recovered_by_decompositions(*case)
        ratios = np.array([got.align, got.predict, got.contrast])
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
