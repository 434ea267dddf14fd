"""Mixture models (docs/theory.md 1.6): any classes, groups and Gaussian latents.

Symbols: g group, of class y_g, with weight P_g in training and P*_g under the shift, latent mean m_g and covariance
S_g; y class of weight P_y; K classes, G groups, l latents; u caption code, b_g base value, pi_g mention probability,
eps_g probability of an error; R rules, one row a class.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mmcl_theory import _checks, _orthant, _small
from mmcl_theory.data.accuracy import AccuracyByGroup
from mmcl_theory.data.batches import over_batches
from mmcl_theory.data.group_captions import GroupCaptions, check_captions
from mmcl_theory.data.latents import Latents, class_labels

PROMPTS = ("core", "train_mean")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ClassMoments:
    """Moments of latents z and caption codes u in each class; covariances within the class.

    Attributes:
        weight: P_y, (..., K).
        z_mean: E[z | y], (..., K, l).
        u_mean: E[u | y], (..., K, l).
        zz: Cov(z | y), (..., K, l, l).
        zu: Cov(z, u | y), (..., K, l, l).
        uu: Cov(u | y), (..., K, l, l).

    Example:
        In training the mean image of class +1 has q = .9 of the spurious feature. Under the shift it has none:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1).as_mixture()
        >>> for place in (model, model.shifted()):
        ...     print([f"{mean:.1f}" for mean in abs(place.class_moments().z_mean[1])])
        ['1.0', '0.9']
        ['1.0', '0.0']
    """

    weight: Array  # (..., K)
    z_mean: Array  # (..., K, l)
    u_mean: Array  # (..., K, l)
    zz: Array  # (..., K, l, l)
    zu: Array  # (..., K, l, l)
    uu: Array  # (..., K, l, l)

    ranks: ClassVar[tuple[int, ...]] = (1, 2, 2, 3, 3, 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """G groups of Gaussian latents: group g has weight P_g, class y_g, and z | g ~ N(m_g, S_g).

    Leaves may have common leading dimensions, which describe a grid of models; `sample` needs a single model. Build a
    model with `mixture`, which checks the values.

    Attributes:
        weight: P_g, (..., G).
        shifted_weight: P*_g, (..., G).
        mean: m_g, (..., G, l).
        covariance: S_g, (..., G, l, l).
        classes: y_g, one number in 0..K-1 a group, static.

    Example:
        The core feature alone is right with probability Phi(1) in each of the four groups:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1).as_mixture()
        >>> rules = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
        >>> print([f"{value:.3f}" for value in model.rule_accuracy(rules, gram=rules @ rules.T).by_group])
        ['0.841', '0.841', '0.841', '0.841']

    Source: docs/theory.md 1.6.
    """

    weight: Array  # (..., G)
    shifted_weight: Array  # (..., G)
    mean: Array  # (..., G, l)
    covariance: Array  # (..., G, l, l)
    classes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    ranks: ClassVar[tuple[int, ...]] = (1, 1, 2, 3)

    @property
    def num_latents(self) -> int:
        """The number of latent coordinates l."""
        return self.mean.shape[-1]

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return max(self.classes) + 1

    @property
    def num_groups(self) -> int:
        """The number of groups G."""
        return len(self.classes)

    def as_mixture(self) -> "Mixture":
        """The model itself."""
        return self

    def shifted(self) -> "Mixture":
        """The shifted distribution P*: the same groups with the weights P*_g."""
        return dataclasses.replace(self, weight=self.shifted_weight)

    def sample(self, key: Key[Array, ""], n: int) -> Latents:
        """n independent draws. The label of class k is `class_labels(K)[k]`; the attribute is the group's number.

        Raises ValueError for a grid of models.
        """
        if self.mean.ndim != 2:
            raise ValueError(f"sample needs a single model, got a grid of shape {self.mean.shape[:-2]}; use vmap.")
        key_group, key_noise = jax.random.split(key)
        group = _draw(key_group, self.weight, (n,))
        noise = jax.random.normal(key_noise, (n, self.num_latents), self.mean.dtype)
        z = self.mean[group] + jnp.einsum("nij,nj->ni", covariance_roots(self.covariance)[group], noise)
        return Latents(z, class_labels(self.num_classes)[jnp.asarray(self.classes)[group]], group)

    def membership(self) -> Float[Array, "c g"]:
        """1 where group g is of class k, else 0."""
        return jnp.asarray(np.eye(self.num_classes)[list(self.classes)].T, self.mean.dtype)

    def contrasts(self) -> Float[Array, "g rest c"]:
        """A row for every class but the group's own: 1 at the own class, -1 at the other."""
        one = np.eye(self.num_classes)
        rows = [np.delete(one[[own]] - one, own, axis=0) for own in self.classes]
        return jnp.asarray(np.stack(rows), self.mean.dtype)

    def prompts(self, kind: str = "core") -> Float[Array, "... c l"]:
        """The latent code of every class's prompt: E_{P*}[z | y] for "core", E_P[z | y] for "train_mean".

        Raises ValueError for another kind, and for a class without weight there; under jit its prompt is NaN.
        """
        _checks.choice("prompts", kind, PROMPTS)
        weight = self.shifted_weight if kind == "core" else self.weight
        if not isinstance(weight, jax.core.Tracer):
            total = np.asarray(weight) @ np.eye(self.num_classes)[list(self.classes)]
            if (total == 0).any():
                place = "under the shift" if kind == "core" else "in training"
                raise ValueError(f"class {np.argwhere(total == 0)[0][-1]} has no weight {place}; pass its prompt.")

        def means(model: Mixture) -> Array:
            share = model.shifted_weight if kind == "core" else model.weight
            member = share[None, :] * model.membership()
            return _small.product(member, model.mean) / _small.einsum("kg->k", member)[:, None]

        return over_batches(means, self)

    def class_moments(self, caps: Any = None) -> ClassMoments:
        """The moments of latents and captions in each class; see `ClassMoments`. None is rich captions, u = z.

        Raises TypeError unless the captions are `group_captions`.
        """
        if caps is None:
            return over_batches(_class_moments, self)
        if not isinstance(caps, GroupCaptions):
            raise TypeError(f"caps must be group_captions for a mixture, got {type(caps).__name__}.")
        check_captions(self, caps)
        return over_batches(_class_moments, self, caps)

    def rule_accuracy(
        self,
        rules: np.ndarray | Float[Array, "... c l"],
        gram: np.ndarray | Float[Array, "... c c"],
        sd_image: _checks.Scalar = 0.0,
        offsets: Float[Array, "... c"] | None = None,
    ) -> AccuracyByGroup:
        """Exact accuracy, by group, of the rule argmax_k x . w_k + b_k.

        In group g of class y the K - 1 score differences are Gaussian, with

            means (w_y - w_k) . m_g + b_y - b_k
            covariances (w_y - w_k)^T (S_g + s_I^2) (w_y - w_k') in the ambient space

        and the accuracy is the probability that all are positive. Two classes: Phi. Three: quadrature. More:
        quasi-Monte Carlo; see `AccuracyByGroup.error`. k classes whose scores are tied without noise share the answer,
        1/k each.

        Args:
            rules: the rules on the latents, one a class, (..., K, l).
            gram: their inner products in the ambient space, (..., K, K); R R^T for rules in the latents' span.
            sd_image: noise s_I per image coordinate, >= 0.
            offsets: b_k, (..., K); None for none.

        Returns:
            The accuracies, (..., G).

        Raises:
            ValueError: for another shape, or a noise out of range.

        Source: docs/theory.md 1.6, 3.  Check: proofs_checks/x13.py.
        """
        rules, gram = jnp.asarray(rules), jnp.asarray(gram)
        k, l = self.num_classes, self.num_latents
        if rules.shape[-2:] != (k, l) or gram.shape[-2:] != (k, k):
            raise ValueError(f"rules must be (..., {k}, {l}), gram (..., {k}, {k}); got {rules.shape}, {gram.shape}.")
        sd = _checks.real("sd_image", sd_image, "finite and >= 0")
        offsets = jnp.zeros(self.num_classes, self.mean.dtype) if offsets is None else offsets
        arrays = ((rules, 2), (gram, 2), (sd, 0), (offsets, 1))
        values, errors = over_batches(_rule_accuracy, self, *arrays)
        shape = values.shape
        weight, shifted = (jnp.broadcast_to(x, shape) for x in (self.weight, self.shifted_weight))
        return AccuracyByGroup(values, weight, shifted, errors)


def mixture(weight: Any, mean: Any, covariance: Any, classes: Any, shifted_weight: Any | None = None) -> Mixture:
    """A mixture model with checked parameters.

    Args:
        weight: P_g, the groups' weights in training, (..., G), nonnegative, of sum 1.
        mean: m_g, the groups' latent means, (..., G, l), finite.
        covariance: S_g, their latent covariances, symmetric and positive semi-definite, (..., G, l, l); a single matrix
            (l, l) serves all groups.
        classes: y_g, the class of each group, in 0..K-1; every class needs a group.
        shifted_weight: P*_g, the weights under the shift, (..., G); None gives every class its weight of training, in
            equal parts to its groups.

    Returns:
        The model. Leading dimensions describe a grid of models.

    Raises:
        ValueError: for a value out of range or shapes that disagree; the message names the argument.

    Example:
        The intra-class model of the paper, by its four groups, and one change of its assumptions, unequal classes:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> mean = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
        >>> spread = jnp.diag(jnp.array([1.0, 0.01]))
        >>> model = mt.mixture([0.475, 0.025, 0.025, 0.475], mean, spread, classes=[0, 0, 1, 1])
        >>> print(f"{mt.theory.mmcl_accuracy(model).shifted:.3f}")
        0.817
        >>> unequal = mt.mixture([0.760, 0.040, 0.010, 0.190], mean, spread, classes=[0, 0, 1, 1])
        >>> print([f"{value:.3f}" for value in mt.theory.mmcl_accuracy(unequal).by_group])
        ['0.912', '0.742', '0.742', '0.912']

    Source: docs/theory.md 1.6.
    """
    numbers = _class_numbers(classes)
    groups = len(numbers)
    weights = _checks.distribution("weight", weight, groups)
    means = _checks.array("mean", mean)
    if means.ndim < 2 or means.shape[-2] != groups or not means.shape[-1]:
        raise ValueError(f"mean must have shape (..., {groups}, l) for {groups} groups, got {means.shape}.")
    latents = means.shape[-1]
    covariances = _checks.array("covariance", covariance)
    if covariances.shape[-2:] != (latents, latents):
        raise ValueError(f"covariance must have shape (..., {groups}, {latents}, {latents}), got {covariances.shape}.")
    if covariances.ndim == 2:
        covariances = jnp.broadcast_to(covariances, (groups, latents, latents))
    if covariances.shape[-3] != groups:
        raise ValueError(f"covariance must have shape (..., {groups}, {latents}, {latents}), got {covariances.shape}.")
    _check_covariance(covariances)
    try:
        jnp.broadcast_shapes(weights.shape[:-1], means.shape[:-2], covariances.shape[:-3])
    except ValueError:
        shapes = ", ".join(str(x.shape) for x in (weights, means, covariances))
        raise ValueError(f"weight, mean, covariance must have leading dimensions that agree, got {shapes}.") from None
    if shifted_weight is None:
        member = np.eye(max(numbers) + 1)[list(numbers)]  # (G, K)
        shifted = weights @ jnp.asarray(member @ (member / member.sum(0, keepdims=True)).T, weights.dtype)
    else:
        shifted = _checks.distribution("shifted_weight", shifted_weight, groups)
    return Mixture(weights, shifted, means, covariances, numbers)


def covariances(mom: ClassMoments) -> tuple[Array, Array, Array]:
    """Cov(z), Cov(z, u), Cov(u), each (..., l, l), of all classes together."""

    def total(mom: ClassMoments) -> tuple[Array, Array, Array]:
        z, u = (mean - _small.einsum("k,ki->i", mom.weight, mean)[None, :] for mean in (mom.z_mean, mom.u_mean))
        pairs = ((mom.zz, z, z), (mom.zu, z, u), (mom.uu, u, u))
        zz, zu, uu = (_small.einsum("k,kij->ij", mom.weight, x + a[:, :, None] * b[:, None, :]) for x, a, b in pairs)
        return _small.stored(zz), _small.stored(zu), _small.stored(uu)

    return over_batches(total, mom)


def _class_numbers(classes: Any) -> tuple[int, ...]:
    if np.ndim(classes) != 1:
        raise ValueError(f"classes must be one number a group, got {classes!r}.")
    numbers = tuple(_checks.integer(f"classes[{g}]", number, 0) for g, number in enumerate(classes))
    if len(set(numbers)) < 2:
        raise ValueError(f"classes must name at least 2 classes, got {list(numbers)}.")
    missing = sorted({*range(max(numbers) + 1)} - {*numbers})
    if missing:
        raise ValueError(f"classes must hold every number in 0..{max(numbers)}, got no group of class {missing[0]}.")
    return numbers


def _check_covariance(covariance: Array) -> None:
    if isinstance(covariance, jax.core.Tracer):
        return
    matrices = np.asarray(covariance, np.float64)
    scale = np.abs(matrices).max((-2, -1), keepdims=True)

    def group(bad: np.ndarray) -> int:
        return int(np.argwhere(bad)[0][-1])

    if (asymmetric := (np.abs(matrices - matrices.mT) > _checks.ROUNDING * scale).any((-2, -1))).any():
        raise ValueError(f"covariance must be symmetric, got another matrix for group {group(asymmetric)}.")
    least = np.linalg.eigvalsh(matrices)[..., 0]
    if (negative := least < -_checks.ROUNDING * scale[..., 0, 0]).any():
        raise ValueError(
            f"covariance must be positive semi-definite, got eigenvalue {least[negative][0]:g} for group"
            f" {group(negative)}."
        )


def _draw(key: Key[Array, ""], weight: Array, shape: tuple[int, ...]) -> Array:
    """Group numbers with these weights."""
    edges = jnp.cumsum(weight)
    return jnp.minimum(
        jnp.searchsorted(edges / edges[-1], jax.random.uniform(key, shape, weight.dtype), side="right"), len(weight) - 1
    )


def covariance_roots(covariance: Float[Array, "g l l"]) -> Float[Array, "g l l"]:
    """A_g with A_g A_g^T = S_g, also for singular S_g."""
    values, vectors = jnp.linalg.eigh(covariance)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]


def _class_moments(model: Mixture, caps: GroupCaptions | None = None) -> ClassMoments:
    """`Mixture.class_moments` of a single model."""
    if caps is None:
        u_mean, kept, u_covariance = model.mean, jnp.ones_like(model.mean), model.covariance
    else:
        u_mean, kept, u_covariance = caps.group_moments(model)
    member = model.weight[None, :] * model.membership()  # (K, G)
    total = _small.einsum("kg->k", member)
    share = member / jnp.where(total > 0, total, 1.0)[:, None]
    z_class, u_class = _small.product(share, model.mean), _small.product(share, u_mean)
    z, u = (x[None, :, :] - mean[:, None, :] for x, mean in ((model.mean, z_class), (u_mean, u_class)))  # (K, G, l)

    def within(covariance: Array, left: Array, right: Array) -> Array:
        means = _small.einsum("kg,kgi,kgj->kij", share, left, right)
        return _small.einsum("kg,gij->kij", share, covariance) + means

    return ClassMoments(
        weight=total,
        z_mean=z_class,
        u_mean=u_class,
        zz=within(model.covariance, z, z),
        zu=within(model.covariance * kept[:, None, :], z, u),
        uu=within(u_covariance, u, u),
    )


def _rule_accuracy(
    model: Mixture, rules: Array, gram: Array, sd_image: Array, offsets: Array
) -> tuple[Float[Array, " g"], Float[Array, " g"]]:
    """The accuracies of `Mixture.rule_accuracy` and their errors, of a single model."""
    contrasts = model.contrasts()

    def form(rows: Array, matrices: Array, spec: str) -> Float[Array, "g rest rest"]:
        return _small.einsum("gri,gsi->grs", _small.einsum(spec, rows, matrices), rows)

    difference = _small.einsum("grk,ki->gri", contrasts, rules)
    noise = form(contrasts, gram, "grk,kj->grj")
    covariance = form(difference, model.covariance, "gri,gij->grj") + sd_image**2 * noise
    offset = _small.einsum("grk,k->gr", contrasts, offsets)
    mean = _small.einsum("gri,gi->gr", difference, model.mean) + offset
    size = _small.einsum("gri,gi->gr", jnp.abs(difference), jnp.abs(model.mean)) + jnp.abs(offset)
    return _orthant.positive(mean, covariance, size)
