"""The probability that all coordinates of a Gaussian vector are positive.

Symbols: d coordinates, mean m, covariance C = L L^T with L lower triangular, z standard normal.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from mmcl_theory._slopes import undefined_slope

_TAIL = 9.0  # Phi(-9) = 1e-19
_NODES = (96, 64)  # of the quadrature, and of the one it is compared with, on each of three pieces
_POINTS, _SHIFTS = 2048, 16  # of the lattice, and its random shifts
_ROUNDING = 8  # units in the last place by which a mean of 0 may miss 0
_SINGULAR = 256  # units in the last place of a variance below which what is left of it counts as 0


def positive(
    mean: Float[Array, "... d"], covariance: Float[Array, "... d d"], size: Float[Array, "... d"]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """P(x > 0 in every coordinate) of x ~ N(mean, covariance), and its numerical error.

        d = 1: Phi(m / s).   d = 2: Gauss-Legendre quadrature of Phi along the first coordinate.
        d > 2: the integral over the unit cube of Genz (1992), on a lattice with random shifts.

    A coordinate that does not vary is positive or not; t such coordinates at 0 count as 1/(1 + t).

    Args:
        mean: m.
        covariance: C, positive semi-definite.
        size: sums of the absolute values of the terms of m, which tell what of it is rounding.

    Returns:
        The probability, and its error: 0 at d = 1, the change from two thirds of the nodes at d = 2, the standard error
        over the shifts at d > 2. At d > 2 all derivatives are NaN where C is singular: the lattice sees steps, no
        slope.
    """
    d = mean.shape[-1]
    if d == 1:
        value = _side(mean[..., 0], covariance[..., 0, 0], size[..., 0])
        return value, jnp.zeros_like(value)
    one = _plane if d == 2 else _cube
    value, error = jnp.vectorize(one, signature="(d),(d,d),(d)->(),()")(mean, covariance, size)
    # t coordinates tied at 0 without variance have counted as 2^-t; they count as 1/(1 + t).
    fixed = jnp.diagonal(covariance, axis1=-2, axis2=-1) == 0
    tied = (fixed & (jnp.abs(mean) <= _ROUNDING * jnp.finfo(mean.dtype).eps * size)).sum(-1)
    return value * (2.0**tied / (1 + tied)).astype(value.dtype), error


def _side(mean: Array, variance: Array, size: Array) -> Array:
    """Phi(mean / sd), a step without variance."""
    varies = variance > 0
    tied = jnp.abs(mean) <= _ROUNDING * jnp.finfo(mean.dtype).eps * size
    step = jnp.where(tied, 0.5, 0.5 * (1 + jnp.sign(mean))) + 0 * variance  # NaN where the variance is
    # The inner `where` keeps the derivative of the unused branch finite.
    return jnp.where(varies, ndtr(mean / jnp.sqrt(jnp.where(varies, variance, 1.0))), step)


def _plane(mean: Float[Array, "2"], covariance: Float[Array, "2 2"], size: Float[Array, "2"]) -> tuple[Array, Array]:
    # The coordinate of larger variance comes first, so that the other's is not lost in it.
    swap = covariance[1, 1] > covariance[0, 0]
    mean, size = (jnp.where(swap, x[::-1], x) for x in (mean, size))
    covariance = jnp.where(swap, covariance[::-1, ::-1], covariance)
    first = covariance[0, 0]
    varies = first > 0
    root = jnp.sqrt(jnp.where(varies, first, 1.0))
    slope = covariance[0, 1] / root
    rest = covariance[1, 1] - slope**2
    rest = jnp.where(rest > _SINGULAR * jnp.finfo(mean.dtype).eps * covariance[1, 1], rest, 0.0)
    own = rest > 0
    low = jnp.clip(-mean[0] / root, -_TAIL, _TAIL)
    # Without variance of its own the second coordinate is positive on one side of `cut`.
    leans = slope != 0
    cut = jnp.clip(jnp.where(leans, -mean[1] / jnp.where(leans, slope, 1.0), 0.0), -_TAIL, _TAIL)
    line = jnp.where(slope > 0, ndtr(-jnp.maximum(low, cut)), jnp.maximum(ndtr(cut) - ndtr(low), 0.0))
    line = jnp.where(leans, line, ndtr(-low) * _side(mean[1], jnp.zeros_like(rest), size[1]))
    sd = jnp.sqrt(jnp.where(own, rest, 1.0))
    # Around the cut Phi rises within a few of its own deviations.
    width = 8 * sd / jnp.where(leans, jnp.abs(slope), 1.0)
    begin, finish = (
        jax.lax.stop_gradient(jnp.clip(jnp.where(leans, cut + side * width, end), low, _TAIL))
        for side, end in ((-1, -_TAIL), (1, _TAIL))
    )

    def piece(nodes: int, a: Array, b: Array) -> Array:
        points, weights = np.polynomial.legendre.leggauss(nodes)
        z = a + (b - a) * (1 + jnp.asarray(points, mean.dtype)) / 2
        density = jnp.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5
        return (b - a) / 2 * (jnp.asarray(weights, mean.dtype) * density) @ ndtr((mean[1] + slope * z) / sd)

    ends = (low, begin, finish, jnp.full_like(low, _TAIL))
    fine, coarse = (sum(piece(nodes, *ends[i : i + 2]) for i in range(3)) for nodes in _NODES)
    # Without variance of the first coordinate both are independent.
    alone = _side(mean[0], first, size[0]) * _side(mean[1], covariance[1, 1], size[1])
    value = jnp.where(varies, jnp.where(own, fine, line), alone)
    return jnp.clip(value, 0.0, 1.0), jnp.where(varies & own, jnp.abs(fine - coarse), 0.0)


def _cube(mean: Float[Array, " d"], covariance: Float[Array, "d d"], size: Float[Array, " d"]) -> tuple[Array, Array]:
    d, dtype = mean.shape[0], mean.dtype
    eps = jnp.finfo(dtype).eps
    # The least likely coordinates first: the later factors vary less then.
    variance = jnp.diagonal(covariance)
    order = jnp.argsort(jax.lax.stop_gradient(mean / jnp.sqrt(jnp.maximum(variance, jnp.finfo(dtype).tiny))))
    mean, size, covariance = mean[order], size[order], covariance[order][:, order]
    lower = triangular_root(covariance)
    points = jnp.asarray(_lattice(d - 1), dtype)  # (shifts, points, d - 1)
    value = jnp.ones(points.shape[:-1], dtype)
    z: list[Array] = []
    for i in range(d):
        at = mean[i] + sum(lower[i, j] * z[j] for j in range(i))
        at = jnp.broadcast_to(at, value.shape)
        varies = lower[i, i] > 0
        inside = _side(at, jnp.broadcast_to(lower[i, i] ** 2, at.shape), jnp.broadcast_to(size[i], at.shape))
        value = value * inside
        if i < d - 1:
            # z_i given that this coordinate is positive: -Phi^-1(Phi(at / l_ii) (1 - w)).
            share = jnp.clip(inside * (1 - points[..., i]), jnp.finfo(dtype).tiny, 1 - eps)
            z.append(jnp.where(varies, -ndtri(share), 0.0))
    means = value.mean(1)
    return undefined_slope(means.mean(), (jnp.diagonal(lower) == 0).any()), means.std(ddof=1) / np.sqrt(_SHIFTS)


def triangular_root(covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """L, lower triangular, with L L^T = covariance, which may be singular; the column of what does not vary is 0."""
    eps = jnp.finfo(covariance.dtype).eps
    lower = jnp.zeros_like(covariance)
    for i in range(len(covariance)):
        left = covariance[i, i] - lower[i, :i] @ lower[i, :i]
        varies = left > _SINGULAR * eps * covariance[i, i]
        pivot = jnp.where(varies, jnp.sqrt(jnp.where(varies, left, 1.0)), 0.0)
        below = covariance[i + 1 :, i] - lower[i + 1 :, :i] @ lower[i, :i]
        below = jnp.where(varies, below / jnp.where(varies, pivot, 1.0), 0.0)
        lower = lower.at[i, i].set(pivot).at[i + 1 :, i].set(below)
    return lower


def _lattice(d: int) -> np.ndarray:
    """(_SHIFTS, _POINTS, d) points of the unit cube: Richtmyer's lattice, shifted, folded by the baker's map."""
    primes: list[int] = []
    candidate = 2
    while len(primes) < d:
        if all(candidate % p for p in primes):
            primes.append(candidate)
        candidate += 1
    steps = np.sqrt(primes)
    shift = np.random.default_rng(0).uniform(size=(_SHIFTS, 1, d))
    points = (np.arange(1, _POINTS + 1)[None, :, None] * steps[None, None, :] + shift) % 1
    return 1 - np.abs(2 * points - 1)
