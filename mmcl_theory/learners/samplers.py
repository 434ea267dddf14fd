"""Learnt rules drawn in distribution: without the ambient dimension, and for the linear loss even without the samples.

The untruncated linear loss gives the rule w = C_hat p = sum_i c_i x_i. Its coefficients c depend only on the text
scores t_i = x_T,i . p and on the labels. Given these, w is Gaussian.

Symbols: x image samples, h = D_I^T x image on the latent coordinates, t text scores, p prompt, c coefficients, n
samples, l latents, k rules (of the classes with sign +1: one in the intra-class model, m in the inter-class model; of
all classes in a mixture), s_I, s_T noise per coordinate, d_I image dimension.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mmcl_theory import _checks, _random
from mmcl_theory._checks import Scalar
from mmcl_theory.data import Captions, GroupCaptions, IntraClass, Model, Observation, class_index
from mmcl_theory.data.captions import draw_captions, is_pair_model
from mmcl_theory.data.protocol import exactly, law, prompts_of
from mmcl_theory.learners.closed_form import contrast_weights
from mmcl_theory.zero_shot import PROMPTS, latent_prompts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rules:
    """k rules w_1..w_k of the ambient space, in coordinates that lose nothing.

    Their distribution is that of a run in the ambient space.

    Attributes:
        latent: D_I^T w_j, rows are rules, columns latent coordinates.
        perpendicular: the rest of w_j, rows are rules, columns an orthonormal basis of r <= k directions.
    """

    latent: Array  # (k, l)
    perpendicular: Array  # (k, r)

    @property
    def gram(self) -> Float[Array, "k k"]:
        """The inner products w_i . w_j in the ambient space."""
        return self.latent @ self.latent.T + self.perpendicular @ self.perpendicular.T


def sample_rules(
    key: Key[Array, ""],
    model: Model,
    caps: Captions | GroupCaptions,
    obs: Observation,
    n: int,
    same_class_weight: Scalar | None = None,
    prompts: str | np.ndarray | Float[Array, "c l"] = "core",
) -> Rules:
    """The rules C_hat p_j that the untruncated linear loss learns from n new pairs, exact in distribution.

    C_hat is `cross_covariance` of the pairs. p_j is the prompt of the class with sign +1 on pair j; the class with sign
    -1 has the opposite rule. A mixture has a rule for each class, whose accuracy is `Mixture.rule_accuracy` of
    `Rules.latent` and `Rules.gram`. With C_hat p_j = sum_i c_ij x_i:

        D_I^T w_j = sum_i c_ij h_i
        perpendicular part: W_perp W_perp^T ~ s_I^2 Wishart_k(c^T c, d_I - l)

    The cost is n (l + k) normal draws beside the latents and captions, at any d_I and d_T. Nothing of size d is used.

    Args:
        key: random key.
        model: data model with scalar leaves (`vmap` for more).
        caps: caption policy with scalar leaves.
        obs: observation with scalar leaves; its dimensions are at least the number of latents.
        n: number of pairs, >= 2, static.
        same_class_weight: lambda in [0, 1]; None for the ordinary loss.
        prompts: "core" or "train_mean", see `latent_prompts`; of a mixture also the latent codes, (K, l).

    Returns:
        The rules.

    Raises:
        ValueError: for values out of range, or a dimension below the number of latents.

    Example:
        A million image dimensions cost nothing:

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(dim_image=10**6, dim_text=10**6)
        >>> draw = jax.jit(mt.learners.sample_rules, static_argnames="n")
        >>> rules = draw(jax.random.key(0), model, mt.captions(), obs, n=50)
        >>> print(rules.latent.shape, rules.perpendicular.shape, rules.gram.shape)
        (1, 2) (1, 1) (1, 1)

    Source: X9.  Check: proofs_checks/x9.py.
    """
    n = _checks.integer("n", n, 2)
    _check_dimensions(model, obs)
    key_latents, key_captions, key_image, key_text, key_perpendicular = jax.random.split(key, 5)
    latents = law(model, "sample").sample(key_latents, n)
    code = draw_captions(key_captions, model, caps, latents)
    dtype = code.dtype
    if is_pair_model(model):
        prompt = latent_prompts(model, _checks.choice("prompts", prompts, PROMPTS))[
            1::2
        ]  # (k, l); orthogonal, so the k scores have independent noise
        noise = jax.random.normal(key_text, (n, len(prompt)), dtype) * jnp.linalg.norm(prompt, axis=1)[None, :]
    else:
        prompt = prompts_of(model, prompts)
        noise = jax.random.normal(key_text, code.shape, dtype) @ prompt.T
    k = len(prompt)
    score = code @ prompt.T + obs.sd_text * noise
    c = _coefficients(score, class_index(latents.label), same_class_weight, model.num_classes)
    observed = latents.z + obs.sd_image * jax.random.normal(key_image, latents.z.shape, dtype)
    root = jnp.linalg.norm(c, axis=0)[None, :] if k == 1 else jnp.linalg.qr(c, mode="r")  # root^T root = c^T c
    factor = _random.wishart_factor(key_perpendicular, obs.dim_image - model.num_latents, len(root), dtype)
    return Rules(c.T @ observed, obs.sd_image * root.T @ factor)


def sample_rule_latent(
    key: Key[Array, ""],
    model: IntraClass,
    caps: Captions,
    obs: Observation,
    n: int,
    same_class_weight: Scalar | None = None,
    prompts: str = "core",
) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """(D_I^T w, |w|^2) of the rule w = C_hat p of class +1: `sample_rules` for the intra-class model.

        |w|^2 = |D_I^T w|^2 + s_I^2 |c|^2 chi^2_(d_I - 2)

    For the ordinary loss c_i = (t_i - t_bar)/(n - 1).

    Args:
        key: random key.
        model: intra-class model with scalar leaves (`vmap` for more).
        caps: caption policy with scalar leaves.
        obs: observation with scalar leaves; its dimensions are at least 2.
        n: number of pairs, >= 2, static.
        same_class_weight: lambda in [0, 1]; None for the ordinary loss.
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        The weights and squared norm that `linear_rule_accuracy` takes: D_I^T w, (core, spurious), and |w|^2.

    Raises:
        ValueError: as for `sample_rules`.

    Source: as for `sample_rules`.
    """
    exactly(model, IntraClass)
    rules = sample_rules(key, model, caps, obs, n, same_class_weight, prompts)
    return rules.latent[0], rules.gram[0, 0]


def sample_scores(key: Key[Array, ""], rules: Rules, z: Float[Array, "n l"], sd_image: Scalar) -> Float[Array, "n c"]:
    """Scores of images with latents z under the rule of every class, exact in distribution given the rules.

        x . w_j = (z + s_I g) . latent_j + s_I g' . perpendicular_j,  (g, g') standard normal

    With `sampled_accuracy` they give the accuracy of learnt inter-class rules, for which there is no formula.

    Args:
        key: random key.
        rules: k rules, from `sample_rules`.
        z: latent codes, rows are images, columns latent coordinates.
        sd_image: noise s_I per image coordinate, finite and >= 0.

    Returns:
        Scores, rows are images, columns the 2k classes in the order of `class_index`.

    Raises:
        ValueError: for sd_image out of range.

    Source: X9.  Check: proofs_checks/x9.py.
    """
    sd = _checks.real("sd_image", sd_image, "finite and >= 0").astype(z.dtype)
    basis = jnp.concatenate([rules.latent, rules.perpendicular], 1)  # (k, l + r)
    noise = sd * jax.random.normal(key, (len(z), basis.shape[1]), z.dtype)
    score = z @ rules.latent.T + noise @ basis.T
    return jnp.stack([-score, score], -1).reshape(len(z), -1)


def sample_rule_statistics(
    key: Key[Array, ""],
    model: IntraClass,
    caps: Captions,
    obs: Observation,
    n: Scalar,
    same_class_weight: Scalar | None = None,
    prompts: str = "core",
) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """The same distribution as `sample_rule_latent`, at a cost that grows neither with n nor with d.

    So n = 10^9 is as cheap as n = 10. Let a group g be a choice of (y, a, what is mentioned). Its size n_g is
    multinomial. In it (h, t) is Gaussian. So t_bar_g is normal and S_g = sum (t_i - t_bar_g)^2 is v_g chi^2_(n_g - 1),
    with v_g = Var(t | g). In class y the coefficients are c_i = A_y t_i + B_y (`contrast_weights`). Hence the group's
    sums are

        c_bar_g = A_y t_bar_g + B_y
        Q_g = sum c_i^2 = n_g c_bar_g^2 + A_y^2 S_g
        R_g = sum c_i (t_i - E_g t) = n_g c_bar_g (t_bar_g - E_g t) + A_y S_g

    Given t, w = sum_i c_i h_i is normal with

        mean sum_g n_g c_bar_g E_g h + R_g Cov_g(h, t)/v_g,   covariance sum_g Q_g Cov_g(h | t)

    Last, |w|^2 = |D_I^T w|^2 + s_I^2 (sum_g Q_g) chi^2_(d_I - 2).

    Args:
        key: random key.
        model: intra-class model with scalar leaves (`vmap` for more).
        caps: caption policy with scalar leaves.
        obs: observation with scalar leaves; its dimensions are at least 2.
        n: number of pairs, a whole number >= 2, concrete or traced. In float32, counts above 2^24 are rounded to 24
            bits.
        same_class_weight: lambda in [0, 1]; None for the ordinary loss.
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        D_I^T w, (core, spurious), and |w|^2, as from `sample_rule_latent`.

    Raises:
        ValueError: as for `sample_rules`, and where n is concrete and not whole.

    Source: X9 (conditioning on t, where X9 draws the scatter of all three).  Check: proofs_checks/x9.py.
    """
    exactly(model, IntraClass)
    size = _checks.sample_size(n)
    if not isinstance(n, jax.core.Tracer) and not float(n).is_integer():
        raise ValueError(f"n must be a whole number, got {float(n):g}.")
    _check_dimensions(model, obs)
    _checks.choice("prompts", prompts, PROMPTS)
    key_size, key_mean, key_scatter, key_rule, key_perpendicular = jax.random.split(key, 5)
    prompt = latent_prompts(model, prompts)[1]
    group = _draw_groups(key_size, model, caps, size.astype(prompt.dtype), names_spurious=prompts != "core")
    law = _group_law(model, caps, obs, prompt, group)

    size, dtype = group.size, prompt.dtype
    error = jnp.sqrt(law.t_variance / jnp.maximum(size, 1)) * jax.random.normal(key_mean, size.shape, dtype)
    t_mean = law.t_mean + error
    scatter = law.t_variance * _random.chi_squared(key_scatter, size - 1)

    number = class_index(group.label)
    member = jax.nn.one_hot(number, model.num_classes, dtype=dtype)  # (g, 2)
    slope, between = contrast_weights(size @ member, same_class_weight)
    slope, level = slope[number], (between @ ((size * t_mean) @ member))[number]
    c_mean = slope * t_mean + level
    squares = size * c_mean**2 + slope**2 * scatter
    response = size * c_mean * error + slope * scatter
    mean = (size * c_mean) @ law.h_mean + response @ law.regression
    cc, ss, cs = (
        squares @ law.residual_variance[:, 0],
        squares @ law.residual_variance[:, 1],
        squares @ law.residual_cross,
    )
    z = jax.random.normal(key_rule, (2,), dtype)
    root_c = jnp.sqrt(cc)
    below = jnp.where(cc > 0, cs / jnp.where(cc > 0, root_c, 1.0), 0.0)
    root_s = jnp.sqrt(jnp.maximum(ss - below**2, 0.0))  # Cholesky of [[cc, cs], [cs, ss]]
    weights = mean + jnp.stack([root_c * z[0], below * z[0] + root_s * z[1]])
    freedom = jnp.asarray(obs.dim_image - model.num_latents, dtype)
    perpendicular = obs.sd_image**2 * squares.sum() * _random.chi_squared(key_perpendicular, freedom)
    return weights, weights @ weights + perpendicular


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Groups:
    """Groups (y, a, what is mentioned) of samples, and the number of samples in each."""

    size: Array  # (g,)
    label: Array  # (g,)
    attribute: Array  # (g,)
    mention: Array  # (g, 2) 0 or 1


def _draw_groups(key: Array, model: IntraClass, caps: Captions, n: Array, names_spurious: bool) -> _Groups:
    """Multinomial group sizes, by halving: label, alignment, core mentioned and, if it matters, spurious mentioned."""
    probabilities = [jnp.full((), 0.5, n.dtype), model.p_spu, caps.pi_core, caps.pi_spu][: 4 if names_spurious else 3]
    size = n[None]
    for key_level, p in zip(jax.random.split(key, len(probabilities)), probabilities, strict=True):
        yes = _random.binomial(key_level, size, jnp.full(size.shape, p, n.dtype))
        size = jnp.stack([yes, size - yes], -1).ravel()
    choice = np.array(list(itertools.product([1, 0], repeat=len(probabilities))))  # rows in the order of `size`
    label = 2 * choice[:, 0] - 1
    mention = choice[:, 2:] if names_spurious else np.pad(choice[:, 2:], ((0, 0), (0, 1)))
    return _Groups(size, jnp.asarray(label), jnp.asarray(label * (2 * choice[:, 1] - 1)), jnp.asarray(mention, n.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _GroupLaw:
    """The Gaussian distribution of (h, t) in each group."""

    h_mean: Array  # (g, 2)
    t_mean: Array  # (g,)
    t_variance: Array  # (g,)
    regression: Array  # (g, 2)  Cov(h, t) / Var(t), 0 where t does not vary
    residual_variance: Array  # (g, 2)  Var(h_core | t), Var(h_spu | t)
    residual_cross: Array  # (g,)  Cov(h_core, h_spu | t)


def _group_law(
    model: IntraClass, caps: Captions, obs: Observation, prompt: Float[Array, "2"], group: _Groups
) -> _GroupLaw:
    h_mean = model.attribute_means(group.label, group.attribute)
    base = caps.base(model, group.label, group.attribute)
    variance = jnp.stack([model.sigma_core, model.sigma_spu])[None, :] ** 2
    explained = group.mention * prompt[None, :] ** 2 * variance  # the part of Var(t) from each coordinate
    noise = obs.sd_text**2 * (prompt @ prompt)
    t_variance = explained.sum(-1) + noise
    varies = (t_variance > 0)[:, None]
    scale = jnp.where(varies, t_variance[:, None], 1.0)
    covariance = group.mention * prompt[None, :] * variance
    others = explained[:, ::-1] + noise  # Var(t) less a coordinate's own part, computed without cancellation
    return _GroupLaw(
        h_mean=h_mean,
        t_mean=(base + group.mention * (h_mean - base)) @ prompt,
        t_variance=t_variance,
        regression=jnp.where(varies, covariance / scale, 0.0),
        residual_variance=obs.sd_image**2 + variance * jnp.where(varies & (group.mention > 0), others / scale, 1.0),
        residual_cross=jnp.where(varies, -covariance[:, :1] * covariance[:, 1:] / scale, 0.0)[:, 0],
    )


def sample_gram(
    key: Key[Array, ""], model: Model, obs: Observation, n: int
) -> tuple[Float[Array, "n n"], Float[Array, "n l"], Int[Array, " n"]]:
    """(x x^T, h, label) of n new images, exact in distribution at any d_I.

        x x^T = h h^T + s_I^2 Wishart_n(d_I - l)  (Bartlett),   h = z + s_I g

    A rotation invariant learner sees nothing else. The Gram matrix gives `max_margin_dual`, `logistic_dual` and every
    other rule in the span of the images. `dual_rule` turns their coefficients into (D_I^T w, |w|^2).

    Args:
        key: random key.
        model: data model with scalar leaves (`vmap` for more).
        obs: observation with scalar leaves; its dimensions are at least the number of latents.
        n: number of images, >= 2, static.

    Returns:
        The Gram matrix x x^T; the images h on the latent coordinates, one a row; and the signed label of each image.

    Raises:
        ValueError: for n < 2 or a dimension below the number of latents.

    Source: X9.  Check: proofs_checks/x9.py.
    """
    n = _checks.integer("n", n, 2)
    _check_dimensions(model, obs)
    key_latents, key_image, key_perpendicular = jax.random.split(key, 3)
    latents = law(model, "sample").sample(key_latents, n)
    dtype = latents.z.dtype
    observed = latents.z + obs.sd_image * jax.random.normal(key_image, latents.z.shape, dtype)
    factor = _random.wishart_factor(key_perpendicular, obs.dim_image - model.num_latents, n, dtype)
    coordinates = jnp.concatenate([observed, obs.sd_image * factor], 1)
    return coordinates @ coordinates.T, observed, latents.label


def dual_rule(
    coefficients: Float[Array, " n"], gram: Float[Array, "n n"], observed: Float[Array, "n l"]
) -> tuple[Float[Array, " l"], Float[Array, ""]]:
    """(D_I^T w, |w|^2) of the rule w = sum_i coefficients_i x_i, from the images of `sample_gram`.

    Args:
        coefficients: one number for each image; for max-margin, dual * y.
        gram: x x^T, from `sample_gram`.
        observed: the images h on the latent coordinates, one a row, from `sample_gram`.

    Returns:
        D_I^T w on the latent coordinates, and |w|^2.
    """
    return coefficients @ observed, coefficients @ gram @ coefficients


def _coefficients(
    score: Float[Array, "n k"], number: Int[Array, " n"], same_class_weight: Scalar | None, num_classes: int
) -> Float[Array, "n k"]:
    """c with C_hat p_j = sum_i c_ij x_i, for the text scores t_ij = x_T,i . p_j."""
    if same_class_weight is None:
        return (score - score.mean(0, keepdims=True)) / (len(score) - 1)
    member = jax.nn.one_hot(number, num_classes, dtype=score.dtype)
    slope, between = contrast_weights(member.sum(0), same_class_weight)
    return (member @ slope)[:, None] * score + member @ (between @ (member.T @ score))


def _check_dimensions(model: Model, obs: Observation) -> None:
    for name, dim in (("dim_image", obs.dim_image), ("dim_text", obs.dim_text)):
        _checks.integer(name, dim, model.num_latents, " (the number of latents)")
