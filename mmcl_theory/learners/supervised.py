"""Supervised learners on images and a label of two classes: max-margin, logistic regression by gradient descent,
least squares.

All rules are sign(x . w), without bias. Symbols: x image samples, y labels in {-1, +1}, K Gram matrix x x^T, alpha dual
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

# A ridge of this many machine epsilons of the Gram matrix's norm keeps every block that is factored positive definite;
# the refinement sweeps then solve without it.
_RIDGE = 4.0
_SWEEPS = 3
# Products with the Gram matrix before conjugate gradients give up and blocks are factored.
_MAX_PRODUCTS = 400
_ROUNDING = 1000.0  # machine epsilons of a duality gap that count as none
Product = Callable[[Array], Array]  # v -> Q v


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MaxMargin:
    """Hard-margin solution and its certificate; with `dual` >= 0 and v = sum_i dual_i y_i x_i, w = v / min_i y_i x_i.v.

    margin: the margin that w attains, min_i y_i x_i.w / |w| = 1 / |w|, a lower bound on the largest one.
    gap: relative duality gap (primal - dual) / primal >= 0 of min |w|^2 / 2 s.t. y_i x_i.w >= 1, whose largest margin
    thus lies in [margin, margin / sqrt(1 - gap)]; 0 is optimal, below 0 only by rounding.
    separable: some w with y_i x_i.w > 0 for all i was found; if False, there is no rule: dual and margin are 0, gap 1.
    """

    dual: Array  # (n,)  w = sum_i dual_i y_i x_i, scaled to margin 1
    margin: Array  # ()
    gap: Array  # ()
    separable: Array  # () bool


def max_margin_dual(gram: Float[Array, "n n"], y: Int[Array, " n"], max_iterations: int = 100) -> MaxMargin:
    """argmin |w|^2 / 2 subject to y_i x_i.w >= 1 (hard margin, no bias), from the Gram matrix alone.

    The dual, max over alpha >= 0 of sum alpha - 1/2 alpha^T Q alpha with Q = y y^T * K, is solved by block principal
    pivoting: solve on a guess of the support set, exchange every index with a wrong sign, one index at a time where
    that stops making progress. First by conjugate gradients, whose answer counts if its duality gap is rounding: 30 to
    100 products with Q where it is well conditioned. Elsewhere exactly, n^3/3 flops a step, usually 5 to 10 steps. On a
    singular Gram matrix (n > d) the exchanges may cycle; an interior-point method then finds the support, in about 20
    steps more.

    gram: x x^T, positive semi-definite.  y: entries in {-1, +1}.
    Never raises on data, so it vmaps: see `MaxMargin.separable` and `gap`; `max_margin` raises. A margin below about
    1e-3 (float32) or 1e-7 (float64) of the data's norm counts as not separable.
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
    """`max_margin_dual` by factoring blocks of q. Under `vmap` it is computed wherever one element needs it: those that
    are `solved` take no steps and keep `close`."""
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
        """The solution from the support `first`, and whether it is none; alpha where `first` is empty."""
        start = (jnp.zeros(n, bool), alpha, first, jnp.asarray(n + 1), jnp.asarray(3), jnp.asarray(0))
        carry = jax.lax.while_loop(lambda carry: carry[2].any() & (carry[5] < max_iterations), step, start)
        return carry[1], carry[2].any()

    alpha, stuck = pivot(close.dual, jnp.broadcast_to(~solved, (n,)))
    interior, slack = _interior_point(q, stuck)
    alpha, _ = pivot(alpha, stuck & (interior > slack))
    fits = [_certified(lambda v: q @ v, x) for x in (jnp.maximum(alpha, 0), interior)]
    # Pivoting is exact where it ends; where it cycles again, the interior point is close.
    better = stuck & (fits[1].margin > fits[0].margin)
    exact = jax.tree.map(lambda pivoted, interior: jnp.where(better, interior, pivoted), *fits)
    return jax.tree.map(lambda before, now: jnp.where(solved, before, now), close, exact)


def _conjugate_gradients(product: Product, n: int, dtype: jax.typing.DTypeLike) -> tuple[Float[Array, " n"], Array]:
    """(alpha of `max_margin_dual`, products that it took) by block pivoting with inexact solves: on face k, k + 2 steps
    of conjugate gradients.

    An answer only where that ends within _MAX_PRODUCTS products with Q: the caller has to judge.
    """
    tolerance = 10 * jnp.finfo(dtype).eps

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        support, alpha, outputs, direction, norm, left, face, count, _ = carry
        change = product(direction)
        entering = left < 0  # of a new face: the direction takes alpha to 0 off its support
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
    """The certificate of a dual point alpha >= 0, which is that of no rule if its w separates nothing."""
    outputs = product(alpha)
    norm_squared = alpha @ outputs
    least = outputs.min()
    separable = least > 0.5
    least, norm_squared = jnp.where(separable, least, 1.0), jnp.where(separable, norm_squared, 1.0)
    # alpha / least is primal feasible; the dual's best multiple of alpha is worth (sum alpha)^2 / (2 |v|^2).
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

    Every system is positive definite however singular q is. Takes no step unless `needed`.
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
        # Beyond 1 / eps the outputs q alpha are rounding: the data is not separable.
        go_on = fine & (new[0] @ new[1] > eps * new[0].sum()) & (new[0].sum() * eps < 1)
        alpha, slack = jnp.where(fine, new[0], alpha), jnp.where(fine, new[1], slack)
        return alpha, slack, go_on, iteration + 1

    start = jnp.ones(n, dtype), jnp.ones(n, dtype), needed, jnp.asarray(0)
    alpha, slack, *_ = jax.lax.while_loop(lambda carry: carry[2] & (carry[3] < max_iterations), step, start)
    return alpha / jnp.where(unit > 0, unit, 1), slack


def max_margin(
    x: Float[Array, "n d"], y: Int[Array, " n"], tolerance: float = 1e-3
) -> tuple[Float[Array, " d"], MaxMargin]:
    """w = argmin |w|^2 subject to y_i x_i.w >= 1 (unique), and its certificate.

    x: (n, d).  y: entries in {-1, +1}, both present or not.  tolerance: largest relative duality gap accepted.
    Raises: ValueError if the data is not finite or not linearly separable (through the origin), if y has another
    length or other entries, or if the gap stays above tolerance. Needs concrete arrays; inside jit or vmap use
    `max_margin_dual`.
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
    """Gradient descent on the logistic loss L = (1/n) sum_i log(1 + exp(-y_i x_i.w)) from w = 0, in dual coordinates.

    Returns a with w = sum_i a_i x_i after `steps` updates, and log L before each. The gradient of L in w is x^T g,
    g_i = -y_i sigmoid(-y_i f_i) / n at the outputs f = K a, so an optimiser that is linear in the gradient (SGD, with
    momentum, with a schedule) makes the same path on a, fed with g, as on w: n^2 a step instead of n d. Adaptive ones
    (Adam) do not. On separable data the direction of w tends to the max-margin one, at rate 1/log(steps) (Soudry et al.
    2018); normalized=True descends on log L instead (gradient g / L), at rate 1/steps or so (Nacson et al. 2019).

    optimizer: linear in the gradient; a step size of order 1/max |x_i|^2 is stable on log L.  steps: >= 1, static.
    Raises: ValueError for steps < 1, or labels of another number or with other entries (where concrete).
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
        # In logarithms: the loss underflows long before its direction has settled.
        scale = log_loss if normalized else 0.0
        gradient = -sign * jnp.exp(jax.nn.log_sigmoid(-margin) - log_n - scale)
        updates, state = optimizer.update(gradient, state, a)
        return (optax.apply_updates(a, updates), state), log_loss

    start = jnp.zeros_like(sign)
    (a, _), values = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return a, values


def _log_softplus(x: Array) -> Array:
    """log log(1 + e^x), equal to x within rounding where e^x is below it."""
    tail = x < jnp.log(jnp.finfo(x.dtype).eps)
    return jnp.where(tail, x, jnp.log(jax.nn.softplus(jnp.where(tail, 0.0, x))))


def least_squares(x: Float[Array, "n d"], targets: Float[Array, " n"]) -> Float[Array, " d"]:
    """The w of least norm among the minimisers of |x w - targets|^2: x^+ targets; it interpolates when rank(x) = n.

    Not the max-margin rule: on the conflicting group the two differ much.  Source: docs/theory.md 2.
    """
    return jnp.linalg.pinv(x) @ targets
