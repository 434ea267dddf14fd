"""The mean accuracy of the linear MMCL loss over training samples, from the Gaussian distribution of the learnt rule.

Symbols: h = D_I^T x_I the image on the latent coordinates, t = x_T . p its text score, y label, m_z and m_t the class
means of both, c = 1 - 2 lambda, A = y h + c m_z and T = y t + c m_t, w the rule on the latents, V the squared norm of
its other part, mu the mean of a group's latents, a = E w . mu and b^2 = Var(w . mu).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import root_of_square
from mmcl_theory.data import Captions, IntraClass, Observation
from mmcl_theory.data.captions import pair_captions
from mmcl_theory.data.protocol import exactly
from mmcl_theory.zero_shot import PROMPTS, GroupAccuracy

_TAIL = 8.5  # end of the integrals, in standard deviations
_SIDE = np.polynomial.legendre.leggauss(32)  # nodes and weights on each side of the margin's zero
_WIDTHS = (1e-4, 3.0)  # range of widths of the step at the zero that the nodes resolve, in standard deviations
_ACROSS = np.linspace(-5.25, 5.25, 33)
_OWN = np.where(np.arange(len(_ACROSS)) % 2, 1.0, -1.0)  # alternating signs are exact to the third moment
_SMALL = (0.3, 0.25)  # largest fluctuations of z and of the rule that a second-order expansion describes
_SURE = (5.0, 1e-5)  # standard deviations of z within which the accuracy is this close to 0 or 1


def mmcl_mean_accuracy(
    model: IntraClass,
    caps: Captions,
    obs: Observation,
    n: Scalar,
    same_class_weight: Scalar | None = None,
    prompts: str = "core",
) -> GroupAccuracy:
    """Mean over training samples of the accuracy of the linear MMCL rule C_hat p, by group, with error o(1/n).

    The rule w and V are averages over the sample. One pair contributes A T to w and s_I^2 (d_I - 2)/(n - 1) T^2 to V:

        E w = C p,   Cov(w, V) = Cov(A_core T, A_spu T, k T^2)/n,   k = s_I^2 (d_I - 2)/(n - 1)

    The chi^2 in V adds 2 V^2/(d_I - 2) to its variance. Given y, a and what is mentioned, (A, T) is Gaussian, so these
    moments are a sum over 8 cases (Isserlis). The accuracy is averaged over a Gaussian w and a log-normal V with these
    moments, by quadrature:

        E Phi(w . mu / sqrt(w_c^2 s_c^2 + w_s^2 s_s^2 + s_I^2 (|w|^2 + V)))

    The nodes crowd where the margin w . mu is 0, as closely as the step of Phi is narrow there.

    Against brute force over 270 random models it was off by up to 9e-4 at n = 5, 2e-4 from 10 to 50 and 5e-5 from 200
    on. Nine of ten models were within 2e-5. Where the rule varies as much as it is large (mu_spu >> mu_core at small n)
    its distribution is not quite Gaussian: errors of .001 to .015 were measured there. The limit at fixed d_I/n is
    `mmcl_accuracy(model, caps, obs, n)`.

    Args:
        model: intra-class model; the leaves of all arguments broadcast.
        caps: caption policy.
        obs: observation.
        n: number of samples, >= 2, real values allowed.
        same_class_weight: lambda in [0, 1]; None (the ordinary loss) is 1/2, which has the same distribution to this
            order.
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        The mean accuracies in [0, 1], of the broadcast shape.

    Raises:
        ValueError: for values out of range.

    Example:
        A strong spurious feature makes the learnt rule vary, and the limit's formula is too optimistic (.836):

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.5, sigma_core=1.0, sigma_spu=0.1, mu_spu=5.0)
        >>> obs = mt.observation(500, 500, sigma_image=0.2 * 500**0.5, sigma_text=500**0.5)
        >>> accuracy = jax.jit(mt.theory.mmcl_mean_accuracy)(model, mt.captions(), obs, n=500.0)
        >>> print(f"{accuracy.shifted:.3f}")
        0.761

    Source: this project (on T2, X2, X3).  Check: proofs_checks/t2.py, proofs_checks/x2.py.
    """
    args = _cells(model, caps, obs, n, same_class_weight, prompts)
    aligned, conflicting = jnp.vectorize(functools.partial(_mean_accuracy, *args[0]))(*args[1])
    return GroupAccuracy(aligned, conflicting)


def mmcl_accuracy_cumulants(
    model: IntraClass,
    caps: Captions,
    obs: Observation,
    n: Scalar,
    same_class_weight: Scalar | None = None,
    prompts: str = "core",
) -> Float[Array, "... outcome=3 2"]:
    """Variance and third cumulant of one run's accuracy over training samples: how it spreads around its mean.

    To second order in the fluctuation d of X = (w, V), of covariance C, with g = grad acc and H = Hess acc at E X:

        acc = const + g.d + d.H d/2
        variance g.C g + tr((H C)^2)/2,   third cumulant kappa_3(g.X) + 3 g.C H C g + tr((H C)^3)

    X and C are as in `mmcl_mean_accuracy`. The quadratic part matters where g vanishes. For example, the shifted
    accuracy at p_spu = 1/2 is a constant less a chi^2_1 at every n, of skewness -sqrt(8).

    Args:
        model: intra-class model; the leaves of all arguments broadcast.
        caps: caption policy.
        obs: observation.
        n: number of samples, >= 2, real values allowed.
        same_class_weight: lambda in [0, 1]; None (the ordinary loss) is 1/2.
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        Cumulants of shape (..., 3, 2): outcomes aligned, conflicting and shifted, then orders 2 and 3. NaN where the
        fluctuations are too large for the expansion. This is where the rule's fluctuation exceeds 1/4 of |E w|. It is
        also where that of z = Phi^-1(acc), the score's mean over its standard deviation, exceeds .3 min(1, 1/|z|). Any
        fluctuation of z is allowed that leaves the accuracy within 1e-5 of 0 or 1 up to 5 of its standard deviations:
        the cumulants are about 0 there.

    Raises:
        ValueError: for values out of range.

    Example:
        The skewness of the shifted accuracy at p_spu = 1/2 is -sqrt(8):

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.5, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(50, 50)
        >>> cumulants = jax.jit(mt.theory.mmcl_accuracy_cumulants)(model, mt.captions(), obs, n=1000.0)
        >>> variance, third = cumulants[2]
        >>> print(f"{third / variance**1.5:.2f}")
        -2.83

    Source: as for `mmcl_mean_accuracy`.  Check: tests/theory/test_finite_sample.py.
    """
    static, leaves = _cells(model, caps, obs, n, same_class_weight, prompts)
    one_cell = functools.partial(_accuracy_cumulants, *static)
    return jnp.vectorize(one_cell, signature=f"{','.join(['()'] * len(leaves))}->(o,k)")(*leaves)


def rule_variance(
    model: IntraClass,
    caps: Captions,
    obs: Observation | None,
    n: Scalar,
    same_class_weight: Scalar | None = None,
    prompts: str = "core",
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The variance of the score x . w of a new x that comes from the training sample, aligned and conflicting group.

    It is mu^T Cov(w) mu + tr(Cov(x) Cov(w)) on the latent coordinates. Arguments are as for `mmcl_mean_accuracy`;
    without an observation there is no noise.
    """
    args = _cells(model, caps, obs, n, same_class_weight, prompts)
    aligned, conflicting = jnp.vectorize(functools.partial(_rule_variance, *args[0]))(*args[1])
    return aligned, conflicting


def _cells(
    model: IntraClass,
    caps: Captions,
    obs: Observation | None,
    n: Scalar,
    same_class_weight: Scalar | None,
    prompts: str,
) -> tuple[tuple[str, str, int], list[Array]]:
    """The static arguments of `_rule_law` and its leaves, broadcast."""
    exactly(model, IntraClass)
    caps = pair_captions(caps)
    _checks.choice("prompts", prompts, PROMPTS)
    weight = _checks.real("same_class_weight", 0.5 if same_class_weight is None else same_class_weight, "in [0, 1]")
    noises = (jnp.zeros(()), jnp.zeros(())) if obs is None else (obs.sd_image, obs.sd_text)
    leaves = (
        *(model.p_spu, model.sigma_core, model.sigma_spu, model.mu_core, model.mu_spu, caps.pi_core, caps.pi_spu),
        *(*noises, _checks.sample_size(n), weight),
    )
    perpendicular = 0 if obs is None else obs.dim_image - 2
    return (caps.masking, prompts, perpendicular), list(jnp.broadcast_arrays(*leaves))


@dataclasses.dataclass(frozen=True, eq=False)
class _RuleLaw:
    """Mean and covariance of the learnt (w, V), and what the accuracy of a rule depends on."""

    mean: Array  # (3,)
    covariance: Array  # (3, 3)
    group_means: Array  # (2, 2)  mu of the aligned and the conflicting group
    image_variance: Array  # (2,)  of an image's latent coordinates within a group, noise included
    noise_variance: Array  # ()  s_I^2
    third: Callable[[Array], Array]  # g -> the third cumulant of g . (w, V)

    def score(self, x: Float[Array, "3"]) -> Float[Array, "2"]:
        """z = Phi^-1(accuracy) of both groups under the rule w = x[:2] with V = x[2]; at most 1e10, without noise."""
        variance = x[:2] ** 2 @ self.image_variance + self.noise_variance * x[2]
        least = 1e-20 * (x[:2] @ x[:2]) * (self.group_means[0] @ self.group_means[0])
        return self.group_means @ x[:2] / jnp.sqrt(variance + least)


def _rule_law(masking: str, prompts: str, perpendicular: int, *leaves: Array) -> _RuleLaw:
    """The distribution of the rule for scalar leaves, in the order of `_cells`."""
    p_spu, sigma_core, sigma_spu, mu_core, mu_spu, pi_core, pi_spu, sd_image, sd_text, n, weight = leaves
    shift = 1 - 2 * weight
    q = 2 * p_spu - 1
    probability, base, mean, mention = mention_cases(masking, p_spu, mu_core, mu_spu, pi_core, pi_spu)

    image_class_mean = jnp.stack([mu_core, q * mu_spu])
    prompt = image_class_mean * jnp.array([1.0, 0.0 if prompts == "core" else 1.0])
    text_mean = (base + mention * (mean - base)) @ prompt
    text_class_mean = probability @ text_mean
    variance = jnp.stack([sigma_core, sigma_spu]) ** 2
    alpha = mean + shift * image_class_mean[None, :]
    tau = text_mean + shift * text_class_mean
    s_image = jnp.diag(variance + sd_image**2)
    s_cross = mention * (variance * prompt)[None, :]
    s_text = mention @ (variance * prompt**2) + sd_text**2 * (prompt @ prompt)

    first, second = _product_moments(probability, alpha, tau, s_image, s_cross, s_text)
    k = sd_image**2 * perpendicular / (n - 1)
    scale = jnp.stack([jnp.ones_like(k), jnp.ones_like(k), k])
    covariance = (second - jnp.outer(first, first)) * jnp.outer(scale, scale) / n
    unit = sd_image**2 * first[2] / (n - 1)  # V is about this times chi^2
    covariance = covariance.at[2, 2].add(2 * perpendicular * unit**2)
    # E A T exceeds the rule E C_hat p by a constant, because the two centre on different points.
    constant = image_class_mean * text_class_mean * ((1 + shift) ** 2 - (1 + shift))
    rule = first[:2] - constant

    def third(gradient: Float[Array, "3"]) -> Float[Array, ""]:
        """The third cumulant of g . (w, V). A sample contributes B T with B = g_1 A_1 + g_2 A_2 + g_3 k T."""
        g, of_t = gradient[:2], gradient[2] * k
        slope = jnp.where(s_text > 0, (s_cross @ g) / jnp.where(s_text > 0, s_text, 1.0), 0.0)
        rest = g @ s_image @ g - slope**2 * s_text  # Var(B | T)
        nodes, weights = (jnp.asarray(x) for x in np.polynomial.hermite_e.hermegauss(4))  # exact to degree 7
        t = tau[:, None] + root_of_square(s_text)[:, None] * nodes[None, :]
        b = (alpha @ g)[:, None] + slope[:, None] * (t - tau[:, None]) + of_t * t
        moments = [b * t, (b**2 + rest[:, None]) * t**2, (b**3 + 3 * b * rest[:, None]) * t**3]
        m1, m2, m3 = (probability @ m @ weights / weights.sum() for m in moments)
        return (m3 - 3 * m1 * m2 + 2 * m1**3) / n**2 + 8 * perpendicular * (gradient[2] * unit) ** 3

    return _RuleLaw(
        mean=jnp.append(rule, k * first[2]),
        covariance=covariance,
        group_means=jnp.stack([mu_core, mu_spu])[None, :] * jnp.array([[1.0, 1.0], [1.0, -1.0]]),
        image_variance=variance + sd_image**2,
        noise_variance=sd_image**2,
        third=third,
    )


def _rule_variance(masking: str, prompts: str, perpendicular: int, *leaves: Array) -> tuple[Array, Array]:
    law = _rule_law(masking, prompts, perpendicular, *leaves)
    covariance = law.covariance[:2, :2]
    groups = ((law.group_means @ covariance) * law.group_means).sum(1) + law.image_variance @ jnp.diagonal(covariance)
    return groups[0], groups[1]


def _mean_accuracy(masking: str, prompts: str, perpendicular: int, *leaves: Array) -> tuple[Array, Array]:
    law = _rule_law(masking, prompts, perpendicular, *leaves)
    groups = jax.vmap(functools.partial(_group_mean_accuracy, law))(law.group_means)
    return groups[0], groups[1]


def _group_mean_accuracy(law: _RuleLaw, mu: Float[Array, "2"]) -> Float[Array, ""]:
    """The average over w = E w + z S mu / b + g r J mu, S = Cov w, J a quarter turn; z, g standard normal.

    z alone moves the margin w . mu = a + b z. Where the margin is 0 the accuracy steps; the noise of the score sets the
    width of the step. Each side of the zero is averaged by itself and counts by its probability. So a step without
    noise is exact, and its derivative too.
    """
    w, v = law.mean[:2], law.mean[2]
    s, cross, v_variance = law.covariance[:2, :2], law.covariance[:2, 2], law.covariance[2, 2]
    turned = jnp.stack([-mu[1], mu[0]])
    square = mu @ mu
    b = root_of_square(jnp.maximum(mu @ s @ mu, 0.0))
    safe_b = jnp.where(b > 0, b, 1.0)
    along = s @ mu / safe_b
    r = root_of_square(jnp.maximum(jnp.trace(s) - along @ along, 0.0) / square)
    # Write log V in three standard normals: z, g, and one of its own.
    safe_v = jnp.where(v > 0, v, 1.0)
    slope_z = cross @ mu / safe_b / safe_v
    rest = cross @ turned / safe_v - slope_z * (along @ turned)
    slope_g = jnp.where(r > 0, rest / jnp.where(r > 0, r * square, 1.0), 0.0)
    total = v_variance / safe_v**2
    slope_own = root_of_square(jnp.maximum(total - slope_z**2 - slope_g**2, 0.0))

    def noise(z: Array, g: Array, own: Array) -> Array:
        rule = w + along * z + r * g * turned
        size = v * jnp.exp(slope_z * z + slope_g * g + slope_own * own - total / 2)
        return rule**2 @ law.image_variance + law.noise_variance * size

    a = w @ mu
    zero = jnp.clip(jnp.where(b > 0, -a / safe_b, -jnp.sign(a) * _TAIL), -_TAIL, _TAIL)

    def side(end: float, width: Array, g: Array, own: Array) -> Array:
        """The average from the zero to the end. Nodes crowd at the zero: z = zero + width sinh(u)."""
        last = jax.lax.stop_gradient(jnp.arcsinh((end - zero) / width))
        u = last * (1 + jnp.asarray(_SIDE[0], a.dtype)) / 2
        z = zero + width * jnp.sinh(u)
        density = jnp.asarray(_SIDE[1], a.dtype) * jnp.exp(-(z**2) / 2) * jnp.cosh(u)
        margin, variance = a + b * z, jax.vmap(noise, (0, None, None))(z, g, own)
        noiseless = variance <= 0
        step = 0.5 * (1 + jnp.sign(margin))
        right = jnp.where(noiseless, step, ndtr(margin / jnp.sqrt(jnp.where(noiseless, 1.0, variance))))
        return density @ right / density.sum()

    def along_z(g: Array, own: Array) -> Array:
        width = jax.lax.stop_gradient(jnp.clip(jnp.sqrt(noise(zero, g, own)) / safe_b, *_WIDTHS))
        return ndtr(zero) * side(-_TAIL, width, g, own) + ndtr(-zero) * side(_TAIL, width, g, own)

    g, own = jnp.asarray(_ACROSS, a.dtype), jnp.asarray(_OWN, a.dtype)
    density = jnp.exp(-(g**2) / 2)
    accuracy = density @ jax.vmap(along_z)(g, own) / density.sum()
    return jnp.minimum(accuracy, 1.0)  # rounding may exceed 1


def _accuracy_cumulants(masking: str, prompts: str, perpendicular: int, *leaves: Array) -> Float[Array, "3 2"]:
    """Cumulants of orders 2 and 3 (columns) of each outcome (rows), for scalar leaves."""
    law = _rule_law(masking, prompts, perpendicular, *leaves)

    def outcomes(x: Float[Array, "3"]) -> Float[Array, "3"]:
        groups = ndtr(law.score(x))
        return jnp.append(groups, groups.mean())

    gradient, curved, second = _second_order(outcomes, law)
    third = jax.vmap(law.third)(gradient) + 3 * jnp.einsum("oi,oij,oj->o", gradient @ law.covariance, curved, gradient)
    third += jnp.einsum("oij,ojk,oki->o", curved, curved, curved)
    z, sd_z = jnp.abs(law.score(law.mean)), jnp.sqrt(_second_order(law.score, law)[2])
    deviations, close = _SURE
    sure = ndtr(deviations * sd_z - z) <= close
    of_rule = jnp.trace(law.covariance[:2, :2]) / (law.mean[:2] @ law.mean[:2])
    # Phi bends within 1/z.
    small = (sure | (sd_z * jnp.maximum(z, 1) <= _SMALL[0])).all() & (of_rule <= _SMALL[1] ** 2)
    return jnp.where(small, jnp.stack([second, third], -1), jnp.nan)


def _second_order(f: Callable[[Array], Array], law: _RuleLaw) -> tuple[Array, Array, Array]:
    """Gradient g, H C and variance g.C g + tr((H C)^2)/2 of f(w, V) (k,), by the delta method."""
    gradient, curved = jax.jacobian(f)(law.mean), jax.hessian(f)(law.mean) @ law.covariance
    spread = gradient @ law.covariance
    return gradient, curved, (spread * gradient).sum(-1) + jnp.einsum("oij,oji->o", curved, curved) / 2


def mention_cases(
    masking: str, p_spu: Array, mu_core: Array, mu_spu: Array, pi_core: Array, pi_spu: Array
) -> tuple[Array, Array, Array, Array]:
    """The 8 cases (attribute, core mentioned, spurious mentioned) at y = 1: probability, base, mean of z, mentions."""
    a, core, spu = (
        x.ravel() for x in jnp.meshgrid(jnp.array([1.0, -1.0]), *2 * [jnp.array([0.0, 1.0])], indexing="ij")
    )
    probability = jnp.where(a > 0, p_spu, 1 - p_spu)
    for mentioned, pi in ((core, pi_core), (spu, pi_spu)):
        probability = probability * jnp.where(mentioned > 0, pi, 1 - pi)
    mean = jnp.stack([mu_core * jnp.ones_like(a), mu_spu * a], -1)
    base = {"named": mean * jnp.array([[1.0, 0.0]]), "mean": mean, "zero": 0 * mean}[masking]
    return probability, base, mean, jnp.stack([core, spu], -1)


def _product_moments(
    probability: Array, alpha: Array, tau: Array, s_image: Array, s_cross: Array, s_text: Array
) -> tuple[Float[Array, "3"], Float[Array, "3 3"]]:
    """E X and E X X^T of X = (A_1 T, A_2 T, T^2), (A, T) a mixture of Gaussians: means alpha, tau, covariances s."""
    t2 = tau**2 + s_text
    first = jnp.concatenate([alpha * tau[:, None] + s_cross, t2[:, None]], -1)
    cross = alpha[:, :, None] * s_cross[:, None, :]
    products = alpha[:, :, None] * alpha[:, None, :] + s_image[None]
    aa = products * t2[:, None, None] + 2 * (cross + cross.mT) * tau[:, None, None]
    aa = aa + 2 * s_cross[:, :, None] * s_cross[:, None, :]
    at = alpha * (tau**3 + 3 * tau * s_text)[:, None] + 3 * s_cross * t2[:, None]
    tt = tau**4 + 6 * tau**2 * s_text + 3 * s_text**2
    second = jnp.block([[aa, at[:, :, None]], [at[:, None, :], tt[:, None, None]]])
    return probability @ first, (probability[:, None, None] * second).sum(0)
