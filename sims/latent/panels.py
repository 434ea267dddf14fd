"""A prediction over a plane of parameters beside the learner that measures it, and the predictions and learners that
several experiments share. Everything here maps the parameters of one point, by name, to numbers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

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
    """One panel: a prediction over the plane and the learner that measures it in cells.

    predict: point -> outcomes, drawn.  predict_cell: what the measured mean must meet where it is not `predict`, such
    as a term in 1/n more.  measure: (key, point) -> outcomes of one run, NaN where it has none.  boundaries: label ->
    field of the point and of what `predict` gives there, drawn where it is 0.  left_out: size of what the prediction
    leaves out.  trials: independent draws behind one measured outcome, if it is a share.  may_lack: NaN is
    an answer of `measure`.  coarse: predict on this many points an axis and interpolate.  sides: names of the regions
    where the first boundary's field is below and above 0.  contours: whether the colours get numbered lines.  regimes:
    names of whole-number outcomes 0, 1, ...
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
    """f at every combination of the axes' values, (*axes, ...), in float64; each num_pairs is compiled by itself."""
    sizes = tuple(name for name in axes if name == "num_pairs")
    return evaluate(lambda at: f(point(parameters, **at)), {name: v.tolist() for name, v in axes.items()}, sizes)


def linear_loss(title: str, boundaries: Mapping[str, Boundary]) -> Panel:
    """The linear contrastive loss at n samples, intra-class: X2's limit is drawn, cells must meet its 1/n term too."""

    def predict(p: Params) -> jax.Array:
        obs, weight = observation_of(p), p["same_class_weight"]
        return groups(mt.theory.mmcl_accuracy(model_of(p), captions_of(p), obs, p["n"], same_class_weight=weight))

    def predict_cell(p: Params) -> jax.Array:
        setting, cell = _setting(p)
        return measure.predict(setting, "mmcl", cell)

    def run(key: jax.Array, p: Params) -> jax.Array:
        return measure_of_sweep(key, p, "mmcl")

    return Panel("mmcl", title, predict, run, predict_cell, boundaries)


def _setting(p: Params) -> tuple[Setting, Params]:
    """The setting and the cell of a sweep over p_spu that have these parameters."""
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
    return mt.theory.whitened_accuracy(*cells.intra_class(p), theta)


def measure_whitened(key: jax.Array, p: Params) -> jax.Array:
    """The family's closed form on sample covariances."""
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
    """Share of each group of a test sample from P* that the family's closed form on n pairs gets right."""
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
