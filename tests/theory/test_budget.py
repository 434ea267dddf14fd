"""Caption budgets X8 against exhaustive grids, closed cases, and the certificate's own rejection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from mmcl_theory.data import captions, inter_class, intra_class
from mmcl_theory.theory import balanced_pi_spu, mmcl_accuracy, optimal_captions, whitened_accuracy
from mmcl_theory.theory.budget import _kkt_residual
from tests.theory.learnt import noise

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
    with pytest.raises(ValueError, match=message):
        optimal_captions(linear, *args)
