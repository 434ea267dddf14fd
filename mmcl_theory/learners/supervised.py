"""Supervised learners for images of two classes: max-margin, logistic regression by gradient descent, least squares.

Every rule is sign(x . w), without bias. Symbols: x image samples, y labels in {-1, +1}, K Gram matrix x x^T, alpha dual
variables, n samples, d input dimension.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from mmcl_theory import _checks

# A ridge of this many machine epsilons of the Gram matrix's norm keeps every factored block positive definite. The
# refinement sweeps then solve without the ridge.
_RIDGE = 4.0
_SWEEPS = 3
# After this many products with the Gram matrix, conjugate gradients give up and blocks are factored.
_MAX_PRODUCTS = 400
_ROUNDING = 1000.0  # a duality gap of this many machine epsilons counts as 0
Product = Callable[[Array], Array]  # v -> Q v


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MaxMargin:
    """A hard-margin solution and its certificate.

    With `dual` >= 0 and v = sum_i dual_i y_i x_i, the rule is w = v / min_i y_i x_i.v.

    Attributes:
        dual: coefficients of w = sum_i dual_i y_i x_i, scaled to margin 1; 0 if not separable.
        margin: the margin that w attains, min_i y_i x_i.w / |w| = 1 / |w|. It is a lower bound on the largest margin,
            in the units of x; 0 if not separable.
        gap: relative duality gap (primal - dual) / primal >= 0 of min |w|^2 / 2 s.t. y_i x_i.w >= 1. So the largest
            margin lies in [margin, margin / sqrt(1 - gap)]. 0 is optimal, values below 0 are rounding; 1 if not
            separable.
        separable: whether some w with y_i x_i.w > 0 for all i was found. If not, there is no rule.

    Example:
        Two samples of different classes in one direction have no rule:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x, y = jnp.array([[1.0], [2.0], [-3.0]]), jnp.array([1, -1, -1])
        >>> fit = mt.learners.max_margin_dual(x @ x.T, y)
        >>> print(bool(fit.separable), float(fit.margin), float(fit.gap))
        False 0.0 1.0
    """

    dual: Array  # (n,)  w = sum_i dual_i y_i x_i, scaled to margin 1
    margin: Array  # ()
    gap: Array  # ()
    separable: Array  # () bool


def max_margin_dual(gram: Float[Array, "n n"], y: Int[Array, " n"], max_iterations: int = 100) -> MaxMargin:
    """The hard-margin solution without bias, from the Gram matrix alone.

        argmin |w|^2 / 2 subject to y_i x_i.w >= 1

    The dual, max over alpha >= 0 of sum alpha - 1/2 alpha^T Q alpha with Q = y y^T * K, is solved by block principal
    pivoting. A step solves on a guess of the support set and exchanges every index with a wrong sign. Where that stops
    making progress, it exchanges one index at a time.

    First, conjugate gradients solve these systems; the answer counts if its duality gap is rounding. This takes 30 to
    100 products with Q where Q is well conditioned. Otherwise blocks are factored: n^3/3 flops a step, usually 5 to 10
    steps. On a singular Gram matrix (n > d) the exchanges may cycle. An interior-point method then finds the support,
    in about 20 more steps.

    It never raises on data, so it can be mapped by `vmap`: read `MaxMargin.separable` and `gap`. `max_margin` raises.

    Args:
        gram: K = x x^T, positive semi-definite.
        y: label of each sample, in {-1, +1}.
        max_iterations: largest number of pivoting steps.

    Returns:
        The solution and its certificate. A margin below about 1e-3 (float32) or 1e-7 (float64) of the data's norm
        counts as not separable.

    Example:
        The Gram matrix is enough for the margin and the rule that `max_margin` gives:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x, y = jnp.array([[2.0, 0.0], [0.0, 4.0], [-3.0, -3.0]]), jnp.array([1, 1, -1])
        >>> fit = mt.learners.max_margin_dual(x @ x.T, y)
        >>> print([f"{weight:.3f}" for weight in (fit.dual * y) @ x], f"{fit.margin:.3f}")
        ['0.500', '0.250'] 1.789

    Source: docs/theory.md 2; block principal pivoting as in Kim and Park 2011.
    Check: tests/learners/test_supervised.py.
    """
    sign = y.astype(gram.dtype)

    def product(v: Array) -> Array:
        return sign * (gram @ (sign * v))

    alpha, _ = _conjugate_gradients(product, gram.shape[0], gram.dtype)
    close = _certified(product, jnp.maximum(alpha, 0))
    solved = close.separable & (jnp.abs(close.gap) < _ROUNDING * jnp.finfo(gram.dtype).eps)
    return jax.lax.cond(
        solved, lambda: close, lambda: _exact(gram * sign[:, None] * sign[None, :], close, solved, max_iterations)
    )


def _exact(q: Float[Array, "n n"], close: MaxMargin, solved: Bool[Array, ""], max_iterations: int) -> MaxMargin:
    """`max_margin_dual` by factoring blocks of q.

    Under `vmap` it is computed wherever one element needs it: elements that are `solved` take no steps and keep
    `close`.
    """
    n, dtype = q.shape[0], q.dtype
    ridge = _RIDGE * jnp.finfo(dtype).eps * jnp.linalg.norm(q)

    def solve(support: Bool[Array, " n"]) -> Array:
        inside = support.astype(dtype)
        block = q * inside[:, None] * inside[None, :] + jnp.diag(1 - inside)
        factor = jax.scipy.linalg.cho_factor(block + ridge * jnp.eye(n, dtype=dtype), lower=True)
        alpha = jnp.zeros(n, dtype)
        for _ in range(1 + _SWEEPS):
            alpha = alpha + jax.scipy.linalg.cho_solve(factor, inside - block @ alpha)
        return inside * alpha

    def wrong(support: Array, alpha: Array) -> Array:
        return jnp.where(support, alpha < 0, q @ alpha < 1 - 100 * jnp.finfo(dtype).eps)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        support, _, bad, fewest, patience, iteration = carry
        progress = bad.sum() < fewest
        patience = jnp.where(progress, 3, patience - 1)
        fewest = jnp.minimum(fewest, bad.sum())
        last_only = jnp.arange(n) == n - 1 - jnp.argmax(bad[::-1])
        support = support ^ jnp.where(patience >= 0, bad, last_only)
        alpha = solve(support)
        return support, alpha, wrong(support, alpha), fewest, patience, iteration + 1

    def pivot(alpha: Array, first: Bool[Array, " n"]) -> tuple[Array, Array]:
        """The solution from the support `first`, and whether pivoting failed; alpha where `first` is empty."""
        start = (jnp.zeros(n, bool), alpha, first, jnp.asarray(n + 1), jnp.asarray(3), jnp.asarray(0))
        carry = jax.lax.while_loop(lambda carry: carry[2].any() & (carry[5] < max_iterations), step, start)
        return carry[1], carry[2].any()

    alpha, stuck = pivot(close.dual, jnp.broadcast_to(~solved, (n,)))
    interior, slack = _interior_point(q, stuck)
    alpha, _ = pivot(alpha, stuck & (interior > slack))
    fits = [_certified(lambda v: q @ v, x) for x in (jnp.maximum(alpha, 0), interior)]
    # A pivoting run that ends is exact. Where pivoting cycles again, the interior point is close.
    better = stuck & (fits[1].margin > fits[0].margin)
    exact = jax.tree.map(lambda pivoted, interior: jnp.where(better, interior, pivoted), *fits)
    return jax.tree.map(lambda before, now: jnp.where(solved, before, now), close, exact)


def _conjugate_gradients(product: Product, n: int, dtype: jax.typing.DTypeLike) -> tuple[Float[Array, " n"], Array]:
    """(alpha of `max_margin_dual`, number of products with Q) by block pivoting with inexact solves.

    Face k gets k + 2 steps of conjugate gradients. alpha is the answer only if pivoting ends within _MAX_PRODUCTS
    products; the caller has to judge.
    """
    tolerance = 10 * jnp.finfo(dtype).eps

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        support, alpha, outputs, direction, norm, left, face, count, _ = carry
        change = product(direction)
        entering = left < 0  # on a new face: the direction takes alpha to 0 off its support
        curvature = direction @ change
        length = jnp.where(entering, 1.0, jnp.where(curvature > 0, norm / jnp.where(curvature > 0, curvature, 1), 0))
        alpha, outputs = alpha + length * direction, outputs + length * change
        residual = jnp.where(support, 1 - outputs, 0.0)
        new = residual @ residual
        direction = residual + jnp.where(entering, 0.0, new / jnp.where(norm > 0, norm, 1)) * direction
        left = jnp.where(entering, face + 2, left - 1)

        exact = new <= tolerance**2 * support.sum()
        bad = jnp.where(support, alpha < 0, outputs < 1 - 100 * jnp.finfo(dtype).eps)
        leave = (exact | (left <= 0)) & bad.any()
        support = support ^ (bad & leave)
        direction = jnp.where(leave, jnp.where(support, 0.0, -alpha), direction)
        face = face + leave
        return support, alpha, outputs, direction, new, jnp.where(leave, -1, left), face, count + 1, exact & ~leave

    zero, whole = jnp.zeros(n, dtype), jnp.asarray(0)
    start = (jnp.ones(n, bool), zero, zero, zero, jnp.ones((), dtype), whole - 1, whole, whole, jnp.asarray(False))
    end = jax.lax.while_loop(lambda carry: ~carry[8] & (carry[7] < _MAX_PRODUCTS), step, start)
    return end[1], end[7]


def _certified(product: Product, alpha: Float[Array, " n"]) -> MaxMargin:
    """The certificate of a dual point alpha >= 0. If its w separates nothing, it is the certificate of no rule."""
    outputs = product(alpha)
    norm_squared = alpha @ outputs
    least = outputs.min()
    separable = least > 0.5
    least, norm_squared = jnp.where(separable, least, 1.0), jnp.where(separable, norm_squared, 1.0)
    # alpha / least is primal feasible. The best multiple of alpha has the dual value (sum alpha)^2 / (2 |v|^2).
    primal, dual = norm_squared / least**2, alpha.sum() ** 2 / norm_squared
    return MaxMargin(
        dual=jnp.where(separable, alpha / least, 0.0),
        margin=jnp.where(separable, primal**-0.5, 0.0),
        gap=jnp.where(separable, 1 - dual / primal, 1.0),
        separable=separable,
    )


def _interior_point(
    q: Float[Array, "n n"], needed: Bool[Array, ""], max_iterations: int = 60
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """(alpha, slack) > 0 with slack = q alpha - 1 and alpha_i slack_i -> 0 for all i: Mehrotra's predictor-corrector.

    Every system is positive definite, however singular q is. No step is taken unless `needed`.
    """
    n, dtype = q.shape[0], q.dtype
    unit = jnp.trace(q) / n
    q = q / jnp.where(unit > 0, unit, 1)
    eps = jnp.finfo(dtype).eps
    ridge = _RIDGE * eps * jnp.linalg.norm(q)

    def longest(x: Array, dx: Array) -> Array:
        """The longest step <= 1 that keeps x >= 0."""
        return jnp.minimum(1.0, jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, 1.0), jnp.inf).min())

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        alpha, slack, _, iteration = carry
        residual = q @ alpha - 1 - slack
        gap = alpha @ slack / n
        factor = jax.scipy.linalg.cho_factor(q + jnp.diag(slack / alpha + ridge), lower=True)

        def direction(target: Array) -> tuple[Array, Array]:
            d_alpha = jax.scipy.linalg.cho_solve(factor, target / alpha - residual)
            return d_alpha, (target - slack * d_alpha) / alpha

        d_alpha, d_slack = direction(-alpha * slack)
        length = jnp.minimum(longest(alpha, d_alpha), longest(slack, d_slack))
        reached = (alpha + length * d_alpha) @ (slack + length * d_slack) / n
        d_alpha, d_slack = direction((reached / gap) ** 3 * gap - alpha * slack - d_alpha * d_slack)
        length = 0.99 * jnp.minimum(longest(alpha, d_alpha), longest(slack, d_slack))
        new = alpha + length * d_alpha, slack + length * d_slack
        fine = jnp.isfinite(new[0]).all() & jnp.isfinite(new[1]).all() & (new[0] > 0).all() & (new[1] > 0).all()
        # Where alpha sums to more than 1 / eps, the outputs q alpha are rounding: the data is not separable.
        go_on = fine & (new[0] @ new[1] > eps * new[0].sum()) & (new[0].sum() * eps < 1)
        alpha, slack = jnp.where(fine, new[0], alpha), jnp.where(fine, new[1], slack)
        return alpha, slack, go_on, iteration + 1

    start = jnp.ones(n, dtype), jnp.ones(n, dtype), needed, jnp.asarray(0)
    alpha, slack, *_ = jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < max_iterations), step, start)
    return alpha / jnp.where(unit > 0, unit, 1), slack


def max_margin(
    x: Float[Array, "n d"], y: Int[Array, " n"], tolerance: float = 1e-3
) -> tuple[Float[Array, " d"], MaxMargin]:
    """The hard-margin rule without bias, w = argmin |w|^2 subject to y_i x_i.w >= 1, and its certificate.

    The solution is unique. The arrays must be concrete; inside jit or vmap use `max_margin_dual`.

    Args:
        x: image samples, one a row.
        y: label of each sample, in {-1, +1}; one of the two may be absent.
        tolerance: largest relative duality gap that is accepted.

    Returns:
        The rule w, scaled to margin 1, and the solution with its certificate.

    Raises:
        ValueError: if the data is not finite or not linearly separable through the origin. Also if y has another length
            or other entries, or if the gap stays above tolerance.

    Example:
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x, y = jnp.array([[2.0, 0.0], [0.0, 4.0], [-3.0, -3.0]]), jnp.array([1, 1, -1])
        >>> w, fit = mt.learners.max_margin(x, y)
        >>> print([f"{weight:.3f}" for weight in w], f"{fit.margin:.3f}")
        ['0.500', '0.250'] 1.789

    Source: docs/theory.md 2.  Check: tests/learners/test_supervised.py (scikit-learn and X1).
    """
    _check_labels(y, x.shape[0])
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("x must be finite.")
    fit = max_margin_dual(x @ x.T, y)
    if not bool(fit.separable):
        raise ValueError(f"x must be linearly separable for a hard margin, got {x.shape[0]} samples that are not.")
    if not float(fit.gap) <= tolerance:
        raise ValueError(
            f"tolerance must be at least the duality gap reached, {float(fit.gap):.1e}, got {tolerance:g}."
        )
    return (fit.dual * y) @ x, fit


def _check_labels(y: Array, n: int) -> None:
    if y.shape != (n,) or n < 1:
        raise ValueError(f"y must have shape (n,), n >= 1 the number of samples, {n}, got {y.shape}.")
    if not isinstance(y, jax.core.Tracer) and not (np.abs(np.asarray(y)) == 1).all():
        raise ValueError("y must have entries in {-1, +1}.")


def logistic_dual(
    gram: Float[Array, "n n"],
    y: Int[Array, " n"],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    normalized: bool = False,
) -> tuple[Float[Array, " n"], Float[Array, " steps"]]:
    """Gradient descent on the logistic loss from w = 0, in dual coordinates.

        L = (1/n) sum_i log(1 + exp(-y_i x_i.w)),   w = sum_i a_i x_i

    The gradient of L in w is x^T g with g_i = -y_i sigmoid(-y_i f_i) / n at the outputs f = K a. So an optimiser that
    is linear in the gradient (SGD, with momentum or a schedule) makes the same path on a, fed with g, as on w. A step
    costs n^2 instead of n d. Adaptive optimisers (Adam) make another path.

    On separable data the direction of w tends to the max-margin one, at rate 1/log(steps) (Soudry et al. 2018). With
    normalized=True the descent is on log L (gradient g / L), at rate 1/steps or so (Nacson et al. 2019).

    Args:
        gram: K = x x^T.
        y: label of each sample, in {-1, +1}.
        optimizer: an optax optimiser, linear in the gradient. A step size of order 1/max |x_i|^2 is stable on log L.
        steps: number of updates, >= 1, static.
        normalized: whether to descend on log L, static.

    Returns:
        The coefficients a after `steps` updates, and log L before each update.

    Raises:
        ValueError: for steps < 1, another number of labels, or (where they are concrete) labels with other entries.

    Example:
        The direction of w tends to the max-margin one, (2, 1):

        >>> import jax.numpy as jnp
        >>> import optax
        >>> import mmcl_theory as mt
        >>> x, y = jnp.array([[2.0, 0.0], [0.0, 4.0], [-3.0, -3.0]]), jnp.array([1, 1, -1])
        >>> for steps in (1, 1000):
        ...     a, _ = mt.learners.logistic_dual(x @ x.T, y, optimizer=optax.sgd(0.05), steps=steps, normalized=True)
        ...     print(f"{(a @ x)[0] / (a @ x)[1]:.2f}")
        0.71
        1.98

    Source: docs/theory.md 2 (SL).  Check: tests/learners/test_supervised.py.
    """
    _checks.integer("steps", steps, 1)
    _check_labels(y, gram.shape[0])
    sign = y.astype(gram.dtype)
    log_n = jnp.log(jnp.asarray(len(y), gram.dtype))

    def step(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], Array]:
        a, state = carry
        margin = sign * (gram @ a)
        log_loss = jax.scipy.special.logsumexp(_log_softplus(-margin)) - log_n
        # Work in logarithms, because the loss underflows long before the direction of w has settled.
        scale = log_loss if normalized else 0.0
        gradient = -sign * jnp.exp(jax.nn.log_sigmoid(-margin) - log_n - scale)
        updates, state = optimizer.update(gradient, state, a)
        return (optax.apply_updates(a, updates), state), log_loss

    start = jnp.zeros_like(sign)
    (a, _), values = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return a, values


def _log_softplus(x: Array) -> Array:
    """log log(1 + e^x); where e^x is below rounding it equals x."""
    tail = x < jnp.log(jnp.finfo(x.dtype).eps)
    return jnp.where(tail, x, jnp.log(jax.nn.softplus(jnp.where(tail, 0.0, x))))


def least_squares(x: Float[Array, "n d"], targets: Float[Array, " n"]) -> Float[Array, " d"]:
    """The w of least norm among the minimisers of |x w - targets|^2, which is x^+ targets.

    It interpolates when rank(x) = n. It is not the max-margin rule: on the conflicting group the two differ much.

    Args:
        x: image samples, one a row.
        targets: one number for each sample.

    Returns:
        The rule w.

    Example:
        Of all w with w_1 + w_2 = 2, that of least norm:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> print([f"{weight:.3f}" for weight in mt.learners.least_squares(jnp.array([[1.0, 1.0]]), jnp.array([2.0]))])
        ['1.000', '1.000']

    Source: docs/theory.md 2.
    """
    return jnp.linalg.pinv(x) @ targets
