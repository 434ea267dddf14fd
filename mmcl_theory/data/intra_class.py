"""Intra-class data model (docs/theory.md 1.1): one core and one spurious feature, each with variance around its mean.

Symbols: y label, a attribute, z = (z_core, z_spu) latents, q = 2 p_spu - 1, n samples, l = 2 latents.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmcl_theory import _checks, _random
from mmcl_theory._checks import Scalar
from mmcl_theory.data.latents import LatentMoments, Latents, pair_matrix
from mmcl_theory.data.mixture import Mixture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class IntraClass:
    """The intra-class model: two classes and two Gaussian features, of which the spurious one follows the attribute.

        y uniform on {-1, +1},   a = y w.p. p_spu, else -y
        z_core | y ~ N(mu_core y, sigma_core^2),   z_spu | a ~ N(mu_spu a, sigma_spu^2)

    The two latents are independent given (y, a). The groups are aligned (a = y) and conflicting (a = -y). Build a model
    with `intra_class`, which checks the values.

    Attributes:
        p_spu: P(a = y) in training, (), in [0, 1].
        sigma_core: standard deviation of the core feature, (), >= 0.
        sigma_spu: standard deviation of the spurious feature, (), >= 0.
        mu_core: mean of the core feature, (), > 0.
        mu_spu: mean of the spurious feature, (), >= 0.

    Example:
        Its four groups, as a mixture, have the same accuracy:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> for same in (model, model.as_mixture()):
        ...     print(f"{mt.theory.mmcl_accuracy(same).shifted:.3f}")
        0.817
        0.817

    Source: docs/theory.md 1.1 (the paper's first data model has mu_core = mu_spu = 1).
    """

    p_spu: Array  # ()
    sigma_core: Array  # ()
    sigma_spu: Array  # ()
    mu_core: Array  # ()
    mu_spu: Array  # ()

    num_latents: ClassVar[int] = 2
    num_classes: ClassVar[int] = 2

    def sample(self, key: Key[Array, ""], n: int) -> Latents:
        """n independent draws of (z, y, a)."""
        key_group, key_noise = jax.random.split(key)
        dtype = self.p_spu.dtype
        side, chance = _random.uniforms(key_group, dtype, (n,), (n,))
        label = jnp.where(side < 0.5, 1, -1).astype(jnp.int32)
        attribute = jnp.where(chance < self.p_spu, label, -label)
        (noise,) = _random.normals(key_noise, dtype, (n, 2))
        spread = jnp.stack([self.sigma_core, self.sigma_spu])[None, :]
        return Latents(self.attribute_means(label, attribute) + spread * noise, label, attribute)

    def class_means(self, label: Int[Array, " n"]) -> Float[Array, "n l"]:
        """E_{P*}[z | y] = (mu_core y, 0): what a caption says that names only the class, and the "core" prompt."""
        core = self.mu_core * label
        return jnp.stack([core, jnp.zeros_like(core)], -1)

    def attribute_means(self, label: Int[Array, " n"], attribute: Int[Array, " n"]) -> Float[Array, "n l"]:
        """E[z | y, a] = (mu_core y, mu_spu a)."""
        return jnp.stack([self.mu_core * label, self.mu_spu * attribute], -1)

    def shifted(self) -> "IntraClass":
        """The shifted distribution P*: p_spu = 1/2."""
        return dataclasses.replace(self, p_spu=jnp.full_like(self.p_spu, 0.5))

    def as_mixture(self) -> Mixture:
        """The model as a mixture of four groups, (y, a) = (-1, -1), (-1, 1), (1, -1), (1, 1), of classes 0, 0, 1, 1."""
        leaves = (self.p_spu, self.sigma_core, self.sigma_spu, self.mu_core, self.mu_spu)
        p, sigma_core, sigma_spu, mu_core, mu_spu = jnp.broadcast_arrays(*leaves)
        zero = 0 * p
        weight = jnp.stack([p, 1 - p, 1 - p, p], -1) / 2
        mean = [jnp.stack([y * mu_core, a * mu_spu], -1) for y in (-1, 1) for a in (-1, 1)]
        covariance = pair_matrix(sigma_core**2, zero, zero, sigma_spu**2)
        return Mixture(
            weight=weight,
            shifted_weight=jnp.full_like(weight, 0.25),
            mean=jnp.stack(mean, -2),
            covariance=jnp.stack([covariance] * 4, -3),
            classes=(0, 0, 1, 1),
        )

    def latent_moments(self) -> LatentMoments:
        """Exact second moments of z and of its conditional means; see `LatentMoments`."""
        leaves = (self.p_spu, self.sigma_core, self.sigma_spu, self.mu_core, self.mu_spu)
        p_spu, sigma_core, sigma_spu, mu_core, mu_spu = jnp.broadcast_arrays(*leaves)
        q = 2 * p_spu - 1
        zero = 0 * q
        core, cross, spu = mu_core**2, q * mu_core * mu_spu, mu_spu**2
        spread = 4 * p_spu * (1 - p_spu) * spu  # Var(E[z_spu | a] | y)
        return LatentMoments(
            zz=pair_matrix(core + sigma_core**2, cross, cross, spu + sigma_spu**2),
            z_class=pair_matrix(core, zero, cross, zero),
            class_class=pair_matrix(core, zero, zero, zero),
            attribute_attribute=pair_matrix(core, cross, cross, spu),
            zz_within=pair_matrix(sigma_core**2, zero, zero, sigma_spu**2 + spread),
            attribute_within=pair_matrix(zero, zero, zero, spread),
            class_mean=jnp.stack([mu_core, q * mu_spu], -1),
            class_core=jnp.stack([mu_core, zero], -1),
            weight=jnp.ones((), self.p_spu.dtype),
        )


def intra_class(
    p_spu: Scalar, sigma_core: Scalar, sigma_spu: Scalar, mu_core: Scalar = 1.0, mu_spu: Scalar = 1.0
) -> IntraClass:
    """The intra-class model with checked parameters.

    Args:
        p_spu: P(a = y) in training, in [0, 1].
        sigma_core: standard deviation of the core feature, >= 0.
        sigma_spu: standard deviation of the spurious feature, >= 0.
        mu_core: mean of the core feature, > 0; its sign is a convention of the axis.
        mu_spu: mean of the spurious feature, >= 0; its sign is a convention of the axis.

    Returns:
        The model. Arrays of parameters describe a grid of models.

    Raises:
        ValueError: if a parameter is out of range; the message names argument, range and value.

    Example:
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> models = mt.intra_class(p_spu=jnp.array([0.5, 0.8, 0.95]), sigma_core=1.0, sigma_spu=0.1)
        >>> accuracy = mt.theory.mmcl_accuracy(models)
        >>> print([f"{value:.3f}" for value in accuracy.shifted])
        ['0.841', '0.831', '0.817']

    Source: docs/theory.md 1.1.
    """
    return IntraClass(
        p_spu=_checks.real("p_spu", p_spu, "in [0, 1]"),
        sigma_core=_checks.real("sigma_core", sigma_core, "finite and >= 0"),
        sigma_spu=_checks.real("sigma_spu", sigma_spu, "finite and >= 0"),
        mu_core=_checks.real("mu_core", mu_core, "finite and > 0"),
        mu_spu=_checks.real("mu_spu", mu_spu, "finite and >= 0"),
    )
