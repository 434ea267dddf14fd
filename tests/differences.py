"""Derivatives held against finite differences, from within at the ends of a parameter's range."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def central(f, x, h=1e-4):
    """f'(x) to order h^4."""
    return (8 * (f(x + h) - f(x - h)) - f(x + 2 * h) + f(x - 2 * h)) / (12 * h)


def slopes(f, x, lower, upper, step=1e-4):
    """(k, len(x)) derivatives of f (k,) at x: of order step^4 inside the range, step^3 at its ends."""
    x, f0 = np.asarray(x, float), np.asarray(f(x))
    columns = []
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        h = step * max(1.0, abs(x[i]))

        def at(multiple, i=i, h=h):
            return np.asarray(f(x + multiple * h * np.eye(len(x))[i]))

        if x[i] - 2 * h >= low and x[i] + 2 * h <= high:
            columns.append((8 * (at(1) - at(-1)) - at(2) + at(-2)) / (12 * h))
        else:
            side = 1 if x[i] + 3 * h <= high else -1
            columns.append(side * (-11 * f0 + 18 * at(side) - 9 * at(2 * side) + 2 * at(3 * side)) / (6 * h))
    return np.stack(columns, -1)


@functools.cache
def _compiled(f):
    return jax.jit(f), jax.jit(jax.jacrev(f))


def assert_slopes(f, x, lower, upper, *, undefined=(), tolerance=1e-5, step=1e-4):
    """jax.jacrev(f)(x) equals the differences within `tolerance` of the largest; NaN at the indices `undefined`."""
    f, jacobian = _compiled(f)
    got = np.asarray(jacobian(jnp.asarray(x)))
    want = slopes(f, x, lower, upper, step)
    assert np.isnan(got[:, list(undefined)]).all(), got
    defined = [i for i in range(len(x)) if i not in undefined]
    np.testing.assert_allclose(got[:, defined], want[:, defined], atol=tolerance * max(1.0, np.abs(want).max()), rtol=0)
    # The check sees: a derivative scaled by 1.01 is refused.
    largest = np.abs(want[:, defined]).max()
    assert largest == 0 or 0.01 * np.abs(got[:, defined]).max() > tolerance * max(1.0, largest)
