"""Observations (docs/theory.md 1.4): latents seen through orthonormal dictionaries, with noise.

Symbols: D_M dictionary of modality M, d_i and d_t input dimensions, s_M^2 = sigma_M^2 / d_M noise variance per
coordinate.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data.captions import Captions, Model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """x_I = D_I z + xi_I, x_T = D_T u + xi_T, xi_M ~ N(0, (sigma_M^2 / d_M) I), so |xi_M|^2 ~ sigma_M^2.

    Build it with `observation`, which checks.  Source: docs/theory.md 1.4.
    """

    dim_image: int = dataclasses.field(metadata={"static": True})
    dim_text: int = dataclasses.field(metadata={"static": True})
    sigma_image: Array  # ()
    sigma_text: Array  # ()

    @property
    def sd_image(self) -> Array:
        """s_I = sigma_image / sqrt(d_I), the noise's standard deviation per image coordinate."""
        return self.sigma_image / self.dim_image**0.5

    @property
    def sd_text(self) -> Array:
        """s_T = sigma_text / sqrt(d_T), the noise's standard deviation per text coordinate."""
        return self.sigma_text / self.dim_text**0.5


def observation(dim_image: int, dim_text: int, sigma_image: Scalar = 1.0, sigma_text: Scalar = 1.0) -> Observation:
    """Observation with checked parameters.

    dim_image, dim_text: d_I, d_T >= 2, static.  sigma_image, sigma_text: noise norm, E|xi|^2 = sigma^2, >= 0.
    Raises: ValueError naming the argument, its range and the value.  Source: docs/theory.md 1.4.
    """
    return Observation(
        dim_image=_checks.integer("dim_image", dim_image, 2),
        dim_text=_checks.integer("dim_text", dim_text, 2),
        sigma_image=_checks.real("sigma_image", sigma_image, "finite and >= 0"),
        sigma_text=_checks.real("sigma_text", sigma_text, "finite and >= 0"),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Dictionaries:
    """D_I and D_T, orthonormal columns, one a latent coordinate."""

    image: Array  # (d_i, l)
    text: Array  # (d_t, l)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """n image-text pairs with the label (signed class) and attribute of each; see `Latents` for both."""

    image: Array  # (n, d_i)
    text: Array  # (n, d_t)
    label: Array  # (n,)
    attribute: Array  # (n,)


def draw_dictionaries(key: Key[Array, ""], model: Model, obs: Observation) -> Dictionaries:
    """Uniformly random dictionaries with orthonormal columns (Q of the QR of a Gaussian matrix).

    Raises: ValueError if dim_image or dim_text is smaller than the number of latents.
    """
    key_image, key_text = jax.random.split(key)
    dtype = model.p_spu.dtype

    def draw(key: Array, name: str, dim: int) -> Array:
        _checks.integer(name, dim, model.num_latents, " (the number of latents)")
        q, r = jnp.linalg.qr(jax.random.normal(key, (dim, model.num_latents), dtype))
        return q * jnp.sign(jnp.diagonal(r))[None, :]

    return Dictionaries(draw(key_image, "dim_image", obs.dim_image), draw(key_text, "dim_text", obs.dim_text))


def sample_pairs(
    key: Key[Array, ""],
    model: Model,
    caps: Captions,
    obs: Observation,
    n: int,
    dictionaries: Dictionaries | None = None,
) -> Pairs:
    """n independent image-caption pairs from the training distribution P of the model.

    dictionaries: as drawn by `draw_dictionaries`; by default fresh ones, drawn from the key, which the caller then
    never sees. For the shifted distribution P* pass `shifted(model)`.
    Raises: ValueError if n < 2 or a dimension is smaller than the number of latents (static, so under jit too).
    Source: docs/theory.md 1.4.
    """
    n = _checks.integer("n", n, 2)
    key_latents, key_captions, key_image, key_text, key_dictionaries = jax.random.split(key, 5)
    if dictionaries is None:
        dictionaries = draw_dictionaries(key_dictionaries, model, obs)
    for name, d, dim in (("image", dictionaries.image, obs.dim_image), ("text", dictionaries.text, obs.dim_text)):
        if d.shape != (dim, model.num_latents):
            raise ValueError(f"the {name} dictionary must have shape {(dim, model.num_latents)}, got {d.shape}.")
    latents = model.sample(key_latents, n)
    code = caps.sample(key_captions, model, latents)

    def observe(key: Array, latent: Array, dictionary: Array, sd: Array) -> Float[Array, "n d"]:
        noise = jax.random.normal(key, (n, dictionary.shape[0]), latent.dtype)
        return latent @ dictionary.T + sd * noise

    return Pairs(
        image=observe(key_image, latents.z, dictionaries.image, obs.sd_image),
        text=observe(key_text, code, dictionaries.text, obs.sd_text),
        label=latents.label,
        attribute=latents.attribute,
    )


def shifted(model: Model) -> Model:
    """The shifted distribution P*: the same model with p_spu = 1/2."""
    return dataclasses.replace(model, p_spu=jnp.full_like(model.p_spu, 0.5))
