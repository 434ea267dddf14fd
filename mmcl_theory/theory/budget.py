"""Where to spend a caption budget: the mention probabilities of best accuracy under a cost (X8)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar

_ACTIVE = 1e-9  # closer than this to a bound or to the budget counts as on it


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionBudget:
    """The best captions found, and the certificate.

    pi: (k,) mention probabilities.  value: what they attain.  kkt_residual: least |grad value - mu cost + lambda_0 -
    lambda_1| over multipliers >= 0 of the constraints that bind; 0 at a maximum (also sufficient where value is
    concave).
    """

    pi: Float[Array, " k"]
    value: float
    kkt_residual: float


def optimal_captions(value: Callable[[Array], Array], cost: Scalar, budget: float, starts: int = 8) -> CaptionBudget:
    """argmax of value(pi) over 0 <= pi_j <= 1 with sum_j cost_j pi_j <= budget.

    value: differentiable JAX function of pi (k,), such as
    `lambda pi: mmcl_accuracy(model, captions(*pi), obs, n).shifted`; captions enter it only through Cov(z, u) and the
    prompt.  cost: (k,), > 0.  budget: >= 0.  starts: points from which SLSQP climbs, >= 1: an even split, most of it on
    one detail, then random ones; the best result is kept. Not unique where value is flat.
    Raises: ValueError for values out of range.
    Source: X8.  Check: proofs_checks/x8.py.
    """
    costs = np.atleast_1d(np.asarray(_checks.real("cost", cost, "finite and > 0"), np.float64))
    limit = float(_checks.real("budget", budget, "finite and >= 0"))
    _checks.integer("starts", starts, 1)
    k = len(costs)
    objective = jax.jit(jax.value_and_grad(value))

    def negative(pi: np.ndarray) -> tuple[float, np.ndarray]:
        at, gradient = objective(jnp.asarray(np.clip(pi, 0, 1)))
        return -float(at), -np.asarray(gradient, np.float64)

    def within(pi: np.ndarray) -> np.ndarray:
        pi = np.clip(pi, 0, 1)
        return pi * min(1.0, limit / max(float(costs @ pi), 1e-300))

    random = np.random.default_rng(0).uniform(size=(starts, k))
    first = np.vstack([np.full(k, 0.5), 0.1 + 0.9 * np.eye(k), random])[:starts]
    constraint = {"type": "ineq", "fun": lambda pi: limit - costs @ pi, "jac": lambda pi: -costs}
    options = {"maxiter": 500, "ftol": 1e-15}
    fits = [
        scipy.optimize.minimize(
            negative, within(x), jac=True, bounds=[(0, 1)] * k, constraints=constraint, method="SLSQP", options=options
        ).x
        for x in first
    ]
    best = min((within(x) for x in fits), key=lambda x: negative(x)[0])
    at, gradient = negative(best)
    return CaptionBudget(jnp.asarray(best), -at, _kkt_residual(best, -gradient, costs, limit))


def _kkt_residual(pi: np.ndarray, gradient: np.ndarray, cost: np.ndarray, budget: float) -> float:
    """min over multipliers >= 0 of |gradient - mu cost + lambda_0 - lambda_1|, by nonnegative least squares."""
    eye = np.eye(len(pi))
    normals = [*(-eye[pi <= _ACTIVE]), *eye[pi >= 1 - _ACTIVE]]
    if cost @ pi >= budget - _ACTIVE * max(1.0, budget):
        normals.append(cost)
    if not normals:
        return float(np.linalg.norm(gradient))
    return float(scipy.optimize.nnls(np.array(normals).T, gradient)[1])
