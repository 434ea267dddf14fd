"""What supervised learning learns: the max-margin rule, its sharp accuracy (X1), the paper's bound (T3), T4's limit.

Symbols: w = (v, u) the rule, v on the latents and u on the noise, T = |u|^2, sigma noise norm, d_I input dimension, n
samples, g group of class y_g = +-1, weight P_g, latent mean m_g and covariance S_g.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import nan_where
from mmcl_theory.data import AccuracyByGroup, InterClass, IntraClass, Model, Observation
from mmcl_theory.data.batches import over_batches
from mmcl_theory.data.latents import pair_matrix
from mmcl_theory.data.protocol import has_law_of, law
from mmcl_theory.zero_shot import GroupAccuracy, linear_rule_accuracy

_MAX_STEPS = 80
_MARGIN_STEPS = 30
_SHORTEST_STEP = 1 / 256
_FLOOR = 1e-4


def supervised_accuracy(
    model: Model, obs: Observation | None = None, n: Scalar | None = None
) -> GroupAccuracy | AccuracyByGroup:
    """Accuracy, by group, of the max-margin classifier (no bias) trained on n labelled images.

    Intra-class and mixtures of two classes: the rule is `max_margin_rule` (X1), the limit n, d_I -> inf at fixed n/d_I.
    It needs obs and n.

    Inter-class: the classifier is trained on every noiseless image of P at p_spu = 1. Class (c, k) scores
    c (u core_k + v spu_k) with u : v = (1 - beta) : alpha (1 - beta_spu). With m >= 2 pairs the aligned group is all
    right. The conflicting group is all right if (1 - beta)^2 > alpha^2 (1 - beta_spu^2), and tied if equal. If less, an
    image of it is right at most where in no other pair core and spu have the same sign (probability 2^-(m-1)).

    With one pair there is no other class to stand out from, and u : v = 1 : alpha. The conflicting group is right for
    alpha < 1, wrong for alpha > 1, tied at 1.

    Args:
        model: data model; its leaves broadcast with those of obs and with n.
        obs: observation; not used for the inter-class model, needed for all others.
        n: number of images, >= 2, real values allowed; not used for the inter-class model, needed for all others.

    Returns:
        The accuracies, of the broadcast shape. NaN where almost all such samples are not linearly separable. NaN,
        inter-class, for p_spu < 1, which this theory does not cover.

    Raises:
        ValueError: if a model other than the inter-class one comes without obs or n, or n < 2.
        NotImplementedError: for a mixture of more than two classes.

    Example:
        SL follows a spurious feature that is stronger than the core feature. MMCL shares the core details of 100 pairs:

        >>> import mmcl_theory as mt
        >>> model = mt.inter_class(num_pairs=100, p_spu=1.0, alpha=2.0, beta=0.5)
        >>> for accuracy in (mt.theory.supervised_accuracy(model), mt.theory.mmcl_accuracy(model)):
        ...     print(f"{accuracy.aligned:.3f} {accuracy.conflicting:.3f}")
        1.000 0.000
        1.000 1.000

    Source: X1; T4 (Theorem 4.7).  Check: proofs_checks/x1.py, proofs_checks/t4.py.
    """
    if has_law_of(model, InterClass):
        many = model.num_pairs > 1  # one pair has no details in the images of other pairs
        core, spu = (1 - model.beta, 1 - model.beta_spu) if many else (jnp.ones(()), jnp.ones(()))
        core, spu, alpha = jnp.broadcast_arrays(core, spu, model.alpha)
        weights = jnp.stack([core, alpha * spu], -1)
        accuracy = linear_rule_accuracy(model, weights, (weights**2).sum(-1))
        return jax.tree.map(lambda acc: nan_where(*jnp.broadcast_arrays(model.p_spu != 1, acc)), accuracy)
    if obs is None or n is None:
        raise ValueError("obs and n must be given for this model, got None.")
    weights, noise_norm = max_margin_rule(model, obs, n)
    if not has_law_of(model, IntraClass):
        rules = jnp.stack([-weights, weights], -2)
        sign = jnp.array([[1.0, -1.0], [-1.0, 1.0]], weights.dtype)
        total = (weights**2).sum(-1) + noise_norm
        gram = total[..., None, None] * jnp.broadcast_to(sign, (*total.shape, 2, 2))
        return law(model, "as_mixture").as_mixture().rule_accuracy(rules, gram, obs.sd_image)
    return linear_rule_accuracy(model, weights, (weights**2).sum(-1) + noise_norm, obs.sd_image)


def supervised_bound() -> GroupAccuracy:
    """The paper's bound on SL: conflicting <= 1/3, so shifted <= 2/3.

    It holds for d >> n, p_spu -> 1 and sigma_spu = O(1/sqrt(log n)).

    Returns:
        The bounds: 1 for the aligned group and 1/3 for the conflicting one, each ().

    Example:
        >>> import mmcl_theory as mt
        >>> bound = mt.theory.supervised_bound()
        >>> print(f"{bound.conflicting:.3f} {bound.shifted:.3f}")
        0.333 0.667

    Source: T3 (restating Sagawa et al. 2020, arXiv 2005.04345).  Check: proofs_checks/t3.py.
    """
    return GroupAccuracy(jnp.asarray(1.0), jnp.asarray(1 / 3))


def shortcut_bound(model: InterClass) -> Float[Array, "..."]:
    """The paper's bound on acc_P* of SL on Data Model 2, 1/2 + 2 / ((1 + alpha^2)(1 - beta)^2 - 8).

    Where it is a bound alpha > sqrt(7), and there the accuracy is 1/2 exactly: see `supervised_accuracy`.

    Args:
        model: inter-class model. Its p_spu and beta_spu are not used: the theorem has p_spu = 1 and beta_spu = beta.

    Returns:
        The bound, of the leaves' broadcast shape. NaN where (1 + alpha^2)(1 - beta)^2 <= 8, where the theorem says
        nothing. Up to 12 it is above 1, so empty.

    Example:
        It tends to 1/2, which is the accuracy itself, as the spurious feature grows:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.inter_class(num_pairs=100, p_spu=1.0, alpha=jnp.array([10.0, 30.0, 100.0]), beta=0.5)
        >>> print([f"{bound:.3f}" for bound in mt.theory.shortcut_bound(model)])
        ['0.616', '0.509', '0.501']

    Source: T4 (Theorem 4.7).  Check: proofs_checks/t4.py.
    """
    alpha, beta = jnp.broadcast_arrays(model.alpha, model.beta)
    room = (1 + alpha**2) * (1 - beta) ** 2 - 8
    says = room > 0
    return nan_where(~says, 0.5 + 2 / jnp.where(says, room, 1.0) + 0 * room)


def max_margin_rule(model: Model, obs: Observation, n: Scalar) -> tuple[Float[Array, "... l"], Float[Array, "..."]]:
    """The hard-margin solution, scaled to margin 1: its latent part v and the squared norm T of its noise part.

    In the limit n, d_I -> inf at fixed n/d_I it minimises |v|^2 + T over v and T subject to

        T >= (n/sigma^2) sum_g P_g H(y_g v . m_g, v^T S_g v + s_I^2 (|v|^2 + T)),   s_I^2 = sigma^2/d_I
        H(m, s^2) = E max(0, 1 - N(m, s^2))^2 = ((1-m)^2 + s^2) Phi((1-m)/s) + (1-m) s phi((1-m)/s)

    It is solved in the scale where T = 1. There the margin kappa(v), the root of the constraint, is concave. Damped
    Newton steps find the largest kappa / sqrt(1 + |v|^2). One more Newton step at the solution carries the derivative,
    so the result is differentiable. The groups of the intra-class model are the aligned and the conflicting one, with
    y_g m_g = (mu_c, +-mu_s) and S_g = diag(s_c^2, s_s^2).

    Args:
        model: intra-class model, or mixture of two classes (y = -1 is class 0); the leaves of all arguments broadcast.
        obs: observation; only its image noise is used.
        n: number of images, >= 2, real values allowed.

    Returns:
        v, one entry a latent coordinate, and T, of the broadcast shape. NaN where no kappa > 0 exists (almost surely
        not separable), and where there is no noise (sigma = 0).

    Raises:
        ValueError: for n < 2.
        NotImplementedError: for more than two classes.

    Example:
        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(dim_image=2000, dim_text=2, sigma_image=2.0)
        >>> v, noise = jax.jit(mt.theory.max_margin_rule)(model, obs, n=1000.0)
        >>> print(f"v = ({v[0]:.2f}, {v[1]:.2f}), T = {noise:.1f}")
        v = (0.55, 0.93), T = 40.4

    Source: X1 (convex Gaussian min-max theorem).  Check: proofs_checks/x1.py.
    """
    size = _checks.sample_size(n)
    weight, mean, covariance = _signed_groups(model)
    variance = obs.sigma_image**2

    def rule(
        weight: Array, mean: Array, covariance: Array, sd_image: Array, variance: Array, size: Array
    ) -> tuple[Array, Array]:
        # On the latent coordinates the observation noise adds to their variance. T belongs to the rest of the noise.
        covariance = covariance + sd_image**2 * jnp.eye(mean.shape[1], dtype=mean.dtype)[None]
        v, kappa = _direction(weight, mean, covariance, variance / size, variance / obs.dim_image)
        return v / kappa, 1 / kappa**2  # from the scale of T = 1 to that of margin 1

    groups = ((weight, 1), (mean, 2), (covariance, 3))
    return over_batches(rule, *groups, (obs.sd_image, 0), (variance, 0), (size, 0))


def _signed_groups(model: Model) -> tuple[Array, Array, Array]:
    """P_g, y_g m_g and S_g of the groups."""
    if has_law_of(model, IntraClass):
        p, s_core, s_spu, mu_core, mu_spu = jnp.broadcast_arrays(
            model.p_spu, model.sigma_core, model.sigma_spu, model.mu_core, model.mu_spu
        )
        mean = jnp.stack([jnp.stack([mu_core, sign * mu_spu], -1) for sign in (1, -1)], -2)
        covariance = pair_matrix(s_core**2, 0 * p, 0 * p, s_spu**2)
        return jnp.stack([p, 1 - p], -1), mean, jnp.stack([covariance] * 2, -3)
    groups = law(model, "as_mixture").as_mixture()
    if groups.num_classes > 2:
        raise NotImplementedError(f"the max-margin rule has no theory for {groups.num_classes} classes, only for 2.")
    sign = 2 * jnp.asarray(groups.classes)[:, None] - 1
    return groups.weight, groups.mean * jnp.broadcast_to(sign, groups.mean.shape), groups.covariance


def _direction(*parameters: Array) -> tuple[Float[Array, " l"], Array]:
    """(v, kappa) of largest margin in the scale T = 1; NaN if that margin is not positive.

    parameters: P_g (G,), y_g m_g (G, l), S_g + s_I^2 (G, l, l), sigma^2/n and s_I^2.
    """
    eps = jnp.finfo(parameters[0].dtype).eps
    fixed = jax.lax.stop_gradient(parameters)
    room = fixed[3]
    floor = _FLOOR * jnp.sqrt(room)
    eye = jnp.eye(fixed[1].shape[1], dtype=fixed[1].dtype)

    def penalty(v: Array) -> Array:
        return jnp.sqrt(1 + v @ v)

    def derivatives(kappa: Array, v: Array, parameters: tuple[Array, ...]) -> tuple[Array, Array, Array, Array]:
        """The multiplier, d kappa / dv, gradient and Hessian of kappa(v) - multiplier sqrt(1 + |v|^2)."""
        size = penalty(v)
        multiplier = jnp.maximum(kappa / size, floor)
        by_kappa, by_v = jax.jacfwd(_margin_gradient, (0, 1))(kappa, v, parameters)
        slope = _margin_gradient(kappa, v, parameters)
        gradient = slope - multiplier * v / size
        hessian = by_v + jnp.outer(by_kappa, slope) - multiplier * (eye / size - jnp.outer(v, v) / size**3)
        return multiplier, slope, gradient, hessian

    def newton(state: tuple[Any, ...]) -> tuple[Any, ...]:
        v, kappa, iteration, _ = state
        multiplier, slope, gradient, hessian = derivatives(kappa, v, fixed)
        move = -_solve(hessian, gradient)

        def margin(size: Array) -> Array:
            return _margin(v + size * move, fixed, kappa + size * (slope @ move))  # the tangent lies above kappa(v)

        # Take the longest of the steps 1, 1/2, 1/4, ... that loses nothing beyond rounding.
        enough = kappa - multiplier * penalty(v) - 8 * eps * jnp.abs(kappa)

        def shorter(search: tuple[Array, Array]) -> tuple[Array, Array]:
            return search[0] / 2, margin(search[0] / 2)

        def too_long(search: tuple[Array, Array]) -> Array:
            loses = ~(search[1] - multiplier * penalty(v + search[0] * move) >= enough)
            return loses & (search[0] > _SHORTEST_STEP)

        one = jnp.ones((), v.dtype)
        size, reached = jax.lax.while_loop(too_long, shorter, (one, margin(one)))
        change = jnp.abs(size * move).max() / (1 + jnp.abs(v).max())
        return v + size * move, reached, iteration + 1, change

    def unfinished(state: tuple[Any, ...]) -> Array:
        return (state[2] < _MAX_STEPS) & (state[3] > jnp.sqrt(eps))

    dtype = parameters[0].dtype
    origin = jnp.zeros_like(fixed[1][0])
    start = (origin, _margin(origin, fixed, jnp.sqrt(room)), 0, jnp.asarray(1.0, dtype))
    v, kappa, _, _ = jax.lax.while_loop(unfinished, newton, start)
    v = jax.lax.stop_gradient(v)
    # One more Newton step squares the error of v, and carries its derivative in the parameters.
    multiplier, _, gradient, hessian = derivatives(_margin(v, parameters, kappa), v, parameters)
    residual = jnp.abs(gradient).max() / jnp.abs(multiplier)
    v = v - _solve(jax.lax.stop_gradient(hessian), gradient)
    kappa = _margin(v, parameters, kappa)
    solved = (kappa > floor * penalty(v)) & (residual < jnp.sqrt(eps) * 100) & (room > 0)
    return jnp.where(solved, v, jnp.nan), jnp.where(solved, kappa, jnp.nan)


def _expectations(
    kappa: Array, v: Array, parameters: tuple[Array, ...]
) -> tuple[Float[Array, " g"], Float[Array, " g"], Float[Array, " g"]]:
    """P_g E (kappa - N)_+^2, P_g E (kappa - N)_+ and P_g P(N < kappa), N ~ N(y_g v . m_g, v^T S_g v + s_I^2)."""
    weight, mean, covariance, _, noise = parameters
    s = jnp.sqrt((covariance @ v) @ v + noise)
    a = (kappa - mean @ v) / s
    below, density = ndtr(a), jnp.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)
    hinge = s * (a * below + density)
    squared = s**2 * ((a**2 + 1) * below + a * density)
    return weight * squared, weight * hinge, weight * below


def _margin(v: Array, parameters: tuple[Array, ...], start: Array) -> Array:
    """kappa(v), the root of E (kappa - N)_+^2 = sigma^2/n.

    Newton's method solves the root of both sides, which is convex, from a start at or above the solution.
    """
    fixed = jax.lax.stop_gradient((v, parameters))
    tolerance = jnp.sqrt(jnp.finfo(v.dtype).eps)  # of the last step but one; the last step squares the error

    def newton(kappa: Array, v: Array, parameters: tuple[Array, ...]) -> Array:
        squared, hinge, _ = _expectations(kappa, v, parameters)
        norm, root = jnp.sqrt(squared.sum()), jnp.sqrt(parameters[3])
        return kappa - (norm - root) * norm / hinge.sum()

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        kappa = newton(state[0], *fixed)
        return kappa, jnp.abs(kappa - state[0]) > tolerance * jnp.abs(state[0]), state[2] + 1

    begin = jax.lax.stop_gradient(start), jnp.asarray(True), jnp.asarray(0)
    kappa, _, _ = jax.lax.while_loop(lambda state: state[1] & (state[2] < _MARGIN_STEPS), step, begin)
    return newton(kappa, v, parameters)  # the last step carries the derivative


def _margin_gradient(kappa: Array, v: Array, parameters: tuple[Array, ...]) -> Array:
    """d kappa / d v, by the implicit function theorem."""
    _, mean, covariance, _, _ = parameters
    _, hinge, below = _expectations(kappa, v, parameters)
    return (hinge @ mean - below @ (covariance @ v)) / hinge.sum()


def _solve(matrix: Float[Array, "l l"], vector: Float[Array, " l"]) -> Float[Array, " l"]:
    """matrix^-1 vector for a symmetric matrix."""
    if len(vector) != 2:
        return jnp.linalg.solve((matrix + matrix.T) / 2, vector)
    a, b, d = matrix[0, 0], (matrix[0, 1] + matrix[1, 0]) / 2, matrix[1, 1]  # far faster than a general solver
    return jnp.stack([d * vector[0] - b * vector[1], a * vector[1] - b * vector[0]]) / (a * d - b * b)
