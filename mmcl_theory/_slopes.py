"""Derivatives that autodiff would get wrong."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.custom_jvp
def undefined_slope(x: Float[Array, "..."], undefined: Bool[Array, "..."]) -> Float[Array, "..."]:
    """x, with NaN for its derivative where `undefined`: for functions that have no derivative there, or whose formula
    has another one. The two broadcast to the shape of x."""
    return x


@undefined_slope.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    x, undefined = primals
    return x, jnp.where(undefined, jnp.nan, 1.0).astype(x.dtype) * tangents[0]


def nan_where(unknown: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, NaN where `unknown`, and its derivative too: that of jnp.where would be 0. x finite; shapes as above."""
    return undefined_slope(x, unknown) + jnp.where(unknown, jnp.nan, 0.0).astype(x.dtype)


@jax.custom_jvp
def root_of_square(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sqrt(x), x >= 0, with derivative 0 at x = 0, for x = sum of squares whose every use is even in the root."""
    return jnp.sqrt(x)


@root_of_square.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    root = jnp.sqrt(x)
    return root, jnp.where(x > 0, 0.5 / jnp.where(x > 0, root, 1.0), 0.0) * tangents[0]
