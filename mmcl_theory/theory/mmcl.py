"""What the linear MMCL loss learns, and how accurate its zero-shot rule is (T1, T2, T4, T5, T6, X2, X3).

Symbols: z latents, u caption code, C = Cov(z, u), lambda same-class weight, K classes, w the rule on the latents,
(A, B) its core and spurious weight, p prompt, q = 2 p_spu - 1, m pairs of classes, s_I, s_T noise per coordinate.
"""

import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import nan_where, undefined_slope
from mmcl_theory.data import (
    AccuracyByGroup,
    Captions,
    GroupCaptions,
    InterClass,
    IntraClass,
    Model,
    Observation,
    moments,
)
from mmcl_theory.data.captions import is_pair_model, pair_captions
from mmcl_theory.data.protocol import has_law_of, law
from mmcl_theory.theory import mixtures
from mmcl_theory.theory.finite_sample import rule_variance
from mmcl_theory.theory.spiked import MAX_OUTLIERS, outliers
from mmcl_theory.zero_shot import PROMPTS, GroupAccuracy, linear_rule_accuracy


def mmcl_accuracy(
    model: Model,
    caps: Captions | GroupCaptions | None = None,
    obs: Observation | None = None,
    n: Scalar | None = None,
    embed_dim: int | None = None,
    same_class_weight: Scalar | None = None,
    prompts: mixtures.Prompts = "core",
) -> GroupAccuracy | AccuracyByGroup:
    """Zero-shot accuracy, by group, of the minimiser of the linear MMCL loss.

    Population (n = None), with S_B and S_W the parts of Cov(z, u) between and within classes:

        w = C_lambda p,   C_lambda = S_W + (1 - lambda) K/(K-1) S_B,  truncated to rank embed_dim

    The accuracy is the exact one of the rule w in noise s_I. With the ordinary loss (lambda = 1/K) and core prompts the
    rule of the intra-class and of the inter-class model is

        w = (mu_c^2 + pi_core s_c^2, q mu_c mu_s),   (A, B) = (1 + (m-1) pi_core beta^2, q alpha)

    n samples, intra-class: the noise of the rule adds to its ambient norm. With U the covariance of u:

        |w_amb|^2 = |w|^2 + s_I^2 (d_I/n) (p^T U_lambda p + s_T^2 |p|^2)
        U_lambda = U_W + ((1 - lambda) K/(K-1))^2 U_B

    This is the limit n, d_I -> inf at fixed d_I/n. Corrections are O(1/n); `mmcl_mean_accuracy` has them.

    A mixture (`mt.mixture`) has a rule C_lambda p_k for each class k, and the accuracy is that of their argmax. Classes
    may have any weights, for which C_lambda and the noise of the rules are those of docs/theory.md 1.6.

    n samples, truncated to embed_dim < min(d_I, d_T): w and its norm are sums over the singular values s_k of
    `outliers` among the embed_dim largest, with overlaps l_k, r_k:

        w = sum_k s_k l_k (r_k . p),   |w_amb|^2 = sum_k s_k^2 (r_k . p)^2

    This is the limit at fixed embed_dim <= 4. It leaves out the vectors of the bulk that a larger embedding keeps.

    Args:
        model: data model; the leaves of all arguments broadcast.
        caps: caption policy, `group_captions` of a mixture; None for rich captions.
        obs: observation; None for no noise.
        n: number of samples, >= 2, real values allowed; None for the population.
        embed_dim: embedding size r >= 1, static. None does not truncate; neither does, in the population, an r of at
            least the number of latents.
        same_class_weight: lambda in [0, 1]; None for the ordinary loss.
        prompts: "core" or "train_mean", see `latent_prompts`; of a mixture also the latent codes, (..., K, l).

    Returns:
        The accuracies, of the broadcast shape: `GroupAccuracy`, or `AccuracyByGroup` of a mixture. Without truncation
        they are NaN where n is too small for the limit (mu_spu >> mu_core). The learnt rule varies, which gives the
        score extra variance. NaN where this variance, added to the score's, would move the accuracy by more than .02.
        NaN also where it is above a quarter of the score's and the accuracy is within [.02, .98]. Elsewhere the error
        is below .03. With truncation they are NaN where the noise buries every outlier, or one modality has none. Where
        the singular values at embed_dim and embed_dim + 1 coincide the rule is not unique, and one of the rules is
        judged. Derivatives are NaN there, and where two outliers coincide.

    Raises:
        ValueError: for values out of range.
        TypeError: for a model that does not say what is needed of its law, see `LatentModel`.
        NotImplementedError: where there is no theory. For the inter-class model this is finite n, or a rank below the
            number of latents; for a model without `as_mixture` it is finite n. For a truncated embedding at n it is a
            same-class weight, or an embed_dim above twice the number of latents.

    Example:
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=1.0, sigma_core=1.0, sigma_spu=0.0)
        >>> accuracy = mt.theory.mmcl_accuracy(model)
        >>> print(f"{accuracy.shifted:.4f} on P*, {accuracy.conflicting:.4f} in the conflicting group")
        0.8123 on P*, 0.6915 in the conflicting group

    Source: T1, T2, T4, T5, T6; X2, X3.
    Check: proofs_checks/t2.py, proofs_checks/t4.py, proofs_checks/t5.py, proofs_checks/x2.py, proofs_checks/x3.py.
    """
    if not is_pair_model(model):
        return mixtures.mmcl_accuracy(model, caps, obs, n, embed_dim, same_class_weight, prompts)
    caps, prompts = pair_captions(caps), _checks.choice("prompts", prompts, PROMPTS)
    if n is not None:
        if not has_law_of(model, IntraClass):
            raise NotImplementedError("mmcl_accuracy has no theory for n samples of the inter-class model; use n=None.")
        if embed_dim is not None and obs is not None and embed_dim < min(obs.dim_image, obs.dim_text):
            if same_class_weight is not None:
                raise NotImplementedError(
                    "mmcl_accuracy has no theory for embed_dim with same_class_weight and n samples; use two of them."
                )
            if embed_dim > MAX_OUTLIERS:
                raise NotImplementedError(
                    f"mmcl_accuracy has no theory for embed_dim > {MAX_OUTLIERS} below the dimensions with n samples."
                )
            return _truncated_accuracy(model, caps, obs, n, embed_dim, prompts)
    weights, norm = _limit_rule(model, caps, obs, n, embed_dim, same_class_weight, prompts)
    sd_image = jnp.zeros(()) if obs is None else obs.sd_image
    accuracy = linear_rule_accuracy(model, weights, norm, sd_image)
    if n is None or not has_law_of(model, IntraClass):
        return accuracy
    more = rule_variance(model, caps, obs, n, same_class_weight, prompts)
    return _where_the_rule_is_steady(model, accuracy, weights, sd_image**2 * norm, more)


def limit_accuracy(
    model: IntraClass, caps: Captions, obs: Observation | None, n: Scalar | None, same_class_weight: Scalar
) -> GroupAccuracy:
    """`mmcl_accuracy` of the full embedding with core prompts, by the limit's own formula, which is NaN nowhere."""
    weights, norm = _limit_rule(model, caps, obs, n, None, same_class_weight, "core")
    return linear_rule_accuracy(model, weights, norm, 0.0 if obs is None else obs.sd_image)


def _limit_rule(
    model: Model,
    caps: Captions,
    obs: Observation | None,
    n: Scalar | None,
    embed_dim: int | None,
    same_class_weight: Scalar | None,
    prompts: str,
) -> tuple[Array, Array]:
    """The rule on the latents, (..., 2), and its squared ambient norm, with that of its noise at n samples."""
    weights, prompt_noise = _population_rule(model, caps, obs, embed_dim, same_class_weight, prompts)
    norm = (weights**2).sum(-1)
    if n is not None:
        n = _checks.sample_size(n)
        if obs is not None:
            variance = obs.sd_image**2 * (obs.dim_image / n) * prompt_noise
            norm, variance = jnp.broadcast_arrays(norm, variance)
            norm = norm + variance
    return weights, norm


def _where_the_rule_is_steady(
    model: IntraClass, accuracy: GroupAccuracy, weights: Array, noise: Array, more: tuple[Array, Array]
) -> GroupAccuracy:
    """The accuracies, NaN where `more` variance of the score is not small beside it: see `mmcl_accuracy`."""
    core, spu = weights[..., 0], weights[..., 1]

    def steady(acc: Array, sign: int, more: Array) -> Array:
        arrays = (acc, core, spu, noise, more, model.mu_core, model.mu_spu, model.sigma_core, model.sigma_spu)
        acc, c, s, noise_part, extra, mu_c, mu_s, sigma_c, sigma_s = jnp.broadcast_arrays(*arrays)
        mean = c * mu_c + sign * s * mu_s
        own = (c * sigma_c) ** 2 + (s * sigma_s) ** 2 + noise_part
        total = jnp.where(own + extra > 0, own + extra, 1.0)
        moves = jnp.abs(acc - ndtr(mean / jnp.sqrt(total))) > mixtures.LARGEST_MOVE
        large = (extra > own / 4) & (jnp.minimum(acc, 1 - acc) > mixtures.LARGEST_MOVE)
        return nan_where((extra > 0) & (moves | large), acc)

    return GroupAccuracy(steady(accuracy.aligned, 1, more[0]), steady(accuracy.conflicting, -1, more[1]))


def _truncated_accuracy(
    model: IntraClass, caps: Captions, obs: Observation, n: Scalar, embed_dim: int, prompts: str
) -> GroupAccuracy:
    """X2: the rule sum_k s_k l_k (r_k . p) over the outliers among the embed_dim largest singular values."""
    signal = outliers(model, caps, obs, n)
    rank = min(embed_dim, MAX_OUTLIERS)
    exists = signal.exists[..., :rank]
    left, right = (jnp.where(exists[..., None], x[..., :rank, :], 0.0) for x in (signal.left, signal.right))
    prompt = pair_prompt(model, prompts)
    prompt = jnp.broadcast_to(prompt, (*left.shape[:-2], 2))[..., None, :]
    strength = jnp.where(exists, signal.strength[..., :rank], 0.0) * (right * prompt).sum(-1)
    weights = (strength[..., None] * left).sum(-2)
    weights = nan_where(jnp.broadcast_to(~exists.any(-1)[..., None], weights.shape), weights)
    return linear_rule_accuracy(model, weights, (strength**2).sum(-1), obs.sd_image)


def mmcl_rule(
    model: Model,
    caps: Captions | GroupCaptions | None = None,
    embed_dim: int | None = None,
    same_class_weight: Scalar | None = None,
    prompts: mixtures.Prompts = "core",
) -> Float[Array, "..."]:
    """The population rule on the latents: w = C_lambda p of `mmcl_accuracy` with the prompt p of class +1.

    Args:
        model: data model; the leaves of all arguments broadcast.
        caps: caption policy; None for rich captions.
        embed_dim: embedding size r >= 1, static; None does not truncate.
        same_class_weight: lambda in [0, 1]; None for the ordinary loss.
        prompts: "core" or "train_mean", see `latent_prompts`.

    Returns:
        (core, spurious) weights. Intra-class: w, with sign(z . w) the prediction. Inter-class: (A, B), the same for
        every pair. Mixture: the rule of every class, (..., K, l).

    Raises:
        ValueError: for values out of range.
        NotImplementedError: for a rank below the number of latents in the inter-class model.

    Example:
        Captions that name the core details half of the time: w = (1 + pi_core sigma_core^2, q).

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> print([f"{weight:.3f}" for weight in mt.theory.mmcl_rule(model, mt.captions(pi_core=0.5))])
        ['1.500', '0.900']

    Source: as for `mmcl_accuracy`.
    """
    if not is_pair_model(model):
        return mixtures.mmcl_rule(model, caps, embed_dim, same_class_weight, prompts)
    kind = _checks.choice("prompts", prompts, PROMPTS)
    return _population_rule(model, pair_captions(caps), None, embed_dim, same_class_weight, kind)[0]


def sharing_threshold(model: InterClass) -> Float[Array, "..."]:
    """The caption detail pi* above which feature sharing works.

        pi* = (|q| alpha^2 (1 + beta_spu) / (1 - beta) - 1) / ((m - 1) beta^2)

    Without noise the worse group, conflicting for p_spu > 1/2, is all right iff A (1 - beta) > |B| alpha
    (1 + beta_spu). Here A = 1 + (m-1) pi_core beta^2 and B = q alpha, so this holds iff pi_core > pi*. Below pi* an
    image of that group is right at most where in no other pair A core and B spu have the same sign. This has
    probability 2^-(m-1). At pi* they tie.

    At p_spu = 1 and beta_spu = beta this is the paper's pi~.

    Args:
        model: inter-class model.

    Returns:
        pi*, of the leaves' broadcast shape. Values above 1 mean that no captions suffice, values below 0 that all do.
        Where nothing is shared (beta = 0), pi* is -inf if the group is right without sharing, else inf. So it is with
        one pair, whose only competitor is the other sign of the own pair: right iff 1 > |q| alpha^2.

    Example:
        At pi* a conflicting image's own score, A - B alpha, ties with the largest of another pair, beta (A + B alpha):

        >>> import mmcl_theory as mt
        >>> model = mt.inter_class(num_pairs=17, p_spu=1.0, alpha=1.0, beta=0.5)
        >>> pi_core = mt.theory.sharing_threshold(model)
        >>> a, b = mt.theory.mmcl_rule(model, mt.captions(pi_core))
        >>> print(f"{pi_core:.3f}: {a - b:.3f} {0.5 * (a + b):.3f}")
        0.500: 2.000 2.000

    Source: T4, T6; Theorem 5.4.  Check: proofs_checks/t6.py.
    """
    return _threshold(_needed(model), (model.num_pairs - 1) * model.beta**2)


def sharing_threshold_pairs(model: InterClass, pi_core: Scalar = 1.0) -> Float[Array, "..."]:
    """The number m* of pairs of classes above which feature sharing works, a real number.

        m* = 1 + (|q| alpha^2 (1 + beta_spu) / (1 - beta) - 1) / (pi_core beta^2)

    For m >= 2 pairs without noise, the worse group is all right iff m > m*. Below m* it is as wrong as
    `sharing_threshold` says. At p_spu = 1, beta_spu = beta and pi_core = 1 this is the paper's beta^2 m > alpha^2
    (1+beta)/(1-beta) - 1 + beta^2.

    Args:
        model: inter-class model; its number of pairs is not used.
        pi_core: probability that a core detail is mentioned, in [0, 1].

    Returns:
        m*, of the leaves' broadcast shape. Where nothing is shared (beta = 0 or pi_core = 0) it is -inf if the group is
        right without sharing, else inf.

    Raises:
        ValueError: for pi_core out of range.

    Example:
        A strong spurious feature needs many pairs, and more of them where captions tell less:

        >>> import mmcl_theory as mt
        >>> model = mt.inter_class(num_pairs=2, p_spu=1.0, alpha=10.0, beta=0.5)
        >>> for pi_core in (1.0, 0.5):
        ...     print(f"{mt.theory.sharing_threshold_pairs(model, pi_core):.0f}")
        1197
        2393

    Source: T4; Theorem 4.8.  Check: proofs_checks/t4.py.
    """
    pi = _checks.real("pi_core", pi_core, "in [0, 1]")
    pi, beta = jnp.broadcast_arrays(pi, model.beta)
    return 1 + _threshold(_lead_needed(model), pi * beta**2)


def _threshold(needed: Array, shared: Array) -> Array:
    """needed / shared, or its infinite limit where nothing is shared, without slope there; NaN where an argument is."""
    needed, shared = jnp.broadcast_arrays(needed, shared)
    nothing = shared == 0
    slope = undefined_slope(needed / jnp.where(nothing, 1.0, shared), nothing)
    return slope + jnp.where(nothing, jnp.where(needed < 0, -jnp.inf, jnp.inf), 0.0)


def _needed(model: InterClass) -> Array:
    """What A - 1 must exceed; with one pair the condition is 1 > |q| alpha^2."""
    if model.num_pairs == 1:
        p, alpha = jnp.broadcast_arrays(model.p_spu, model.alpha)
        return jnp.abs(2 * p - 1) * alpha**2 - 1
    return _lead_needed(model)


def _lead_needed(model: InterClass) -> Array:
    p, alpha, beta, beta_spu = jnp.broadcast_arrays(model.p_spu, model.alpha, model.beta, model.beta_spu)
    return jnp.abs(2 * p - 1) * alpha**2 * (1 + beta_spu) / (1 - beta) - 1


def _population_rule(
    model: Model,
    caps: Captions,
    obs: Observation | None,
    embed_dim: int | None,
    same_class_weight: Scalar | None,
    prompts: str,
) -> tuple[Array, Array]:
    """The rule w = C_lambda p, (..., 2), and p^T U_lambda p + s_T^2 |p|^2, the second moment of its text factor."""
    mom = moments(model, caps)
    if same_class_weight is None:
        zu, uu = mom.zu, mom.uu
    else:
        classes = model.num_classes
        weight = _checks.real("same_class_weight", same_class_weight, "in [0, 1]")
        between = (1 - weight) * (classes / (classes - 1))
        zu = _plus(mom.zu_within, between, mom.zu_between)
        uu = _plus(mom.uu_within, between**2, mom.uu_between)
    prompt = pair_prompt(model, prompts)
    if embed_dim is not None:
        zu = _truncate(zu, model, embed_dim)
    column = prompt[..., :, None]
    weights = (zu @ column)[..., 0] * (model.num_pairs if has_law_of(model, InterClass) else 1)
    text_variance = (column.mT @ uu @ column)[..., 0, 0]
    if obs is not None:
        noise = obs.sd_text**2 * (prompt**2).sum(-1)
        text_variance, noise = jnp.broadcast_arrays(text_variance, noise)
        text_variance = text_variance + noise
    return weights, text_variance


def _plus(within: Array, factor: Array, between: Array) -> Array:
    """within + factor * between, factor (...) against matrices (..., 2, 2), batch ranks broadcast."""
    shape = jnp.broadcast_shapes((*factor.shape, 1, 1), within.shape)
    within, between = jnp.broadcast_to(within, shape), jnp.broadcast_to(between, shape)
    return within + jnp.broadcast_to(factor[..., None, None], shape) * between


def pair_prompt(model: Model, kind: str) -> Float[Array, "... 2"]:
    """Coordinates (core, spu) of the prompt of a class with sign +1 on its own pair."""
    latent_moments = law(model, "latent_moments").latent_moments()
    _checks.choice("prompts", kind, PROMPTS)
    return latent_moments.class_core if kind == "core" else latent_moments.class_mean


def _truncate(zu: Array, model: Model, embed_dim: int) -> Array:
    """SVD_r of the latent cross-covariance. All m pairs of the inter-class model share their singular values."""
    _checks.integer("embed_dim", embed_dim, 1)
    if embed_dim >= model.num_latents:
        return zu
    if has_law_of(model, IntraClass) and embed_dim == 1:
        u, s, vt = jnp.linalg.svd(zu)
        return s[..., :1, None] * u[..., :, :1] * vt[..., :1, :]
    raise NotImplementedError(
        f"mmcl_accuracy has no theory for embed_dim {embed_dim} < {model.num_latents} in the inter-class model:"
        " its singular values are degenerate."
    )
