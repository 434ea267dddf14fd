"""Zero-shot classification: prompts, the linear rule that they give, and its exact accuracy in each group.

Symbols: W = W_I^T W_T bilinear score matrix, p_y prompt of class y, w = W p the rule, (A, B) its core and spurious
weight, s_I noise standard deviation per image coordinate, t noise of one class score, Phi the normal cdf.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float, Int

from mmcl_theory import _checks
from mmcl_theory._slopes import undefined_slope
from mmcl_theory.data import InterClass, IntraClass, Model, class_labels
from mmcl_theory.data.captions import is_pair_model
from mmcl_theory.data.protocol import law_class, prompts_of

PROMPTS = ("core", "train_mean")
_QUADRATURE_NODES = 320  # the error is below 1e-11 up to m = 10^6, where the integrand is steepest
_ROUNDING = 8  # units in the last place by which the score of a tie may miss 0
_TAIL = 9.0  # Phi(-9) = 1e-19: beyond it the normal density adds nothing in float64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GroupAccuracy:
    """Accuracy in each group, in [0, 1]. It gives the accuracy under any group frequencies.

    Attributes:
        aligned: accuracy where the spurious feature agrees with the class.
        conflicting: accuracy where it disagrees.

    Example:
        From the two groups, the accuracy on any distribution of them:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> accuracy = mt.zero_shot.GroupAccuracy(aligned=jnp.array(0.9), conflicting=jnp.array(0.5))
        >>> print(f"{accuracy.train(p_spu=0.95):.2f} on P, {accuracy.shifted:.2f} on P*, {accuracy.worst:.2f} at worst")
        0.88 on P, 0.70 on P*, 0.50 at worst
    """

    aligned: Array  # (...)
    conflicting: Array  # (...)

    @property
    def shifted(self) -> Array:
        """Accuracy on P*, where both groups weigh 1/2."""
        return (self.aligned + self.conflicting) / 2

    @property
    def worst(self) -> Array:
        """The smaller of the two group accuracies."""
        return jnp.minimum(self.aligned, self.conflicting)

    def at(self, p_spu: _checks.Scalar) -> Array:
        """Accuracy on any distribution with the same groups: p_spu aligned + (1 - p_spu) conflicting.

        at(1/2) is `shifted`. At the training's p_spu it is the accuracy in distribution (App. E of the paper).

        Args:
            p_spu: weight of the aligned group, in [0, 1].

        Returns:
            The accuracy, of the broadcast shape of p_spu and the fields.

        Raises:
            ValueError: for p_spu out of range.
        """
        p = _checks.real("p_spu", p_spu, "in [0, 1]")
        p, aligned, conflicting = jnp.broadcast_arrays(p, self.aligned, self.conflicting)
        return p * aligned + (1 - p) * conflicting

    def train(self, p_spu: _checks.Scalar) -> Array:
        """Accuracy in distribution, on the training distribution with that p_spu; `at` by another name."""
        return self.at(p_spu)


def latent_prompts(model: Model, kind: str = "core") -> Float[Array, "c l"]:
    """The latent code of every class's prompt; the text prompt is D_T times this.

        "core":       E_{P*}[z | y], which is mu_core y e_core or c e_core,k in the paper's models
        "train_mean": E_P[z | y], which adds q mu_spu y e_spu or q alpha c e_spu,k

    Args:
        model: data model with scalar leaves.
        kind: "core" or "train_mean".

    Returns:
        One prompt a row, classes in the order of `class_labels` (-1, +1, -2, +2, ...); columns are latent coordinates.

    Raises:
        ValueError: for another kind.

    Example:
        The mean of training tells of the spurious feature, too:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> for kind in ("core", "train_mean"):
        ...     print([f"{entry:.1f}" for entry in mt.zero_shot.latent_prompts(model, kind)[1]])
        ['1.0', '0.0']
        ['1.0', '0.9']

    Source: docs/theory.md 3.
    """
    _checks.choice("kind", kind, PROMPTS)
    if not is_pair_model(model):
        return prompts_of(model, kind)
    labels = class_labels(model.num_classes)
    if kind == "core":
        return model.class_means(labels)
    p = model.p_spu
    sign = jnp.sign(labels)
    return p * model.attribute_means(labels, sign) + (1 - p) * model.attribute_means(labels, -sign)


def linear_rule_accuracy(
    model: Model,
    weights: Float[Array, "... 2"],
    norm_squared: Float[Array, "..."],
    sd_image: _checks.Scalar = 0.0,
) -> GroupAccuracy:
    """Exact accuracy, by group, of a linear zero-shot rule on data from `model`.

    Intra-class (the master formula): the rule is sign(x . w), with w = (w_c, w_s) on the latents and
    |w|^2 = norm_squared in the ambient space. With r = +1 in the aligned and -1 in the conflicting group:

        acc_r = Phi((w_c mu_c + r w_s mu_s) / sqrt(w_c^2 s_c^2 + w_s^2 s_s^2 + s_I^2 |w|^2))

    Inter-class: the rule is the argmax over (c', k') of c' (A x_core,k' + B x_spu,k' + its noise), weights = (A, B).
    Every class has the ambient norm |w|^2, and the m rules are orthogonal to each other. With b = alpha B, t = s_I |w|
    and S = A + r b + t g, g standard normal:

        acc_r = E_g[1{S > 0} P(|S'| < S)^(m-1)]
        S' ~ 1/2 N(A beta + b beta_spu, t^2) + 1/2 N(A beta - b beta_spu, t^2)

    The integral is Gauss-Legendre quadrature over the smooth part. Without noise both accuracies are step functions. k
    classes tied at the top share the answer, 1/k each, as in `sampled_accuracy`. Scores count as tied when they differ
    by no more than the rounding of their own terms.

    Args:
        model: intra-class or inter-class model; its leaves broadcast with the other arguments. A mixture has
            `rule_accuracy`.
        weights: (core, spurious) weights of the rule.
        norm_squared: |w|^2 in the ambient space, >= |weights|^2.
        sd_image: noise s_I per image coordinate, >= 0.

    Returns:
        The accuracies, of the broadcast shape (...); NaN where an argument is NaN. The intra-class accuracy jumps at a
        tie without noise, where its derivatives are NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.0)
        >>> accuracy = mt.zero_shot.linear_rule_accuracy(model, jnp.array([2.0, 1.0]), norm_squared=jnp.array(5.0))
        >>> print(f"{accuracy.aligned:.3f} {accuracy.conflicting:.3f}")
        0.933 0.691
        >>> print(f"{accuracy.shifted:.3f} on P*, {accuracy.train(0.95):.3f} in distribution")
        0.812 on P*, 0.921 in distribution

    Source: docs/theory.md 3.  Check: proofs_checks/t2.py, proofs_checks/t4.py.
    """
    a, b, norm, sd = jnp.broadcast_arrays(weights[..., 0], weights[..., 1], norm_squared, jnp.asarray(sd_image))
    noise = sd**2 * norm
    group = _PAIR_ACCURACY.get(law_class(model))
    if group is None:
        raise TypeError(f"model must be a pair model, got {law_class(model).__name__}; see Mixture.rule_accuracy.")
    return GroupAccuracy(group(model, a, b, noise), group(model, a, -b, noise))


def _intra_class_accuracy(model: IntraClass, w_core: Array, w_spu: Array, noise: Array) -> Array:
    arrays = (w_core, w_spu, noise, model.mu_core, model.mu_spu, model.sigma_core, model.sigma_spu)
    w_core, w_spu, noise, mu_core, mu_spu, sigma_core, sigma_spu = jnp.broadcast_arrays(*arrays)
    mean = w_core * mu_core + w_spu * mu_spu
    variance = (w_core * sigma_core) ** 2 + (w_spu * sigma_spu) ** 2 + noise
    noiseless = variance == 0  # False for a NaN variance, which stays NaN
    # The inner `where` keeps the derivative of the unused branch finite.
    z = mean / jnp.sqrt(jnp.where(noiseless, 1.0, variance))
    tied = _ROUNDING * jnp.finfo(mean.dtype).eps * (jnp.abs(w_core * mu_core) + jnp.abs(w_spu * mu_spu))
    value = jnp.where(noiseless, 0.5 * (1 + _sign(mean, tied)), ndtr(z))
    return undefined_slope(value, noiseless & (jnp.abs(mean) <= tied))


def _inter_class_accuracy(model: InterClass, a: Array, b: Array, variance: Array) -> Array:
    a, b, variance, alpha, beta, beta_spu = jnp.broadcast_arrays(
        a, b, variance, model.alpha, model.beta, model.beta_spu
    )
    return jnp.vectorize(functools.partial(_inter_class_group, model.num_pairs))(a, alpha * b, variance, beta, beta_spu)


_PAIR_ACCURACY: dict[type, Callable[..., Array]] = {
    IntraClass: _intra_class_accuracy,
    InterClass: _inter_class_accuracy,
}


def _inter_class_group(m: int, a: Array, b: Array, variance: Array, beta: Array, beta_spu: Array) -> Array:
    """Accuracy of the group whose own score has mean a + b; all arguments are scalars."""
    own = a + b
    foreign = jnp.stack([a * beta + b * beta_spu, a * beta - b * beta_spu])
    noiseless = variance == 0
    t = jnp.sqrt(jnp.where(noiseless, 1.0, variance))
    nodes, node_weights = _quadrature()
    low = jnp.clip(-own / t, -_TAIL, _TAIL)
    half = (_TAIL - low) / 2
    g = low + half * (1 + jnp.asarray(nodes, a.dtype))
    score = (own / t + g)[:, None]
    beaten = (ndtr(score - foreign[None, :] / t) - ndtr(-score - foreign[None, :] / t)).mean(-1)
    density = jnp.exp(-(g**2) / 2) / np.sqrt(2 * np.pi)
    integral = half * (jnp.asarray(node_weights, a.dtype) * density * jnp.clip(beaten, 0.0, 1.0) ** (m - 1)).sum()
    return jnp.where(noiseless, _noiseless_inter_class(m, a, b, beta, beta_spu), integral)


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre: an eigenvalue problem, which need not be solved at every trace."""
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_NODES)
    return nodes, weights


def _noiseless_inter_class(m: int, a: Array, b: Array, beta: Array, beta_spu: Array) -> Array:
    """E[1{no score above the own} / number of scores tied with it].

    Each of the m - 1 other pairs scores +-(a beta + b beta_spu) or +-(a beta - b beta_spu), with probability 1/2 each.
    Its score is below the own one w.p. `below` and tied with it w.p. `equal`. With J ~ Binomial the number of tied
    pairs,

        E[1{no pair above} / (1 + J)] = sum_k (below + equal)^k below^(m-1-k) / m,  k = 0..m-1

    At own score 0 the other class of the own pair is tied too, and every pair must score 0. Each class then gets
    1/(2m).
    """
    own = a + b
    foreign = jnp.abs(jnp.stack([a * beta + b * beta_spu, a * beta - b * beta_spu]))
    rounding = _ROUNDING * jnp.finfo(a.dtype).eps * (jnp.abs(a) + jnp.abs(b))
    ahead = _sign(own - foreign, rounding)
    # A table, because XLA would compute the power of a mean as 2^m (1/2)^m, which is NaN from m = 1024 on.
    halves = jnp.asarray([0.0, 0.5, 1.0], a.dtype)
    below, equal = halves[(ahead > 0).sum()], halves[(ahead == 0).sum()]
    # ((below + equal)^m - below^m) / (m equal); where nothing is tied there is no division.
    tied = ((below + equal) ** m - below**m) / (m * jnp.where(equal > 0, equal, 1.0))
    positive = jnp.where(equal > 0, tied, below ** (m - 1))
    sign = _sign(own, rounding)
    expected = jnp.where(sign > 0, positive, jnp.where(sign == 0, equal ** (m - 1) / (2 * m), 0.0))
    return expected + 0.0 * (jnp.abs(own) + foreign.sum())  # NaN where an argument is


def _sign(x: Array, rounding: Array) -> Array:
    """The sign of x, 0 where |x| <= rounding."""
    return jnp.where(jnp.abs(x) <= rounding, 0.0 * x, jnp.sign(x))


def sampled_accuracy(
    scores: Float[Array, "n c"], class_number: Int[Array, " n"], aligned: Bool[Array, " n"]
) -> GroupAccuracy:
    """The share of samples whose own class has the highest score, in each group.

    k classes tied at the top share the answer, 1/k each. The scores may come from any learner, linear or not.

    Args:
        scores: rows are samples, columns classes.
        class_number: class of each sample, in 0..c-1 (`class_index` of the labels).
        aligned: group of each sample, from `is_aligned`.

    Returns:
        The accuracies, (); NaN for a group without a sample.

    Example:
        Both aligned samples are right. Of the conflicting ones, one is tied and one wrong:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> scores = jnp.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
        >>> number, aligned = jnp.array([0, 1, 0, 1]), jnp.array([True, True, False, False])
        >>> accuracy = mt.zero_shot.sampled_accuracy(scores, number, aligned)
        >>> print(f"{accuracy.aligned:.2f} {accuracy.conflicting:.2f}")
        1.00 0.25

    Source: docs/theory.md 3.
    """
    top = scores == scores.max(-1, keepdims=True)
    own = jnp.take_along_axis(top, class_number[:, None], axis=1)[:, 0]
    credit = own / top.sum(-1)

    def mean(group: Array) -> Array:
        return (credit * group).sum() / group.sum()

    return GroupAccuracy(mean(aligned), mean(~aligned))
