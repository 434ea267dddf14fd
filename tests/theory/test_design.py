"""Strong spurious features (X4) and the best same-class weight (X3) against accuracies on both sides of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_theory.data import captions, intra_class
from mmcl_theory.theory import mmcl_accuracy, optimal_same_class_weight, strong_spurious_threshold
from proofs_checks.ambient import jit_long, noise
from tests.statistics import assert_mean_close, rejects
from tests.theory.learnt import learnt_rules

pytestmark = pytest.mark.slow

accuracy = jit_long(mmcl_accuracy)
optimum = jit_long(optimal_same_class_weight)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("pi", [0.0, 0.6, 1.0])
def test_threshold_is_where_the_conflicting_group_falls_below_one_half(weight, pi):
    def conflicting(mu_spu):
        model = intra_class(0.9, 0.7, 0.2, 1.2, mu_spu)
        return accuracy(model, captions(pi), same_class_weight=weight).conflicting

    threshold = strong_spurious_threshold(intra_class(0.9, 0.7, 0.2, 1.2), captions(pi), weight)
    assert conflicting(threshold * (1 - 1e-9)) > 0.5 > conflicting(threshold * (1 + 1e-9))


def test_threshold_of_the_ordinary_loss_as_written_in_theory():
    np.testing.assert_allclose(
        strong_spurious_threshold(intra_class(0.9, 0.7, 0.2, 1.2)) ** 2 * 0.8, 1.2**2 + 0.7**2, rtol=1e-12
    )


def test_threshold_is_infinite_where_nothing_pulls():
    got = strong_spurious_threshold(intra_class(np.array([0.5, 0.2, 0.9]), 0.7, 0.2), None, np.array([0.5, 0.5, 1.0]))
    assert (got == jnp.inf).all()


def test_population_wants_all_the_intra_class_contrasting():
    got = optimum(intra_class(0.99, 0.5, 0.1), captions(0.3))
    assert got.same_class_weight == 1
    np.testing.assert_allclose(got.shifted, 0.9772498680518208, rtol=1e-12)
    assert abs(got.slope) < 1e-12  # acc_P* is even in the spurious weight, which vanishes there


CASE = (intra_class(0.99, 0.5, 0.1), captions(), noise(2000, 2, 0.3, 0.3), 200.0)


def test_optimum_at_finite_n_is_inside_and_the_best_of_a_grid():
    got = optimum(*CASE)
    model, caps, obs, n = CASE
    grid = accuracy(model, caps, obs, n, same_class_weight=np.linspace(0, 1, 2001)).shifted
    assert 0 < got.same_class_weight < 1 and got.shifted > grid[-1] + 1e-4
    assert grid.max() <= got.shifted and got.shifted - grid.max() < 1e-6
    assert abs(got.slope) < 1e-6


def test_optimum_moves_to_one_with_samples():
    model, caps, obs, _ = CASE
    weights = [float(optimum(model, caps, obs, n).same_class_weight) for n in (50.0, 200.0, 1e3, 1e5)]
    assert (np.diff(weights) > 0).all() and weights[-1] > 0.95


def test_optimum_is_unknown_where_the_formula_that_wins_does_not_hold():
    """mu_spu >> mu_core at small n: the best weight's rule varies too much. With more samples it is known."""
    model, caps, obs = intra_class(0.7, 0.5, 0.1, 0.2, 3.0), captions(), noise(600, 5, 0.2, 1.0)

    def shifted(p, n):
        return optimal_same_class_weight(dataclasses.replace(model, p_spu=p), caps, obs, n).shifted

    slope = jit_long(jax.grad(shifted))
    few, many = (optimum(model, caps, obs, n) for n in (200.0, 1e6))
    assert all(jnp.isnan(x) for x in jax.tree.leaves(few)) and jnp.isnan(slope(0.7, 200.0))
    assert all(jnp.isfinite(x) for x in jax.tree.leaves(many)) and jnp.isfinite(slope(0.7, 1e6))
    assert jnp.isnan(accuracy(model, caps, obs, 200.0, same_class_weight=many.same_class_weight).shifted)


@pytest.mark.long
def test_learnt_rules_are_best_at_the_predicted_weight():
    """The gain over lambda = 0, 1/2, 1 at the optimum, same samples: measured and predicted. Resolution 1.5e-3."""
    model, caps, obs, n = CASE
    best = float(optimum(*CASE).same_class_weight)

    def gain(weight):
        at = [accuracy(model, caps, obs, n, same_class_weight=w).shifted for w in (best, weight)]
        return float(at[0] - at[1])

    key = jax.random.key(1)
    at_best = learnt_rules(key, model, caps, obs, best, n=200, runs=200)["weighted"][0].mean(-1)
    for weight in (0.0, 1.0):
        other = learnt_rules(key, model, caps, obs, weight, n=200, runs=200)["weighted"][0].mean(-1)
        check = functools.partial(assert_mean_close, (at_best - other)[:, None], resolution=1.5e-3)
        check(np.array([gain(weight)]))
        rejects(check, np.array([0.0]))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"same_class_weight must be in \[0, 1\]"):
        strong_spurious_threshold(intra_class(0.9, 1.0, 0.1), None, 1.2)
    with pytest.raises(ValueError, match='masking must be "named"'):
        strong_spurious_threshold(intra_class(0.9, 1.0, 0.1), captions(0.5, 0.5, "zero"))
    with pytest.raises(ValueError, match="n must be >= 2"):
        optimal_same_class_weight(*CASE[:3], 1)
