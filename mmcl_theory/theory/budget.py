"""Where to spend a caption budget: the mention probabilities of best accuracy under a cost (X8)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar

_ACTIVE = 1e-9  # a point closer than this to a bound or to the budget counts as on it


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionBudget:
    """The best captions that `optimal_captions` found, and their certificate.

    Attributes:
        pi: mention probabilities, one for each detail, in [0, 1].
        value: what `pi` attains.
        kkt_residual: least |grad value - mu cost + lambda_0 - lambda_1| over multipliers >= 0 of the constraints that
            bind. It is 0 at a maximum; where value is concave, 0 is also sufficient.
    """

    pi: Float[Array, " k"]
    value: float
    kkt_residual: float


def optimal_captions(value: Callable[[Array], Array], cost: Scalar, budget: float, starts: int = 8) -> CaptionBudget:
    """The captions of largest value within a budget.

        argmax of value(pi) over 0 <= pi_j <= 1 with sum_j cost_j pi_j <= budget

    SLSQP climbs from several points: an even split, then most of the budget on one detail, then random points. The best
    result is kept. The answer is not unique where value is flat.

    Args:
        value: differentiable JAX function of pi (k,) to a scalar, such as
            `lambda pi: mmcl_accuracy(model, captions(*pi), obs, n).shifted`. Captions enter that only through Cov(z, u)
            and the prompt.
        cost: cost of each of the k details, finite and > 0.
        budget: largest total cost, in units of `cost`, finite and >= 0.
        starts: number of points from which SLSQP climbs, >= 1.

    Returns:
        The best captions and their certificate.

    Raises:
        ValueError: for values out of range.

    Example:
        Half a mention for each caption is best spent on the core feature:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> def shifted(pi):
        ...     return mt.theory.mmcl_accuracy(model, mt.captions(*pi)).shifted
        >>> best = mt.theory.optimal_captions(shifted, cost=jnp.ones(2), budget=0.5, starts=2)
        >>> print([f"{probability:.3f}" for probability in best.pi], f"{best.value:.3f}")
        ['0.500', '0.000'] 0.800

    Source: X8.  Check: proofs_checks/x8.py.
    """
    import scipy.optimize  # takes longer to import than the rest of the library

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
    import scipy.optimize

    eye = np.eye(len(pi))
    normals = [*(-eye[pi <= _ACTIVE]), *eye[pi >= 1 - _ACTIVE]]
    if cost @ pi >= budget - _ACTIVE * max(1.0, budget):
        normals.append(cost)
    if not normals:
        return float(np.linalg.norm(gradient))
    return float(scipy.optimize.nnls(np.array(normals).T, gradient)[1])
