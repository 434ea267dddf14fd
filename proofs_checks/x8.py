"""X8: where to spend a caption budget.

The shifted accuracy is differentiable in every mention probability, so the best captions under a cost are found by
constrained ascent from several starts, with the residual of the KKT conditions as the certificate. The linear loss
spends all on the core detail; a whitened loss also on naming the spurious feature, up to the balance of X10.

Fails where: accuracy is flat in pi (many optima), or the optimum is a local one; the certificate is of first order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import mmcl_theory as mt
from mmcl_theory import theory
from proofs_checks import ambient, ledger

STATEMENT = (
    "acc_P* is differentiable in every pi_j: the best captions within sum cost_j pi_j <= b satisfy the KKT conditions"
)
PICTURE = "sweep_captions.png"


@functools.cache
def values():
    """acc_P* as a function of (pi_core, pi_spu): linear loss and whitened, one model."""
    model, obs = mt.intra_class(0.95, 1.0, 0.2), ambient.noise(40, 40, 0.3, 0.3)

    def linear(pi):
        return theory.mmcl_accuracy(model, mt.captions(pi[0], pi[1]), obs).shifted

    def whitened(pi):
        return theory.whitened_accuracy(model, mt.captions(pi[0], pi[1]), obs).shifted

    return linear, whitened


PROBLEMS = (((1.0, 1.0), 0.5), ((1.0, 3.0), 0.8), ((2.0, 0.5), 0.6))


def best_of_a_grid(effort):
    points = np.linspace(0, 1, 401)
    pi = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    best, optimal, equal_split, unlimited = [], [], [], []
    for value in values():
        at = np.asarray(jax.jit(jax.vmap(value))(jnp.asarray(pi)))
        for cost, budget in PROBLEMS:
            allowed = pi @ np.array(cost) <= budget + 1e-12
            best.append(at[allowed].max())
            unlimited.append(at.max())
            optimal.append(theory.optimal_captions(value, np.array(cost), budget).value)
            equal_split.append(float(value(jnp.asarray(np.full(2, budget / sum(cost))))))
    return ledger.judge(
        "acc_P* of the best captions, linear and whitened, three budgets: best of 401 x 401 policies",
        ledger.close(best, 3e-4),
        optimal,
        {"an even split": equal_split, "budget ignored": unlimited},
    )


def certificate(effort):
    """The KKT residual at the optimum, recomputed by finite differences; at other feasible points it is large."""
    _, whitened = values()
    cost, budget = np.array([2.0, 0.5]), 0.6
    optimum = theory.optimal_captions(whitened, cost, budget)

    def residual(pi):
        h = 1e-5
        gradient = np.array(
            [(whitened(jnp.asarray(pi + h * e)) - whitened(jnp.asarray(pi - h * e))) / (2 * h) for e in np.eye(2)]
        )
        if np.all((pi > 1e-6) & (pi < 1 - 1e-6)):  # only the budget binds
            multiplier = max(0.0, gradient @ cost / (cost @ cost))
            return float(np.linalg.norm(gradient - multiplier * cost))
        raise RuntimeError("the optimum was expected inside the box")

    def compare(pi):
        r = residual(np.asarray(pi))
        return ledger.Gap(0.0, r, None, r / 1e-5, 1.0)

    split = np.full(2, budget / cost.sum())
    return ledger.judge(
        "|grad acc_P* - mu cost| at the optimum by finite differences (only the budget binds)",
        compare,
        optimum.pi,
        {
            "an even split": split,
            "moved by .02 along the budget": np.asarray(optimum.pi) + 0.02 * np.array([1.0, -4.0]),
        },
    )


def measured_gain(effort):
    """Whitened rules learnt in the ambient space at the optimum and at an even split of the same budget."""
    model, obs, n = mt.intra_class(0.95, 1.0, 0.2), ambient.noise(6, 5, 0.3, 0.3), 4000
    _, whitened = values()
    cost, budget = np.array([2.0, 0.5]), 0.6
    best = np.asarray(theory.optimal_captions(whitened, cost, budget).pi)
    policies = (best, np.full(2, budget / cost.sum()))
    samples = [
        ambient.accuracies(8, model, mt.captions(*pi), obs, 1.0, rule=ambient.whitened, n=n, runs=120 * effort).mean(-1)
        for pi in policies
    ]
    predicted = [float(whitened(jnp.asarray(pi))) for pi in policies]
    return ledger.judge(
        "gain in acc_P* of the best captions over an even split, rules learnt from 4000 pairs, up to .001",
        ledger.mean(samples[0] - samples[1], bias=1e-3),
        predicted[0] - predicted[1],
        {"no gain": 0.0, "8% more": ledger.off(predicted[0] - predicted[1]), "loss": predicted[1] - predicted[0]},
    )


CHECKS = (best_of_a_grid, certificate, measured_gain)
