"""Sums of products and eigenvectors of small matrices, written out in their entries.

On a CPU, XLA calls a routine for every matrix of a batch, which takes far longer than the arithmetic of a small one.
What is written out becomes a loop over the batch. Larger matrices are left to the routines.

The functions are jitted, as those of jax.numpy are: outside of jit every term would be a program by itself.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_TERMS = 4  # of a sum that is written out; more take longer to compile than they save
_SIZE = 4  # of a matrix whose eigenvectors are written out
_SWEEPS = 10  # of rotations; each squares what is left off the diagonal, and 6 bring it to rounding


@functools.partial(jax.jit, static_argnums=0)
def einsum(spec: str, *operands: Array) -> Array:
    """jnp.einsum, for a spec with "->" and no axis twice in an operand; written out if a sum has at most 4 terms."""
    inputs, output = spec.split("->")
    axes = inputs.split(",")
    pairs = [pair for names, x in zip(axes, operands, strict=True) for pair in zip(names, x.shape, strict=True)]
    sizes = dict(pairs)
    if len(sizes) < len(set(pairs)):
        raise ValueError(f"{spec} needs operands of equal sizes, got {', '.join(str(x.shape) for x in operands)}.")
    summed = [a for a in sizes if a not in output]
    if math.prod(sizes[a] for a in summed) > _TERMS:
        return jnp.einsum(spec, *operands)

    def factor(names: str, x: Array, at: dict[str, int]) -> Array:
        """The entries of x at these places of the summed axes, with the axes of the output."""
        part = x[tuple(at.get(a, slice(None)) for a in names)]
        kept = [a for a in names if a in output]
        order = sorted(range(len(kept)), key=lambda i: output.index(kept[i]))
        return part.transpose(order).reshape([sizes[a] if a in kept else 1 for a in output])

    places = (dict(zip(summed, place, strict=True)) for place in np.ndindex(*(sizes[a] for a in summed)))
    return functools.reduce(
        jnp.add,
        (
            functools.reduce(jnp.multiply, (factor(names, x, at) for names, x in zip(axes, operands, strict=True)))
            for at in places
        ),
    )


def product(*matrices: Float[Array, "_ _"]) -> Float[Array, "_ _"]:
    """The product of matrices."""
    return functools.reduce(functools.partial(einsum, "ij,jk->ik"), matrices)


@jax.jit
def stored(matrix: Float[Array, "l m"]) -> Float[Array, "l m"]:
    """The matrix itself, of which XLA computes each entry once, not again in every place that reads it."""
    if matrix.size > _SIZE**2:
        return matrix
    return jnp.stack([matrix[place] for place in np.ndindex(matrix.shape)]).reshape(matrix.shape)


@jax.jit
def largest(x: Float[Array, " l"]) -> Float[Array, ""]:
    """The largest entry."""
    return functools.reduce(jnp.maximum, (x[i] for i in range(len(x)))) if len(x) <= _TERMS else x.max()


@jax.custom_jvp
@jax.jit
def eigh(matrix: Float[Array, "l l"]) -> tuple[Float[Array, " l"], Float[Array, "l l"]]:
    """Eigenvalues of a symmetric matrix, in no order, and orthonormal eigenvectors, in columns.

    Up to 4 x 4 by the rotations of Jacobi. Derivatives are not defined where eigenvalues coincide. NaN, values and
    vectors, of a matrix that has NaN or an infinity.
    """
    l = len(matrix)
    if l > _SIZE:
        return jnp.linalg.eigh(matrix)
    size = largest(jnp.abs(matrix).ravel())
    scale = jnp.where(size > 0, size, 1.0)
    unit = matrix / scale / 2
    unit = unit + unit.T
    planes = list(itertools.combinations(range(l), 2))

    def sweep(_: Any, state: Any) -> Any:
        a, v = ([list(row) for row in x] for x in state)
        for p, q in planes:
            # t = tan of the smaller angle that makes a_pq vanish.
            gap, twice = a[q][q] - a[p][p], 2 * a[p][q]
            down = jnp.abs(gap) + jnp.sqrt(gap**2 + twice**2)
            t = jnp.where(gap < 0, -twice, twice) / jnp.where(down > 0, down, 1.0)
            cos = 1 / jnp.sqrt(1 + t**2)
            sin = t * cos
            change = t * a[p][q]
            a[p][p], a[q][q], a[p][q], a[q][p] = a[p][p] - change, a[q][q] + change, 0 * change, 0 * change
            for i in range(l):
                v[i][p], v[i][q] = cos * v[i][p] - sin * v[i][q], sin * v[i][p] + cos * v[i][q]
                if i not in (p, q):
                    a[i][p], a[i][q] = cos * a[i][p] - sin * a[i][q], sin * a[i][p] + cos * a[i][q]
                    a[p][i], a[q][i] = a[i][p], a[i][q]
        return a, v

    eye = jnp.eye(l, dtype=matrix.dtype)
    a, v = ([[x[i, j] for j in range(l)] for i in range(l)] for x in (unit, eye))
    # A single rotation makes 2 x 2 diagonal.
    a, v = sweep(0, (a, v)) if l <= 2 else jax.lax.fori_loop(0, _SWEEPS, sweep, (a, v))
    finite = jnp.where(jnp.isfinite(size), 1.0, jnp.nan).astype(matrix.dtype)
    return finite * scale * jnp.stack([a[i][i] for i in range(l)]), finite * jnp.stack([jnp.stack(row) for row in v])


@eigh.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    values, vectors = eigh(primals[0])
    change = product(vectors.T, (tangents[0] + tangents[0].T) / 2, vectors)
    eye = jnp.eye(len(values), dtype=values.dtype)
    turn = (1 / (eye + values[None, :] - values[:, None]) - eye) * change
    return (values, vectors), (jnp.diagonal(change), product(vectors, turn))
