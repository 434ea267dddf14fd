"""Panels: a prediction over a plane of parameters, with the learner that measures it; and those that experiments share.

Everything here maps the parameters of one point, by name, to numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

import mmcl_theory as mt
from mmcl_theory import learners
from sims.engine.grid import evaluate
from sims.latent import cells, measure
from sims.latent.cells import Params, captions_of, model_of, observation_of, point
from sims.latent.measure import ROUNDING, groups
from sims.latent.settings import AXES, Setting

Boundary = Callable[[Params, jax.Array], jax.Array]  # (point, its predicted outcomes) -> field
TEST_SIZE = 4000


@dataclasses.dataclass(frozen=True)
class Panel:
    """A prediction over the plane, and the learner that measures it in cells.

    predict: point -> outcomes, which are drawn.
    measure: (key, point) -> outcomes of one run, NaN if it has none.
    predict_cell: point -> expected outcomes of `measure`, if not `predict` (it may have one more term in 1/n, say).
    boundaries: label -> (point, outcomes of `predict`) -> field; the line where the field is 0 is drawn.
    left_out: bound on the error of the prediction.
    trials: number of independent draws behind a measured outcome, if it is a proportion.
    coarse: predict on this many points per axis and interpolate.
    may_lack: NaN is a valid outcome of `measure`.
    sides: names of the regions where the first boundary's field is negative and positive.
    contours: whether to draw numbered contour lines.
    regimes: names of the outcomes 0, 1, ..., if these are whole numbers.
    """

    name: str
    title: str
    predict: Callable[[Params], jax.Array]
    measure: Callable[[jax.Array, Params], jax.Array] | None = None
    predict_cell: Callable[[Params], jax.Array] | None = None
    boundaries: Mapping[str, Boundary] = dataclasses.field(default_factory=dict)
    left_out: float = ROUNDING
    trials: int | None = None
    coarse: int | None = None
    may_lack: bool = False
    sides: tuple[str, str] = ("", "")
    contours: bool = True
    regimes: tuple[str, ...] = ()


def over(parameters: Mapping[str, float], f: Callable[[Params], Any], axes: Mapping[str, np.ndarray]) -> np.ndarray:
    """f at every combination of the axes' values, (*axes, ...), in float64; compiled for each value of num_pairs."""
    sizes = tuple(name for name in axes if name == "num_pairs")
    return evaluate(lambda at: f(point(parameters, **at)), {name: v.tolist() for name, v in axes.items()}, sizes)


def linear_loss(title: str, boundaries: Mapping[str, Boundary]) -> Panel:
    """The linear contrastive loss at n samples, intra-class: X2's limit is drawn, cells must meet with its 1/n term."""

    def predict(p: Params) -> jax.Array:
        obs, weight = observation_of(p), p["same_class_weight"]
        accuracy = mt.theory.mmcl_accuracy(model_of(p), captions_of(p), obs, p["n"], same_class_weight=weight)
        return groups(cast(mt.zero_shot.GroupAccuracy, accuracy))

    def predict_cell(p: Params) -> jax.Array:
        setting, cell = _setting(p)
        return measure.predict(setting, "mmcl", cell)

    def run(key: jax.Array, p: Params) -> jax.Array:
        return measure_of_sweep(key, p, "mmcl")

    return Panel("mmcl", title, predict, run, predict_cell, boundaries)


def _setting(p: Params) -> tuple[Setting, Params]:
    """The setting and the cell with these parameters, as in a sweep over p_spu."""
    sigma_image, sigma_text = cells.noise_norms(p)
    own = {f.name: p[f.name] for f in dataclasses.fields(Setting) if f.name in p}
    sizes = {"dim_image": int(p["dim_image"]), "dim_text": int(p["dim_text"])}
    setting = Setting(**{**own, **sizes, "sigma_image": sigma_image, "sigma_text": sigma_text})
    return setting, {name: jnp.asarray(p[name], float) for name in AXES}


def measure_of_sweep(key: jax.Array, p: Params, learner: str) -> jax.Array:
    """A run of `sims.sweep_spurious` with these parameters."""
    setting, cell = _setting({**p, "n": int(p["n"])})
    return measure.measure(setting, learner, key, cell)


def whitened_accuracy(p: Params, theta: Any) -> mt.zero_shot.GroupAccuracy:
    return cast(mt.zero_shot.GroupAccuracy, mt.theory.whitened_accuracy(*cells.intra_class(p), theta))


def measure_whitened(key: jax.Array, p: Params) -> jax.Array:
    """A run of the whitened family's closed form, on sample covariances."""
    model, obs = model_of(p), observation_of(p)
    key_dictionaries, key_pairs = jax.random.split(key)
    dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
    pairs = mt.sample_pairs(key_pairs, model, captions_of(p), obs, int(p["n"]), dictionaries)
    cross_cov = learners.cross_covariance(pairs.image, pairs.text)
    score = learners.whitened_optimum(cross_cov, jnp.cov(pairs.image.T), jnp.cov(pairs.text.T), p.get("theta", 1.0))
    return rule_accuracy(model, obs, dictionaries, score)


def rule_accuracy(
    model: mt.data.IntraClass, obs: mt.data.Observation, dictionaries: mt.data.Dictionaries, score: jax.Array
) -> jax.Array:
    """Exact accuracies of the zero-shot rule of an ambient score matrix, core prompt."""
    rule = score @ (dictionaries.text @ mt.zero_shot.latent_prompts(model)[1])
    return groups(mt.zero_shot.linear_rule_accuracy(model, rule @ dictionaries.image, rule @ rule, obs.sd_image))


def measure_inter_class(
    key: jax.Array,
    model: mt.data.InterClass,
    caps: mt.data.Captions,
    obs: mt.data.Observation,
    n: int,
    theta: Any,
) -> jax.Array:
    """Accuracy by group, on a test sample from P*, of the whitened family's closed form on n pairs."""
    key_dictionaries, key_pairs, key_test = jax.random.split(key, 3)
    dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
    pairs = mt.sample_pairs(key_pairs, model, caps, obs, n, dictionaries)
    test = mt.sample_pairs(key_test, mt.shifted(model), caps, obs, TEST_SIZE, dictionaries)
    cross_cov = learners.cross_covariance(pairs.image, pairs.text)
    if isinstance(theta, float) and theta == 0:
        score = learners.linear_optimum(cross_cov)
    else:
        score = learners.whitened_optimum(cross_cov, jnp.cov(pairs.image.T), jnp.cov(pairs.text.T), theta)
    prompts = mt.zero_shot.latent_prompts(model) @ dictionaries.text.T
    scores = test.image @ score @ prompts.T
    aligned = mt.is_aligned(test.label, test.attribute)
    return groups(mt.zero_shot.sampled_accuracy(scores, mt.class_index(test.label), aligned))
