"""Singular values and vectors of a sample cross-covariance: which features a truncated embedding finds in n samples.

Symbols: S = X^T Y / n, a_I = d_I/n, a_T = d_T/n, t the variable in which the singular values of S, over s_I s_T, are
sqrt(lambda(t)), lambda(t) = (1+t)(a_I+t)(a_T+t)/t, falling on (0, t_edge); tau = t / (s_I s_T)^2, in which all stays
finite without noise; l, r overlaps of singular vectors and signal coordinates.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import undefined_slope
from mmcl_theory.data import Captions, GroupCaptions, Model, Observation
from mmcl_theory.data.captions import second_moments

_BISECTIONS = 70
_ROUNDING = 64  # an eigenvalue of 0 may be off by this many units in the last place
MAX_OUTLIERS = 4  # of two latents


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Outliers:
    """Singular values of S above its bulk, largest first, in the limit n, d_I, d_T -> inf at fixed ratios.

    There are k = 2l entries for l latents: MAX_OUTLIERS = 4 in the intra-class model, of latents (core, spurious).

    Where `exists` is False the other fields are NaN. The derivative of this NaN is 0, so that the derivatives of the
    other entries can be taken.

    Attributes:
        value: singular values in units of s_I s_T; inf without noise.
        strength: singular values in the units of the data.
        left: inner products of the unit left singular vectors with the columns of D_I. The common
            sign of left and right is arbitrary, and so is the basis of vectors that share a singular value.
        right: the same for the right singular vectors and D_T.
        exists: whether the entry is an outlier.

    Example:
        `strength` is `value` in the units of the data:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model, obs = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1), mt.observation(300, 300, 10.0, 10.0)
        >>> found = jax.jit(mt.theory.outliers)(model, mt.captions(), obs, n=1000.0)
        >>> print(bool(jnp.allclose(found.strength[0], found.value[0] * obs.sd_image * obs.sd_text)))
        True
    """

    value: Array  # (..., k)
    strength: Array  # (..., k)
    left: Array  # (..., k, l)
    right: Array  # (..., k, l)
    exists: Array  # (..., k) bool


def bulk_edge(aspect_image: Scalar, aspect_text: Scalar) -> Float[Array, "..."]:
    """The largest singular value of X^T Y / n for independent standard Gaussian X, Y as n, d_I, d_T -> inf.

    It is sqrt(lambda(t_edge)), with t_edge the positive root of 2 t^3 + (1 + a_I + a_T) t^2 - a_I a_T = 0.

    Args:
        aspect_image: a_I = d_I/n, finite and > 0.
        aspect_text: a_T = d_T/n, finite and > 0.

    Returns:
        The edge of the bulk, of the arguments' broadcast shape.

    Raises:
        ValueError: for values out of range.

    Example:
        >>> import mmcl_theory as mt
        >>> print(f"{mt.theory.bulk_edge(aspect_image=0.5, aspect_text=0.4):.3f}")
        1.557

    Source: X2.  Check: proofs_checks/x2.py.
    """
    a_i, a_t = (
        _checks.real(name, a, "finite and > 0")
        for name, a in (("aspect_image", aspect_image), ("aspect_text", aspect_text))
    )
    a_i, a_t = jnp.broadcast_arrays(a_i, a_t)
    return jnp.sqrt(_squared_value(_edge(a_i, a_t), a_i, a_t))


def outliers(model: Model, caps: Captions | GroupCaptions | None, obs: Observation, n: Scalar) -> Outliers:
    """The singular values of the sample cross-covariance of n pairs that stand out of the noise, and their vectors.

    With U = Cov(u), Z = Cov(z), X = Cov(z, u), an outlier sits at each t = s_I^2 s_T^2 tau in (0, t_edge) where

        B = [[a_T I - tau s_I^2 U, -sqrt(tau (1+t)) X^T], [-sqrt(tau (1+t)) X, a_I I - tau s_T^2 Z]]

    is singular, at the strength sqrt((1+t)(a_I+t)(a_T+t)/tau). There are up to twice as many as latents,
    because a strong feature of one modality alone drags noise of the other along. With (b_T, b_I) the null vector of B
    there:

        g = d/dtau log(strength^2) / (b^T (dB/dtau) b)
        left = sqrt(g (a_I + t)) b_I,   right = sqrt(g (a_T + t)) b_T

    Null vectors of one tau are first made orthogonal in dB/dtau. As a noise goes to 0 so does t. Every quantity has a
    limit: without any noise the singular vectors are those of X.

    Args:
        model: intra-class model or mixture; the leaves of all arguments broadcast.
        caps: caption policy; None for rich captions.
        obs: observation.
        n: number of samples, >= 2, real values allowed.

    Returns:
        The outliers. They are differentiable, but derivatives are NaN where two outliers share a singular value,
        because their vectors have none.

    Raises:
        ValueError: for n < 2.

    Example:
        How many features stand out of the noise, and the largest strength, which tends to that of Cov(z, u):

        >>> import jax
        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> model, obs = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1), mt.observation(300, 300, 10.0, 10.0)
        >>> for n in (10.0, 1000.0, 1e9):
        ...     found = jax.jit(mt.theory.outliers)(model, mt.captions(), obs, n)
        ...     print(int(found.exists.sum()), f"{found.strength[0]:.2f}")
        1 13.26
        2 2.64
        2 2.53
        >>> print(f"{np.linalg.norm(mt.moments(model, mt.captions()).zu, 2):.2f}")
        2.53

    Source: X2.  Check: proofs_checks/x2.py.
    """
    matrices = second_moments(model, caps)
    n_array = _checks.sample_size(n)
    noises = (obs.sd_image**2, obs.sd_text**2)
    batch = jnp.broadcast_shapes(matrices[0].shape[:-2], *(x.shape for x in noises), n_array.shape)
    zz, zu, uu = (jnp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in matrices)
    v_i, v_t, n_array = (jnp.broadcast_to(x, batch) for x in (*noises, n_array))
    return outliers_of_moments(zz, uu, zu, v_i, v_t, obs.dim_image / n_array, obs.dim_text / n_array)


def outliers_of_moments(
    zz: Float[Array, "... l l"],
    uu: Float[Array, "... l l"],
    zu: Float[Array, "... l l"],
    v_i: Float[Array, "..."],
    v_t: Float[Array, "..."],
    a_i: Float[Array, "..."],
    a_t: Float[Array, "..."],
) -> Outliers:
    """`outliers` from Cov(z), Cov(u), Cov(z, u), s_I^2, s_T^2, d_I/n and d_T/n; 2l entries for l latents."""
    one = jnp.vectorize(_outliers, signature="(l,l),(l,l),(l,l),(),(),(),()->(k),(k),(k,l),(k,l),(k)")
    return Outliers(*one(zz, uu, zu, v_i, v_t, a_i, a_t))


def _squared_value(t: Array, a_i: Array, a_t: Array) -> Array:
    return (1 + t) * (a_i + t) * (a_t + t) / t


def _edge(a_i: Array, a_t: Array) -> Array:
    """The positive root of 2 t^3 + (1 + a_I + a_T) t^2 = a_I a_T, by Newton steps from above, where it is convex."""
    total, product = 1 + a_i + a_t, a_i * a_t
    t = jnp.minimum(jnp.sqrt(product / total), jnp.cbrt(product / 2))
    for _ in range(8):
        t = t - (2 * t**3 + total * t**2 - product) / (6 * t**2 + 2 * total * t)
    return t


def _singular_at(
    tau: Array, zz: Array, uu: Array, zu: Array, v_i: Array, v_t: Array, a_i: Array, a_t: Array
) -> Float[Array, "k k"]:
    """B, with v_I = s_I^2 and v_T = s_T^2."""
    eye = jnp.eye(len(zu), dtype=tau.dtype)
    cross = -jnp.sqrt(tau * (1 + v_i * v_t * tau)) * zu
    return jnp.block([[a_t * eye - tau * v_i * uu, cross.T], [cross, a_i * eye - tau * v_t * zz]])


def _outliers(*parameters: Array) -> tuple[Array, Array, Array, Array, Array]:
    """The fields of `Outliers` for one set of the parameters of `_singular_at`."""
    fixed = jax.lax.stop_gradient(parameters)
    zz, uu, zu, v_i, v_t, a_i, a_t = fixed
    eps, count = jnp.finfo(zz.dtype).eps, 2 * len(zz)
    # B > 0 at tau below `low`, by the norms of its blocks. The floor of 1e-30 matters where all data are 0.
    noise, norms = v_i * v_t, [jnp.linalg.norm(x) for x in (uu, zz, zu)]
    bounds = jnp.stack([v_i * norms[0] / a_t, v_t * norms[1] / a_i, 2 * norms[2] ** 2 / (a_i * a_t), noise])
    low = 0.25 / jnp.maximum(bounds.max(), 1e-30)
    # Without noise there is no edge. Strengths below eps of the largest are rounding.
    edge = jnp.where(noise > 0, _edge(a_i, a_t) / jnp.where(noise > 0, noise, 1.0), jnp.inf)
    high = jnp.minimum(edge, low / eps**2)

    def eigenvalues(tau: Array) -> Array:
        return jnp.linalg.eigvalsh(_singular_at(tau, *fixed))

    # Eigenvalue k of B, positive at `low`, crosses 0 on the way to the edge iff it is negative there.
    at_high = eigenvalues(high)
    exists = (at_high < -_ROUNDING * eps * jnp.abs(at_high).max()) & (bounds[2] > 0)

    def halve(bracket: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        below = jax.vmap(lambda tau, k: eigenvalues(tau)[k])(middle, jnp.arange(count)) < 0
        return (jnp.where(below, low, middle), jnp.where(below, middle, high)), None

    (lows, highs), _ = jax.lax.scan(halve, (jnp.full(count, low), jnp.full(count, high)), None, _BISECTIONS)
    tau = jnp.sqrt(lows) * jnp.sqrt(highs)
    # Roots within sqrt(eps) of each other count as one: their vectors would mix by more than that.
    for k in range(1, count):
        tied = exists[k] & (jnp.abs(tau[k] - tau[k - 1]) <= jnp.sqrt(eps) * tau[k])
        tau = tau.at[k].set(jnp.where(tied, tau[k - 1], tau[k]))
    equal = exists[:, None] & exists[None, :] & (tau[:, None] == tau[None, :])
    rank = (equal & jnp.tri(count, k=-1, dtype=bool)).sum(1)  # among the roots of the same value
    value, strength, left, right = jax.vmap(functools.partial(_vectors, parameters))(tau, rank, equal.sum(1), exists)
    hide = exists[:, None]
    return (  # not `nan_where`: in reverse mode its NaN derivative at one entry would reach the other entries
        jnp.where(exists, value, jnp.nan),
        jnp.where(exists, strength, jnp.nan),
        jnp.where(hide, left, jnp.nan),
        jnp.where(hide, right, jnp.nan),
        exists,
    )


def _vectors(
    parameters: tuple[Array, ...], root: Array, rank: Array, multiplicity: Array, exists: Array
) -> tuple[Array, Array, Float[Array, " l"], Float[Array, " l"]]:
    """Value, strength and signed overlaps at a root tau; rank: which of its `multiplicity` null vectors.

    Everything, derivatives included, is finite where there is no root.
    """
    latents = len(parameters[0])
    eye, count = jnp.eye(latents, dtype=root.dtype), 2 * latents
    harmless = (eye, eye, eye.at[0, 0].set(2.0), 0.0, 0.0, 1.0, 1.0)  # singular at 1/4, once
    parameters = tuple(jnp.where(exists, x, jnp.asarray(y)) for x, y in zip(parameters, harmless, strict=True))
    root, rank, multiplicity = (jnp.where(exists, x, y) for x, y in ((root, 0.25), (rank, 0), (multiplicity, 1)))
    fixed = jax.lax.stop_gradient(parameters)
    _, _, _, v_i, v_t, a_i, a_t = parameters
    matrix = _singular_at(root, *fixed)
    slope = jax.jacfwd(lambda tau: _singular_at(tau, *fixed))(root)
    values, vectors = jnp.linalg.eigh(matrix)
    order = jnp.argsort(jnp.abs(values))
    basis, null = vectors[:, order], jnp.arange(count) < multiplicity
    # Make the null vectors orthogonal and of norm 1 in -dB/dtau; leave the others out.
    gram = jnp.where(null[:, None] & null[None, :], -basis.T @ slope @ basis, jnp.eye(count, dtype=root.dtype))
    weights, rotation = jnp.linalg.eigh(gram)
    basis = basis @ (rotation / jnp.sqrt(weights)[None, :]) @ rotation.T
    b = jax.lax.stop_gradient(basis[:, rank])

    # One Newton step for tau and one bordered solve for b move neither, but carry their derivatives in the parameters.
    tau = root + b @ _singular_at(root, *parameters) @ b  # the slope is -1
    border = jnp.block([[matrix, b[:, None]], [b[None, :], jnp.zeros((1, 1), root.dtype)]])
    single = multiplicity == 1
    border = jnp.where(single, border, jnp.eye(count + 1, dtype=root.dtype))
    residual = jnp.where(single, _singular_at(tau, *parameters) @ b, 0.0)
    b = b - jnp.linalg.solve(border, jnp.append(residual - b * (b @ residual) / (b @ b), 0.0))[:count]
    b = b / jnp.sqrt(-b @ jax.jacfwd(lambda tau: _singular_at(tau, *parameters))(tau) @ b)
    b = undefined_slope(b, ~single)

    noise = v_i * v_t
    t = noise * tau
    strength_squared = (1 + t) * (a_i + t) * (a_t + t) / tau
    fall = 1 / tau - noise * (1 / (1 + t) + 1 / (a_i + t) + 1 / (a_t + t))
    value = jnp.where(noise > 0, jnp.sqrt(strength_squared / jnp.where(noise > 0, noise, 1.0)), jnp.inf)
    left, right = jnp.sqrt(fall * (a_i + t)) * b[latents:], jnp.sqrt(fall * (a_t + t)) * b[:latents]
    return value, jnp.sqrt(strength_squared), left, right
