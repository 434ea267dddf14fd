"""Binomial and chi-squared draws for counts of 10^9 and more, where JAX's own draws go wrong in float32.

`jax.random.binomial` and `jax.random.chisquare` accept a proposal by a difference of terms as large as the count. In
float32 these terms are rounded: a binomial with n = 10^9 gets a variance 1.4 times too large. In float64 both functions
are exact to rounding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Above these limits the distribution functions of the two expansions err by less than 5e-6 and 1e-6.
_LARGE_VARIANCE = 2500.0
_LARGE_DF = 1e4


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


def chi_squared(key: Key[Array, ""], df: Float[Array, "..."]) -> Float[Array, "..."]:
    """Chi-squared draws with df degrees of freedom, 0 where df <= 0; exact in float64.

    In float32, draws with df above 10^4 are cubes of a normal (Wilson and Hilferty).
    """
    positive = df > 0
    if df.dtype == jnp.float64:
        return jnp.where(positive, jax.random.chisquare(key, jnp.where(positive, df, 1.0), dtype=df.dtype), 0.0)
    key_exact, key_normal = jax.random.split(key)
    large = df > _LARGE_DF
    exact = jax.random.chisquare(key_exact, jnp.where(positive & ~large, df, 1.0), dtype=df.dtype)
    share = 2 / (9 * jnp.where(large, df, _LARGE_DF))
    cube = df * (1 - share + jnp.sqrt(share) * jax.random.normal(key_normal, df.shape, df.dtype)) ** 3
    return jnp.where(large, cube, jnp.where(positive, exact, 0.0))


def wishart_factor(key: Key[Array, ""], df: int, size: int, dtype: jax.typing.DTypeLike) -> Float[Array, "size r"]:
    """Lower trapezoidal L with L L^T ~ Wishart_size(df, I) and r = min(size, df) columns (Bartlett).

    Singular Wishart matrices (df < size) are included. df >= 0 and size >= 1 are static.
    """
    key_diagonal, key_below = jax.random.split(key)
    r = min(size, df)
    diagonal = jnp.sqrt(chi_squared(key_diagonal, df - jnp.arange(r, dtype=dtype)))
    below = jnp.tril(jax.random.normal(key_below, (size, r), dtype), -1)
    return below + jnp.eye(size, r, dtype=dtype) * diagonal[None, :]
