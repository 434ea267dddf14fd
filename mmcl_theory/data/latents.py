"""What both data models give: a latent sample, its groups, and exact second moments."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
    """z, the label (y, or c k in the inter-class model) and the attribute a in {-1, +1} of n samples."""

    z: Array  # (n, l)
    label: Array  # (n,) integers, never 0
    attribute: Array  # (n,) integers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LatentMoments:
    """Exact second moments of z, of E_{P*}[z | y] ("class") and of E[z | y, a] ("attribute"); coordinates (core, spu).

    In the inter-class model these are the moments of one pair of coordinates, all pairs being alike and uncorrelated.
    `weight` is the share of the samples whose class owns the pair (1 in the intra-class model, 1/m in the other), and
    y class_mean = E_P[z | y] and y class_core = E_{P*}[z | y] are the class means on that share. The parts within
    classes are given by themselves: as differences of totals and means they would be rounding where they vanish.
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
    """The (2m, 2m) matrix of all coordinates (core_1..core_m, spu_1..spu_m) from the 2 x 2 matrix of one pair."""
    return jnp.kron(matrix, jnp.eye(num_pairs, dtype=matrix.dtype))


def class_index(label: Int[Array, " n"]) -> Int[Array, " n"]:
    """Class number 0..K-1 of a signed label c k: 2 (k - 1) + [c > 0]; -1 -> 0, +1 -> 1, -2 -> 2, +2 -> 3 and so on."""
    return 2 * (jnp.abs(label) - 1) + (label > 0)


def class_labels(num_classes: int) -> Int[Array, " c"]:
    """The signed labels in the order of `class_index`: -1, +1, -2, +2, ..."""
    index = jnp.arange(num_classes)
    return (index // 2 + 1) * jnp.where(index % 2 == 1, 1, -1)


def is_aligned(label: Int[Array, " n"], attribute: Int[Array, " n"]) -> Array:
    """Group of each sample: True where the attribute has the label's sign ("aligned"), else False ("conflicting")."""
    return jnp.sign(label) == attribute
