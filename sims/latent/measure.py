"""One run of each learner: draw a training sample, learn a rule, and compute the rule's exact accuracy.

A kernel maps (key, cell) to the accuracies of the two groups and is traced, mapped and compiled by its caller. A cell
is the swept parameters by name, `settings.AXES`; the setting holds the others.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

import mmcl_theory as mt
from mmcl_theory import learners, losses
from mmcl_theory.data.captions import second_moments
from mmcl_theory.theory.mmcl import limit_accuracy
from sims.engine.grid import Task
from sims.latent import cells
from sims.latent.cells import Params
from sims.latent.settings import Setting

_LARGEST_CORRECTION = 0.05  # if finite n moves an accuracy by more, there is no prediction
_OF_LIMIT = 0.02  # allowed error of X1, which is a limit
ROUNDING = 1e-5  # error of an accuracy in float32
_LARGEST_GAP = 1e-3  # relative duality gap; a max-margin solution with a larger one does not count
GROUPS = ("aligned", "conflicting")
SPREAD = ("sd", "skewness", "left_out")


def _parts(setting: Setting, cell: Params) -> tuple[mt.data.IntraClass, mt.data.Captions, mt.data.Observation]:
    return cells.intra_class({**vars(setting), **cell})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Sample:
    pairs: mt.data.Pairs
    dictionaries: mt.data.Dictionaries
    prompt: jax.Array  # (d_t,) of class +1


def measure(setting: Setting, learner: str, key: jax.Array, cell: Params) -> jax.Array:
    """Accuracy of one trained learner, (2,) by group; its setting chooses the sampler.

    Max-margin gives NaN on inseparable data, and infinity if its certificate fails.
    """
    model, caps, obs = _parts(setting, cell)
    sampler = setting.sampler_of(learner)
    status: Any = 0.0
    if sampler == "ambient":
        weights, norm_squared, status = _ambient(setting, learner, key, cell)
        rule = weights, norm_squared
    elif learner == "mmcl":
        draw = learners.sample_rule_statistics if sampler == "statistics" else learners.sample_rule_latent
        rule = draw(key, model, caps, obs, setting.n, cell["same_class_weight"])
    else:
        gram, observed, label = learners.sample_gram(key, model, obs, setting.n)
        coefficients, status = _DUALS[learner](setting, gram, label)
        rule = learners.dual_rule(coefficients, gram, observed)
    accuracy = mt.zero_shot.linear_rule_accuracy(model, *rule, obs.sd_image)
    return jnp.stack([accuracy.aligned, accuracy.conflicting]) + status


def _ambient(setting: Setting, learner: str, key: jax.Array, cell: Params) -> tuple[jax.Array, jax.Array, Any]:
    """(D_I^T w, |w|^2, status) of a rule learnt from ambient pairs; the same key gives all learners the same pairs."""
    model, caps, obs = _parts(setting, cell)
    key_dictionaries, key_pairs, key_learner = jax.random.split(key, 3)
    dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
    pairs = mt.sample_pairs(key_pairs, model, caps, obs, setting.n, dictionaries)
    prompt = dictionaries.text @ mt.zero_shot.latent_prompts(model)[1]
    sample, status = _Sample(pairs, dictionaries, prompt), 0.0
    if learner in _DUALS:
        coefficients, status = _DUALS[learner](setting, pairs.image @ pairs.image.T, pairs.label)
        rule = coefficients @ pairs.image
    else:
        rule = _RULES[learner](setting, key_learner, sample, cell)
    return rule @ dictionaries.image, rule @ rule, status


def _cross_covariance(sample: _Sample, text: jax.Array, cell: Params) -> jax.Array:
    number = mt.class_index(sample.pairs.label)
    return learners.cross_covariance(sample.pairs.image, text, number, cell["same_class_weight"])


def _mmcl(setting: Setting, key: jax.Array, sample: _Sample, cell: Params) -> jax.Array:
    if setting.rank == min(setting.dim_image, setting.dim_text):  # C p is the cross-covariance with the text score t.p
        return _cross_covariance(sample, sample.pairs.text @ sample.prompt[:, None], cell)[:, 0]
    cross_cov = _cross_covariance(sample, sample.pairs.text, cell)
    return learners.linear_optimum(cross_cov, rank=setting.rank) @ sample.prompt


def aligned_start(
    model: mt.data.Model,
    caps: mt.data.Captions | mt.data.GroupCaptions,
    dictionaries: mt.data.Dictionaries,
    initial: float,
) -> learners.Encoders:
    """Balanced encoders along the singular vectors of the population's C; every mode has strength `initial`."""
    u, _, vt = jnp.linalg.svd(second_moments(model, caps)[1])
    return learners.Encoders(initial**0.5 * u.T @ dictionaries.image.T, initial**0.5 * vt @ dictionaries.text.T)


def _start(setting: Setting, key: jax.Array, sample: _Sample) -> learners.Encoders:
    dtype = sample.pairs.image.dtype
    return learners.init_encoders(key, setting.dim_image, setting.dim_text, setting.rank, scale=0.3, dtype=dtype)


def _mmcl_gradient(setting: Setting, key: jax.Array, sample: _Sample, cell: Params) -> jax.Array:
    cross_cov = _cross_covariance(sample, sample.pairs.text, cell)
    start = _start(setting, key, sample)
    # |C|_F bounds the curvature up to a constant; 0.3 / |C|_F with momentum is stable from this start.
    optimizer = optax.sgd(0.3 / jnp.linalg.norm(cross_cov), momentum=0.9, nesterov=True)
    trained, _ = learners.train_linear_mmcl(
        start, cross_cov, optimizer=optimizer, steps=setting.gradient_steps, in_span=True
    )
    return trained.product @ sample.prompt


def _info_nce(setting: Setting, key: jax.Array, sample: _Sample, cell: Params) -> jax.Array:
    key_start, key_batches = jax.random.split(key)
    start = _start(setting, key_start, sample)

    def loss(image: jax.Array, text: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.info_nce(
            image, text, temperature=setting.temperature, labels=labels, same_class_weight=cell["same_class_weight"]
        )

    trained, _ = learners.train_encoders(
        key_batches,
        start,
        sample.pairs.image,
        sample.pairs.text,
        sample.pairs.label,
        loss,
        optimizer=optax.adam(1e-2),
        steps=setting.gradient_steps,
        batch_size=setting.batch,
    )
    return trained.product @ sample.prompt


def _max_margin(setting: Setting, gram: jax.Array, label: jax.Array) -> tuple[jax.Array, Any]:
    """The max-margin rule and its status: 0 if certified, infinite if not, NaN if the data is not separable.

    Rounding of the Gram matrix changes |w|^2 by a relative eps (norm/margin)^2. If that alone can explain the duality
    gap, this precision cannot decide, and the data counts as not separable.
    """
    fit = learners.max_margin_dual(gram, label)
    rounding = jnp.finfo(gram.dtype).eps * jnp.diagonal(gram).mean() / jnp.where(fit.separable, fit.margin, 1.0) ** 2
    decided = fit.separable & ((fit.gap < _LARGEST_GAP) | (rounding < _LARGEST_GAP))
    return fit.dual * label, jnp.where(decided, jnp.where(fit.gap < _LARGEST_GAP, 0.0, jnp.inf), jnp.nan)


def _logistic(setting: Setting, gram: jax.Array, label: jax.Array) -> tuple[jax.Array, Any]:
    # Without momentum the direction is still far from max-margin after thousands of steps.
    optimizer = optax.sgd(2 / jnp.diagonal(gram).mean(), momentum=0.98, nesterov=True)
    dual, _ = learners.logistic_dual(gram, label, optimizer=optimizer, steps=setting.gradient_steps, normalized=True)
    return dual, 0.0


_DUALS = {
    "supervised": _max_margin,
    "supervised_gradient": _logistic,
}  # -> (coefficients of the samples, status to add to the accuracy)


_RULES: dict[str, Callable[[Setting, jax.Array, _Sample, Params], jax.Array]] = {
    "mmcl": _mmcl,
    "mmcl_gradient": _mmcl_gradient,
    "info_nce": _info_nce,
}


def task(setting: Setting, learner: str) -> Task:
    """The task of a learner, for `sims.engine.grid`."""
    return Task(functools.partial(measure, setting, learner), may_lack=learner == "supervised")


def predict(setting: Setting, learner: str, cell: Params) -> jax.Array:
    """Predicted accuracy, (..., 2) by group, for cells of any shape; NaN where there is no prediction.

    mmcl and mmcl_gradient: the mean over training samples (X2 at full rank, with X3's same-class weight); NaN if it is
    more than 0.05 from the limit.
    supervised and supervised_gradient: X1, for supervised_gradient in the limit of long training.
    info_nce: no prediction.
    """
    if not _has_prediction(setting, learner):
        return jnp.full((*jnp.shape(cell["p_spu"]), 2), jnp.nan)
    if learner.startswith("mmcl"):
        mean, correction = _mean_accuracy(setting, cell)
        return jnp.where((correction <= _LARGEST_CORRECTION)[..., None], mean, jnp.nan)
    model, _, obs = _parts(setting, cell)
    return groups(cast(mt.zero_shot.GroupAccuracy, mt.theory.supervised_accuracy(model, obs, setting.n)))


def predict_spread(setting: Setting, learner: str, cell: Params) -> jax.Array:
    """Distribution of a run's accuracy around `predict`: (..., 3, 3), for each outcome (both groups, shifted) SPREAD.

    mmcl and mmcl_gradient: sd and skewness to second order in 1/n (`mmcl_accuracy_cumulants`), NaN if fluctuations are
    too large for that. Higher orders are bounded by a relative 4/n: sd and skewness are increased by it, and left_out
    is 4/n of the 1/n term, plus float32 rounding.
    supervised and supervised_gradient: sd and skewness are NaN; left_out bounds the distance of finite n and finite
    training from the limit.
    info_nce: all NaN.
    """
    nothing = jnp.full((*jnp.shape(cell["p_spu"]), 3), jnp.nan)
    if not _has_prediction(setting, learner):
        return jnp.stack([nothing, nothing, nothing], -1)
    if not learner.startswith("mmcl"):
        return jnp.stack([nothing, nothing, jnp.full_like(nothing, _OF_LIMIT)], -1)
    later = 4 / setting.n
    _, correction = _mean_accuracy(setting, cell)
    cumulants = mt.theory.mmcl_accuracy_cumulants(*_parts(setting, cell), setting.n, cell["same_class_weight"])
    sd = jnp.sqrt(cumulants[..., 0])
    varies = ~(sd < 1e-4 * ROUNDING)  # for a smaller sd, its cube may underflow
    skewness = jnp.where(varies, cumulants[..., 1] / jnp.where(varies, sd, 1.0) ** 3, 0.0)
    left_out = jnp.where(jnp.isnan(sd), jnp.nan, ROUNDING + later * correction[..., None])
    return jnp.stack([(1 + later) * sd, (1 + later) * skewness, left_out], -1)


def _has_prediction(setting: Setting, learner: str) -> bool:
    truncated = setting.rank < min(setting.dim_image, setting.dim_text)
    return learner != "info_nce" and not (learner.startswith("mmcl") and truncated)


def _mean_accuracy(setting: Setting, cell: Params) -> tuple[jax.Array, jax.Array]:
    """(mean accuracy (..., 2) by group, its distance from the limit at n (...): the larger of both groups')."""
    given = *_parts(setting, cell), setting.n, cell["same_class_weight"]
    mean = groups(mt.theory.mmcl_mean_accuracy(*given))
    limit = groups(limit_accuracy(*given))
    return mean, jnp.abs(mean - limit).max(-1)


def groups(accuracy: mt.zero_shot.GroupAccuracy) -> jax.Array:
    """(..., 2): aligned, conflicting."""
    return jnp.stack([accuracy.aligned, accuracy.conflicting], -1)
