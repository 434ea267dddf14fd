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
from mmcl_theory.data.captions import Captions, Model, draw_captions
from mmcl_theory.data.group_captions import GroupCaptions
from mmcl_theory.data.protocol import law


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """How images and texts are observed, x_I = D_I z + xi_I and x_T = D_T u + xi_T.

    The noise is xi_M ~ N(0, (sigma_M^2 / d_M) I), so that E|xi_M|^2 = sigma_M^2 in any dimension. Build it with
    `observation`, which checks the values.

    Attributes:
        dim_image: image dimension d_I >= 2, static.
        dim_text: text dimension d_T >= 2, static.
        sigma_image: noise norm of an image, (), >= 0.
        sigma_text: noise norm of a text, (), >= 0.

    Example:
        The same noise norm is less noise in a coordinate, the more coordinates there are:

        >>> import mmcl_theory as mt
        >>> obs = mt.observation(dim_image=400, dim_text=100, sigma_image=1.0, sigma_text=1.0)
        >>> print(f"{obs.sd_image:.2f} {obs.sd_text:.2f}")
        0.05 0.10

    Source: docs/theory.md 1.4.
    """

    dim_image: int = dataclasses.field(metadata={"static": True})
    dim_text: int = dataclasses.field(metadata={"static": True})
    sigma_image: Array  # ()
    sigma_text: Array  # ()

    @property
    def sd_image(self) -> Array:
        """s_I = sigma_image / sqrt(d_I), the standard deviation of the noise in one image coordinate."""
        return self.sigma_image / self.dim_image**0.5

    @property
    def sd_text(self) -> Array:
        """s_T = sigma_text / sqrt(d_T), the standard deviation of the noise in one text coordinate."""
        return self.sigma_text / self.dim_text**0.5


def observation(dim_image: int, dim_text: int, sigma_image: Scalar = 1.0, sigma_text: Scalar = 1.0) -> Observation:
    """An observation with checked parameters.

    Args:
        dim_image: image dimension d_I >= 2, static.
        dim_text: text dimension d_T >= 2, static.
        sigma_image: noise norm of an image, E|xi_I|^2 = sigma_image^2, finite and >= 0.
        sigma_text: noise norm of a text, E|xi_T|^2 = sigma_text^2, finite and >= 0.

    Returns:
        The observation. Arrays of noise norms describe a grid of observations.

    Raises:
        ValueError: if a parameter is out of range; the message names argument, range and value.

    Example:
        Noise of the images, of 0, 1 and 2 in each coordinate, costs accuracy:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> obs = mt.observation(dim_image=100, dim_text=100, sigma_image=jnp.array([0.0, 10.0, 20.0]))
        >>> print([f"{value:.3f}" for value in mt.theory.mmcl_accuracy(model, obs=obs).shifted])
        ['0.817', '0.740', '0.658']

    Source: docs/theory.md 1.4.
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
    """D_I and D_T: orthonormal columns, one for each latent coordinate.

    Attributes:
        image: D_I, rows are image coordinates, columns latent coordinates.
        text: D_T, rows are text coordinates, columns latent coordinates.

    Example:
        An image without noise is D_I z. Here the dictionary is the first two coordinates:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> dictionaries = mt.data.Dictionaries(image=jnp.eye(4, 2), text=jnp.eye(3, 2))
        >>> print((dictionaries.image @ jnp.array([1.0, -1.0])).tolist())
        [1.0, -1.0, 0.0, 0.0]
    """

    image: Array  # (d_i, l)
    text: Array  # (d_t, l)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """n image-text pairs, one a row.

    Attributes:
        image: observed images x_I, columns are image coordinates.
        text: observed texts x_T, columns are text coordinates.
        label: signed class of each pair, see `Latents`.
        attribute: attribute of each pair, see `Latents`.

    Example:
        At p_spu = 1 all pairs are aligned:

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=1.0, sigma_core=1.0, sigma_spu=0.1)
        >>> draw = jax.jit(mt.sample_pairs, static_argnames="n")
        >>> pairs = draw(jax.random.key(0), model, mt.captions(), mt.observation(8, 6), n=5)
        >>> print(bool(mt.is_aligned(pairs.label, pairs.attribute).all()))
        True
    """

    image: Array  # (n, d_i)
    text: Array  # (n, d_t)
    label: Array  # (n,)
    attribute: Array  # (n,)


def draw_dictionaries(key: Key[Array, ""], model: Model, obs: Observation) -> Dictionaries:
    """Uniformly random dictionaries with orthonormal columns: Q of the QR decomposition of a Gaussian matrix.

    Args:
        key: random key.
        model: data model, which sets the number of columns.
        obs: observation, which sets the dimensions.

    Returns:
        The two dictionaries.

    Raises:
        ValueError: if dim_image or dim_text is smaller than the number of latents.

    Example:
        The columns are orthonormal:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> image = jax.jit(mt.draw_dictionaries)(jax.random.key(0), model, mt.observation(8, 6)).image
        >>> print(bool(jnp.allclose(image.T @ image, jnp.eye(2), atol=1e-5)))
        True
    """
    key_image, key_text = jax.random.split(key)
    dtype = _float_type(model)

    def draw(key: Array, name: str, dim: int) -> Array:
        _checks.integer(name, dim, model.num_latents, " (the number of latents)")
        q, r = jnp.linalg.qr(jax.random.normal(key, (dim, model.num_latents), dtype))
        return q * jnp.sign(jnp.diagonal(r))[None, :]

    return Dictionaries(draw(key_image, "dim_image", obs.dim_image), draw(key_text, "dim_text", obs.dim_text))


def _float_type(model: Model) -> jnp.dtype:
    """The type of the model's floating leaves; JAX's own if it has none."""
    leaves = [x for x in jax.tree.leaves(model) if jnp.issubdtype(getattr(x, "dtype", int), jnp.floating)]
    return jnp.result_type(*leaves) if leaves else jnp.zeros(()).dtype


def sample_pairs(
    key: Key[Array, ""],
    model: Model,
    caps: Captions | GroupCaptions,
    obs: Observation,
    n: int,
    dictionaries: Dictionaries | None = None,
) -> Pairs:
    """n independent image-caption pairs from the training distribution P of the model.

    For pairs from the shifted distribution P* pass `shifted(model)`.

    Args:
        key: random key.
        model: data model; its leaves must be scalars.
        caps: caption policy; its leaves must be scalars.
        obs: observation; its leaves must be scalars.
        n: number of pairs, >= 2, static.
        dictionaries: the dictionaries to observe through, from `draw_dictionaries`. None draws new ones from the key,
            which are not returned.

    Returns:
        The pairs.

    Raises:
        ValueError: if n < 2, if a dimension is smaller than the number of latents, or if a dictionary has another
            shape. These are static, so the error occurs under jit too.

    Example:
        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> draw = jax.jit(mt.sample_pairs, static_argnames="n")
        >>> pairs = draw(jax.random.key(0), model, mt.captions(), mt.observation(8, 6), n=5)
        >>> print(pairs.image.shape, pairs.text.shape, pairs.label.shape)
        (5, 8) (5, 6) (5,)

    Source: docs/theory.md 1.4.
    """
    n = _checks.integer("n", n, 2)
    key_latents, key_captions, key_image, key_text, key_dictionaries = jax.random.split(key, 5)
    if dictionaries is None:
        dictionaries = draw_dictionaries(key_dictionaries, model, obs)
    for name, d, dim in (("image", dictionaries.image, obs.dim_image), ("text", dictionaries.text, obs.dim_text)):
        if d.shape != (dim, model.num_latents):
            raise ValueError(f"the {name} dictionary must have shape {(dim, model.num_latents)}, got {d.shape}.")
    latents = law(model, "sample").sample(key_latents, n)
    code = draw_captions(key_captions, model, caps, latents)

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
    """The shifted distribution P* of a model.

    Args:
        model: data model.

    Returns:
        The model with p_spu = 1/2, in which label and attribute are independent; of a mixture, the same groups with
        the shifted weights.

    Example:
        On P* the features are uncorrelated:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> for place in (model, mt.shifted(model)):
        ...     print(f"{mt.moments(place, mt.captions()).zz[0, 1]:.1f}")
        0.9
        0.0
    """
    return law(model, "shifted").shifted()
