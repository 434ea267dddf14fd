"""Inter-class data model (THEORY 1.2): m pairs of classes whose details occur, weakly, in every other class.

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
    """y = (c, k) uniform over 2m classes; core_k = c, spu_k = a with a = c w.p. p_spu; for j != k core_j = +-beta,
    spu_j = +-alpha.

    The signs of the other pairs are fair and independent. A label is the signed integer c k.
    Build it with `inter_class`, which checks. Groups: aligned (a = c) and conflicting (a = -c).
    Source: THEORY 1.2.
    """

    p_spu: Array  # ()
    alpha: Array  # ()
    beta: Array  # ()
    num_pairs: int = dataclasses.field(metadata={"static": True})

    @property
    def num_latents(self) -> int:
        """2m latent coordinates."""
        return 2 * self.num_pairs

    @property
    def num_classes(self) -> int:
        """2m classes."""
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
        weak = weak * jnp.stack([self.beta, self.alpha])[None, :, None]
        own = jnp.tile(self._own_pair(label), (1, 2))
        z = jnp.where(own, self.attribute_means(label, attribute), weak.reshape(n, -1))
        return Latents(z, label, attribute)

    def class_means(self, label: Int[Array, " n"]) -> Float[Array, "n l"]:
        """E_{P*}[z | y] = c e_core,k: what naming the class says, and the "core" prompt."""
        core = jnp.sign(label)[:, None] * self._own_pair(label)
        return jnp.concatenate([core, 0 * core], -1).astype(self.p_spu.dtype)

    def attribute_means(self, label: Int[Array, " n"], attribute: Int[Array, " n"]) -> Float[Array, "n l"]:
        """E[z | y, a] = c e_core,k + a e_spu,k."""
        own = self._own_pair(label)
        signs = jnp.concatenate([jnp.sign(label)[:, None] * own, attribute[:, None] * own], -1)
        return signs.astype(self.p_spu.dtype)

    def latent_moments(self) -> LatentMoments:
        """Exact second moments of the coordinates (core_j, spu_j) of one pair; different pairs are uncorrelated."""
        m = self.num_pairs
        q = 2 * self.p_spu - 1
        zero, one = 0 * q, 1 + 0 * q
        spread = 4 * self.p_spu * (1 - self.p_spu)  # of E[spu_k | a] given y
        return LatentMoments(
            zz=pair_matrix(1 + (m - 1) * self.beta**2, q, q, 1 + (m - 1) * self.alpha**2) / m,
            z_class=pair_matrix(one, zero, q, zero) / m,
            class_class=pair_matrix(one, zero, zero, zero) / m,
            attribute_attribute=pair_matrix(one, q, q, one) / m,
            zz_within=pair_matrix((m - 1) * self.beta**2, zero, zero, spread + (m - 1) * self.alpha**2) / m,
            attribute_within=pair_matrix(zero, zero, zero, spread) / m,
            class_mean=jnp.stack([one, q], -1),
            class_core=jnp.stack([one, zero], -1),
            weight=jnp.asarray(1 / m, self.p_spu.dtype),
        )

    def _own_pair(self, label: Int[Array, " n"]) -> Array:
        return jnp.abs(label)[:, None] == jnp.arange(1, self.num_pairs + 1)[None, :]


def inter_class(num_pairs: int, p_spu: Scalar, alpha: Scalar, beta: Scalar) -> InterClass:
    """The inter-class model with checked parameters.

    num_pairs: m >= 1, static.  p_spu: P(a = c) in training, in [0, 1].  alpha, beta: strengths of a foreign
    spurious and core detail, in [0, 1).
    Raises: ValueError naming the argument, its range and the value.  Source: THEORY 1.2.
    """
    return InterClass(
        p_spu=_checks.real("p_spu", p_spu, "in [0, 1]"),
        alpha=_checks.real("alpha", alpha, "in [0, 1)"),
        beta=_checks.real("beta", beta, "in [0, 1)"),
        num_pairs=_checks.integer("num_pairs", num_pairs, 1),
    )
