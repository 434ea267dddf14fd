"""The accuracy of a linear head on SupCon: the paper's numbers, the head's symmetry, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from mmcl_theory.data import inter_class, intra_class, observation
from mmcl_theory.theory import mmcl_accuracy, sup_con_accuracy, supervised_accuracy
from proofs_checks.ambient import groups

accuracy = jax.jit(sup_con_accuracy)
mmcl = jax.jit(mmcl_accuracy)
supervised = jax.jit(supervised_accuracy)


@pytest.mark.parametrize(("p", "s_c", "s_s"), [(1.0, 1.0, 0.0), (0.9, 1.3, 0.4), (0.6, 0.5, 1.0)])
def test_intra_class_is_the_closed_form(p, s_c, s_s):
    radius = np.hypot(s_c, (2 * p - 1) * s_s)
    want = norm.cdf(np.array([2 * p, 2 * (1 - p)]) / radius)
    got = groups(accuracy(intra_class(p, s_c, s_s)))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert not np.allclose(got, norm.cdf(np.array([2 * p, 2 * (1 - p)]) / s_c), rtol=1e-6) or s_s == 0


def test_the_paper_s_numbers():
    found = accuracy(intra_class(1.0, 1.0, 0.0))
    np.testing.assert_allclose(groups(found), [0.977249868, 0.5], rtol=1e-9)
    np.testing.assert_allclose(found.shifted, 0.738624934, rtol=1e-9)
    assert found.shifted < mmcl(intra_class(1.0, 1.0, 0.0)).shifted


def test_spread_within_classes_does_not_teach_the_core_feature():
    """MMCL's rule has s_c^2 in it, SupCon's has not: at small s_c they meet."""
    far, near = (intra_class(0.95, s_c, 0.1) for s_c in (1.0, 1e-6))
    assert mmcl(far).conflicting - accuracy(far).conflicting > 0.1
    np.testing.assert_allclose(groups(accuracy(near)), groups(mmcl(near)), atol=1e-9)


def test_noise_is_that_of_the_rule():
    model, obs = intra_class(0.9, 0.8, 0.3, 1.2, 0.7), observation(100, 50, 3.0, 1.0)
    w = np.array([1.2, 0.8 * 0.7])
    spread = np.sqrt((w**2) @ [0.8**2, 0.3**2] + 0.3**2 * w @ w)
    want = norm.cdf([(w @ [1.2, 0.7]) / spread, (w @ [1.2, -0.7]) / spread])
    np.testing.assert_allclose(groups(accuracy(model, obs)), want, rtol=1e-12)


@pytest.mark.costly
def test_inter_class_equals_supervised_learning_with_one_beta():
    for alpha in (0.5, 1.5, 10.0):
        model = inter_class(5, 1.0, alpha, 0.3)
        np.testing.assert_array_equal(groups(accuracy(model)), groups(supervised(model)))
    found, theirs = (groups(f(inter_class(3, 1.0, 0.75, 0.3, 0.6))) for f in (accuracy, supervised))
    assert (found != theirs).any()


@pytest.mark.parametrize("m", [1, 2, 7])
def test_a_strong_spurious_feature_takes_the_conflicting_group(m):
    np.testing.assert_array_equal(groups(accuracy(inter_class(m, 1.0, 1.01, 0.3))), [1, 0])
    np.testing.assert_array_equal(groups(accuracy(inter_class(m, 1.0, 0.3, 0.3))), [1, 1])


def test_nan_stays_and_leaves_of_any_ranks_broadcast():
    found = jax.jit(jax.vmap(lambda beta: sup_con_accuracy(inter_class(3, 1.0, 2.0, beta))))(jnp.array([np.nan, 0.3]))
    np.testing.assert_array_equal(np.isfinite(groups(found)), [[False] * 2, [True] * 2])
    assert np.isnan(groups(found)[0]).all()
    model = intra_class(np.full(2, 0.9), np.full((3, 1), 1.0), 0.2)
    assert accuracy(model, observation(8, 4, np.full((4, 1, 1), 0.3), 0.1)).at(np.full(2, 0.5)).shape == (4, 3, 2)
