"""The theory of any mixture model: what linear MMCL, whitening losses and probes learn, with one rule a class.

The functions of `mmcl_theory.theory` call these for every model but the paper's two.

Symbols: y class of weight P_y, C cross-covariance of latents z and captions u, S_I = Cov(z) + s_I^2,
S_T = Cov(u) + s_T^2, lambda same-class weight, P prompts and R rules, one row a class, o_y mean over the other classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from mmcl_theory import _checks, _small
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import nan_where, undefined_slope
from mmcl_theory.data import AccuracyByGroup, Captions, ClassMoments, GroupCaptions, Mixture, Observation
from mmcl_theory.data.batches import over_batches
from mmcl_theory.data.captions import second_moments
from mmcl_theory.data.group_captions import others_of, rich_captions
from mmcl_theory.data.mixture import covariances
from mmcl_theory.data.protocol import law, prompts_of
from mmcl_theory.theory.spiked import Outliers, outliers

Prompts = str | np.ndarray | Float[Array, "... c l"]
LARGEST_MOVE = 0.02


def mmcl_accuracy(
    model: Any,
    caps: Captions | GroupCaptions | None,
    obs: Observation | None,
    n: Scalar | None,
    embed_dim: int | None,
    same_class_weight: Scalar | None,
    prompts: Prompts,
) -> AccuracyByGroup:
    """`theory.mmcl_accuracy` for a mixture; see there.

    At n samples the perpendicular parts of the K rules have the Gram matrix

        s_I^2 (d_I / n) P E[(u - shift_y) (u - shift_y)^T + s_T^2] P^T

    where shift_y is half the mean of an anchor's negatives and half that of the anchors whose negative it is.
    """
    offers = law(model, "class_moments", "rule_accuracy")
    mom, prompt = offers.class_moments(caps), prompts_of(model, prompts)
    sd_image, sd_text = _noises(obs)
    if embed_dim is not None:
        _checks.integer("embed_dim", embed_dim, 1)
    if n is not None and not isinstance(offers, Mixture):
        raise NotImplementedError(f"{type(offers).__name__} has no as_mixture, without which there is only n=None.")
    if n is not None and embed_dim is not None and obs is not None and embed_dim < min(obs.dim_image, obs.dim_text):
        if same_class_weight is not None:
            raise NotImplementedError(
                "mmcl_accuracy has no theory for embed_dim with same_class_weight and n samples; use two of them."
            )
        if embed_dim > 2 * offers.num_latents:
            raise NotImplementedError(
                f"mmcl_accuracy has no theory for embed_dim > {2 * offers.num_latents} (twice the latents) at finite n."
            )
        rules, gram = _truncated_rules(outliers(model, caps, obs, n), embed_dim, prompt)
        return offers.rule_accuracy(rules, gram, sd_image)
    rules = _linear_rules(mom, embed_dim, same_class_weight, prompt)
    gram = _gram(rules)
    if n is None:
        return offers.rule_accuracy(rules, gram, sd_image)
    size, weight = _checks.sample_size(n), _lambda(same_class_weight)
    if obs is not None:
        aspect = obs.dim_image / size
        noise = over_batches(_rule_noise, mom, (prompt, 2), (sd_image, 0), (sd_text, 0), (aspect, 0), weight)
        batch = jnp.broadcast_shapes(gram.shape, noise.shape)
        gram = jnp.broadcast_to(gram, batch) + jnp.broadcast_to(noise, batch)
    accuracy = offers.rule_accuracy(rules, gram, sd_image)
    unsteady = over_batches(
        _unsteady,
        *(offers, rich_captions(offers) if caps is None else caps, mom, (prompt, 2), (rules, 2), (gram, 2)),
        *((sd_image, 0), (sd_text, 0), (size, 0), weight),
    )
    unsteady, by_group = jnp.broadcast_arrays(unsteady, accuracy.by_group)
    return AccuracyByGroup(nan_where(unsteady, by_group), accuracy.weight, accuracy.shifted_weight, accuracy.error)


def mmcl_rule(
    model: Any,
    caps: Captions | GroupCaptions | None,
    embed_dim: int | None,
    same_class_weight: Scalar | None,
    prompts: Prompts,
) -> Float[Array, "... c l"]:
    """`theory.mmcl_rule` for a mixture: R = P C_lambda^T, truncated to rank embed_dim.

    C_lambda = sum_y P_y {Cov(z, u | y) + (1 - lambda)/2 [E_y z (E_y u - o_y u)^T + (E_y z - o_y z) E_y u^T]}

    Derivatives of a truncated rule are NaN where two singular values coincide.
    """
    mom = law(model, "class_moments").class_moments(caps)
    return _linear_rules(mom, embed_dim, same_class_weight, prompts_of(model, prompts))


def _linear_rules(
    mom: ClassMoments, embed_dim: int | None, same_class_weight: Scalar | None, prompt: Float[Array, "... c l"]
) -> Float[Array, "... c l"]:
    cross = over_batches(class_cross_covariance, mom, _lambda(same_class_weight))
    if embed_dim is not None and _checks.integer("embed_dim", embed_dim, 1) < cross.shape[-1]:
        left, values, right = jnp.linalg.svd(cross)
        cross = (left[..., :embed_dim] * values[..., None, :embed_dim]) @ right[..., :embed_dim, :]
    return over_batches(_small.product, (prompt, 2), (cross.mT, 2))


def accuracy_in_the_span(model: Any, rules: Float[Array, "... c l"], obs: Observation | None) -> AccuracyByGroup:
    """The accuracy of rules that lie in the span of the dictionary."""
    sd_image = _noises(obs)[0]
    return law(model, "rule_accuracy").rule_accuracy(rules, _gram(rules), sd_image)


def whitened_rule(
    model: Any, caps: Captions | GroupCaptions | None, obs: Observation | None, theta: Scalar, prompts: Prompts
) -> Float[Array, "... c l"]:
    """`theory.whitened_rule` for a mixture: R = P (S_I^-theta C S_T^-theta)^T.

    Directions in which a covariance vanishes are left out. All derivatives are NaN there, unless theta = 0.
    """
    theta = _checks.real("theta", theta, "in [0, 1]")
    zz, zu, uu = second_moments(model, caps)
    sd_image, sd_text = _noises(obs)

    def rules(zz: Array, zu: Array, uu: Array, prompt: Array, sd_image: Array, sd_text: Array, theta: Array) -> Array:
        eye = jnp.eye(len(zu), dtype=zu.dtype)
        left, left_singular = inverse_power(zz + sd_image**2 * eye, theta)
        right, right_singular = inverse_power(uu + sd_text**2 * eye, theta)
        singular = (theta > 0) & (left_singular | right_singular)
        return undefined_slope(_small.product(prompt, right, zu.T, left), singular)

    prompt = prompts_of(model, prompts)
    return over_batches(rules, (zz, 2), (zu, 2), (uu, 2), (prompt, 2), (sd_image, 0), (sd_text, 0), (theta, 0))


def ridge_rule(
    model: Any, caps: Captions | GroupCaptions | None, obs: Observation | None, kappa: Scalar, prompts: Prompts
) -> Float[Array, "... c l"]:
    """`theory.ridge_rule` for a mixture: R = P M^T with S_I M S_T + kappa M = (1 + kappa) C.

    Derivatives are as for the pair models; at kappa = 0 all are NaN where a covariance is singular.
    """
    kappa = _checks.real("kappa", kappa, "in [0, inf]")
    zz, zu, uu = second_moments(model, caps)
    sd_image, sd_text = _noises(obs)
    prompt = prompts_of(model, prompts)

    def rules(zz: Array, zu: Array, uu: Array, prompt: Array, sd_image: Array, sd_text: Array, kappa: Array) -> Array:
        l = len(zu)
        eye = jnp.eye(l, dtype=zu.dtype)
        finite, whitened = jnp.isfinite(kappa), kappa == 0
        share = jnp.where(finite, jnp.where(finite, kappa, 1.0) / (1 + jnp.where(finite, kappa, 1.0)), 1.0)
        image, text = (x + sd**2 * eye for x, sd in ((zz, sd_image), (uu, sd_text)))
        # At kappa = 0 the pseudo-inverses decide, and the system may be singular.
        inside = jnp.where(whitened, 0.5, share)
        system = (1 - inside) * jnp.kron(image, text) + inside * jnp.eye(l * l, dtype=zu.dtype)
        score = jnp.linalg.solve(system, zu.reshape(-1)).reshape(l, l)
        one = jnp.ones_like(kappa)
        # Elsewhere noise keeps derivatives that are undefined without it from spreading.
        left, left_singular = inverse_power(jnp.where(whitened, image, image + eye), one)
        right, right_singular = inverse_power(jnp.where(whitened, text, text + eye), one)
        end = undefined_slope(left @ zu @ right, whitened & (left_singular | right_singular))
        # Around kappa = 0, M = (1 + kappa) S_I^-1 C S_T^-1 - kappa S_I^-2 C S_T^-2.
        bend = jax.lax.stop_gradient(end - left @ left @ zu @ right @ right)
        return prompt @ jnp.where(whitened, end + jnp.where(whitened, kappa, 0.0) * bend, score).T

    return over_batches(rules, (zz, 2), (zu, 2), (uu, 2), (prompt, 2), (sd_image, 0), (sd_text, 0), (kappa, 0))


def probe_accuracy(
    model: Any,
    caps: Captions | GroupCaptions | None = None,
    obs: Observation | None = None,
    embed_dim: int | None = None,
    theta: Scalar = 0.0,
) -> AccuracyByGroup:
    """Accuracy, by group, of a least-squares probe of the class on the image encoder that a loss of captions learns.

    The encoder is that of the whitened family (`whitened_rule`; theta = 0 is the linear loss), in the population:

        h = W_I x,   W_I = U_r^T S_I^(-theta/2),   U_r the first r left singular vectors of
        S_I^(-theta/2) C S_T^(-theta/2)

    The probe regresses the indicator of each class on h, with an intercept, on the training distribution:

        score_k = P_k + (x - E x) . w_k,   w_k = W_I^T (W_I S_I W_I^T)^-1 W_I Cov(x, 1[y = k])

    Directions in which C vanishes are not in the encoder. Where C has full rank l, an encoder of r >= l does not depend
    on the loss or on what captions mention: the probe is least squares on the images, shortcut included. What captions
    protect is the zero-shot rule.

    This is the limit of many samples: the singular values of C that the encoder keeps must stand far above the noise
    of the sample cross-covariance, which `outliers` tells for the linear loss, and n must be many times r.

    Args:
        model: mixture, or model with `as_mixture`.
        caps: its captions; None for rich ones.
        obs: observation; None for no noise.
        embed_dim: embedding size r, 1..l, static; None for l.
        theta: degree of whitening, in [0, 1].

    Returns:
        The accuracies. Derivatives are NaN where S_I, or S_T at theta > 0, is singular, where C has no rank r, and, for
        r < l, where two singular values coincide.

    Raises:
        ValueError: for theta or embed_dim out of range.

    Example:
        The paper's zero-shot rule, and a probe on the same encoder:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1).as_mixture()
        >>> zero_shot, probe = mt.theory.mmcl_accuracy(model), mt.theory.probe_accuracy(model)
        >>> print(f"{zero_shot.shifted:.3f} {probe.shifted:.3f}")
        0.813 0.500

    Source: X13.  Check: proofs_checks/x13.py.
    """
    theta = _checks.real("theta", theta, "in [0, 1]")
    offers = law(model, "class_moments", "rule_accuracy")
    mom = offers.class_moments(caps)
    zz, zu, uu = covariances(mom)
    rank = zu.shape[-1] if embed_dim is None else _checks.integer("embed_dim", embed_dim, 1)
    if rank > zu.shape[-1]:
        raise ValueError(f"embed_dim must be an integer in 1..{zu.shape[-1]}, got {rank}.")
    sd_image, sd_text = _noises(obs)

    def probe(
        mom: ClassMoments, zz: Array, zu: Array, uu: Array, sd_image: Array, sd_text: Array, theta: Array
    ) -> tuple[Array, Array]:
        eye = jnp.eye(len(zu), dtype=zu.dtype)
        image = zz + sd_image**2 * eye
        left, left_singular = inverse_power(image, theta / 2)
        right, right_singular = inverse_power(uu + sd_text**2 * eye, theta / 2)
        inside = left @ zu @ right
        vectors, values, _ = jnp.linalg.svd(inside if rank < len(zu) else jax.lax.stop_gradient(inside))
        learnt = values > 16 * len(zu) * jnp.finfo(zu.dtype).eps * values[0]
        basis = left @ (vectors * learnt[None, :])[:, :rank]
        if rank == len(zu):  # any basis of all directions does
            basis = jnp.where(learnt.all(), eye, basis)
        mean = mom.weight @ mom.z_mean
        target = mom.weight[:, None] * (mom.z_mean - mean[None, :])  # Cov(1[y = k], z), (K, l)
        inner, _ = inverse_power(basis.T @ image @ basis, jnp.ones_like(theta))
        rules = target @ basis @ inner @ basis.T
        lost = left_singular | ~learnt[:rank].all() | ((theta > 0) & (rank < len(zu)) & right_singular)
        return undefined_slope(rules, lost), mom.weight - rules @ mean

    arrays = ((zz, 2), (zu, 2), (uu, 2), (sd_image, 0), (sd_text, 0), (theta, 0))
    rules, offsets = over_batches(probe, mom, *arrays)
    return offers.rule_accuracy(rules, rules @ rules.mT, sd_image, offsets)


def _lambda(same_class_weight: Scalar | None) -> tuple[Array, int]:
    """The same-class weight, NaN for the ordinary loss, whose negatives are all pairs."""
    if same_class_weight is None:
        return jnp.full((), jnp.nan), 0
    return _checks.real("same_class_weight", same_class_weight, "in [0, 1]"), 0


def _noises(obs: Observation | None) -> tuple[Array, Array]:
    zero = jnp.zeros(())
    return (zero, zero) if obs is None else (obs.sd_image, obs.sd_text)


def _gram(rules: Float[Array, "... c l"]) -> Float[Array, "... c c"]:
    """The inner products of the rules."""
    return over_batches(lambda rules: _small.product(rules, rules.T), (rules, 2))


def class_cross_covariance(mom: ClassMoments, weight: Float[Array, ""]) -> Float[Array, "l m"]:
    """C_lambda of `mmcl_rule`; Cov(z, u) where lambda is NaN."""
    within = _small.einsum("k,kij->ij", mom.weight, mom.zu)
    z, u = (mean - _small.einsum("k,ki->i", mom.weight, mean)[None, :] for mean in (mom.z_mean, mom.u_mean))
    ordinary = _small.einsum("k,ki,kj->ij", mom.weight, z, u)
    z, u = (mean - _small.product(others_of(mom.weight), mean) for mean in (mom.z_mean, mom.u_mean))
    halves = [_small.einsum("k,ki,kj->ij", mom.weight, a, b) / 2 for a, b in ((mom.z_mean, u), (z, mom.u_mean))]
    given = ~jnp.isnan(weight)
    factor = 1 - jnp.where(given, weight, 0.0)
    return within + jnp.where(given, factor * (halves[0] + halves[1]), ordinary)


def _shift(weight: Float[Array, " k"], mean: Float[Array, "k l"], same: Float[Array, ""]) -> Float[Array, "k l"]:
    """What the loss takes from a sample of each class: the mean over its negatives and over its anchors, halved."""
    other = weight[:, None] * (1 - jnp.eye(len(weight), dtype=weight.dtype))  # of anchor y', for a sample of y
    rest = 1 - weight[:, None]
    anchors = _small.product((other / jnp.where(rest > 0, rest, 1.0)).T, mean)
    given = ~jnp.isnan(same)
    lam = jnp.where(given, same, 0.0)
    shifted = lam * mean + (1 - lam) / 2 * (_small.product(others_of(weight), mean) + anchors)
    return jnp.where(given, shifted, _small.einsum("k,ki->i", weight, mean)[None, :])


def _rule_noise(
    mom: ClassMoments, prompt: Array, sd_image: Array, sd_text: Array, aspect: Array, same: Array
) -> Float[Array, "k k"]:
    """The Gram matrix of the rules' perpendicular parts; aspect = d_I / n."""
    centred = mom.u_mean - _shift(mom.weight, mom.u_mean, same)
    second = _small.einsum("k,kij->ij", mom.weight, mom.uu + centred[:, :, None] * centred[:, None, :])
    second = second + sd_text**2 * jnp.eye(len(second), dtype=second.dtype)
    return sd_image**2 * aspect * _small.product(prompt, second, prompt.T)


def _unsteady(
    model: Mixture,
    caps: GroupCaptions,
    mom: ClassMoments,
    prompt: Array,
    rules: Array,
    gram: Array,
    sd_image: Array,
    sd_text: Array,
    size: Array,
    same: Array,
) -> Array:
    """(G,): where the rules' own variance is not small beside the scores'; see `theory.mmcl_accuracy`.

    A sample contributes (x - shift) (t - shift) to a rule. Its variance is taken as if captions were Gaussian in each
    group.
    """
    classes = jnp.asarray(model.classes)
    u_mean, kept, u_covariance = caps.group_moments(model)
    eye = jnp.eye(model.num_latents, dtype=prompt.dtype)
    image = model.covariance + sd_image**2 * eye[None]
    text = u_covariance + sd_text**2 * eye[None]
    x = model.mean - _shift(mom.weight, mom.z_mean, same)[classes]
    u = u_mean - _shift(mom.weight, mom.u_mean, same)[classes]

    def rival(contrast: Array, mean: Array, covariance: Array, noisy: Array) -> Array:
        """Whether the rules of the group's own class and of another are unsteady."""
        p, w = (_small.einsum("k,ki->i", contrast, x) for x in (prompt, rules))
        t, variance = _small.einsum("gi,i->g", u, p), _small.einsum("gij,i,j->g", text, p, p)
        cross = _small.einsum("gij,gj,j->gi", model.covariance, kept, p)  # Cov(x, t | g)
        first = x * t[:, None] + cross
        mixed = t[:, None, None] * x[:, :, None] * cross[:, None, :]
        second = x[:, :, None] * x[:, None, :] * variance[:, None, None] + mixed + mixed.mT
        second = second + (t**2 + variance)[:, None, None] * image + cross[:, :, None] * cross[:, None, :]
        centred = first - _small.einsum("g,gi->i", model.weight, first)[None, :]
        spread = _small.einsum("g,gij->ij", model.weight, second + centred[:, :, None] * centred[:, None, :]) / size
        extra = _small.einsum("ij,ij->", mean[:, None] * mean[None, :] + noisy, spread)
        noise = _small.einsum("i,ij,j->", contrast, gram, contrast)
        own = _small.einsum("i,ij,j->", w, covariance, w) + sd_image**2 * noise
        score = _small.einsum("i,i->", w, mean)
        value, moved = (ndtr(score / jnp.sqrt(jnp.where(v > 0, v, 1.0))) for v in (own, own + extra))
        large = (extra > own / 4) & (jnp.minimum(value, 1 - value) > LARGEST_MOVE)
        return (extra > 0) & ((jnp.abs(value - moved) > LARGEST_MOVE) | large)

    rivals = jax.vmap(rival, (0, None, None, None))
    return jax.vmap(rivals)(model.contrasts(), model.mean, model.covariance, image).any(-1)


def _truncated_rules(signal: Outliers, embed_dim: int, prompt: Array) -> tuple[Array, Array]:
    """R and its Gram matrix: w_k = sum_j s_j l_j (r_j . p_k) over the outliers among the largest singular values."""
    rank = embed_dim

    def rules(strength: Array, left: Array, right: Array, exists: Array, prompt: Array) -> tuple[Array, Array]:
        left, right = (jnp.where(exists[:, None], x, 0.0) for x in (left, right))
        scale = (prompt @ right.T) * jnp.where(exists, strength, 0.0)[None, :]  # (K, r)
        buried = jnp.broadcast_to(~exists.any(), (len(prompt), left.shape[1]))
        return nan_where(buried, scale @ left), scale @ scale.T

    fields = ((signal.strength[..., :rank], 1), (signal.left[..., :rank, :], 2), (signal.right[..., :rank, :], 2))
    return over_batches(rules, *fields, (signal.exists[..., :rank], 1), (prompt, 2))


def inverse_power(matrix: Float[Array, "l l"], power: Float[Array, ""]) -> tuple[Float[Array, "l l"], Array]:
    """matrix^-power of a symmetric positive semi-definite matrix on its range, and whether it is singular.

    The derivative is that of a function of matrices (Daleckii and Krein), which equal eigenvalues do not disturb; it
    is not defined where the matrix is singular.
    """
    inverse, values = _inverse_power(matrix, power)
    return inverse, -_small.largest(-values) <= _least(values)


def _least(values: Array) -> Array:
    """Eigenvalues up to this count as 0."""
    return 16 * len(values) * jnp.finfo(values.dtype).eps * _small.largest(jnp.abs(values))


def _of_eigenvalues(values: Array, power: Array) -> tuple[Array, Array]:
    """f(l) = l^-power and f'(l), on the range; f = 1 at power 0 everywhere."""
    kept = values > _least(values)
    safe = jnp.where(kept, values, 1.0)
    f = jnp.where(kept, safe**-power, jnp.where(power == 0, 1.0, 0.0))
    return f, jnp.where(kept, -power * safe ** (-power - 1), 0.0)


@jax.custom_jvp
def _inverse_power(matrix: Float[Array, "l l"], power: Float[Array, ""]) -> tuple[Float[Array, "l l"], Array]:
    """matrix^-power, and the eigenvalues of the matrix without their derivative."""
    values, vectors = _small.eigh(matrix)
    return _diagonal_in(vectors, _of_eigenvalues(values, power)[0]), values


@_inverse_power.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    (matrix, power), (d_matrix, d_power) = primals, tangents
    values, vectors = _small.eigh(matrix)
    f, slope = _of_eigenvalues(values, power)
    gap = values[:, None] - values[None, :]
    # Where eigenvalues are close their divided difference is the mean slope, to second order in the gap.
    close = jnp.abs(gap) <= jnp.finfo(values.dtype).eps ** (1 / 3) * _small.largest(jnp.abs(values))
    quotient = (f[:, None] - f[None, :]) / jnp.where(close, 1.0, gap)
    quotient = jnp.where(close, (slope[:, None] + slope[None, :]) / 2, quotient)
    by_matrix = _small.product(vectors, quotient * _small.product(vectors.T, d_matrix, vectors), vectors.T)
    kept = values > _least(values)
    by_power = _diagonal_in(vectors, jnp.where(kept, -jnp.log(jnp.where(kept, values, 1.0)) * f, 0.0))
    inverse = _diagonal_in(vectors, f)
    return (inverse, values), (by_matrix + d_power * by_power, jnp.zeros_like(values))


def _diagonal_in(vectors: Float[Array, "l l"], values: Float[Array, " l"]) -> Float[Array, "l l"]:
    """The symmetric matrix of these eigenvectors, in columns, and eigenvalues."""
    return _small.einsum("ik,k,jk->ij", vectors, values, vectors)
