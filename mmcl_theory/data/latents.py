"""What both data models return: samples of the latents, their groups, and exact second moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """Latents, labels and attributes of n samples.

    Attributes:
        z: latent codes, rows are samples, columns latent coordinates.
        label: the class of each sample, y or, in the inter-class model, the signed integer c k; never 0.
        attribute: the attribute a of each sample, in {-1, +1}.

    Example:
        Without variance, at p_spu = 1, both features are the label:

        >>> import jax
        >>> import mmcl_theory as mt
        >>> latents = mt.intra_class(p_spu=1.0, sigma_core=0.0, sigma_spu=0.0).sample(jax.random.key(0), n=5)
        >>> print(bool((latents.z == latents.label[:, None]).all()))
        True
    """

    z: Array  # (n, l)
    label: Array  # (n,) integers, never 0
    attribute: Array  # (n,) integers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LatentMoments:
    """Exact second moments of z, E_{P*}[z | y] ("class") and E[z | y, a] ("attribute"); coordinates (core, spurious).

    In the inter-class model these are the moments of one pair of coordinates: all pairs are alike and uncorrelated.
    `weight` is the share of the samples whose class owns the pair, 1 in the intra-class and 1/m in the inter-class
    model. On that share the class means are y class_mean = E_P[z | y] and y class_core = E_{P*}[z | y]. The parts
    within classes are fields of their own: differences of totals and means would leave rounding where they vanish.
    """

    zz: Array  # (..., 2, 2)  E[z z^T]
    z_class: Array  # (..., 2, 2)  E[z E_{P*}[z | y]^T]
    class_class: Array  # (..., 2, 2)
    attribute_attribute: Array  # (..., 2, 2)  = E[z E[z | y, a]^T]
    zz_within: Array  # (..., 2, 2)  E Cov(z | y)
    attribute_within: Array  # (..., 2, 2)  E Cov(E[z | y, a] | y)
    class_mean: Array  # (..., 2)
    class_core: Array  # (..., 2)
    weight: Array  # ()


def pair_matrix(cc: Array, cs: Array, sc: Array, ss: Array) -> Float[Array, "... 2 2"]:
    """[[cc, cs], [sc, ss]] from broadcastable entries."""
    entries = jnp.stack(jnp.broadcast_arrays(cc, cs, sc, ss), -1)
    return entries.reshape(*entries.shape[:-1], 2, 2)


def all_pairs(matrix: Float[Array, "2 2"], num_pairs: int) -> Float[Array, "l l"]:
    """The matrix of all coordinates, from the matrix of one pair of the inter-class model.

    Args:
        matrix: 2 x 2, coordinates (core, spurious) of one pair.
        num_pairs: number of pairs m, static.

    Returns:
        The (2m, 2m) matrix with coordinates (core_1..core_m, spu_1..spu_m); entries between different pairs are 0.

    Example:
        The first row is that of core_1, which covaries with spu_1 alone:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> print(mt.data.all_pairs(jnp.array([[1.0, 0.5], [0.5, 4.0]]), num_pairs=2)[0].tolist())
        [1.0, 0.0, 0.5, 0.0]
    """
    return jnp.kron(matrix, jnp.eye(num_pairs, dtype=matrix.dtype))


def class_index(label: Int[Array, " n"]) -> Int[Array, " n"]:
    """Class numbers 0..K-1 of signed labels c k: 2 (k - 1) + [c > 0].

    Args:
        label: signed label of each sample, never 0.

    Returns:
        The class number of each sample: -1 -> 0, +1 -> 1, -2 -> 2, +2 -> 3 and so on.

    Example:
        >>> import mmcl_theory as mt
        >>> labels = mt.data.class_labels(4)
        >>> print(labels.tolist(), mt.class_index(labels).tolist())
        [-1, 1, -2, 2] [0, 1, 2, 3]
    """
    return 2 * (jnp.abs(label) - 1) + (label > 0)


def class_labels(num_classes: int) -> Int[Array, " c"]:
    """The signed labels in the order of `class_index`: -1, +1, -2, +2, ...

    Args:
        num_classes: number of classes K, static.

    Returns:
        One signed label c k for each class.

    Example:
        `class_index` is the inverse:

        >>> import mmcl_theory as mt
        >>> labels = mt.data.class_labels(4)
        >>> print(labels.tolist(), mt.class_index(labels).tolist())
        [-1, 1, -2, 2] [0, 1, 2, 3]
    """
    index = jnp.arange(num_classes)
    return (index // 2 + 1) * jnp.where(index % 2 == 1, 1, -1)


def is_aligned(label: Int[Array, " n"], attribute: Int[Array, " n"]) -> Array:
    """The group of each sample: whether the attribute has the sign of the label.

    Args:
        label: signed label of each sample.
        attribute: attribute of each sample, in {-1, +1}.

    Returns:
        True for an aligned sample, False for a conflicting one.

    Raises:
        ValueError: for a concrete attribute other than -1 and 1, such as the number of a mixture's group.

    Example:
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> print(mt.is_aligned(label=jnp.array([1, 2, -2]), attribute=jnp.array([1, -1, -1])).tolist())
        [True, False, True]
    """
    if not isinstance(attribute, jax.core.Tracer) and (np.abs(np.asarray(attribute)) != 1).any():
        raise ValueError("attribute must be -1 or 1; that of a mixture is the number of the group.")
    return jnp.sign(label) == attribute
