"""Singular values and vectors of a sample cross-covariance: which features a truncated embedding finds in n samples.

Symbols: S = X^T Y / (n s_I s_T) in units of the noise, a_I = d_I/n, a_T = d_T/n, G_xx = E zz^T / s_I^2,
G_yy = E uu^T / s_T^2, G_xy = E zu^T / (s_I s_T), lambda = singular value squared, t the variable in which
lambda(t) = (1+t)(a_I+t)(a_T+t)/t, falling on (0, t_edge); l, r overlaps of singular vectors and signal coordinates.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data import Captions, IntraClass, Observation, moments

_BISECTIONS = 60
MAX_OUTLIERS = 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Outliers:
    """Singular values of S above its bulk, largest first, in the limit n, d_I, d_T -> inf at fixed ratios.

    value is in units of s_I s_T. left and right are the inner products of the unit singular vectors with the columns of
    the two dictionaries, (core, spurious); their common sign is arbitrary. Where `exists` is False the rest is NaN.
    """

    value: Array  # (..., 4), MAX_OUTLIERS
    left: Array  # (..., 4, 2)
    right: Array  # (..., 4, 2)
    exists: Array  # (..., 4) bool


def bulk_edge(aspect_image: Scalar, aspect_text: Scalar) -> Float[Array, "..."]:
    """The largest singular value of X^T Y / n for independent standard Gaussian X, Y as n, d_I, d_T -> inf.

    sqrt(lambda(t_edge)), t_edge the positive root of 2 t^3 + (1 + a_I + a_T) t^2 - a_I a_T = 0.
    aspect_image, aspect_text: a_I = d_I/n, a_T = d_T/n, > 0; they broadcast.
    Raises: ValueError for values out of range.  Source: X2.  Check: proofs_checks/x2.py.
    """
    a_i, a_t = (
        _checks.real(name, a, "finite and > 0")
        for name, a in (("aspect_image", aspect_image), ("aspect_text", aspect_text))
    )
    a_i, a_t = jnp.broadcast_arrays(a_i, a_t)
    return jnp.sqrt(_squared_value(_edge(a_i, a_t), a_i, a_t))


def outliers(model: IntraClass, caps: Captions, obs: Observation, n: Scalar) -> Outliers:
    """The singular values of the sample cross-covariance of n pairs that stand out of the noise, and their vectors.

    An outlier sits at each t in (0, t_edge) where
        B(t) = [[a_T I - t G_yy, -sqrt(t(1+t)) G_xy^T], [-sqrt(t(1+t)) G_xy, a_I I - t G_xx]]
    is singular, at the value sqrt(lambda(t)): up to four, for a strong feature of one modality alone drags noise of the
    other along. Overlaps from the null vector c of Kinv - Wb(s), normalised to -c^T Wb'(s) c = 1, as sqrt(2) Kinv c.

    n: >= 2, real values allowed.  Leaves of model, caps, obs and n broadcast; differentiable. All NaN without noise in
    both modalities.
    Raises: ValueError for n < 2.
    Source: X2.  Check: proofs_checks/x2.py.
    """
    mom = moments(model, caps)
    n_array = _checks.sample_size(n)
    sd_image, sd_text = obs.sd_image, obs.sd_text
    batch = jnp.broadcast_shapes(mom.zu.shape[:-2], sd_image.shape, sd_text.shape, n_array.shape)
    zz, zu, uu = (jnp.broadcast_to(x, (*batch, 2, 2)) for x in (mom.zz, mom.zu, mom.uu))
    scalars = [jnp.broadcast_to(x, batch) for x in (sd_image, sd_text, n_array)]
    noisy = (scalars[0] > 0) & (scalars[1] > 0)
    s_i, s_t = (jnp.where(noisy, s, 1.0)[..., None, None] for s in scalars[:2])
    aspects = (obs.dim_image / scalars[2], obs.dim_text / scalars[2])
    one = jnp.vectorize(_outliers, signature="(l,l),(l,l),(l,l),(),(),()->(k),(k,l),(k,l),(k)")
    found = one(zz / s_i**2, uu / s_t**2, zu / (s_i * s_t), *aspects, noisy)
    return Outliers(*found)


def _squared_value(t: Array, a_i: Array, a_t: Array) -> Array:
    return (1 + t) * (a_i + t) * (a_t + t) / t


def _edge(a_i: Array, a_t: Array) -> Array:
    """The positive root of 2 t^3 + (1 + a_I + a_T) t^2 = a_I a_T, by Newton steps from above, where it is convex."""
    total, product = 1 + a_i + a_t, a_i * a_t
    t = jnp.minimum(jnp.sqrt(product / total), jnp.cbrt(product / 2))
    for _ in range(8):
        t = t - (2 * t**3 + total * t**2 - product) / (6 * t**2 + 2 * total * t)
    return t


def _singular_at(t: Array, g_xx: Array, g_yy: Array, g_xy: Array, a_i: Array, a_t: Array) -> Float[Array, "4 4"]:
    """B(t)."""
    eye = jnp.eye(2, dtype=t.dtype)
    cross = -jnp.sqrt(t * (1 + t)) * g_xy
    return jnp.block([[a_t * eye - t * g_yy, cross.T], [cross, a_i * eye - t * g_xx]])


def _outliers(
    g_xx: Array, g_yy: Array, g_xy: Array, a_i: Array, a_t: Array, noisy: Array
) -> tuple[Array, Array, Array, Array]:
    """The fields of `Outliers` for one set of parameters."""
    arguments = (g_xx, g_yy, g_xy, a_i, a_t)
    fixed = jax.lax.stop_gradient(arguments)
    edge = _edge(*fixed[3:])

    def eigenvalues(t: Array) -> Array:
        return jnp.linalg.eigvalsh(_singular_at(t, *fixed))

    # B(0) > 0: eigenvalue k of B crosses 0 on the way to the edge iff it is negative there.
    exists = (eigenvalues(edge) < 0) & noisy

    def halve(bracket: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bracket
        middle = (low + high) / 2
        below = jax.vmap(lambda t, k: eigenvalues(t)[k])(middle, jnp.arange(4)) < 0
        return (jnp.where(below, low, middle), jnp.where(below, middle, high)), None

    (low, high), _ = jax.lax.scan(halve, (jnp.zeros_like(exists, edge.dtype), jnp.full(4, edge)), None, _BISECTIONS)
    t = jnp.where(exists, (low + high) / 2, edge / 2)

    def overlaps(t: Array) -> tuple[Array, Array, Array]:
        # One Newton step moves nothing but carries the derivative in the parameters.
        determinant = jnp.linalg.det(_singular_at(t, *arguments))
        t = t - determinant / jax.lax.stop_gradient(jax.jacfwd(lambda x: jnp.linalg.det(_singular_at(x, *fixed)))(t))
        return _vectors(t, *arguments)

    value, left, right = jax.vmap(overlaps)(t)
    hide = exists[:, None]
    return (
        jnp.where(exists, value, jnp.nan),
        jnp.where(hide, left, jnp.nan),
        jnp.where(hide, right, jnp.nan),
        exists,
    )


def _vectors(
    t: Array, g_xx: Array, g_yy: Array, g_xy: Array, a_i: Array, a_t: Array
) -> tuple[Array, Float[Array, "2"], Float[Array, "2"]]:
    """Singular value and signed overlaps at a root t."""
    eye, zero = jnp.eye(2, dtype=t.dtype), jnp.zeros((2, 2), t.dtype)
    k_inverse = jnp.block(
        [[zero, zero, eye, zero], [zero, zero, -g_xy.T, eye], [eye, -g_xy, zero, zero], [zero, eye, zero, zero]]
    )

    def wb(t: Array) -> Array:
        squared = _squared_value(t, a_i, a_t)
        s = jnp.sqrt(squared)
        g_x, g_y = (a_i + t) / (a_i * squared), (a_t + t) / (a_t * squared)
        f_a, f_b = (a_i + t) * (1 + t) / squared, (a_t + t) * (1 + t) / squared
        return jnp.block(
            [
                [s * g_x * eye, zero, zero, zero],
                [zero, s * f_a * g_yy, t * g_xy.T, zero],
                [zero, t * g_xy, s * f_b * g_xx, zero],
                [zero, zero, zero, s * g_y * eye],
            ]
        )

    values, vectors = jnp.linalg.eigh(k_inverse - wb(t))
    null = vectors[:, jnp.argmin(jnp.abs(values))]
    s, s_slope = jax.value_and_grad(lambda x: jnp.sqrt(_squared_value(x, a_i, a_t)))(t)
    slope = null @ (jax.jacfwd(wb)(t) / s_slope) @ null
    both = jnp.sqrt(2.0) * k_inverse @ null / jnp.sqrt(-slope)
    return s, both[:2], both[-2:]
