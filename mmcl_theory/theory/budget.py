"""Where to spend a caption budget (X8), and how often to name a detail so that two groups fare alike (X10).

Both take functions of mention probabilities, of any model and loss. `GroupCaptions.with_mentions` sets those of a
mixture.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data import AccuracyByGroup

_ACTIVE = 1e-9  # a point closer than this to a bound or to the budget counts as on it
_LEAST = 1e-6  # an entry of value this close to the least counts as the least
_GRID, _HALVINGS = 33, 60


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionBudget:
    """The best captions that `optimal_captions` found, and their certificate.

    Attributes:
        pi: mention probabilities, one for each detail, in [0, 1].
        value: what `pi` attains; of several values the least.
        kkt_residual: least |sum_i t_i grad value_i - mu cost + lambda_0 - lambda_1| over multipliers >= 0 of the
            constraints that bind and, of several values, shares t_i >= 0 of sum 1 of those that are least. It is 0 at a
            maximum; where value is concave, 0 is also sufficient.

    Example:
        The budget pays for one of two details. The residual certifies that it should be the first:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> best = mt.theory.optimal_captions(lambda pi: 2 * pi[0] + pi[1], cost=jnp.ones(2), budget=1.0, starts=2)
        >>> print([f"{probability:.3f}" for probability in best.pi], best.kkt_residual < 1e-6)
        ['1.000', '0.000'] True
    """

    pi: Float[Array, " k"]
    value: float
    kkt_residual: float


def optimal_captions(value: Callable[[Array], Array], cost: Scalar, budget: float, starts: int = 8) -> CaptionBudget:
    """The captions of largest value within a budget.

        argmax of min_i value_i(pi) over 0 <= pi_j <= 1 with sum_j cost_j pi_j <= budget

    One value is the usual case. Several, such as the accuracies of all groups, give the best worst group. SLSQP climbs
    from several points: an even split, then most of the budget on one detail, then random points. The best result is
    kept. The answer is not unique where value is flat.

    Args:
        value: differentiable JAX function of pi (k,) to a scalar or to several values (m,), such as
            `lambda pi: mmcl_accuracy(model, captions(*pi), obs, n).shifted`, or, of a mixture,
            `lambda pi: whitened_accuracy(model, caps.with_mentions(pi, where), obs).by_group`. Captions enter these
            only through second moments and the prompt.
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
    several = jax.eval_shape(value, jnp.zeros(k)).ndim == 1
    objective = jax.jit(lambda pi: (jnp.atleast_1d(value(pi)), jnp.atleast_2d(jax.jacrev(value)(pi))))

    def at(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, gradients = objective(jnp.asarray(np.clip(x[:k], 0, 1)))
        return np.asarray(values, np.float64), np.asarray(gradients, np.float64)

    def within(pi: np.ndarray) -> np.ndarray:
        pi = np.clip(pi, 0, 1)
        return pi * min(1.0, limit / max(float(costs @ pi), 1e-300))

    random = np.random.default_rng(0).uniform(size=(starts, k))
    first = np.vstack([np.full(k, 0.5), 0.1 + 0.9 * np.eye(k), random])[:starts]
    options = {"maxiter": 500, "ftol": 1e-15}
    bounds: list[tuple[float | None, float | None]] = [(0, 1)] * k
    paid = np.append(-costs, [0.0] * several)
    constraints = [{"type": "ineq", "fun": lambda x: limit + paid @ x, "jac": lambda x: paid}]
    if several:  # the largest level that no value is below
        bounds.append((None, None))
        constraints.append(
            {
                "type": "ineq",
                "fun": lambda x: at(x)[0] - x[k],
                "jac": lambda x: np.column_stack([at(x)[1], -np.ones(len(at(x)[0]))]),
            }
        )

    def negative(x: np.ndarray) -> tuple[float, np.ndarray]:
        if several:
            return -x[k], np.append(np.zeros(k), -1.0)
        values, gradients = at(x)
        return -values[0], -gradients[0]

    def climb(pi: np.ndarray) -> np.ndarray:
        start = np.append(pi, at(pi)[0].min()) if several else pi
        fit = scipy.optimize.minimize(
            negative, start, jac=True, bounds=bounds, constraints=constraints, method="SLSQP", options=options
        )
        return within(fit.x[:k])

    best = max((climb(within(x)) for x in first), key=lambda x: at(x)[0].min())
    values, gradients = at(best)
    least = values <= values.min() + _LEAST
    return CaptionBudget(jnp.asarray(best), float(values.min()), _kkt_residual(best, gradients[least], costs, limit))


def _kkt_residual(pi: np.ndarray, gradient: np.ndarray, cost: np.ndarray, budget: float) -> float:
    """min over multipliers >= 0 of |gradient - mu cost + lambda_0 - lambda_1|, by nonnegative least squares.

    gradient: (k,), or (m, k) for the mean of m gradients with the best shares.
    """
    import scipy.optimize

    gradients = np.atleast_2d(gradient)
    eye = np.eye(len(pi))
    normals = [*(-eye[pi <= _ACTIVE]), *eye[pi >= 1 - _ACTIVE]]
    if cost @ pi >= budget - _ACTIVE * max(1.0, budget):
        normals.append(cost)
    # A last row of large weight makes the shares sum to 1.
    weight = 1e4 * max(1.0, np.abs(gradients).max())
    columns = [*(np.append(-g, weight) for g in gradients), *(np.append(x, 0.0) for x in normals)]
    shares, _ = scipy.optimize.nnls(np.array(columns).T, np.append(np.zeros(len(pi)), weight))
    shares[: len(gradients)] /= shares[: len(gradients)].sum()
    return float(np.linalg.norm(np.array(columns).T[:-1] @ shares))


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedMention:
    """The mention probability at which two groups have the same accuracy, and its certificate.

    Without a change of sign of the gap in [0, 1] there is no such probability: pi, gap and accuracy are NaN.

    Attributes:
        pi: the probability, in [0, 1]; of several the least.
        gap: what is left of the gap there.
        bracket: probabilities on both sides of it, as close as rounding allows, with gaps of opposite signs.
        accuracy: the accuracies there.
        end_gaps: the gap at pi = 0 and 1.

    Example:
        Two groups with the accuracies pi and 1 - 2 pi are alike at pi = 1/3:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> def accuracy(pi):
        ...     half = jnp.array([0.5, 0.5])
        ...     return mt.data.AccuracyByGroup(jnp.stack([pi, 1 - 2 * pi]), half, half, 0 * half)
        >>> balanced = mt.theory.balanced_mention(accuracy, groups=(0, 1))
        >>> print(f"{balanced.pi:.3f}", balanced.end_gaps.tolist())
        0.333 [-1.0, 2.0]
    """

    pi: Array  # ()
    gap: Array  # ()
    bracket: Array  # (2,)
    accuracy: AccuracyByGroup
    end_gaps: Array  # (2,)


def balanced_mention(accuracy: Callable[[Array], AccuracyByGroup], groups: Sequence[int]) -> BalancedMention:
    """The mention probability at which two groups have the same accuracy: `balanced_pi_spu` for any mixture and loss.

        acc_g(pi) = acc_h(pi),   (g, h) = groups

    The gap acc_g - acc_h is computed on a grid of 33 probabilities. The first interval in which it changes its sign is
    halved until rounding. Two roots between neighbours of the grid are missed.

    In the intra-class model the groups of a class are alike where w_s = 0, and that rule is the best. In a mixture it
    need not be: `optimal_captions` of `by_group` gives the best worst group, with its own certificate.

    Args:
        accuracy: JAX function of pi, (), to the accuracies of a mixture, such as
            `lambda pi: whitened_accuracy(model, caps.with_mentions(pi, where), obs)`.
        groups: the numbers of two groups.

    Returns:
        The probability and its certificate; NaN where there is none, also where the gap is 0 everywhere.

    Raises:
        ValueError: for groups that are not two different groups of the model.

    Example:
        How often to name the second coordinate so that no group of class 1 is the worse one:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1).as_mixture()
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> caps = mt.group_captions(model, mention=[0.5, 1.0])
        >>> def accuracy(pi):
        ...     return mt.theory.whitened_accuracy(model, caps.with_mentions(pi, where=[-1, 0]), obs)
        >>> balanced = mt.theory.balanced_mention(accuracy, groups=(2, 3))
        >>> print(f"{balanced.pi:.4f} {balanced.accuracy.worst:.3f}")
        0.5955 0.831

    Source: X10, X13.  Check: proofs_checks/x13.py.
    """
    number = jax.eval_shape(lambda pi: accuracy(pi).by_group, jnp.zeros(())).shape[-1]
    if len(groups) != 2 or len({*groups}) != 2 or not all(isinstance(g, int) and 0 <= g < number for g in groups):
        raise ValueError(f"groups must be two different numbers in 0..{number - 1}, got {groups!r}.")

    def gap(pi: Array) -> Array:
        by_group = accuracy(pi).by_group
        return by_group[groups[0]] - by_group[groups[1]]

    compiled = jax.jit(gap)
    grid = jnp.linspace(0.0, 1.0, _GRID)
    gaps = np.asarray(jax.jit(jax.vmap(gap))(grid))
    # The tolerance keeps rounding from making a root.
    rounding = 64 * np.finfo(gaps.dtype).eps
    signs = np.where(np.abs(gaps) > rounding, np.sign(gaps), 0.0)
    change = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    inner = np.flatnonzero((signs[1:-1] == 0) & (signs[:-2] * signs[2:] < 0)) + 1  # a root on the grid
    ends = jnp.asarray(gaps[[0, -1]])
    nan = jnp.full((), jnp.nan)
    if not change.size and not inner.size:
        none = accuracy(grid[0])
        none = dataclasses.replace(none, by_group=jnp.full_like(none.by_group, jnp.nan))
        return BalancedMention(nan, nan, jnp.stack([nan, nan]), none, ends)
    starts = [(float(grid[i]), float(grid[i + 1])) for i in change]
    starts += [(float(grid[i - 1]), float(grid[i + 1])) for i in inner]
    low, high = min(starts)
    below = float(compiled(jnp.asarray(low)))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(compiled(jnp.asarray(middle))) * below > 0:
            low = middle
        else:
            high = middle
    pi = jnp.asarray((low + high) / 2)
    return BalancedMention(pi, compiled(pi), jnp.asarray([low, high]), accuracy(pi), ends)
