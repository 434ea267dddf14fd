"""Checks of the values that a caller passes. Only concrete values can be checked: tracers pass."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# What a caller may pass for a scalar parameter, or for an array of such parameters.
Scalar = float | int | np.ndarray | np.generic | Float[Array, "..."]

ROUNDING = 1e-6  # by which weights may miss a sum of 1, and a covariance its symmetry

_ALLOWED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "in [0, 1]": lambda x: (x >= 0) & (x <= 1),
    "in [0, 1)": lambda x: (x >= 0) & (x < 1),
    "in [0, inf]": lambda x: x >= 0,
    "finite and >= 0": lambda x: np.isfinite(x) & (x >= 0),
    "finite and > 0": lambda x: np.isfinite(x) & (x > 0),
}


def real(name: str, value: Scalar, allowed: str) -> Array:
    """`value` as a floating array; `allowed` is a key of _ALLOWED.

    Raises ValueError "<name> must be <allowed>, got <value>." if a concrete entry is not, or if there is no entry.
    """
    if not isinstance(value, jax.core.Tracer):
        try:
            if np.asarray(value).dtype.kind in "SU":  # NumPy would read "0.5" as a number
                raise TypeError
            x = np.asarray(value, dtype=np.float64)
            # Judge the value in JAX's precision: in float32 1e300 is inf and 1e-60 is 0.
            with np.errstate(over="ignore", under="ignore"):
                computed = x.astype(jax.dtypes.canonicalize_dtype(float))
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be {allowed}, got {value!r}.") from None
        bad = ~_ALLOWED[allowed](computed)
        if bad.any():
            raise ValueError(f"{name} must be {allowed}, got {float(x[bad].flat[0]):g}.")
        if not x.size:
            raise ValueError(f"{name} must be {allowed}, got an empty array.")
    return jnp.asarray(value, dtype=float)


def array(name: str, value: Any) -> Array:
    """`value` as a floating array. Raises ValueError for anything but finite numbers; tracers pass."""
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        given = np.asarray(value)
    except ValueError:
        given = np.asarray("ragged")
    if given.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be an array of finite numbers, got {value!r}.")
    numbers = given.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be an array of finite numbers, got {numbers[~np.isfinite(numbers)].flat[0]}.")
    return jnp.asarray(value, dtype=float)


def distribution(name: str, value: Any, groups: int) -> Array:
    """`value` as weights of the groups, (..., G). Raises ValueError unless they are >= 0 and sum to 1; tracers pass."""
    weights = array(name, value)
    if weights.ndim < 1 or weights.shape[-1] != groups:
        raise ValueError(f"{name} must have one entry for each of {groups} groups, got shape {weights.shape}.")
    if not isinstance(weights, jax.core.Tracer):
        numbers = np.asarray(weights, np.float64)
        if (numbers < 0).any():
            raise ValueError(f"{name} must be >= 0, got {numbers.min():g}.")
        total = numbers.sum(-1)
        if (np.abs(total - 1) > ROUNDING).any():
            raise ValueError(f"{name} must sum to 1, got {total.flat[np.abs(total - 1).argmax()]:g}.")
    return weights


def sample_size(n: Scalar) -> Array:
    """`n` as an array. Real values are allowed, because limits are in n/d.

    Raises ValueError if a concrete entry is below 2.
    """
    array = real("n", n, "finite and > 0")
    if not isinstance(n, jax.core.Tracer) and (np.asarray(n, np.float64) < 2).any():
        raise ValueError(f"n must be >= 2, got {np.min(np.asarray(n)):g}.")
    return array


def integer(name: str, value: int, least: int, why: str = "") -> int:
    """`value` as an int. Raises ValueError if it is not an integer >= least; `why` follows the bound in the message."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}{why}, got {_plain(value)}.")
    return int(value)


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value`. Raises ValueError if it is not one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def _plain(value: object) -> str:
    return repr(float(value)) if isinstance(value, float) else repr(value)
