"""What a whitening loss learns: the family from the linear loss to InfoNCE's second order; captions that balance it.

Symbols: z latents, u caption code, C = Cov(z, u), S_I = Cov(z) + s_I^2, S_T = Cov(u) + s_T^2 (2 x 2, on the latent
coordinates), theta whitening, p prompt, w = (w_c, w_s) the rule, q = 2 p_spu - 1, k = q mu_c mu_s, v = mu_s^2 + s_s^2.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import undefined_slope
from mmcl_theory.data import AccuracyByGroup, Captions, GroupCaptions, IntraClass, Model, Observation, captions, moments
from mmcl_theory.data.captions import is_pair_model, pair_captions
from mmcl_theory.data.latents import pair_matrix
from mmcl_theory.data.protocol import exactly
from mmcl_theory.theory import mixtures
from mmcl_theory.theory.mmcl import pair_prompt
from mmcl_theory.zero_shot import PROMPTS, GroupAccuracy, linear_rule_accuracy


def whitened_accuracy(
    model: Model,
    caps: Captions | GroupCaptions | None = None,
    obs: Observation | None = None,
    theta: Scalar = 1.0,
    prompts: mixtures.Prompts = "core",
) -> GroupAccuracy | AccuracyByGroup:
    """Zero-shot accuracy, by group, of the population rule w = S_I^-theta C S_T^-theta p, at full rank.

    theta = 1 is what InfoNCE with many negatives minimises to second order, exactly for Gaussian latents. theta = 0 is
    the linear loss (`mmcl_accuracy` with obs, n = None). The rule lies in the span of the dictionary, so |w_amb| = |w|.

    This is the limit of many samples. At theta = 1 the rule w_hat of n samples is a regression on images of d_I
    dimensions. In the norm |v|^2 = v^T S_I v, the variance of a score, it is off by

        E |w_hat - w|^2 / |w|^2 ~ d_I (1 - rho^2) / (n rho^2),   rho^2 = w^T S_I w / (p^T S_T^-1 p)

    So n must be many times d_I / rho^2. Poor or wrong captions make rho small.

    Args:
        model: data model; the leaves of all arguments broadcast.
        caps: caption policy; None for rich captions.
        obs: observation; None for no noise.
        theta: degree of whitening, in [0, 1].
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        The accuracies, of the broadcast shape.

    Raises:
        ValueError: for theta or prompts out of range.

    Example:
        With this much noise whitening is better than the linear loss:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.3)
        >>> obs = mt.observation(2, 2, sigma_image=2**0.5, sigma_text=2**0.5)
        >>> accuracy = mt.theory.whitened_accuracy(model, obs=obs, theta=jnp.array([0.0, 1.0]))
        >>> print([f"{value:.4f}" for value in accuracy.shifted])
        ['0.7393', '0.7599']

    Source: X5.  Check: proofs_checks/x5.py.
    """
    weights = whitened_rule(model, caps, obs, theta, prompts)
    if not is_pair_model(model):
        return mixtures.accuracy_in_the_span(model, weights, obs)
    return linear_rule_accuracy(model, weights, (weights**2).sum(-1), 0.0 if obs is None else obs.sd_image)


def whitened_rule(
    model: Model,
    caps: Captions | GroupCaptions | None = None,
    obs: Observation | None = None,
    theta: Scalar = 1.0,
    prompts: mixtures.Prompts = "core",
) -> Float[Array, "..."]:
    """The rule w = S_I^-theta C S_T^-theta p on the latents, for the prompt p of class +1.

    Directions in which a covariance vanishes are left out (pseudo-inverses): for example a detail that is never
    mentioned, without text noise. As such a detail is mentioned ever less the rule has a limit, but its derivative in
    that pi is NaN at 0. Where a covariance is singular for another reason the rule jumps, and all derivatives are NaN.

    Args:
        model: data model; the leaves of all arguments broadcast.
        caps: caption policy; None for rich captions.
        obs: observation; None for no noise.
        theta: degree of whitening, in [0, 1].
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        (core, spurious) weights. Intra-class: w, with sign(z . w) the prediction. Inter-class: (A, B), the same for
        every pair of coordinates. Mixture: the rule of every class, (..., K, l); all its derivatives are NaN where a
        covariance is singular and theta > 0.

    Raises:
        ValueError: for theta or prompts out of range.

    Example:
        Without noise the spurious weight is negative, w_s / w_c = -q mu_c mu_s / (mu_s^2 + s_s^2):

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> core, spurious = mt.theory.whitened_rule(model)
        >>> print(f"{spurious / core:.3f} {-0.9 / 1.01:.3f}")
        -0.891 -0.891

    Source: as for `whitened_accuracy`.
    """
    if not is_pair_model(model):
        return mixtures.whitened_rule(model, caps, obs, theta, prompts)
    theta, caps = _checks.real("theta", theta, "in [0, 1]"), pair_captions(caps)
    kind = _checks.choice("prompts", prompts, PROMPTS)
    noise_image, noise_text = noise_variances(obs)
    text = moments(model, caps).uu
    batch = jnp.broadcast_shapes(theta.shape, noise_image.shape, noise_text.shape, text.shape[:-2])
    scalars = (theta, noise_image, noise_text, caps.pi_core, caps.pi_spu)
    theta, noise_image, noise_text, *pis = (jnp.broadcast_to(x, batch) for x in scalars)
    silent = jnp.broadcast_to(jnp.diagonal(text, axis1=-2, axis2=-1), (*batch, 2)) + noise_text[..., None] == 0
    pi_core, pi_spu = (undefined_slope(pi, silent[..., k] & (theta > 0)) for k, pi in enumerate(pis))
    mom = moments(model, dataclasses.replace(caps, pi_core=pi_core, pi_spu=pi_spu))
    zz, zu, uu = (jnp.broadcast_to(x, (*batch, 2, 2)) for x in (mom.zz, mom.zu, mom.uu))
    (left, left_singular), (right, right_singular) = (
        _inverse_power(*x, theta) for x in ((zz, noise_image), (uu, noise_text))
    )
    prompt = jnp.broadcast_to(pair_prompt(model, kind), (*batch, 2))[..., :, None]
    weights = (left @ (zu @ (right @ prompt)))[..., 0]
    lost = (theta > 0) & (left_singular | (right_singular & ~silent.any(-1)))
    return undefined_slope(weights, lost[..., None])


def balanced_pi_spu(model: IntraClass, caps: Captions, obs: Observation | None = None) -> Float[Array, "..."]:
    """The pi_spu at which the whitened rule ignores the spurious feature, w_s = 0 (theta = 1, masking "named").

    w_s is a positive multiple of q [D (pi_spu v + s_T^2) - pi_spu^2 (G v - k^2)] with G = mu_c^2 + s_c^2 + s_I^2 and
    D = (1 - pi_core) s_c^2 + s_I^2. Its only root pi_spu > 0 is

        [D v + sqrt(D^2 v^2 + 4 (G v - k^2) D s_T^2)] / (2 (G v - k^2))

    Below the root the rule follows the spurious feature as it is in training. Above it the rule over-corrects: the
    aligned group becomes the worse one.

    acc_P* falls strictly in |w_s / w_c|. So the balanced rule has the best accuracy on P* of any linear rule,
    Phi(mu_c / sqrt(s_c^2 + s_I^2)), whatever pi_core is. Among captions with pi_spu <= 1 the balanced ones are optimal.

    Args:
        model: intra-class model; the leaves of all arguments broadcast.
        caps: caption policy with masking "named"; its pi_spu is not used.
        obs: observation; None for no noise.

    Returns:
        The balanced pi_spu, of the broadcast shape. Values above 1 mean that no captions over-correct, and 0 that all
        but silence do. NaN where G v = k^2 (q^2 = 1 and no variance or noise at all). NaN also at q = 0 or mu_spu = 0,
        where every policy is balanced. At D = 0 (pi_core = 1, no image noise) with text noise the root is 0 and grows
        as sqrt(D), so its derivatives are not finite.

    Raises:
        ValueError: for another masking.

    Example:
        Captions that name the spurious feature so often leave it without weight:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(2, 2, sigma_image=0.3 * 2**0.5, sigma_text=0.3 * 2**0.5)
        >>> pi = mt.theory.balanced_pi_spu(model, mt.captions(pi_core=0.5), obs)
        >>> core, spurious = mt.theory.whitened_rule(model, mt.captions(0.5, pi), obs)
        >>> print(f"{pi:.4f}", bool(abs(spurious) < 1e-5))
        0.5955 True

    Source: X10 (the root and the optimality are this project's).  Check: proofs_checks/x10.py.
    """
    gap, spread, product, noise_text = _balance(model, caps, obs)
    # Without text noise the square root is of a square, and has a derivative at 0.
    square = gap * (gap * spread**2 + 4 * product * noise_text)
    noisy, square = jnp.broadcast_arrays(noise_text > 0, square)
    root = gap * spread + jnp.where(noisy, jnp.sqrt(jnp.where(noisy, square, 1.0)), gap * spread)
    defined = (product > 0) & (model.p_spu != 0.5) & (model.mu_spu > 0)
    return jnp.where(defined, root / (2 * jnp.where(defined, product, 1.0)), jnp.nan)


def whitening_crossovers(
    model: IntraClass, caps: Captions | None = None, prompts: str = "core"
) -> Float[Array, "... 3"]:
    """The noises s = s_I = s_T > 0 at which whitening (theta = 1) and the linear loss (theta = 0) have equal acc_P*.

    acc_P* falls strictly in |w_s / w_c|, and theta = 0 has w_0 = C p at every s. So they tie where w(s) is parallel to
    w_0 or to its mirror image. With v = s^2 and adj the adjugate, w(s) is a positive multiple of

        v^2 C p + v (adj(Cov z) C + C adj(Cov u)) p + adj(Cov z) C adj(Cov u) p

    This gives a linear equation in v for the one and a quadratic for the other. Between consecutive roots one end of
    the dial is the better one throughout.

    Rich captions and core prompts, with a = mu_c^2 + s_c^2, d = mu_s^2 + s_s^2, b = q mu_c mu_s and D = a d - b^2: if
    a > d there is one root, that of

        2 a v^2 + 2 D v - (a - d) D = 0

    Below it the linear loss is better, above it whitening. If a <= d there is no root, and whitening is better. The
    whitened rule is balanced, and the best that there is, at v^2 = D.

    Args:
        model: intra-class model; the leaves of all arguments broadcast.
        caps: caption policy; None for rich captions.
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        The roots s in ascending order, in units of z, then NaN for those that do not exist. All three are NaN where the
        rules coincide at every s (q = 0 or mu_spu = 0).

    Raises:
        ValueError: for other prompts.

    Example:
        At the one root whitening and the linear loss are alike:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.3)
        >>> root = mt.theory.whitening_crossovers(model)[0]
        >>> obs = mt.observation(2, 2, sigma_image=root * 2**0.5, sigma_text=root * 2**0.5)
        >>> accuracy = mt.theory.whitened_accuracy(model, obs=obs, theta=jnp.array([0.0, 1.0]))
        >>> print(f"{root:.3f}", [f"{value:.4f}" for value in accuracy.shifted])
        0.559 ['0.7848', '0.7848']

    Source: X5 (the roots are this project's).  Check: proofs_checks/x5.py.
    """
    mom = moments(model, caps or captions())
    prompt = pair_prompt(model, prompts)
    prompt = jnp.broadcast_to(prompt, jnp.broadcast_shapes(prompt.shape, mom.zu.shape[:-1]))[..., :, None]
    left, right = _adjugate(mom.zz), _adjugate(mom.uu)
    linear, first, last = (
        x[..., 0] for x in (mom.zu @ prompt, (left @ mom.zu + mom.zu @ right) @ prompt, left @ mom.zu @ right @ prompt)
    )
    core, spu = linear[..., 0], linear[..., 1]
    (b, c), (b_same, c_same) = ([x[..., 1] * core + sign * x[..., 0] * spu for x in (first, last)] for sign in (1, -1))
    a = 2 * core * spu
    root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0))
    half = -(b + jnp.where(b < 0, -root, root)) / 2  # half / a is the root without cancellation, c / half the other
    v = jnp.stack([_ratio(half, a), _ratio(c, half), _ratio(-c_same, b_same)], -1)
    real = jnp.stack([b**2 >= 4 * a * c] * 2 + [jnp.ones_like(b, bool)], -1)
    at_root = linear[..., None, 0] * v**2 + first[..., None, 0] * v + last[..., None, 0]
    exists = real & (v > 0) & (spu != 0)[..., None] & (at_root * core[..., None] > 0)
    return jnp.sort(jnp.where(exists, jnp.sqrt(jnp.where(exists, v, 1.0)), jnp.nan), -1)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, 0 where b = 0."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1.0), 0.0)


def _adjugate(matrix: Float[Array, "... 2 2"]) -> Float[Array, "... 2 2"]:
    return pair_matrix(matrix[..., 1, 1], -matrix[..., 0, 1], -matrix[..., 1, 0], matrix[..., 0, 0])


def _balance(model: IntraClass, caps: Captions, obs: Observation | None) -> tuple[Array, Array, Array, Array]:
    """D, v, G v - k^2 and s_T^2 of `balanced_pi_spu`."""
    exactly(model, IntraClass)
    if caps.masking != "named":
        raise ValueError(f'masking must be "named", got {caps.masking!r}.')
    noise_image, noise_text = noise_variances(obs)
    q = 2 * model.p_spu - 1
    spread = model.mu_spu**2 + model.sigma_spu**2
    total = model.mu_core**2 + model.sigma_core**2 + noise_image
    gap = (1 - caps.pi_core) * model.sigma_core**2 + noise_image
    return gap, spread, total * spread - (q * model.mu_core * model.mu_spu) ** 2, noise_text


def noise_variances(obs: Observation | None) -> tuple[Array, Array]:
    """s_I^2 and s_T^2; 0 without an observation."""
    zero = jnp.zeros(())
    return (zero, zero) if obs is None else (obs.sd_image**2, obs.sd_text**2)


def _inverse_power(
    cov: Float[Array, "... 2 2"], variance: Array, power: Array
) -> tuple[Float[Array, "... 2 2"], Bool[Array, "..."]]:
    """(cov + variance)^-power of positive semi-definite 2 x 2 matrices on their range, and whether they are singular.

    f(A) = f(l+) v+ v+^T + f(l-) v- v-^T with l+- the eigenvalues and f(l) = l^-power. Where the eigenvalues coincide,
    an eigendecomposition has no derivative. There f(A) = f(tr A/2) + f'(tr A/2) (A - tr A/2).
    """
    a, b, d = cov[..., 0, 0] + variance, cov[..., 0, 1], cov[..., 1, 1] + variance
    eps = jnp.finfo(cov.dtype).eps
    centre, half = (a + d) / 2, (a - d) / 2
    radius_squared = half**2 + b**2
    apart = radius_squared > eps * centre**2
    radius = jnp.sqrt(jnp.where(apart, radius_squared, 1.0))
    high = jnp.where(apart, centre + radius, centre)
    positive = high > 0
    high = jnp.where(positive, high, 1.0)
    # Judge singularity in units in which both coordinates have variance 1, so that scales alone drop no direction.
    determinant = a * d - b**2
    kept = determinant > 16 * eps * a * d
    low = jnp.where(kept, determinant, 1.0) / high
    none = jnp.where(power == 0, 1.0, 0.0)
    f_high = jnp.where(positive, high**-power, none)
    f_low = jnp.where(positive & kept, jnp.where(kept, low, 1.0) ** -power, none)
    # Shares of the first coordinate in both eigenvectors; the smaller share is computed without cancellation.
    # At half = 0 both sides have the same slope in it, which that of |half|, 0, would miss.
    leads = half >= 0
    smaller = b**2 / (2 * radius * (radius + jnp.where(leads, half, -half)))
    first, second = jnp.where(leads, 1 - smaller, smaller), jnp.where(leads, smaller, 1 - smaller)
    cross = (f_high - f_low) / (2 * radius) * b
    slope = -power * high ** (-power - 1)
    near = (f_high + slope * half, slope * b, f_high - slope * half)
    far = (f_high * first + f_low * second, cross, f_high * second + f_low * first)
    aa, ab, dd = (jnp.where(apart, x, y) for x, y in zip(far, near, strict=True))
    return pair_matrix(aa, ab, ab, dd), ~(positive & kept)
