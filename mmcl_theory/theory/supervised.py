"""What supervised learning learns: the max-margin rule, its sharp accuracy curve (X1), the paper's bound (T3), and
T4's limit.

Symbols: w = (v, u) the rule, v = (v_c, v_s) on the latents and u on the noise, T = |u|^2, sigma noise norm, d input
dimension, n samples, r = +1 aligned, -1 conflicting, P(r) its frequency, s_c, s_s latent standard deviations.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data import InterClass, IntraClass, Model, Observation
from mmcl_theory.zero_shot import GroupAccuracy, linear_rule_accuracy

_MAX_STEPS = 80
_MARGIN_STEPS = 30
_STEP_SIZES = (1.0, 0.5, 0.25, 0.125, 1 / 16, 1 / 64, 1 / 256)
_FLOOR = 1e-4


def supervised_accuracy(model: Model, obs: Observation | None = None, n: Scalar | None = None) -> GroupAccuracy:
    """Accuracy, by group, of the max-margin classifier (no bias) trained on n labelled images.

    Intra-class: `max_margin_rule` (X1), the limit n, d_I -> inf at fixed n/d_I; needs obs and n. NaN where almost all
    such samples are not linearly separable.
    Inter-class: the noiseless limit d_I >> n -> inf at p_spu = 1, where class (c, k) scores c (u core_k + v spu_k) with
    u : v = (1 - beta) : (1 - alpha); obs and n are not used. NaN for p_spu < 1, which that limit does not cover.
    Raises: ValueError if the intra-class model comes without obs or n, or n < 2.
    Source: X1; T4.  Check: proofs_checks/x1.py, proofs_checks/t4.py.
    """
    if isinstance(model, InterClass):
        weights = jnp.stack(jnp.broadcast_arrays(1 - model.beta, 1 - model.alpha), -1)
        accuracy = linear_rule_accuracy(model, weights, (weights**2).sum(-1))
        return jax.tree.map(lambda acc: jnp.where(model.p_spu == 1, acc, jnp.nan), accuracy)
    if obs is None or n is None:
        raise ValueError("obs and n must be given for the intra-class model, got None.")
    weights, noise_norm = max_margin_rule(model, obs, n)
    return linear_rule_accuracy(model, weights, (weights**2).sum(-1) + noise_norm, obs.sd_image)


def supervised_bound() -> GroupAccuracy:
    """The paper's bound on SL: conflicting <= 1/3, so shifted <= 2/3, for d >> n, p_spu -> 1, sigma_spu =
    O(1/sqrt(log n)).

    Source: T3 (restating Sagawa et al. 2020, arXiv 2005.04345).  Check: proofs_checks/t3.py.
    """
    return GroupAccuracy(jnp.asarray(1.0), jnp.asarray(1 / 3))


def max_margin_rule(
    model: IntraClass, obs: Observation, n: Scalar
) -> tuple[Float[Array, "... 2"], Float[Array, "..."]]:
    """(v, T) of the hard-margin solution, scaled to margin 1: its latent part and the squared norm of its noise part.

    Minimises |v|^2 + T over v subject to
        T >= (n/sigma^2) sum_r P(r) H(v_c mu_c + r v_s mu_s, s^2),
        s^2 = v_c^2 s_c^2 + v_s^2 s_s^2 + s_I^2 (|v|^2 + T),   s_I^2 = sigma^2/d_I,
        H(m, s^2) = E max(0, 1 - N(m, s^2))^2 = ((1-m)^2 + s^2) Phi((1-m)/s) + (1-m) s phi((1-m)/s).
    Solved in the scale where T = 1: the margin kappa(v), the root of the constraint, is concave, and the largest
    kappa / sqrt(1 + |v|^2) is found by damped Newton steps. Differentiable (one Newton step at the solution carries
    the derivative).

    n: >= 2.  Leaves of model and obs, and n, broadcast. NaN where no kappa > 0 exists (almost surely not separable),
    and where there is no noise (sigma = 0).
    Raises: ValueError for n < 2.
    Source: X1 (convex Gaussian min-max theorem).  Check: proofs_checks/x1.py.
    """
    n_array = _checks.sample_size(n)
    variance = obs.sigma_image**2
    # On the signal coordinates the observation noise is just more latent variance; T is the rest of it.
    parameters = (
        model.p_spu,
        jnp.hypot(*jnp.broadcast_arrays(model.sigma_core, obs.sd_image)),
        jnp.hypot(*jnp.broadcast_arrays(model.sigma_spu, obs.sd_image)),
        model.mu_core,
        model.mu_spu,
        variance / n_array,
        variance / obs.dim_image,
    )
    v_core, v_spu, kappa = jnp.vectorize(_direction)(*jnp.broadcast_arrays(*parameters))
    # Back from T = 1 to margin 1.
    return jnp.stack([v_core / kappa, v_spu / kappa], -1), 1 / kappa**2


def _direction(*parameters: Array) -> tuple[Array, Array, Array]:
    """(v_c, v_s, kappa) of largest margin in the scale T = 1; NaN if that margin is not positive. Scalars only."""
    eps = jnp.finfo(parameters[0].dtype).eps
    fixed = jax.lax.stop_gradient(parameters)
    floor = _FLOOR * jnp.sqrt(fixed[5])

    def penalty(v: Array) -> Array:
        return jnp.sqrt(1 + v @ v)

    def derivatives(v: Array, parameters: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
        """kappa, the multiplier, gradient and Hessian of kappa(v) - multiplier sqrt(1 + |v|^2)."""
        kappa = _margin(v, parameters)
        size = penalty(v)
        multiplier = jnp.maximum(kappa / size, floor)
        by_kappa, by_v = jax.jacfwd(_margin_gradient, (0, 1))(kappa, v, parameters)
        slope = _margin_gradient(kappa, v, parameters)
        gradient = slope - multiplier * v / size
        hessian = by_v + jnp.outer(by_kappa, slope) - multiplier * (jnp.eye(2) / size - jnp.outer(v, v) / size**3)
        return kappa, multiplier, gradient, hessian

    def newton(state: tuple[Any, ...]) -> tuple[Any, ...]:
        v, _, iteration, _ = state
        kappa, multiplier, gradient, hessian = derivatives(v, fixed)
        move = -_solve_2x2(hessian, gradient)
        sizes = jnp.asarray(_STEP_SIZES, v.dtype)
        candidates = v[None, :] + sizes[:, None] * move[None, :]
        value = jax.vmap(lambda c: _margin(c, fixed) - multiplier * penalty(c))(candidates)
        here = kappa - multiplier * penalty(v)
        # The longest step that does not lose beyond rounding; a shorter one if it gains more than that by far.
        good = value >= here - 8 * eps * jnp.abs(kappa)
        chosen = jnp.where(good[0], 0, jnp.argmax(value))
        change = jnp.abs(sizes[chosen] * move).max() / (1 + jnp.abs(v).max())
        return candidates[chosen], jnp.abs(gradient).max() / jnp.abs(multiplier), iteration + 1, change

    def unfinished(state: tuple[Any, ...]) -> Array:
        return (state[2] < _MAX_STEPS) & (state[3] > 16 * eps)

    dtype = parameters[0].dtype
    start = (jnp.zeros(2, dtype), jnp.asarray(jnp.inf, dtype), 0, jnp.asarray(1.0, dtype))
    v, residual, _, _ = jax.lax.while_loop(unfinished, newton, start)
    v = jax.lax.stop_gradient(v)
    # One Newton step at the solution moves nothing but carries the derivative in the parameters.
    _, _, gradient, hessian = derivatives(v, parameters)
    v = v - _solve_2x2(jax.lax.stop_gradient(hessian), gradient)
    kappa = _margin(v, parameters)
    solved = (kappa > floor * penalty(v)) & (residual < jnp.sqrt(eps) * 100) & (fixed[5] > 0)
    return jnp.where(solved, v[0], jnp.nan), jnp.where(solved, v[1], jnp.nan), jnp.where(solved, kappa, jnp.nan)


def _expectations(kappa: Array, v: Array, parameters: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
    """E (kappa - N)_+^2, E (kappa - N)_+, E r (kappa - N)_+ and P(N < kappa), N | r ~ N(v_c mu_c + r v_s mu_s, s^2)."""
    p, s_core, s_spu, mu_core, mu_spu, _, noise = parameters
    s = jnp.sqrt((v[0] * s_core) ** 2 + (v[1] * s_spu) ** 2 + noise)
    r = jnp.asarray([1.0, -1.0], v.dtype)
    weight = jnp.stack([p, 1 - p])
    a = (kappa - v[0] * mu_core - r * v[1] * mu_spu) / s
    below, density = ndtr(a), jnp.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    hinge = s * (a * below + density)
    squared = s**2 * ((a**2 + 1) * below + a * density)
    return weight @ squared, weight @ hinge, (weight * r) @ hinge, weight @ below


def _margin(v: Array, parameters: tuple[Array, ...]) -> Array:
    """kappa(v): E (kappa - N)_+^2 = sigma^2/n. Newton on the root of both sides, which is convex, from above the
    solution."""
    p, _, _, mu_core, mu_spu, level, _ = parameters
    root = jnp.sqrt(level)

    def newton(kappa: Array) -> Array:
        squared, hinge, _, _ = _expectations(kappa, v, parameters)
        norm = jnp.sqrt(squared)
        return kappa - (norm - root) * norm / hinge

    start = v[0] * mu_core + (2 * p - 1) * v[1] * mu_spu + root
    kappa, _ = jax.lax.scan(lambda k, _: (newton(k), None), jax.lax.stop_gradient(start), None, length=_MARGIN_STEPS)
    return newton(jax.lax.stop_gradient(kappa))


def _margin_gradient(kappa: Array, v: Array, parameters: tuple[Array, ...]) -> Array:
    """d kappa / d v, by the implicit function theorem."""
    _, s_core, s_spu, mu_core, mu_spu, _, _ = parameters
    _, hinge, hinge_r, below = _expectations(kappa, v, parameters)
    return jnp.stack([mu_core * hinge - v[0] * s_core**2 * below, mu_spu * hinge_r - v[1] * s_spu**2 * below]) / hinge


def _solve_2x2(matrix: Array, vector: Array) -> Array:
    """matrix^-1 vector for a symmetric 2 x 2 matrix."""
    a, b, d = matrix[0, 0], (matrix[0, 1] + matrix[1, 0]) / 2, matrix[1, 1]
    return jnp.stack([d * vector[0] - b * vector[1], a * vector[1] - b * vector[0]]) / (a * d - b * b)
