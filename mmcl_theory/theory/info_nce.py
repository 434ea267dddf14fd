"""What bilinear InfoNCE learns from the mixture of classes itself: its population optimum, computed, not approximated.

Symbols: x = D_I^T x_I and t = D_T^T x_T images and captions on the latent coordinates, s(x, t) = x^T M t, N batch size,
p prompt, w = M p the rule; a case (group, what is mentioned) makes (x, t) Gaussian.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Key, PyTree

from mmcl_theory import _checks, losses
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import nan_where, root_of_square, undefined_slope
from mmcl_theory.data import AccuracyByGroup, Captions, GroupCaptions, IntraClass, Model, Observation
from mmcl_theory.data.captions import is_pair_model, pair_captions
from mmcl_theory.data.protocol import exactly, has_law_of, law, prompts_of
from mmcl_theory.theory.finite_sample import mention_cases
from mmcl_theory.theory.info_nce_mixtures import (
    LARGEST_EXPONENT,
    PairLaw,
    pair_law,
    population_derivatives,
    population_loss,
    quadrature,
    quasi_random,
    shifted_points,
)
from mmcl_theory.theory.mixtures import Prompts
from mmcl_theory.theory.mmcl import pair_prompt
from mmcl_theory.zero_shot import PROMPTS, GroupAccuracy, linear_rule_accuracy

_NEWTON_STEPS = 60
_ROOT_STEPS = 60
_ROOT_TOLERANCE = 1e-12, 100  # absolute, and in units of rounding
_POINTS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class InfoNceOptimum:
    """The minimiser M of the loss, and how far to trust it.

    Attributes:
        score: M, rows image, columns text, on the latent coordinates, (core, spurious) in the intra-class model.
        loss: the loss of M with the ridge, in nats; at N = inf less log N.
        residual: largest entry of the loss's gradient at M.
        standard_error: of M, from the batches or the points drawn; 0 for quadrature.
        replicates: M of each independent randomisation of the points, of mean `score`; None without points.

    Example:
        With rich captions InfoNCE over-corrects: the spurious weight of class +1 is negative.

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> core, spurious = jax.jit(mt.theory.info_nce_optimum)(model, mt.captions(), obs).score[:, 0]
        >>> print(bool(core > 0 > spurious))
        True
    """

    score: Array  # (l, l)
    loss: Array  # ()
    residual: Array  # ()
    standard_error: Array  # (l, l)
    replicates: Array | None = None  # (r, l, l)

    def accuracy(self, model: Model, obs: Observation, prompts: Prompts = "core") -> GroupAccuracy | AccuracyByGroup:
        """Exact accuracy, by group, of the rule w = M p; of a mixture, of the rules of all classes.

        The `error` of a mixture's accuracies includes their standard error over the replicates.
        """
        if not is_pair_model(model):
            prompt, offers = prompts_of(model, prompts), law(model, "rule_accuracy")

            def of(score: Array) -> AccuracyByGroup:
                rules = prompt @ score.T
                return offers.rule_accuracy(rules, rules @ rules.T, obs.sd_image)

            accuracy = of(self.score)
            if self.replicates is None:
                return accuracy
            spread = jax.vmap(of)(self.replicates).by_group.std(0, ddof=1) / len(self.replicates) ** 0.5
            return dataclasses.replace(accuracy, error=jnp.hypot(accuracy.error, spread))
        weights = self.score @ pair_prompt(model, _checks.choice("prompts", prompts, PROMPTS))
        return linear_rule_accuracy(model, weights, (weights**2).sum(-1), obs.sd_image)


def info_nce_optimum(
    model: Model,
    caps: Captions | GroupCaptions,
    obs: Observation,
    nodes: int = 48,
    kappa: Scalar = 0.0,
    points: int | None = None,
) -> InfoNceOptimum:
    """The minimiser over bilinear critics of InfoNCE with infinitely many negatives, temperature 1, and a ridge.

        L(M) = -E s(x, t) + 1/2 E_x log E_t' exp s(x, t') + 1/2 E_t log E_x' exp s(x', t) + (kappa/2) |M|_F^2

    By convexity and rotation invariance the best W is D_I M D_T^T, so that M is l x l for l latents. The inner
    expectations have a closed form (Gaussian mixtures, over all states of the captions). The outer ones are
    Gauss-Hermite quadrature, and Newton's method finds the minimum. For Gaussian (x, t) it is `ridge_rule`'s, up to the
    factor 1 + kappa (X5, X11). Temperature tau with penalty (rho/2) |W|_F^2 on W = tau M is kappa = rho tau^2.

    For a mixture of more than 3 latents, or where `points` is given, the outer expectations are means over
    quasi-random points in each group (Sobol), in 16 independent randomisations. M minimises the mean loss of all. A
    Newton step on the loss of one randomisation gives its replicate of M. The spread of the replicates gives the
    standard error, and that of the accuracies.

    The minimiser is unique unless a coordinate of x or t is 0 almost surely; then the one of least norm is returned.

    It is differentiable, from within at the ends of a range: p_spu or pi at 0 or 1, a noise or sigma or kappa at 0.
    There are two exceptions, both at kappa = 0. The derivative in a pi = 0 without text noise is NaN. All derivatives
    are NaN where a coordinate of x, or one of t that is mentioned, is 0 almost surely. For a mixture there are two: all
    derivatives are NaN where a group's covariance with noise is singular, in images or texts, and with `points`.

    Args:
        model: intra-class model with scalar leaves (`vmap` for more), or a single mixture.
        caps: caption policy with scalar leaves; `group_captions` of a mixture.
        obs: observation with scalar leaves.
        nodes: number of quadrature nodes for each coordinate, >= 2, static. A step costs nodes^l 4^l G^2 for a mixture;
            with errors of captions, or with `wrong` traced, nodes^l (2 G + 2)^l G^2.
        kappa: the ridge, a scalar, finite and >= 0.
        points: number of quasi-random points in each group and randomisation, a power of 2, static; for mixtures. None
            is quadrature for up to 3 latents and 256 points for more. A step costs 16 points 2^l G^2.

    Returns:
        The optimum. M is NaN and the residual inf where the minimum is at infinity, for example without noise at
        p_spu = 1, sigma_spu = 0, kappa = 0.

    Raises:
        ValueError: for nodes, kappa or points out of range, or points for the intra-class model.

    Example:
        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> optimum = jax.jit(mt.theory.info_nce_optimum)(model, mt.captions(), obs)
        >>> print(f"{optimum.accuracy(model, obs).shifted:.3f}", bool(optimum.residual < 1e-5))
        0.780 True

    Source: X10, X11, X13.  Check: proofs_checks/x10.py, proofs_checks/x11.py, proofs_checks/x13.py.
    """
    _checks.integer("nodes", nodes, 2)
    kappa = _checks.real("kappa", kappa, "finite and >= 0")
    if points is not None and (_checks.integer("points", points, 2) & (points - 1) or has_law_of(model, IntraClass)):
        raise ValueError(f"points must be a power of 2, for a mixture (model.as_mixture()), got {points}.")
    size = model.num_latents
    if has_law_of(model, IntraClass):
        caps = pair_captions(caps)
        pairs = jax.lax.stop_gradient(_mixture(model, caps, obs))
        loss = functools.partial(_population_loss, pairs, nodes, jax.lax.stop_gradient(kappa))

        def derivatives(m: Array) -> tuple[Array, Array, Array]:
            return loss(m), jax.grad(loss)(m), jax.hessian(loss)(m)

    else:
        whole = pair_law(law(model, "as_mixture").as_mixture(), caps, obs)
        fixed, fixed_kappa = jax.lax.stop_gradient((whole, kappa))
        if points is not None or size > 3:
            optimum = _quasi_random_optimum(fixed, fixed_kappa, points or _POINTS)
            # What is left of the parameters' slopes is NaN.
            slopes = 0 * sum(x.sum() for x in jax.tree.leaves((whole, kappa)))
            slopes = undefined_slope(slopes, jnp.ones((), bool))
            return jax.tree.map(lambda x: x + jnp.broadcast_to(slopes, x.shape), optimum)
        images, texts, without_slope = quadrature(fixed, nodes)
        loss = functools.partial(population_loss, fixed, images, texts, fixed_kappa)
        derivatives = functools.partial(population_derivatives, fixed, images, texts, fixed_kappa)

    m, _, gradient, hessian = jax.lax.stop_gradient(_newton(derivatives, loss, size))
    good = _is_minimum(gradient, hessian, derivatives(jnp.zeros_like(m))[2])
    # One Newton step at the minimum does not move M, but carries its derivative in the parameters.
    inverse, singular = _pseudo_inverse(hessian)
    if has_law_of(model, IntraClass):
        caps, lost = _mark_undefined_slopes(pair_captions(caps), pairs, singular)
        live = functools.partial(_population_loss, _mixture(model, caps, obs), nodes, kappa)
    else:
        lost = singular | without_slope
        images, texts, _ = quadrature(whole, nodes)
        live = functools.partial(population_loss, whole, images, texts, kappa)
    m = undefined_slope(m - inverse @ jax.grad(live)(m), lost)
    residual = jnp.where(good, jnp.abs(gradient).max(), jnp.inf)
    score = nan_where(~good, m).reshape(size, size)
    return InfoNceOptimum(score, live(m), residual, jnp.zeros_like(score))


def _quasi_random_optimum(pairs: PairLaw, kappa: Array, points: int) -> InfoNceOptimum:
    """`info_nce_optimum` of a mixture at quasi-random points, without derivatives."""
    size = pairs.mean.shape[1]
    sets = jax.vmap(functools.partial(quasi_random, pairs))(jnp.asarray(shifted_points(points, size)))

    def mean(f: Callable[..., PyTree]) -> PyTree:
        return jax.tree.map(lambda x: x.mean(0), jax.lax.map(f, sets))

    def derivatives(m: Array) -> tuple[Array, Array, Array]:
        return mean(lambda sides: population_derivatives(pairs, sides[0], sides[1], kappa, m))

    def loss(m: Array) -> Array:
        return mean(lambda sides: population_loss(pairs, sides[0], sides[1], kappa, m))

    m, value, gradient, hessian = _newton(derivatives, loss, size)
    good = _is_minimum(gradient, hessian, derivatives(jnp.zeros_like(m))[2])
    gradients = (
        jax.lax.map(lambda sides: population_derivatives(pairs, sides[0], sides[1], kappa, m)[1], sets)
        - gradient[None, :]
    )
    replicates = m[None, :] - gradients @ _pseudo_inverse(hessian)[0]
    m, replicates = (jnp.where(good, x, jnp.nan) for x in (m, replicates))
    error = replicates.std(0, ddof=1) / len(replicates) ** 0.5
    residual = jnp.where(good, jnp.abs(gradient).max(), jnp.inf)
    score, error = m.reshape(size, size), error.reshape(size, size)
    return InfoNceOptimum(score, value, residual, error, replicates.reshape(-1, size, size))


def _is_minimum(gradient: Array, hessian: Array, first: Array) -> Array:
    """Whether a minimum is there, from gradient and Hessian and the Hessian at 0.

    Where the minimum is at infinity the loss flattens until its curvature is rounding too.
    """
    eps = jnp.finfo(gradient.dtype).eps
    curved = jnp.diagonal(hessian) >= eps**0.75 * jnp.diagonal(first)
    return (jnp.abs(gradient).max() < jnp.sqrt(eps)) & curved.all()


def info_nce_batch_optimum(
    key: Key[Array, ""], model: IntraClass, caps: Captions, obs: Observation, batch_size: int, batches: int
) -> InfoNceOptimum:
    """The minimiser over bilinear critics of the mean InfoNCE loss of N pairs, `losses.info_nce` at temperature 1.

    The mean is a sample average over `batches` independent batches. It is convex in M, and Newton's method minimises
    it. The standard error is the sandwich H^-1 Cov(gradient of a batch) H^-1 / batches. The bias, of that order
    squared, is not corrected.

    Args:
        key: random key.
        model: intra-class model with scalar leaves (`vmap` for more).
        caps: caption policy with scalar leaves.
        obs: observation with scalar leaves.
        batch_size: number N of pairs in a batch, >= 2, static.
        batches: number of batches, >= 2, static. A step costs O(batches N^2).

    Returns:
        The optimum with its standard error.

    Raises:
        ValueError: for sizes out of range.

    Example:
        Batches of 8 pairs over-correct too: the spurious weight is negative, by many standard errors.

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> fit = jax.jit(mt.theory.info_nce_batch_optimum, static_argnames=("batch_size", "batches"))
        >>> optimum = fit(jax.random.key(0), model, mt.captions(), obs, batch_size=8, batches=100)
        >>> print(bool(optimum.score[1, 0] + 5 * optimum.standard_error[1, 0] < 0))
        True

    Source: X10.  Check: proofs_checks/x10.py.
    """
    _checks.integer("batch_size", batch_size, 2)
    _checks.integer("batches", batches, 2)
    keys = jax.random.split(key, batches)

    def draw(key: Array) -> tuple[Array, Array]:
        key_latents, key_captions, key_image, key_text = jax.random.split(key, 4)
        latents = model.sample(key_latents, batch_size)
        code = caps.sample(key_captions, model, latents)
        noise = (jax.random.normal(k, code.shape, code.dtype) for k in (key_image, key_text))
        return latents.z + obs.sd_image * next(noise), code + obs.sd_text * next(noise)

    def batch_loss(m: Array, key: Array) -> Array:
        x, t = draw(key)
        return losses.info_nce(x @ m.reshape(2, 2), t)

    def mean(f: Callable[[Array], PyTree]) -> PyTree:
        return jax.tree.map(lambda x: x.mean(0), jax.lax.map(f, keys))

    def derivatives(m: Array) -> tuple[Array, Array, Array]:
        value, gradient = mean(lambda key: jax.value_and_grad(batch_loss)(m, key))
        return value, gradient, mean(lambda key: jax.hessian(batch_loss)(m, key))

    def loss(m: Array) -> Array:
        return mean(lambda key: batch_loss(m, key))

    m, value, gradient, hessian = _newton(derivatives, loss, 2)
    gradients = jax.lax.map(lambda k: jax.grad(batch_loss)(m, k), keys)
    inverse = jnp.linalg.inv(hessian)
    covariance = inverse @ jnp.cov(gradients.T) @ inverse / batches
    error = jnp.sqrt(jnp.diagonal(covariance)).reshape(2, 2)
    return InfoNceOptimum(m.reshape(2, 2), value, jnp.abs(gradient).max(), error)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BalancedCaptions:
    """The pi_spu at which InfoNCE ignores the spurious feature, and the certificate that it is the best policy.

    Without a change of sign between the two end ratios there is no root, and pi_spu, ratio and shifted are NaN.

    Attributes:
        pi_spu: the root of w_spu / w_core, in [0, 1].
        ratio: what is left of w_spu / w_core there.
        shifted: the accuracy on P* there.
        bound: the largest accuracy on P* of any linear rule, Phi(mu_c / sqrt(s_c^2 + s_I^2)). shifted = bound
            certifies.
        end_ratios: w_spu / w_core at pi_spu = 0 and 1.

    Example:
        Never named, the spurious feature is followed. Always named, it is over-corrected:

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> fit = jax.jit(mt.theory.info_nce_balanced_captions, static_argnames="nodes")
        >>> never, always = fit(model, mt.captions(), obs, nodes=16).end_ratios
        >>> print(bool(never > 0 > always))
        True
    """

    pi_spu: Array  # ()
    ratio: Array  # ()
    shifted: Array  # ()
    bound: Array  # ()
    end_ratios: Array  # (2,)


def info_nce_balanced_captions(
    model: IntraClass, caps: Captions, obs: Observation, nodes: int = 48
) -> BalancedCaptions:
    """The pi_spu at which the rule of `info_nce_optimum` (core prompt) has w_spu = 0: `balanced_pi_spu`, exactly.

    Regula falsi (Illinois) finds it. It is the best pi_spu, and every pair (pi_core, balanced pi_spu) is a joint
    optimum. With k = w_spu / w_core, any linear rule with w_core > 0 has

        acc_P* = E_r Phi((mu_c + r k mu_s) / sqrt(s_c^2 + k^2 s_s^2 + s_I^2 |w_amb|^2 / w_core^2)),  r = +-1 fair

    This falls in |k| and in |w_amb|, so that no rule exceeds `bound`. k = 0 attains it, because the rule lies in the
    span of the dictionary.

    Both end ratios above 0 mean that even captions that always name the feature leave a shortcut (much noise, poor
    captions). Both end ratios 0 mean that every policy is balanced (p_spu = 1/2 or mu_spu = 0).

    For differentiation in reverse mode use the implicit function theorem on `info_nce_optimum`; this function has a
    while loop.

    Args:
        model: intra-class model with scalar leaves (`vmap` for more).
        caps: caption policy with scalar leaves; its pi_spu is not used.
        obs: observation with scalar leaves.
        nodes: number of quadrature nodes for each coordinate, >= 2, static.

    Returns:
        The balanced captions and their certificate; NaN where there is no root, see `BalancedCaptions`.

    Raises:
        ValueError: for nodes out of range.

    Example:
        The balanced captions are as good as any linear rule:

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> fit = jax.jit(mt.theory.info_nce_balanced_captions, static_argnames="nodes")
        >>> balanced = fit(model, mt.captions(), obs, nodes=16)
        >>> print(f"{balanced.pi_spu:.3f} {balanced.shifted:.3f} {balanced.bound:.3f}")
        0.313 0.831 0.831

    Source: X10 (the exact root is this project's).  Check: proofs_checks/x10.py.
    """

    def optimum(pi_spu: Array) -> tuple[Array, Array]:
        """w_spu / w_core, and the accuracy on P*, at this pi_spu."""
        at_pi = info_nce_optimum(model, dataclasses.replace(caps, pi_spu=pi_spu), obs, nodes)
        weights = at_pi.score @ pair_prompt(model, "core")
        return weights[1] / weights[0], at_pi.accuracy(model, obs).shifted

    ends = jnp.stack([jnp.zeros_like(model.p_spu), jnp.ones_like(model.p_spu)])
    end_ratios, _ = jax.vmap(optimum)(ends)
    tolerance = max(_ROOT_TOLERANCE[0], _ROOT_TOLERANCE[1] * float(jnp.finfo(end_ratios.dtype).eps))
    # NaN compares as False and so gives no root. The tolerance keeps rounding from making one.
    crosses = (end_ratios[0] * end_ratios[1] < 0) & (jnp.abs(end_ratios).max() > tolerance)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, f, side, _, _, _, iteration = state
        guess = (x[0] * f[1] - x[1] * f[0]) / (f[1] - f[0])
        value, shifted = optimum(guess)
        kept = (value * f[0] < 0).astype(int)  # the end that the guess replaces
        stale = 1 - kept
        # Illinois: halve the value at an end that stays twice, or it would stay for ever.
        f = f.at[stale].multiply(jnp.where(kept == side, 0.5, 1.0))
        return x.at[kept].set(guess), f.at[kept].set(value), kept, guess, value, shifted, iteration + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        return crosses & (jnp.abs(state[4]) > tolerance) & (state[6] < _ROOT_STEPS)

    nan = jnp.full_like(model.p_spu, jnp.nan)
    start: tuple[Array, ...] = (
        ends,
        end_ratios,
        jnp.asarray(-1),
        nan,
        jnp.full_like(nan, jnp.inf),
        nan,
        jnp.asarray(0),
    )
    *_, pi_spu, ratio, shifted, _ = jax.lax.while_loop(unfinished, step, start)
    bound = ndtr(model.mu_core / jnp.hypot(model.sigma_core, obs.sd_image))
    return BalancedCaptions(pi_spu, jnp.where(crosses, ratio, jnp.nan), shifted, bound, end_ratios)


def _newton(
    derivatives: Callable[[Array], tuple[Array, Array, Array]], loss: Callable[[Array], Array], size: int
) -> tuple[Array, Array, Array, Array]:
    """Minimiser of a convex function of size^2 numbers, starting from 0, with its value, gradient and Hessian there."""

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        m, value, gradient, hessian, _, iteration = state
        move = -_pseudo_inverse(hessian)[0] @ gradient
        rounding = 8 * jnp.finfo(m.dtype).eps * jnp.abs(value)

        def too_long(size: Array) -> Array:
            return ~(loss(m + size * move) <= value + rounding) & (size > 1e-6)

        size = jax.lax.while_loop(too_long, lambda size: size / 2, jnp.ones_like(value))
        m_new = m + size * move
        moved = jnp.abs(m_new - m).max() / (1 + jnp.abs(m).max())
        return m_new, *derivatives(m_new), moved, iteration + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        return (state[4] > 32 * jnp.finfo(state[0].dtype).eps) & (state[5] < _NEWTON_STEPS)

    start = jnp.zeros(size**2)
    state: tuple[Array, ...] = (start, *derivatives(start), jnp.asarray(1.0), jnp.asarray(0))
    m, value, gradient, hessian, _, _ = jax.lax.while_loop(unfinished, step, state)
    return m, value, gradient, hessian


def _pseudo_inverse(hessian: Float[Array, "k k"]) -> tuple[Float[Array, "k k"], Array]:
    """The pseudo-inverse of a symmetric matrix >= 0, in units that make its diagonal 1, and whether it is singular."""
    diagonal = jnp.diagonal(hessian)
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    values, vectors = jnp.linalg.eigh(hessian * jnp.outer(scale, scale))
    kept = values > 16 * jnp.finfo(hessian.dtype).eps
    inverse = (vectors * jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)[None, :]) @ vectors.T
    return inverse * jnp.outer(scale, scale), ~kept.all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Mixture:
    """The 8 cases of (x, t) given y = +1; y = -1 mirrors all means. Coordinates are independent within a case."""

    probability: Array  # (8,)
    image_mean: Array  # (8, 2)
    text_mean: Array  # (8, 2)
    image_sd: Array  # (8, 2)
    text_sd: Array  # (8, 2)
    cross_moment: Array  # (2, 2)  E x t^T


def _mixture(model: IntraClass, caps: Captions, obs: Observation) -> _Mixture:
    exactly(model, IntraClass)
    probability, base, mean, mention = mention_cases(
        caps.masking, model.p_spu, model.mu_core, model.mu_spu, caps.pi_core, caps.pi_spu
    )
    variance = jnp.stack([model.sigma_core, model.sigma_spu])[None, :] ** 2
    text_mean = base + mention * (mean - base)
    cross = jnp.einsum("k,ki,kj->ij", probability, mean, text_mean)
    cross = cross + jnp.diag((probability[:, None] * mention * variance).sum(0))
    return _Mixture(
        probability=probability,
        image_mean=mean,
        text_mean=text_mean,
        image_sd=jnp.broadcast_to(root_of_square(variance + obs.sd_image**2), mean.shape),
        text_sd=root_of_square(mention * variance + obs.sd_text**2),
        cross_moment=cross,
    )


def _mark_undefined_slopes(caps: Captions, mixture: _Mixture, singular: Array) -> tuple[Captions, Array]:
    """Captions whose pi have derivative NaN where there is none; and whether all derivatives are lost.

    Let the only coordinate that is always 0 be a text coordinate that is never mentioned. As mentions become rare M has
    a limit, but not the minimiser of least norm. So its pi has no derivative, and all other parameters have.
    """
    occurs = mixture.probability[:, None] > 0
    absent = ~(occurs & ((mixture.text_mean != 0) | (mixture.text_sd > 0))).any(0)
    pis = (caps.pi_core, caps.pi_spu)
    silent = absent & (jnp.stack(pis) == 0) & singular
    pi_core, pi_spu = (undefined_slope(pi, silent[k]) for k, pi in enumerate(pis))
    sees_all = ((mixture.image_mean != 0) | (mixture.image_sd > 0)).any(0).all()
    lost = singular & ~(sees_all & (absent == silent).all())
    return dataclasses.replace(caps, pi_core=pi_core, pi_spu=pi_spu), lost


def _population_loss(mixture: _Mixture, nodes: int, kappa: Array, m: Float[Array, "4"]) -> Float[Array, ""]:
    """The loss L(M) of `info_nce_optimum` at m, the entries of M."""
    score = m.reshape(2, 2)
    image = (mixture.image_mean, mixture.image_sd)
    text = (mixture.text_mean, mixture.text_sd)
    occurs = jnp.concatenate(2 * [mixture.probability > 0])

    def side(outer: tuple[Array, Array], inner: tuple[Array, Array], score: Array) -> Array:
        """E_outer log E_inner exp(outer^T score inner)."""
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        weights = weights / weights.sum()
        grid = jnp.stack(jnp.meshgrid(*2 * [jnp.asarray(points)], indexing="ij"), -1).reshape(-1, 2)
        at = outer[0][:, None, :] + outer[1][:, None, :] * grid[None]  # (8, nodes^2, 2)
        slope = at @ score
        quadratic = 0.5 * slope**2 @ (inner[1] ** 2).T
        linear = slope @ inner[0].T
        exponent = jnp.concatenate([quadratic + linear, quadratic - linear], -1)  # both signs of y'
        # A case of probability 0 still adds a derivative, so its term must be there. No term may overflow.
        top = jax.lax.stop_gradient(jnp.where(occurs, exponent, -jnp.inf).max(-1, keepdims=True))
        terms = jnp.exp(jnp.minimum(exponent - top, LARGEST_EXPONENT))
        inside = jnp.log(terms @ jnp.concatenate(2 * [mixture.probability]) / 2) + top[..., 0]
        return mixture.probability @ (inside @ jnp.asarray(np.outer(weights, weights).ravel()))

    both = side(image, text, score) + side(text, image, score.T)
    return both / 2 - jnp.vdot(score, mixture.cross_moment) + kappa / 2 * jnp.vdot(score, score)
