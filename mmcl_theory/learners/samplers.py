"""Learnt rules drawn in distribution: without the ambient dimension, and for the linear loss even without the samples.

The untruncated linear loss gives the rule w = C_hat p = sum_i c_i x_i. Its coefficients c depend only on the text
scores t_i = x_T,i . p and on the labels. Given these, w is Gaussian.

Symbols: x image samples, h = D_I^T x image on the latent coordinates, t text scores, p prompt, c coefficients, n
samples, l latents, k rules (of the classes with sign +1: one in the intra-class model, m in the inter-class model; of
all classes in a mixture), s_I, s_T noise per coordinate, d_I image dimension.
"""

import dataclasses
import itertools
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mmcl_theory import _checks, _random
from mmcl_theory._checks import Scalar
from mmcl_theory.data import Captions, GroupCaptions, IntraClass, Mixture, Model, Observation, class_index
from mmcl_theory.data.captions import draw_captions, is_pair_model, pair_captions
from mmcl_theory.data.mixture import covariance_roots
from mmcl_theory.data.protocol import LatentModel, exactly, has_law_of, law, prompts_of
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

    Example:
        |w|^2 has a part of the latents, 9, and a part of the noise, 16:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> print(mt.learners.Rules(latent=jnp.array([[3.0, 0.0]]), perpendicular=jnp.array([[4.0]])).gram.tolist())
        [[25.0]]
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
    key_latents, key_captions, key_noise = jax.random.split(key, 3)
    latents = law(model, "sample").sample(key_latents, n)
    code = draw_captions(key_captions, model, caps, latents)
    dtype = code.dtype
    pair = is_pair_model(model)
    if pair:
        prompt = latent_prompts(model, _checks.choice("prompts", prompts, PROMPTS))[1::2]  # (k, l)
    else:
        prompt = prompts_of(model, prompts)
    k, l = prompt.shape
    freedom = obs.dim_image - model.num_latents
    text, image, *rest = _random.normals(
        key_noise, dtype, (n, k if pair else l), (n, l), *_random.wishart_shapes(freedom, min(n, k))
    )
    # The prompts of pairs are orthogonal, so that the k scores have independent noise.
    noise = text * jnp.linalg.norm(prompt, axis=1)[None, :] if pair else text @ prompt.T
    score = code @ prompt.T + obs.sd_text * noise
    c = _coefficients(score, class_index(latents.label), same_class_weight, model.num_classes)
    observed = latents.z + obs.sd_image * image
    root = jnp.linalg.norm(c, axis=0)[None, :] if k == 1 else jnp.linalg.qr(c, mode="r")  # root^T root = c^T c
    factor = _random.wishart_factor(freedom, *rest)
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

    Example:
        The rule of many pairs is near that of the population:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model, caps = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1), mt.captions()
        >>> obs = mt.observation(dim_image=10**6, dim_text=10**6)
        >>> draw = jax.jit(mt.learners.sample_rule_latent, static_argnames="n")
        >>> weights, norm = draw(jax.random.key(0), model, caps, obs, n=20_000)
        >>> print(bool(jnp.allclose(weights, mt.theory.mmcl_rule(model, caps), atol=0.2)))
        True

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

    Example:
        Without noise the score of class +1 is z . w, and that of class -1 its opposite:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> rules = mt.learners.Rules(latent=jnp.array([[2.0, 1.0]]), perpendicular=jnp.array([[4.0]]))
        >>> z = jnp.array([[1.0, -1.0]])
        >>> print(mt.learners.sample_scores(jax.random.key(0), rules, z, sd_image=0.0).tolist())
        [[-1.0, 1.0]]

    Source: X9.  Check: proofs_checks/x9.py.
    """
    sd = _checks.real("sd_image", sd_image, "finite and >= 0").astype(z.dtype)
    basis = jnp.concatenate([rules.latent, rules.perpendicular], 1)  # (k, l + r)
    noise = sd * jax.random.normal(key, (len(z), basis.shape[1]), z.dtype)
    score = z @ rules.latent.T + noise @ basis.T
    return jnp.stack([-score, score], -1).reshape(len(z), -1)


@overload
def sample_rule_statistics(
    key: Key[Array, ""],
    model: IntraClass,
    caps: Captions,
    obs: Observation,
    n: Scalar,
    same_class_weight: Scalar | None = None,
    prompts: str = "core",
) -> tuple[Float[Array, "2"], Float[Array, ""]]: ...


@overload
def sample_rule_statistics(
    key: Key[Array, ""],
    model: LatentModel,
    caps: GroupCaptions,
    obs: Observation,
    n: Scalar,
    same_class_weight: Scalar | None = None,
    prompts: str | np.ndarray | Float[Array, "c l"] = "core",
) -> Rules: ...


def sample_rule_statistics(
    key: Key[Array, ""],
    model: Model,
    caps: Captions | GroupCaptions,
    obs: Observation,
    n: Scalar,
    same_class_weight: Scalar | None = None,
    prompts: str | np.ndarray | Float[Array, "c l"] = "core",
) -> tuple[Float[Array, "2"], Float[Array, ""]] | Rules:
    """The same distribution as `sample_rule_latent`, or `sample_rules` of a mixture, free of n and of d in its cost.

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

    In a mixture a group is a group of the model with a state of every coordinate of the caption
    (`GroupCaptions.states`): left out, right, or the value of another group. In it (h, v) is Gaussian, v the text on
    the latent coordinates, t = P v for the prompts P. So its mean is normal and its scatter S_g Wishart (Bartlett),
    with n_g - 1 degrees of freedom. With c_bar_g as above, now with an entry for each rule,

        D_I^T w = sum_g n_g c_bar_g h_bar_g^T + A_y P S_g,vh
        Gram matrix of the rest ~ s_I^2 Wishart(sum_g n_g c_bar_g c_bar_g^T + A_y^2 P S_g,vv P^T, d_I - l)

    There are 2^l of them for each group of the model, or (G + 1)^l where captions may err or `wrong` is traced.

    Args:
        key: random key.
        model: intra-class model with scalar leaves, or a single mixture (`vmap` for more).
        caps: caption policy with scalar leaves; `group_captions` of a mixture.
        obs: observation with scalar leaves; its dimensions are at least the number of latents.
        n: number of pairs, a whole number >= 2, concrete or traced. In float32, counts above 2^24 are rounded to 24
            bits.
        same_class_weight: lambda in [0, 1]; None for the ordinary loss.
        prompts: "core" or "train_mean", see `latent_prompts`; of a mixture also the latent codes, (K, l).

    Returns:
        D_I^T w, (core, spurious), and |w|^2, as from `sample_rule_latent`; of a mixture `Rules`.

    Raises:
        ValueError: as for `sample_rules`, and where n is concrete and not whole.

    Example:
        A billion pairs, whose rule is that of the population, (1 + sigma_core^2, q):

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(dim_image=10**6, dim_text=10**6)
        >>> draw = jax.jit(mt.learners.sample_rule_statistics)
        >>> weights, norm = draw(jax.random.key(0), model, mt.captions(), obs, 1e9)
        >>> print([f"{weight:.2f}" for weight in weights])
        ['2.00', '0.90']

    Source: X9 (conditioning on t, where X9 draws the scatter of all three).  Check: proofs_checks/x9.py.
    """
    size = _checks.sample_size(n)
    if not isinstance(n, jax.core.Tracer) and not float(n).is_integer():
        raise ValueError(f"n must be a whole number, got {float(n):g}.")
    _check_dimensions(model, obs)
    if not has_law_of(model, IntraClass):
        mixture = law(model, "as_mixture").as_mixture()
        return _mixture_rules(key, mixture, caps, obs, size, same_class_weight, prompts_of(model, prompts))
    kind, caps = _checks.choice("prompts", prompts, PROMPTS), pair_captions(caps)
    key_size, key_normal = jax.random.split(key)
    prompt = latent_prompts(model, kind)[1]
    group = _draw_groups(key_size, model, caps, size.astype(prompt.dtype), names_spurious=kind != "core")
    given = _group_law(model, caps, obs, prompt, group)

    size, dtype = group.size, prompt.dtype
    shapes = size.shape, (_random.NORMALS, *size.shape), (2,), (_random.NORMALS,)
    z_mean, z_scatter, z_rule, z_perpendicular = _random.normals(key_normal, dtype, *shapes)
    error = jnp.sqrt(given.t_variance / jnp.maximum(size, 1)) * z_mean
    t_mean = given.t_mean + error
    scatter = given.t_variance * _random.chi_squared(z_scatter, size - 1)

    number = class_index(group.label)
    member = jax.nn.one_hot(number, model.num_classes, dtype=dtype)  # (g, 2)
    slope, between = contrast_weights(size @ member, same_class_weight)
    slope, level = slope[number], (between @ ((size * t_mean) @ member))[number]
    c_mean = slope * t_mean + level
    squares = size * c_mean**2 + slope**2 * scatter
    response = size * c_mean * error + slope * scatter
    mean = (size * c_mean) @ given.h_mean + response @ given.regression
    cc, ss, cs = (
        squares @ given.residual_variance[:, 0],
        squares @ given.residual_variance[:, 1],
        squares @ given.residual_cross,
    )
    root_c = jnp.sqrt(cc)
    below = jnp.where(cc > 0, cs / jnp.where(cc > 0, root_c, 1.0), 0.0)
    root_s = jnp.sqrt(jnp.maximum(ss - below**2, 0.0))  # Cholesky of [[cc, cs], [cs, ss]]
    weights = mean + jnp.stack([root_c * z_rule[0], below * z_rule[0] + root_s * z_rule[1]])
    freedom = jnp.asarray(obs.dim_image - model.num_latents, dtype)
    perpendicular = obs.sd_image**2 * squares.sum() * _random.chi_squared(z_perpendicular, freedom)
    return weights, weights @ weights + perpendicular


def _mixture_rules(
    key: Key[Array, ""],
    model: Mixture,
    caps: Captions | GroupCaptions,
    obs: Observation,
    n: Array,
    same_class_weight: Scalar | None,
    prompt: Float[Array, "c l"],
) -> Rules:
    """`sample_rule_statistics` of a mixture. Cells are pairs of a group and a state of every coordinate, in rows."""
    if not isinstance(caps, GroupCaptions):
        raise TypeError(f"caps must be group_captions for a mixture, got {type(caps).__name__}.")
    probability, mean, variance = caps.states(model)
    groups, s, l = probability.shape
    dtype = prompt.dtype
    key_group, key_state, key_normal = jax.random.split(key, 3)

    size = _split_counts(key_group, n.astype(dtype)[None], model.weight[None])  # (1, G)
    size = size.reshape(groups, 1)
    for j, key_j in enumerate(jax.random.split(key_state, l)):
        shares = jnp.broadcast_to(probability[:, None, :, j], (groups, size.shape[1], s))
        size = _split_counts(key_j, size, shares).reshape(groups, -1)
    size = size.ravel()  # (cells,)
    states = np.array(list(itertools.product(range(s), repeat=l)))
    mean, variance = (x[:, states, np.arange(l)[None, :]].reshape(-1, l) for x in (mean, variance))
    group = np.repeat(np.arange(groups), len(states))
    own = jnp.asarray(np.tile(states == 1, (groups, 1)), dtype)  # (cells, l)

    # (h, v) in a cell.
    spread, eye = model.covariance[group], jnp.eye(l, dtype=dtype)[None]
    cross = spread * own[:, None, :]
    text = cross * own[:, :, None] + (variance + obs.sd_text**2)[:, :, None] * eye
    whole = jnp.concatenate(
        [
            jnp.concatenate([spread + obs.sd_image**2 * eye, cross], 2),
            jnp.concatenate([cross.mT, text], 2),
        ],
        1,
    )
    root = covariance_roots(whole)
    columns, freedom = (len(size), 2 * l), obs.dim_image - l
    shapes = columns, (_random.NORMALS, *columns), whole.shape, *_random.wishart_shapes(freedom, len(prompt))
    z_mean, z_scatter, z_below, *z_rest = _random.normals(key_normal, dtype, *shapes)
    error = jnp.einsum("cij,cj->ci", root, z_mean)
    average = jnp.concatenate([model.mean[group], mean], 1) + error / jnp.sqrt(jnp.maximum(size, 1))[:, None]
    left = size[:, None] - 1 - jnp.arange(2 * l, dtype=dtype)[None, :]  # degrees of freedom of each column
    diagonal = jnp.sqrt(_random.chi_squared(z_scatter, left))
    below = jnp.tril(z_below, -1) * (left > 0)[:, None, :]
    factor = root @ (below + diagonal[:, :, None] * jnp.eye(2 * l, dtype=dtype)[None])

    number = np.asarray(model.classes)[group]
    member = jnp.asarray(np.eye(model.num_classes)[number], dtype)  # (cells, K)
    slope, between = contrast_weights(size @ member, same_class_weight)
    slope, t_mean = slope[number][:, None], average[:, l:] @ prompt.T
    c_mean = slope * t_mean + member @ (between @ (member.T @ (size[:, None] * t_mean)))
    scores = slope[:, :, None] * jnp.einsum("ki,cij->ckj", prompt, factor[:, l:])  # of the scatter
    latent = (size[:, None] * c_mean).T @ average[:, :l] + jnp.einsum("ckj,cij->ki", scores, factor[:, :l])
    squares = (size[:, None] * c_mean).T @ c_mean + jnp.einsum("ckj,clj->kl", scores, scores)
    rest = _random.wishart_factor(freedom, *z_rest)
    return Rules(latent, obs.sd_image * covariance_roots(squares[None])[0] @ rest)


def _split_counts(key: Key[Array, ""], size: Float[Array, "*b"], shares: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
    """Multinomial counts of k kinds, by a binomial for each kind among what is left."""
    rest = jnp.cumsum(shares[..., ::-1], -1)[..., ::-1]  # of a kind and all later ones
    share = jnp.where(rest > 0, shares / jnp.where(rest > 0, rest, 1.0), 1.0).at[..., -1].set(1.0)

    def one(left: Array, kind: tuple[Array, Array]) -> tuple[Array, Array]:
        count = _random.binomial(kind[0], left, jnp.minimum(kind[1], 1.0))
        return left - count, count

    _, counts = jax.lax.scan(one, size, (jax.random.split(key, shares.shape[-1]), jnp.moveaxis(share, -1, 0)))
    return jnp.moveaxis(counts, 0, -1)


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

    Example:
        In a million dimensions the noise of every image has the norm sigma_image:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(dim_image=10**6, dim_text=10**6, sigma_image=2.0)
        >>> draw = jax.jit(mt.learners.sample_gram, static_argnames="n")
        >>> gram, observed, label = draw(jax.random.key(0), model, obs, n=3)
        >>> print([f"{norm:.1f}" for norm in jnp.sqrt(jnp.diagonal(gram) - (observed**2).sum(1))])
        ['2.0', '2.0', '2.0']

    Source: X9.  Check: proofs_checks/x9.py.
    """
    n = _checks.integer("n", n, 2)
    _check_dimensions(model, obs)
    key_latents, key_normal = jax.random.split(key)
    latents = law(model, "sample").sample(key_latents, n)
    freedom = obs.dim_image - model.num_latents
    shapes = latents.z.shape, *_random.wishart_shapes(freedom, n)
    image, *rest = _random.normals(key_normal, latents.z.dtype, *shapes)
    observed = latents.z + obs.sd_image * image
    factor = _random.wishart_factor(freedom, *rest)
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

    Example:
        The sum of two images, and its squared norm:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[3.0, 0.0], [0.0, 4.0]])
        >>> weights, norm = mt.learners.dual_rule(jnp.array([1.0, 1.0]), gram=x @ x.T, observed=x)
        >>> print(weights.tolist(), float(norm))
        [3.0, 4.0] 25.0
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
