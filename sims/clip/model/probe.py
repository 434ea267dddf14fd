"""A linear probe: the multinomial logistic regression on frozen features, for encoders that learnt no head."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from sims.engine.flags import WorkFailed

_SMALL = 1e-3  # of the gradient's norm at the start


def fit_probe(
    features: np.ndarray, labels: np.ndarray, num_classes: int, *, l2: float = 1e-4, max_steps: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """(W (c, r), b (c,)) = argmin of mean_i -log softmax(W f_i + b)[y_i] + (l2 / 2) |W|_F^2, by L-BFGS from 0.

    Args:
      features: (n, r), finite, in the scale they will be used in.
      labels: (n,) in 0..c-1. The scores of a class without examples are only pushed down.
      l2: > 0, which makes W unique. b is unique up to a constant; its mean stays 0.

    Raises: ValueError for other inputs. WorkFailed if the gradient's norm, which certifies the optimum, stays above
    1e-3 of its norm at 0.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"needs features (n, r) and labels (n,), n > 0, got {features.shape} and {labels.shape}.")
    c = num_classes
    if labels.min() < 0 or labels.max() >= c:
        raise ValueError(f"labels must be in 0..{c - 1}, got {labels.min()} to {labels.max()}.")
    if not l2 > 0:
        raise ValueError(f"l2 must be > 0, got {l2:g}.")
    if not np.isfinite(features).all():
        raise ValueError("features must be finite.")
    # In float64: if features hardly differ, float32's rounding exceeds the gradient near the optimum.
    with jax.enable_x64(True):
        return _fit(jnp.asarray(features, jnp.float64), jnp.asarray(labels), c, l2, max_steps)


def _fit(x: jax.Array, y: jax.Array, c: int, l2: float, max_steps: int) -> tuple[np.ndarray, np.ndarray]:
    r = x.shape[1]

    @jax.jit
    def objective(flat: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(flat: jax.Array) -> jax.Array:
            weights, bias = flat[: c * r].reshape(c, r), flat[c * r :]
            scores = jnp.matmul(x, weights.T, precision="highest") + bias[None, :]
            error = optax.losses.softmax_cross_entropy_with_integer_labels(scores, y).mean()
            return error + l2 / 2 * (weights**2).sum()

        return jax.value_and_grad(loss)(flat)

    def call(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(jnp.asarray(flat, x.dtype), x, y)
        return float(value), np.asarray(gradient, np.float64)

    start = np.zeros(c * r + c)
    options = {"maxiter": max_steps, "maxfun": 2 * max_steps, "gtol": 1e-7, "ftol": 0.0, "maxcor": 20}
    optimum = scipy.optimize.minimize(call, start, jac=True, method="L-BFGS-B", options=options).x
    norm, start_norm = (float(np.linalg.norm(call(flat)[1])) for flat in (optimum, start))
    if not norm <= _SMALL * start_norm:
        raise WorkFailed(
            f"the linear probe did not converge (gradient {norm:.2g}, at the start {start_norm:.2g}); use a larger l2."
        )
    weights, bias = optimum[: c * r].reshape(c, r), optimum[c * r :]
    return weights.astype(np.float32), bias.astype(np.float32)
