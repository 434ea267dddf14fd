"""The numbers of the page: the library's predictions at points of the dials, for all learners.

A point is a vector in the order of `config.NAMES`. Dimensions are static in the library, so that each would be compiled
by itself. But d_I and d_T enter through s_I, s_T and d_I / n alone, in all but the linear loss: it is computed in every
d_I of the dial, and one is chosen.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mmcl_theory as mt
from sims.explore.config import DIALS, INITIAL, NAMES
from sims.latent.measure import groups

CHUNK = 4096  # points that are predicted at once for a file
MOST = 26  # values along an axis of the phase diagram; of a dial with more it has every second
Points = Mapping[str, jax.Array]  # of each dial the value at every point, (N,)


def _parts(p: Points, masking: str) -> tuple[mt.data.IntraClass, mt.data.Captions, mt.data.Observation]:
    """Model, captions, and an observation in two dimensions with the same s_I and s_T."""
    model = mt.intra_class(p["p_spu"], p["sigma_core"], p["sigma_spu"], p["mu_core"], p["mu_spu"])
    sigma_image, sigma_text = (p[f"sigma_{side}"] * jnp.sqrt(2 / p[f"dim_{side}"]) for side in ("image", "text"))
    return model, mt.captions(p["pi_core"], p["pi_spu"], masking), mt.observation(2, 2, sigma_image, sigma_text)


def _result(accuracy: Any, rule: jax.Array) -> jax.Array:
    """(N, 3): accuracy of the aligned and of the conflicting group, and the direction of the rule in radians."""
    silent = (rule == 0).all(-1) | jnp.isnan(accuracy.aligned + accuracy.conflicting)
    direction = jnp.where(silent, jnp.nan, jnp.arctan2(rule[:, 1], rule[:, 0]))
    return jnp.concatenate([groups(accuracy), direction[:, None]], 1)


def _mmcl(p: Points, masking: str) -> jax.Array:
    model, caps, obs = _parts(p, masking)
    rule = mt.theory.mmcl_rule(model, caps, same_class_weight=p["same_class_weight"])
    accuracies = jnp.full((*p["n"].shape, 3), jnp.nan)
    for dim in map(int, DIALS["dim_image"].values):
        there = mt.observation(dim, 2, p["sigma_image"], obs.sigma_text)
        accuracy = mt.theory.mmcl_accuracy(model, caps, there, p["n"], same_class_weight=p["same_class_weight"])
        accuracies = jnp.where((p["dim_image"] == dim)[:, None], _result(accuracy, rule), accuracies)
    return accuracies


def _whitened(p: Points, masking: str) -> jax.Array:
    model, caps, obs = _parts(p, masking)
    rule = mt.theory.whitened_rule(model, caps, obs, p["theta"])
    return _result(mt.theory.whitened_accuracy(model, caps, obs, p["theta"]), rule)


def _ridge(p: Points, masking: str) -> jax.Array:
    model, caps, obs = _parts(p, masking)
    rule = mt.theory.ridge_rule(model, caps, obs, p["kappa"])
    return _result(mt.theory.ridge_accuracy(model, caps, obs, p["kappa"]), rule)


def _supervised(p: Points, masking: str) -> jax.Array:
    model, _, obs = _parts(p, masking)
    rule, noise = mt.theory.max_margin_rule(model, obs, 2 * p["n"] / p["dim_image"])
    norm = (rule**2).sum(-1) + noise
    return _result(mt.zero_shot.linear_rule_accuracy(model, rule, norm, obs.sd_image), rule)


LEARNERS: dict[str, Callable[[Points, str], jax.Array]] = {
    "mmcl": _mmcl,
    "whitened": _whitened,
    "ridge": _ridge,
    "supervised": _supervised,
}
_MODEL = ("p_spu", "sigma_core", "sigma_spu", "mu_core", "mu_spu")
_IMAGE = (*_MODEL, "sigma_image", "dim_image")
_PAIRS = (*_IMAGE, "pi_core", "pi_spu", "sigma_text", "dim_text")
# The dials on which a learner's numbers depend. With core prompts the linear loss sees the core column of C alone.
DEPENDS = {
    "mmcl": (*(x for x in _PAIRS if x != "pi_spu"), "n", "same_class_weight"),
    "whitened": (*_PAIRS, "theta"),
    "ridge": (*_PAIRS, "kappa"),
    "supervised": (*_IMAGE, "n"),
    "training": (*_MODEL, "sigma_image", "dim_image", "pi_core", "pi_spu", "time"),
}


def training(p: Points, masking: str) -> jax.Array:
    """(N, 2): accuracies after `time` of training under the linear loss, at n = inf and the ordinary weight (X6).

    NaN where the linear rule is 0, as where captions never name the core: what is seen then is the start alone.
    """
    model, caps, obs = _parts(p, masking)
    accuracies = groups(mt.theory.training_accuracy(model, caps, obs, time=p["time"], initial=INITIAL))
    silent = (mt.theory.mmcl_rule(model, caps) == 0).all(-1, keepdims=True)
    return jnp.where(silent, jnp.nan, accuracies)


def _named(points: jax.Array) -> Points:
    return dict(zip(NAMES, points.T, strict=True))


@functools.partial(jax.jit, static_argnames=("name", "masking"))
def predict(points: jax.Array, name: str, masking: str) -> jax.Array:
    """Of one learner, or of `training`, at points (N, dials)."""
    return {**LEARNERS, "training": training}[name](_named(points), masking)


@functools.partial(jax.jit, static_argnames="masking")
def predict_all(points: jax.Array, times: jax.Array, masking: str) -> tuple[jax.Array, jax.Array]:
    """Of all learners, (N, learner, 3), at points (N, dials); and of training, (T, 2), at points (T, dials)."""
    named = _named(points)
    return jnp.stack([f(named, masking) for f in LEARNERS.values()], 1), training(_named(times), masking)


def axis(name: str) -> tuple[float, ...]:
    """The values of a dial along the phase diagram."""
    values = DIALS[name].values
    return values[::2] if len(values) > MOST else values


def view(at: Mapping[str, float], masking: str, x: str, y: str) -> dict[str, np.ndarray]:
    """All that the page shows at one position of the dials, compiled once for each masking.

    point: (learner, 3) as `_result` has it.  curve: (p_spu, learner, 3).  plane: (y, x, learner, 3); NaN if x = y.
    time: (time, 2).
    """
    point_now = np.array([at[name] for name in NAMES])
    curve, times = (_along(point_now, {name: DIALS[name].values}) for name in ("p_spu", "time"))
    plane = point_now[None] if x == y else _along(point_now, {y: axis(y), x: axis(x)})
    shape = len(axis(y)), len(axis(x))
    rest = np.tile(point_now, (MOST**2 - len(plane), 1))  # so that the number of points is always the same
    predicted, trained = predict_all(np.concatenate([point_now[None], curve, plane, rest]), times, masking)
    point, curved, planar, _ = np.split(np.asarray(predicted), np.cumsum([1, len(curve), len(plane)]))
    planar = np.full((*shape, *point.shape[1:]), np.nan) if x == y else planar.reshape(*shape, *point.shape[1:])
    return {"point": point[0], "curve": curved, "plane": planar, "time": np.asarray(trained)}


def _along(point: np.ndarray, axes: Mapping[str, tuple[float, ...]]) -> np.ndarray:
    """The point, moved to every combination of the axes' values; the last axis varies fastest."""
    moved = list(itertools.product(*axes.values()))
    points = np.tile(point, (len(moved), 1))
    points[:, [NAMES.index(name) for name in axes]] = moved
    return points


def tables(at: Mapping[str, float], masking: str, grid: Mapping[str, tuple[float, ...]]) -> dict[str, np.ndarray]:
    """Of every learner and of training, the numbers at all points of the grid's dials on which they depend.

    The axes are those dials, in the order of `grid`; the last one has what `predict` returns.
    """
    point = np.array([at[name] for name in NAMES])
    by_learner = {}
    for name in (*LEARNERS, "training"):
        axes = {dial: values for dial, values in grid.items() if dial in DEPENDS[name]}
        points = _along(point, axes)
        padded = np.concatenate([points, np.tile(point, (-len(points) % CHUNK, 1))])
        chunks = [np.asarray(predict(chunk, name, masking)) for chunk in np.split(padded, len(padded) // CHUNK)]
        values = np.concatenate(chunks)[: len(points)]
        by_learner[name] = values.reshape(*map(len, axes.values()), values.shape[-1])
    return by_learner
