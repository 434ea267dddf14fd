"""Binomial and chi-squared draws for counts of 10^9 and more, where JAX's own draws go wrong in float32.

`jax.random.binomial` and `jax.random.chisquare` accept a proposal by a difference of terms as large as the count. In
float32 these terms are rounded: a binomial with n = 10^9 gets a variance 1.4 times too large. In float64 both functions
are exact to rounding. `jax.random.chisquare` also takes two seconds to compile.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

# Above this variance the distribution function of the expansion errs by less than 5e-6.
_LARGE_VARIANCE = 2500.0

# The normals of a chi-squared draw: three for each of 7 proposals. P(all are refused) < 1e-17 where df > 21.
NORMALS = 21


def binomial(key: Key[Array, ""], n: Float[Array, "..."], p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Binomial(n, p) draws for whole n >= 0 and p in [0, 1] of the same shape; exact in float64.

    In float32, draws with a variance above 2,500 are rounded normals with corrected skewness (Cornish-Fisher).
    """
    if n.dtype == jnp.float64:
        return jax.random.binomial(key, n, p, dtype=n.dtype)
    key_exact, key_normal = jax.random.split(key)
    variance = n * p * (1 - p)
    large = variance > _LARGE_VARIANCE
    exact = jax.random.binomial(key_exact, jnp.where(large, 1.0, n), p, dtype=n.dtype)
    z = jax.random.normal(key_normal, n.shape, n.dtype)
    expansion = jnp.round(n * p + jnp.sqrt(variance) * z + (1 - 2 * p) / 6 * (z**2 - 1))
    return jnp.where(large, expansion, exact)


def chi_squared(z: Float[Array, "k ..."], df: Float[Array, "..."]) -> Float[Array, "..."]:
    """Chi-squared draws with a whole number df of degrees of freedom, 0 where df <= 0, from k = NORMALS normals each.

    Up to df = k they are sums of squares. Above, Marsaglia and Tsang (2000): with d = df/2 - 1/3 and y = x/(3 sqrt d),
    x normal, accept 2 d (1 + y)^3 with probability exp 3d [log(1 + y) - y + y^2/2 - y^3/3].
    """
    few = jnp.arange(1, NORMALS + 1, dtype=df.dtype).reshape(-1, *[1] * df.ndim)
    squares = jnp.where(few <= df[None], z**2, 0.0).sum(0)
    proposals = z.reshape(NORMALS // 3, 3, *df.shape)
    d = jnp.maximum(df, NORMALS) / 2 - 1 / 3

    def propose(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, y, accepted = state
        x, *pair = proposals[i]
        new = jnp.maximum(x / (3 * jnp.sqrt(d)), -1.0)
        # Near 0 the terms cancel. What is left is the rest of the series of log(1 + y), here to y^9.
        series = -(new**4) * jnp.polyval(jnp.array([-1 / 9, 1 / 8, -1 / 7, 1 / 6, -1 / 5, 1 / 4], z.dtype), new)
        rest = jnp.where(jnp.abs(new) < 0.02, series, jnp.log1p(new) - new + new**2 / 2 - new**3 / 3)
        exponential = (pair[0] ** 2 + pair[1] ** 2) / 2
        return i + 1, jnp.where(accepted, y, new), accepted | (exponential > -3 * d * rest)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < len(proposals)) & ~state[2].all()

    _, y, _ = jax.lax.while_loop(unfinished, propose, (jnp.zeros((), int), jnp.zeros_like(d), df <= NORMALS))
    return jnp.where(df > NORMALS, 2 * d * (1 + y) ** 3, squares)


def wishart_shapes(df: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of the normals that `wishart_factor` takes; df >= 0 and size >= 1."""
    return (NORMALS, min(size, df)), (size, min(size, df))


def wishart_factor(df: int, z: Float[Array, "k r"], below: Float[Array, "size r"]) -> Float[Array, "size r"]:
    """Lower trapezoidal L with L L^T ~ Wishart_size(df, I) and r = min(size, df) columns (Bartlett), from normals.

    Singular Wishart matrices (df < size) are included.
    """
    size, r = below.shape
    diagonal = jnp.sqrt(chi_squared(z, df - jnp.arange(r, dtype=z.dtype)))
    return jnp.tril(below, -1) + jnp.eye(size, r, dtype=z.dtype) * diagonal[None, :]


def normals(key: Key[Array, ""], dtype: jax.typing.DTypeLike, *shapes: tuple[int, ...]) -> list[Array]:
    """Independent standard normals of each shape, from one draw with one axis: each draw compiles for .4 s or more."""
    return _parts(jax.random.normal, key, dtype, shapes)


def uniforms(key: Key[Array, ""], dtype: jax.typing.DTypeLike, *shapes: tuple[int, ...]) -> list[Array]:
    """Independent uniforms on [0, 1) of each shape, as `normals`."""
    return _parts(jax.random.uniform, key, dtype, shapes)


def _parts(
    draw: Callable[..., Array], key: Key[Array, ""], dtype: jax.typing.DTypeLike, shapes: Sequence[tuple[int, ...]]
) -> list[Array]:
    sizes = [math.prod(shape) for shape in shapes]
    parts = jnp.split(draw(key, (sum(sizes),), dtype), np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
