"""The mean accuracy of the linear MMCL loss over training samples, to order 1/n.

Symbols: h = D_I^T x_I the image on the latent coordinates, t = x_T . p its text score, y label, m_z and m_t the class
means of both, c = 1 - 2 lambda, A = y h + c m_z and T = y t + c m_t, w the rule on the latents, V the squared norm of
its other part.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data import Captions, IntraClass, Observation
from mmcl_theory.zero_shot import GroupAccuracy, linear_rule_accuracy


def mmcl_mean_accuracy(
    model: IntraClass, caps: Captions, obs: Observation, n: Scalar, same_class_weight: Scalar | None = None
) -> GroupAccuracy:
    """Mean over training samples of the accuracy of the linear MMCL rule C_hat p, core prompt, by group; error o(1/n).

    C_hat is unbiased, but accuracy is not linear in it: with X = (w, V) of one sample of size n,
        E acc(X) = acc(E X) + 1/2 tr(Hess acc(E X) Cov X) + o(1/n),
    where one sample contributes A T to w and s_I^2 (d_I - 2)/(n - 1) T^2 to V, so that
        Cov X = Cov(A_core T, A_spu T, k T^2)/n, k = s_I^2 (d_I - 2)/(n - 1),
    and V has a chi^2 share 2 V^2/(d_I - 2) more. Given y, a and what is mentioned, (A, T) is Gaussian, so the moments
    are a sum over 8 cases (Isserlis). The leading term is `mmcl_accuracy(model, caps, obs, n, same_class_weight=...)`
    up to O(1/n).

    n: >= 2; an expansion in 1/n, to be trusted where the correction is small.  same_class_weight: lambda in [0, 1];
    None (the ordinary loss) is 1/2, which has the same law to this order.  Leaves of all arguments broadcast.
    Raises: ValueError for values out of range.
    Source: this project (delta method on T2, X2, X3).  Check: proofs_checks/t2.py, proofs_checks/x2.py.
    """
    weight = _checks.real("same_class_weight", 0.5 if same_class_weight is None else same_class_weight, "in [0, 1]")
    leaves = (
        *(model.p_spu, model.sigma_core, model.sigma_spu, model.mu_core, model.mu_spu, caps.pi_core, caps.pi_spu),
        *(obs.sd_image, obs.sd_text, _checks.sample_size(n), weight),
    )
    one_cell = functools.partial(_mean_accuracy, caps.masking, obs.dim_image - 2)
    aligned, conflicting = jnp.vectorize(one_cell)(*jnp.broadcast_arrays(*leaves))
    return GroupAccuracy(aligned, conflicting)


def _mean_accuracy(masking: str, perpendicular: int, *leaves: Array) -> tuple[Array, Array]:
    """Both groups' mean accuracy for scalar leaves, in the order of `mmcl_mean_accuracy`."""
    p_spu, sigma_core, sigma_spu, mu_core, mu_spu, pi_core, pi_spu, sd_image, sd_text, n, weight = leaves
    model = IntraClass(p_spu, sigma_core, sigma_spu, mu_core, mu_spu)
    shift = 1 - 2 * weight
    q = 2 * p_spu - 1
    probability, base, mean, mention = mention_cases(masking, p_spu, mu_core, mu_spu, pi_core, pi_spu)

    # The core prompt mu_core e_core only sees the core coordinate of a caption.
    text_mean = mu_core * (base + mention * (mean - base))[:, 0]
    text_class_mean = probability @ text_mean
    image_class_mean = jnp.stack([mu_core, q * mu_spu])
    variance = jnp.stack([sigma_core, sigma_spu]) ** 2
    alpha = mean + shift * image_class_mean[None, :]
    tau = text_mean + shift * text_class_mean
    s_image = jnp.diag(variance + sd_image**2)
    s_cross = jnp.stack([mu_core * mention[:, 0] * variance[0], jnp.zeros_like(tau)], -1)
    s_text = mu_core**2 * (mention[:, 0] * variance[0] + sd_text**2)

    first, second = _product_moments(probability, alpha, tau, s_image, s_cross, s_text)
    k = sd_image**2 * perpendicular / (n - 1)
    scale = jnp.stack([jnp.ones_like(k), jnp.ones_like(k), k])
    covariance = (second - jnp.outer(first, first)) * jnp.outer(scale, scale) / n
    chi_squared = 2 * perpendicular * (sd_image**2 * first[2] / (n - 1)) ** 2
    covariance = covariance.at[2, 2].add(chi_squared)
    # E A T exceeds the rule E C_hat p by a constant: both centre on different points.
    constant = image_class_mean * text_class_mean * ((1 + shift) ** 2 - (1 + shift))
    rule = first[:2] - constant

    def accuracy(x: Float[Array, "3"]) -> Float[Array, "2"]:
        groups = linear_rule_accuracy(model, x[:2], x[:2] @ x[:2] + x[2], sd_image)
        return jnp.stack([groups.aligned, groups.conflicting])

    center = jnp.stack([rule[0], rule[1], k * first[2]])
    curvature = jax.hessian(accuracy)(center)
    means = accuracy(center) + 0.5 * (curvature * covariance[None]).sum((1, 2))
    return means[0], means[1]


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
