"""Caption budgets X8 against exhaustive grids, closed cases, and the certificate's own rejection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from mmcl_theory.data import captions, inter_class, intra_class
from mmcl_theory.theory import balanced_mention, balanced_pi_spu, mmcl_accuracy, optimal_captions, whitened_accuracy
from mmcl_theory.theory.budget import _kkt_residual
from proofs_checks.ambient import noise
from tests.helpers import refuses

pytestmark = pytest.mark.slow

MODEL, OBS = intra_class(0.95, 1.0, 0.2), noise(40, 40, 0.3, 0.3)


def linear(pi):
    return mmcl_accuracy(MODEL, captions(pi[0], pi[1]), OBS).shifted


def whitened(pi):
    return whitened_accuracy(MODEL, captions(pi[0], pi[1]), OBS).shifted


def best_of_grid(value, cost, budget, points=201):
    pi = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, points)], indexing="ij"), -1).reshape(-1, 2)
    pi = pi[pi @ cost <= budget]
    return np.asarray(jax.jit(jax.vmap(value))(jnp.asarray(pi))).max()


@pytest.mark.parametrize("budget", [0.0, 0.3, 0.8, 3.0])
def test_linear_loss_spends_all_on_the_core_detail(budget):
    found = optimal_captions(linear, np.array([1.0, 1.0]), budget)
    np.testing.assert_allclose(found.pi[0], min(budget, 1.0), atol=1e-6)
    assert found.kkt_residual < 1e-6


@pytest.mark.parametrize(("cost", "budget"), [((1.0, 1.0), 0.5), ((1.0, 3.0), 0.8), ((2.0, 0.5), 0.6)])
def test_whitened_loss_within_a_tight_budget(cost, budget):
    cost = np.array(cost)
    found = optimal_captions(whitened, cost, budget)
    assert found.pi @ cost <= budget + 1e-9 and found.kkt_residual < 1e-5
    best = best_of_grid(whitened, cost, budget)
    assert best <= found.value + 1e-12 and found.value - best < 1e-3


def test_whitened_loss_with_enough_to_spend_ends_on_the_balanced_curve():
    found = optimal_captions(whitened, np.array([1.0, 1.0]), 2.0)
    np.testing.assert_allclose(found.value, norm.cdf(1 / np.hypot(1, 0.3)), rtol=1e-7)
    balanced = balanced_pi_spu(MODEL, captions(found.pi[0]), OBS)
    np.testing.assert_allclose(found.pi[1], balanced, atol=1e-3)


def test_inter_class_captions_pay_for_details_of_other_classes():
    model, obs = inter_class(20, 0.95, 1.0, 0.4, 0.3), noise(80, 80, 0.2, 0.2)

    def value(pi):
        return mmcl_accuracy(model, captions(pi[0], pi[1]), obs).shifted

    found = optimal_captions(value, np.array([1.0, 1.0]), 0.5)
    np.testing.assert_allclose(found.pi[0], 0.5, atol=1e-5)
    assert found.kkt_residual < 1e-5


def test_certificate_rejects_what_is_no_maximum():
    gradient = np.asarray(jax.grad(linear)(jnp.array([0.3, 0.2])))
    cost = np.array([1.0, 1.0])
    assert _kkt_residual(np.array([0.3, 0.2]), gradient, cost, 0.5) > 0.1 * np.linalg.norm(gradient)
    assert _kkt_residual(np.array([0.3, 0.2]), gradient, cost, 9.0) > 0.9 * np.linalg.norm(gradient)
    assert _kkt_residual(np.array([0.0, 0.5]), gradient, cost, 0.5) > 0.1 * np.linalg.norm(gradient)


@pytest.mark.parametrize(
    ("args", "message"), [((0.0, 1.0), "cost must be"), ((1.0, -1.0), "budget must be"), ((1.0, 1.0, 0), "starts must")]
)
def test_wrong_values_are_refused(args, message):
    refuses(message, optimal_captions, linear, *args)


# Mixtures


def of_groups(pi_core, theta=1.0, where=(-1, 0)):
    """Accuracies of the whitened family on the four groups of MODEL, as a function of the mentions `where`."""
    groups, caps = MODEL.as_mixture(), captions(pi_core, 1.0).as_group_captions(MODEL)
    return lambda pi: whitened_accuracy(groups, caps.with_mentions(pi, list(where)), OBS, theta)


@pytest.mark.parametrize("pi_core", [0.3, 0.6, 1.0])
def test_four_groups_are_balanced_where_the_intra_class_model_is(pi_core):
    want = balanced_pi_spu(MODEL, captions(pi_core), OBS)
    for groups in ((2, 3), (1, 0)):
        found = balanced_mention(of_groups(pi_core), groups)
        np.testing.assert_allclose(found.pi, want, atol=1e-10)
        np.testing.assert_allclose(found.accuracy.by_group, norm.cdf(1 / np.hypot(1, 0.3)), rtol=1e-10)
        assert found.end_gaps[0] * found.end_gaps[1] < 0 and abs(found.gap) < 1e-12
        low, high = found.bracket
        assert low <= found.pi <= high and high - low < 1e-15
    assert abs(balanced_pi_spu(MODEL, captions(pi_core - 0.01), OBS) - want) > 1e-4


def test_no_balance_is_nan():
    """The linear loss does not see pi_spu; groups of both classes are alike at every pi."""
    for accuracy, groups in ((of_groups(0.6, 0.0), (2, 3)), (of_groups(0.6), (0, 3))):
        found = balanced_mention(accuracy, groups)
        assert np.isnan([found.pi, found.gap, found.accuracy.worst]).all()
    for groups in ((2, 2), (2, 4), (2,), (-1, 2)):
        refuses(r"groups must be two different numbers in 0\.\.3", balanced_mention, of_groups(0.6), groups)


def test_the_best_worst_group_of_four_groups_is_the_balanced_one():
    """The worst group is best where w_s = 0, and no captions give more; then a budget that does not reach so far."""
    accuracy = of_groups(0.6)
    found = optimal_captions(lambda pi: accuracy(pi).by_group, 1.0, 1.0, starts=2)
    np.testing.assert_allclose(found.pi[0], balanced_pi_spu(MODEL, captions(0.6), OBS), atol=1e-7)
    np.testing.assert_allclose(found.value, norm.cdf(1 / np.hypot(1, 0.3)), rtol=1e-9)
    assert found.kkt_residual < 1e-6
    short = optimal_captions(lambda pi: accuracy(pi).by_group, 1.0, 0.2, starts=2)
    np.testing.assert_allclose(short.pi, 0.2, atol=1e-9)
    assert short.value < found.value - 0.01 and short.kkt_residual < 1e-6
    gradients = np.asarray(jax.jacrev(lambda pi: accuracy(pi).by_group)(jnp.array([0.2])))
    assert _kkt_residual(np.array([0.2]), gradients[[0, 1]], np.ones(1), 9.0) < 1e-6  # pulled both ways
    assert _kkt_residual(np.array([0.2]), gradients[[1, 2]], np.ones(1), 9.0) > 0.01


def test_mentions_of_one_group_alone():
    caps = captions(0.5, 0.5).as_group_captions(MODEL)
    where = [[-1, -1], [0, 1], [-1, -1], [1, -1]]
    mention = caps.with_mentions(jnp.array([0.1, 0.9]), where).mention
    np.testing.assert_array_equal(mention, [[0.5, 0.5], [0.1, 0.9], [0.5, 0.5], [0.9, 0.5]])
    for wrong in ([0], [0.0, 1.0], [-2, 0], [0, 2], [[0, 1]]):
        refuses(r"where must be integers in -1\.\.1", caps.with_mentions, jnp.array([0.1, 0.9]), wrong)


def test_best_captions_by_group_are_those_of_a_grid():
    """Two rates: the spurious feature in the aligned groups, and in the others; worst group."""
    groups, caps = MODEL.as_mixture(), captions(0.6, 0.5).as_group_captions(MODEL)
    where = [[-1, 0], [-1, 1], [-1, 1], [-1, 0]]

    def by_group(pi):
        return whitened_accuracy(groups, caps.with_mentions(pi, where), OBS).by_group

    cost, budget = np.array([1.0, 0.5]), 0.3
    found = optimal_captions(by_group, cost, budget, starts=3)
    best = best_of_grid(lambda pi: by_group(pi).min(), cost, budget)
    assert best <= found.value + 1e-9 and found.value - best < 3e-3 and found.kkt_residual < 1e-5
