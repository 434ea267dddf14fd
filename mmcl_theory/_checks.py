"""Checks of what a caller typed. Tracers pass unchecked: only concrete values can be judged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Anything a caller may type for a scalar parameter or for an array of them.
Scalar = float | int | np.ndarray | np.generic | Float[Array, "..."]

_ALLOWED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "in [0, 1]": lambda x: (x >= 0) & (x <= 1),
    "in [0, 1)": lambda x: (x >= 0) & (x < 1),
    "in [0, inf]": lambda x: x >= 0,
    "finite and >= 0": lambda x: np.isfinite(x) & (x >= 0),
    "finite and > 0": lambda x: np.isfinite(x) & (x > 0),
}


def real(name: str, value: Scalar, allowed: str) -> Array:
    """`value` as a floating array; ValueError "<name> must be <allowed>, got <value>." if a concrete entry is not."""
    if not isinstance(value, jax.core.Tracer):
        try:
            if np.asarray(value).dtype.kind in "SU":  # NumPy would read "0.5" as a number
                raise TypeError
            x = np.asarray(value, dtype=np.float64)
            # In JAX's precision, where 1e300 may be inf and 1e-60 may be 0.
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


def sample_size(n: Scalar) -> Array:
    """`n` as an array; ValueError unless every concrete entry is >= 2. Real values are allowed (limits are in n/d)."""
    array = real("n", n, "finite and > 0")
    if not isinstance(n, jax.core.Tracer) and (np.asarray(n, np.float64) < 2).any():
        raise ValueError(f"n must be >= 2, got {np.min(np.asarray(n)):g}.")
    return array


def integer(name: str, value: int, least: int, why: str = "") -> int:
    """`value` as an int >= least; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}{why}, got {_plain(value)}.")
    return int(value)


def choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


def _plain(value: object) -> str:
    return repr(float(value)) if isinstance(value, float) else repr(value)
