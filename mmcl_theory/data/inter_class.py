"""Inter-class data model (docs/theory.md 1.2): m pairs of classes whose details occur, weakly, in every other class.

Symbols: y = (c, k) class with sign c in {-1, +1} and pair k in 1..m, a attribute, q = 2 p_spu - 1,
z = (core_1..core_m, spu_1..spu_m) latents, n samples, l = 2m latents.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data.latents import LatentMoments, Latents, pair_matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class InterClass:
    """The inter-class model: each class owns one pair of coordinates, and shows the details of all other pairs weakly.

    The class y = (c, k) is uniform over 2m classes. Its latents are

        core_k = c,         spu_k = alpha a,  with a = c w.p. p_spu, else -c
        core_j = +-beta,    spu_j = +-alpha beta_spu,  for j != k

    The signs of the other pairs are fair and independent. A label is the signed integer c k. The groups are aligned
    (a = c) and conflicting (a = -c). Build a model with `inter_class`, which checks the values.

    Attributes:
        p_spu: P(a = c) in training, (), in [0, 1].
        alpha: strength of the spurious feature, (), > 0.
        beta: size of a core detail in the images of other classes, (), in [0, 1).
        beta_spu: size of a spurious detail there, over alpha, (), in [0, 1).
        num_pairs: m >= 1, static.

    Example:
        A conflicting image of class +2 shows its core detail and, twice as strong, the spurious one of class -2:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.inter_class(num_pairs=2, p_spu=1.0, alpha=2.0, beta=0.5)
        >>> print(model.attribute_means(jnp.array([2]), jnp.array([-1]))[0].tolist())
        [0.0, 1.0, 0.0, -2.0]

    Source: docs/theory.md 1.2; the paper's Data Model 2 (Definition 4.6) has beta_spu = beta and p_spu = 1.
    """

    p_spu: Array  # ()
    alpha: Array  # ()
    beta: Array  # ()
    beta_spu: Array  # ()
    num_pairs: int = dataclasses.field(metadata={"static": True})

    @property
    def num_latents(self) -> int:
        """The number of latent coordinates, 2m."""
        return 2 * self.num_pairs

    @property
    def num_classes(self) -> int:
        """The number of classes, 2m."""
        return 2 * self.num_pairs

    def sample(self, key: Key[Array, ""], n: int) -> Latents:
        """n independent draws of (z, y, a)."""
        key_sign, key_pair, key_attribute, key_others = jax.random.split(key, 4)
        dtype = self.p_spu.dtype
        sign = jax.random.rademacher(key_sign, (n,), dtype=jnp.int32)
        label = sign * jax.random.randint(key_pair, (n,), 1, self.num_pairs + 1, dtype=jnp.int32)
        aligned = jax.random.uniform(key_attribute, (n,), dtype) < self.p_spu
        attribute = jnp.where(aligned, sign, -sign)
        weak = jax.random.rademacher(key_others, (n, 2, self.num_pairs), dtype=dtype)
        weak = weak * jnp.stack(jnp.broadcast_arrays(self.beta, self.alpha * self.beta_spu))[None, :, None]
        own = jnp.tile(self._own_pair(label), (1, 2))
        z = jnp.where(own, self.attribute_means(label, attribute), weak.reshape(n, -1))
        return Latents(z, label, attribute)

    def shifted(self) -> "InterClass":
        """The shifted distribution P*: p_spu = 1/2."""
        return dataclasses.replace(self, p_spu=jnp.full_like(self.p_spu, 0.5))

    def class_means(self, label: Int[Array, " n"]) -> Float[Array, "n l"]:
        """E_{P*}[z | y] = c e_core,k: what a caption says that names only the class, and the "core" prompt."""
        core = jnp.sign(label)[:, None] * self._own_pair(label)
        return jnp.concatenate([core, 0 * core], -1).astype(self.p_spu.dtype)

    def attribute_means(self, label: Int[Array, " n"], attribute: Int[Array, " n"]) -> Float[Array, "n l"]:
        """E[z | y, a] = c e_core,k + alpha a e_spu,k."""
        own = self._own_pair(label)
        core, spu = jnp.sign(label)[:, None] * own, self.alpha * (attribute[:, None] * own)
        return jnp.concatenate([core.astype(self.p_spu.dtype), spu.astype(self.p_spu.dtype)], -1)

    def latent_moments(self) -> LatentMoments:
        """Exact second moments of the coordinates (core_j, spu_j) of one pair; different pairs are uncorrelated."""
        m = self.num_pairs
        p, alpha, beta, beta_spu = jnp.broadcast_arrays(self.p_spu, self.alpha, self.beta, self.beta_spu)
        mean = (2 * p - 1) * alpha  # c E[spu_k | y]
        zero, one = 0 * mean, 1 + 0 * mean
        spread = 4 * p * (1 - p) * alpha**2  # Var(E[spu_k | a] | y)
        others_core, others_spu = (m - 1) * beta**2, (m - 1) * (alpha * beta_spu) ** 2
        return LatentMoments(
            zz=pair_matrix(1 + others_core, mean, mean, alpha**2 + others_spu) / m,
            z_class=pair_matrix(one, zero, mean, zero) / m,
            class_class=pair_matrix(one, zero, zero, zero) / m,
            attribute_attribute=pair_matrix(one, mean, mean, alpha**2) / m,
            zz_within=pair_matrix(others_core, zero, zero, spread + others_spu) / m,
            attribute_within=pair_matrix(zero, zero, zero, spread) / m,
            class_mean=jnp.stack([one, mean], -1),
            class_core=jnp.stack([one, zero], -1),
            weight=jnp.asarray(1 / m, self.p_spu.dtype),
        )

    def _own_pair(self, label: Int[Array, " n"]) -> Array:
        return jnp.abs(label)[:, None] == jnp.arange(1, self.num_pairs + 1)[None, :]


def inter_class(
    num_pairs: int, p_spu: Scalar, alpha: Scalar, beta: Scalar, beta_spu: Scalar | None = None
) -> InterClass:
    """The inter-class model, the paper's Data Model 2, with checked parameters.

    Args:
        num_pairs: number of pairs of classes m, >= 1, static.
        p_spu: P(a = c) in training, in [0, 1]; the paper has 1.
        alpha: strength of the spurious feature, finite and > 0; the paper has alpha > 1.
        beta: strength of a core detail in the images of other classes, as a share of its own, in [0, 1).
        beta_spu: the same for spurious details, in [0, 1); None takes beta, as in the paper. It is a leaf of its own:
            replacing beta in a model does not change beta_spu.

    Returns:
        The model. Arrays of parameters describe a grid of models.

    Raises:
        ValueError: if a parameter is out of range; the message names argument, range and value.

    Example:
        >>> import mmcl_theory as mt
        >>> model = mt.inter_class(num_pairs=2, p_spu=1.0, alpha=2.0, beta=0.5)
        >>> labels = mt.data.class_labels(model.num_classes)
        >>> for label, mean in zip(labels, model.class_means(labels)):
        ...     print(int(label), mean.astype(int).tolist())
        -1 [-1, 0, 0, 0]
        1 [1, 0, 0, 0]
        -2 [0, -1, 0, 0]
        2 [0, 1, 0, 0]

    Source: docs/theory.md 1.2; Definition 4.6.
    """
    return InterClass(
        p_spu=_checks.real("p_spu", p_spu, "in [0, 1]"),
        alpha=_checks.real("alpha", alpha, "finite and > 0"),
        beta=_checks.real("beta", beta, "in [0, 1)"),
        beta_spu=_checks.real("beta_spu", beta if beta_spu is None else beta_spu, "in [0, 1)"),
        num_pairs=_checks.integer("num_pairs", num_pairs, 1),
    )
