"""The dial from InfoNCE's whitened optimum to the linear loss: a ridge on the score matrix, and the best ridge.

Symbols: C = Cov(z, u), S_I = Cov(z) + s_I^2, S_T = Cov(u) + s_T^2 (2 x 2, on the latent coordinates) with eigenvalues
l_i, m_j, kappa ridge, p prompt, w = (w_c, w_s) the rule, share t = kappa / (kappa + scale) in [0, 1].
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data import (
    AccuracyByGroup,
    Captions,
    GroupCaptions,
    IntraClass,
    Model,
    Observation,
    captions,
    moments,
    observation,
)
from mmcl_theory.data.captions import is_pair_model, pair_captions
from mmcl_theory.data.protocol import exactly
from mmcl_theory.theory import mixtures
from mmcl_theory.theory.mmcl import pair_prompt
from mmcl_theory.theory.whitened import noise_variances, whitened_rule
from mmcl_theory.zero_shot import PROMPTS, GroupAccuracy, linear_rule_accuracy

_BISECTIONS = 64
_ROUNDING = 16  # two accuracies that differ by fewer units in the last place count as equal


def ridge_accuracy(
    model: Model,
    caps: Captions | GroupCaptions | None = None,
    obs: Observation | None = None,
    kappa: Scalar = 0.0,
    prompts: mixtures.Prompts = "core",
) -> GroupAccuracy | AccuracyByGroup:
    """Zero-shot accuracy, by group, of the population rule of InfoNCE with a ridge: to second order, at full rank.

    The rule is `ridge_rule`. kappa = rho tau^2 at temperature tau with penalty (rho/2) |W|_F^2 on W = W_I^T W_T.
    kappa = 0 is `whitened_accuracy` at theta = 1. kappa = inf is the linear loss, `mmcl_accuracy` with obs, n = None.
    Stopping gradient flow in W at time t is like kappa = 1/t (`learners.gradient_flow`).

    It is exact for Gaussian latents, and a limit of many samples: near kappa = 0 n must be many times d_I / rho^2, see
    `whitened_accuracy`. For the mixture of classes `info_nce_optimum` takes kappa too.

    Args:
        model: data model; the leaves of all arguments broadcast.
        caps: caption policy; None for rich captions.
        obs: observation; None for no noise.
        kappa: the ridge, in [0, inf].
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        The accuracies, of the broadcast shape.

    Raises:
        ValueError: for kappa or prompts out of range.

    Example:
        Between whitening and the linear loss there is a better ridge:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> accuracy = mt.theory.ridge_accuracy(model, obs=obs, kappa=jnp.array([0.0, 1.0, jnp.inf]))
        >>> print([f"{value:.3f}" for value in accuracy.shifted])
        ['0.762', '0.831', '0.803']

    Source: X11, X12.  Check: proofs_checks/x11.py, proofs_checks/x12.py.
    """
    weights = ridge_rule(model, caps, obs, kappa, prompts)
    if not is_pair_model(model):
        return mixtures.accuracy_in_the_span(model, weights, obs)
    return linear_rule_accuracy(model, weights, (weights**2).sum(-1), 0.0 if obs is None else obs.sd_image)


def ridge_rule(
    model: Model,
    caps: Captions | GroupCaptions | None = None,
    obs: Observation | None = None,
    kappa: Scalar = 0.0,
    prompts: mixtures.Prompts = "core",
) -> Float[Array, "..."]:
    """The rule w = M p on the latents, where S_I M S_T + kappa M = (1 + kappa) C and p is the prompt of class +1.

        M = (1 + kappa) U [(U^T C V)_ij / (l_i m_j + kappa)] V^T

    The factor 1 + kappa does not change the accuracy, and makes both ends finite. At kappa = 0, M = S_I^-1 C S_T^-1,
    with pseudo-inverses as in `whitened_rule`. At kappa = inf, M = C.

    Derivatives hold at every kappa > 0. At kappa = 0 they are those of `whitened_rule`, and the derivative in kappa
    holds. The derivative in kappa at inf is 0.

    Args:
        model: data model; the leaves of all arguments broadcast.
        caps: caption policy; None for rich captions.
        obs: observation; None for no noise.
        kappa: the ridge, in [0, inf].
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        (core, spurious) weights. Intra-class: w, with sign(z . w) the prediction. Inter-class: (A, B), the same for
        every pair of coordinates. Mixture: the rule of every class, (..., K, l).

    Raises:
        ValueError: for kappa or prompts out of range.

    Example:
        Its two ends are the whitened rule and that of the linear loss:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> rules = mt.theory.ridge_rule(model, kappa=jnp.array([0.0, 1.0, jnp.inf]))
        >>> whitened, linear = mt.theory.whitened_rule(model), mt.theory.mmcl_rule(model)
        >>> print(bool(jnp.allclose(rules[0], whitened, atol=1e-5)), bool(jnp.allclose(rules[2], linear, atol=1e-5)))
        True True

    Source: as for `ridge_accuracy`.
    """
    if not is_pair_model(model):
        return mixtures.ridge_rule(model, caps, obs, kappa, prompts)
    kappa, caps = _checks.real("kappa", kappa, "in [0, inf]"), pair_captions(caps)
    kind = _checks.choice("prompts", prompts, PROMPTS)
    image, cross, text = _covariances(model, caps, obs)
    prompt = pair_prompt(model, kind)
    batch = jnp.broadcast_shapes(kappa.shape, image.shape[:-2], text.shape[:-2], prompt.shape[:-1])
    kappa = jnp.broadcast_to(kappa, batch)
    image, cross, text = (jnp.broadcast_to(x, (*batch, 2, 2)) for x in (image, cross, text))
    prompt = jnp.broadcast_to(prompt, (*batch, 2))[..., :, None]
    finite, whitened = jnp.isfinite(kappa), kappa == 0
    inside = jnp.where(finite & ~whitened, kappa, 1.0)
    score = _score(image, cross, text, jnp.where(finite, inside / (1 + inside), 1.0))
    inner = (jnp.where(finite[..., None, None], score, cross) @ prompt)[..., 0]
    end = jnp.broadcast_to(whitened_rule(model, caps, _at_zero(obs, whitened), 1.0, kind), inner.shape)
    # Around kappa = 0, M = (1 + kappa) S_I^-1 C S_T^-1 - kappa S_I^-2 C S_T^-2.
    bend = end - jax.lax.stop_gradient((_squared_inverse(image) @ (cross @ (_squared_inverse(text) @ prompt)))[..., 0])
    slope = jnp.where(whitened, kappa, 0.0)[..., None]
    return jnp.where(whitened[..., None], end + slope * bend, inner)


def _at_zero(obs: Observation | None, whitened: Array) -> Observation:
    """obs where `whitened`; elsewhere with noise, so that derivatives undefined without noise do not spread."""
    obs = obs or observation(2, 2, 0.0, 0.0)
    sigmas = (jnp.broadcast_arrays(x, whitened)[0] for x in (obs.sigma_image, obs.sigma_text))
    image, text = (jnp.where(whitened, x, 1.0) for x in sigmas)
    return dataclasses.replace(obs, sigma_image=image, sigma_text=text)


def _score(
    image: Float[Array, "... 2 2"], cross: Float[Array, "... 2 2"], text: Float[Array, "... 2 2"], share: Array
) -> Float[Array, "... 2 2"]:
    """M with (1 - share) S_I M S_T + share M = C."""
    batch, t = share.shape, share[..., None, None]
    product = jnp.einsum("...ij,...kl->...ikjl", image, text).reshape(*batch, 4, 4)
    system = (1 - t) * product + t * jnp.broadcast_to(jnp.eye(4, dtype=product.dtype), product.shape)
    return jnp.linalg.solve(system, cross.reshape(*batch, 4, 1)).reshape(*batch, 2, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RidgeOptimum:
    """The best ridge and its certificate.

    Attributes:
        kappa: the best ridge, in [0, inf].
        accuracy: the accuracy there, by group.
        ratio: w_s / w_c there; 0 where the rule is balanced.
        slope: derivative of acc_P* at the best t = kappa / (kappa + scale), scale the largest l_i m_j. It is 0
            inside, >= 0 at kappa = inf and <= 0 at kappa = 0. At kappa = 0 it is taken at t = sqrt(eps), because S_I or
            S_T may be singular.
        bound: the largest acc_P* of any linear rule, Phi(mu_c / sqrt(s_c^2 + s_I^2)).
        candidates: acc_P* at kappa = inf, at 0, and wherever w_s = 0 or d(w_s/w_c)/d kappa = 0 (repeated where there
            are fewer). The maximum is among them.

    Example:
        At the best ridge the rule leaves out the spurious feature:

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> best = jax.jit(mt.theory.optimal_ridge)(model)
        >>> print(bool(abs(best.ratio) < 1e-5), f"{best.accuracy.aligned:.3f} {best.accuracy.conflicting:.3f}")
        True 0.841 0.841
    """

    kappa: Array  # ()
    accuracy: GroupAccuracy  # ()
    ratio: Array  # ()
    slope: Array  # ()
    bound: Array  # ()
    candidates: Array  # (9,)


def optimal_ridge(
    model: IntraClass, caps: Captions | None = None, obs: Observation | None = None, prompts: str = "core"
) -> RidgeOptimum:
    """The ridge kappa in [0, inf] of best accuracy on P*, and of best accuracy in the worst group.

        argmax over kappa of ridge_accuracy(...).shifted, and of ridge_accuracy(...).worst

    Both fall strictly in |w_s / w_c| where w_c > 0, which acc_P* > 1/2 implies, so that one kappa is the best for both.
    det(S_I (x) S_T + kappa) w is a cubic polynomial in kappa. So the stationary points of w_s / w_c are the roots of a
    quartic and its zeros those of a cubic. All of them are bracketed, by the roots of their derivatives, and bisected.
    The best among them and both ends is the global optimum.

    Where the whitened rule over-corrects (core prompts, q > 0, captions that name the class), w_s changes its sign
    between kappa = 0 and inf. If w_c > 0 at the root, the root is the best kappa. There w_s = 0, the rule is balanced,
    and no linear rule does better: acc_P* = worst = bound certifies it. With rich captions

        kappa = det Cov(z) - s_I^2 s_T^2,   det Cov(z) = (mu_c^2 + s_c^2) (mu_s^2 + s_s^2) - q^2 mu_c^2 mu_s^2

    where this is >= 0. Below 0 the whitened rule does not over-correct.

    kappa is not unique where w_s / w_c is constant (p_spu = 1/2 or mu_spu = 0); then kappa = inf is returned. Where no
    kappa has acc_P* > 1/2, another kappa may be the best for the worst group.

    Derivatives of accuracy hold. That of kappa is by the implicit function theorem inside and 0 at the ends.

    Args:
        model: intra-class model with scalar leaves (`vmap` for more).
        caps: caption policy with scalar leaves; None for rich captions.
        obs: observation with scalar leaves; None for no noise.
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        The optimum and its certificate.

    Raises:
        ValueError: for prompts out of range.

    Example:
        Without noise the best ridge is det Cov(z), and its accuracy the best of any linear rule:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> best = jax.jit(mt.theory.optimal_ridge)(model)
        >>> print(f"{best.kappa:.3f} {jnp.linalg.det(mt.moments(model, mt.captions()).zz):.3f}")
        1.060 1.060
        >>> print(f"{best.accuracy.shifted:.3f} {best.bound:.3f}")
        0.841 0.841

    Source: X11 (the optimum is this project's).  Check: proofs_checks/x11.py.
    """
    exactly(model, IntraClass)
    caps = caps or captions()
    sd_image = jnp.zeros(()) if obs is None else obs.sd_image
    image, cross, text = parts = _covariances(model, caps, obs)
    prompt = pair_prompt(model, prompts)
    scale, core, spu = jax.lax.stop_gradient(_numerators(*parts, prompt))
    turning = _multiply(_derivative(spu), core) - _multiply(spu, _derivative(core))
    shares = jnp.concatenate([jnp.array([1.0, 0.0]), _unit_roots(spu), _unit_roots(turning[:-1])])

    def at(share: Array) -> Array:
        return ridge_accuracy(model, caps, obs, _kappa(share, scale), prompts).shifted

    candidates = jax.lax.stop_gradient(jax.vmap(at)(shares))
    # The curve may be flat at an end. The margin keeps rounding from deciding against that end.
    eps = jnp.finfo(shares.dtype).eps
    share = shares[jnp.argmax(candidates - _ROUNDING * eps * jnp.array([0, 1] + 7 * [2], shares.dtype))]

    def value(share: Array) -> Array:
        weights = _score(image / scale, cross, text, share) @ prompt
        return linear_rule_accuracy(model, weights, weights @ weights, sd_image).shifted

    def slope(share: Array) -> Array:
        return jax.jvp(value, (share,), (jnp.ones_like(share),))[1]

    # This shift is 0, but carries the derivative of the root of the slope. At share 0 the system may be singular.
    inside = (share > 0) & (share < 1)
    near = jnp.maximum(share, jnp.sqrt(eps))
    slope_near, bend = jax.jvp(slope, (near,), (jnp.ones_like(near),))
    shift = slope_near / jax.lax.stop_gradient(jnp.where(inside, bend, 1.0))
    share = jnp.where(inside, share - (shift - jax.lax.stop_gradient(shift)), share)
    kappa = _kappa(share, scale)
    weights = ridge_rule(model, caps, obs, kappa, prompts)
    return RidgeOptimum(
        kappa=kappa,
        accuracy=linear_rule_accuracy(model, weights, (weights**2).sum(-1), sd_image),
        ratio=weights[1] / weights[0],
        slope=slope_near,
        bound=ndtr(model.mu_core / jnp.hypot(model.sigma_core, sd_image)),
        candidates=candidates,
    )


def _covariances(model: Model, caps: Captions, obs: Observation | None) -> tuple[Array, Array, Array]:
    """S_I, C and S_T, (..., 2, 2)."""
    mom = moments(model, caps)
    noise_image, noise_text = noise_variances(obs)

    def plus(cov: Array, variance: Array) -> Array:
        variance = variance[..., None, None]
        shape = jnp.broadcast_shapes(cov.shape, variance.shape)
        cov, variance, eye = (jnp.broadcast_to(x, shape) for x in (cov, variance, jnp.eye(2, dtype=cov.dtype)))
        return cov + variance * eye

    return plus(mom.zz, noise_image), mom.zu, plus(mom.uu, noise_text)


def _squared_inverse(cov: Float[Array, "... 2 2"]) -> Float[Array, "... 2 2"]:
    """cov^-2, of the pseudo-inverse where cov is singular."""
    inverse = jnp.linalg.pinv(cov, rtol=16 * float(jnp.finfo(cov.dtype).eps), hermitian=True)
    return inverse @ inverse


def _kappa(share: Array, scale: Array) -> Array:
    """kappa of t = kappa / (kappa + scale); inf at t = 1."""
    inside = jnp.where(share < 1, share, 0.0)
    return jnp.where(share < 1, scale * inside / (1 - inside), jnp.inf)


def _numerators(
    image: Float[Array, "2 2"], cross: Float[Array, "2 2"], text: Float[Array, "2 2"], prompt: Float[Array, "2"]
) -> tuple[Array, Float[Array, "4"], Float[Array, "4"]]:
    """The largest l_i m_j; and w_c, w_s times prod_ij (l_i m_j (1 - t) / scale + t), as cubic polynomials in t."""
    (l, u), (m, v) = jnp.linalg.eigh(image), jnp.linalg.eigh(text)
    values = (l[:, None] * m[None, :]).ravel()
    scale = values.max()
    values = values / scale
    kept = values > 16 * jnp.finfo(values.dtype).eps
    values = jnp.where(kept, values, 0.0)
    parts = (u.T @ cross @ v) * (v.T @ prompt)[None, :]
    parts = jnp.where(kept[None, :], (u[:, :, None] * parts[None]).reshape(2, 4), 0.0)
    factors = jnp.stack([values, 1 - values], -1)
    others = [functools.reduce(_multiply, [factors[i] for i in range(4) if i != k]) for k in range(4)]
    core, spu = parts @ jnp.stack(others)
    return scale, core, spu


def _multiply(a: Array, b: Array) -> Array:
    """The product of two polynomials, coefficients in ascending order."""
    return jnp.convolve(a, b)


def _derivative(a: Array) -> Array:
    return a[1:] * jnp.arange(1.0, len(a), dtype=a.dtype)


def _unit_roots(a: Float[Array, " n"]) -> Float[Array, " n-1"]:
    """The real roots in [0, 1] of a polynomial of degree n - 1, coefficients in ascending order, and other points.

    Between neighbouring roots of its derivative a polynomial is monotone. If it has a root there, bisection finds it.
    If not, the end with the smaller value is returned.
    """
    zero, one = jnp.zeros(1, a.dtype), jnp.ones(1, a.dtype)
    ends = jnp.concatenate([zero, one] if len(a) == 2 else [zero, _unit_roots(_derivative(a)), one])
    low, high = ends[:-1], ends[1:]
    powers = np.arange(len(a))

    def value(x: Array) -> Array:
        return (a[None, :] * x[:, None] ** powers[None, :]).sum(-1)

    at_low, at_high = value(low), value(high)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        left = value(middle) * at_low > 0
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    low_end, high_end = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    nearer = jnp.where(jnp.abs(at_low) <= jnp.abs(at_high), low, high)
    return jnp.where(at_low * at_high < 0, (low_end + high_end) / 2, nearer)
