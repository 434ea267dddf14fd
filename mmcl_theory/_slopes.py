"""Derivatives that automatic differentiation would get wrong."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.custom_jvp
def undefined_slope(x: Float[Array, "..."], undefined: Bool[Array, "..."]) -> Float[Array, "..."]:
    """x, with derivative NaN where `undefined`; the two broadcast to the shape of x.

    For functions that have no derivative there, or whose formula has another one.
    """
    return x


@undefined_slope.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    x, undefined = primals
    return x, jnp.where(undefined, jnp.nan, 1.0).astype(x.dtype) * tangents[0]


def nan_where(unknown: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x, with value and derivative NaN where `unknown`; `jnp.where` alone would give a derivative of 0.

    x must be finite. Shapes are as for `undefined_slope`.
    """
    return undefined_slope(x, unknown) + jnp.where(unknown, jnp.nan, 0.0).astype(x.dtype)


@jax.custom_jvp
def root_of_square(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """sqrt(x) for x >= 0, with derivative 0 at x = 0.

    For sums of squares x whose root enters only through even functions.
    """
    return jnp.sqrt(x)


@root_of_square.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    root = jnp.sqrt(x)
    return root, jnp.where(x > 0, 0.5 / jnp.where(x > 0, root, 1.0), 0.0) * tangents[0]
