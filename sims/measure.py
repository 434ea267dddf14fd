"""One run of each learner: sample pairs in ambient space, learn, and give the exact accuracy of the rule it found.

A kernel maps (key, cell) to the accuracies of the two groups and is traced, mapped and compiled by its caller. Every
learner gets the same pairs for the same key.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import mmcl_theory as mt
from mmcl_theory import learners, losses
from sims.config import Setting

_LARGEST_CORRECTION = 0.05  # where 1/n moves an accuracy by more, its first-order expansion predicts nothing
GROUPS = ("aligned", "conflicting")
Kernel = Callable[[jax.Array, "Cell"], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """The swept parameters of one cell, in the order of `sims.config.AXES`."""

    p_spu: jax.Array
    sigma_core: jax.Array
    sigma_spu: jax.Array
    pi_core: jax.Array
    same_class_weight: jax.Array


def _model(setting: Setting, cell: Cell) -> mt.data.IntraClass:
    return mt.intra_class(cell.p_spu, cell.sigma_core, cell.sigma_spu, setting.mu_core, setting.mu_spu)


def _captions(setting: Setting, cell: Cell) -> mt.data.Captions:
    return mt.captions(cell.pi_core, setting.pi_spu)


def _observation(setting: Setting) -> mt.data.Observation:
    return mt.observation(setting.dim_image, setting.dim_text, setting.sigma_image, setting.sigma_text)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Sample:
    pairs: mt.data.Pairs
    dictionaries: mt.data.Dictionaries
    prompt: jax.Array  # (d_t,) of class +1


def measure(setting: Setting, learner: str, key: jax.Array, cell: Cell) -> jax.Array:
    """Accuracy of one trained learner, (2,) by group; NaN where it has no answer (max-margin on inseparable data)."""
    model, obs = _model(setting, cell), _observation(setting)
    key_dictionaries, key_pairs, key_learner = jax.random.split(key, 3)
    dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
    pairs = mt.sample_pairs(key_pairs, model, _captions(setting, cell), obs, setting.n, dictionaries)
    prompt = dictionaries.text @ mt.zero_shot.latent_prompts(model)[1]
    rule = LEARNERS[learner](setting, key_learner, _Sample(pairs, dictionaries, prompt), cell)
    accuracy = mt.zero_shot.linear_rule_accuracy(model, rule @ dictionaries.image, rule @ rule, obs.sd_image)
    return jnp.stack([accuracy.aligned, accuracy.conflicting])


def _cross_covariance(sample: _Sample, text: jax.Array, cell: Cell) -> jax.Array:
    number = mt.class_index(sample.pairs.label)
    return learners.cross_covariance(sample.pairs.image, text, number, cell.same_class_weight)


def _mmcl(setting: Setting, key: jax.Array, sample: _Sample, cell: Cell) -> jax.Array:
    if setting.rank == min(setting.dim_image, setting.dim_text):  # C p is the cross-covariance with the text score t.p
        return _cross_covariance(sample, sample.pairs.text @ sample.prompt[:, None], cell)[:, 0]
    cross_cov = _cross_covariance(sample, sample.pairs.text, cell)
    return learners.linear_optimum(cross_cov, rank=setting.rank) @ sample.prompt


def _mmcl_gradient(setting: Setting, key: jax.Array, sample: _Sample, cell: Cell) -> jax.Array:
    cross_cov = _cross_covariance(sample, sample.pairs.text, cell)
    start = learners.init_encoders(key, setting.dim_image, setting.dim_text, setting.rank, scale=0.3)
    # |C|_F bounds the curvature up to a constant; 0.3 / |C|_F with momentum is stable from this start.
    optimizer = optax.sgd(0.3 / jnp.linalg.norm(cross_cov), momentum=0.9, nesterov=True)
    trained, _ = learners.train_linear_mmcl(start, cross_cov, optimizer=optimizer, steps=setting.gradient_steps)
    return trained.product @ sample.prompt


def _info_nce(setting: Setting, key: jax.Array, sample: _Sample, cell: Cell) -> jax.Array:
    key_start, key_batches = jax.random.split(key)
    start = learners.init_encoders(key_start, setting.dim_image, setting.dim_text, setting.rank, scale=0.3)

    def loss(image: jax.Array, text: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.info_nce(
            image, text, temperature=setting.temperature, labels=labels, same_class_weight=cell.same_class_weight
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


def _supervised(setting: Setting, key: jax.Array, sample: _Sample, cell: Cell) -> jax.Array:
    x, y = sample.pairs.image, sample.pairs.label
    fit = learners.max_margin_dual(x @ x.T, y)
    return jnp.where(fit.separable & (fit.gap < 1e-3), (fit.dual * y) @ x, jnp.nan)


def _supervised_gradient(setting: Setting, key: jax.Array, sample: _Sample, cell: Cell) -> jax.Array:
    x = sample.pairs.image
    gram = x @ x.T
    # Without momentum the direction is still far from max-margin after thousands of steps.
    optimizer = optax.sgd(2 / jnp.diagonal(gram).mean(), momentum=0.98, nesterov=True)
    dual, _ = learners.logistic_dual(
        gram, sample.pairs.label, optimizer=optimizer, steps=setting.gradient_steps, normalized=True
    )
    return dual @ x


LEARNERS: dict[str, Callable[[Setting, jax.Array, _Sample, Cell], jax.Array]] = {
    "mmcl": _mmcl,
    "mmcl_gradient": _mmcl_gradient,
    "info_nce": _info_nce,
    "supervised": _supervised,
    "supervised_gradient": _supervised_gradient,
}


def kernel(setting: Setting, learner: str) -> Kernel:
    """(key, cell) -> (2,) accuracies by group."""
    return functools.partial(measure, setting, learner)


def predict(setting: Setting, learner: str, cell: Cell) -> jax.Array:
    """Predicted accuracy, (..., 2) by group, for cells of any shape; NaN where the theory at hand does not reach.

    mmcl and mmcl_gradient: the mean over training samples to order 1/n (X2 untruncated, X3's same-class weight), NaN
    where the 1/n term exceeds 0.05. supervised and supervised_gradient: X1, for the latter the limit of long training.
    info_nce: none.
    """
    model, obs = _model(setting, cell), _observation(setting)
    if learner == "info_nce" or (
        learner.startswith("mmcl") and setting.rank < min(setting.dim_image, setting.dim_text)
    ):
        nothing = jnp.full(jnp.shape(cell.p_spu), jnp.nan)
        return jnp.stack([nothing, nothing], -1)
    if learner.startswith("mmcl"):
        caps = _captions(setting, cell)
        limit = mt.theory.mmcl_accuracy(model, caps, obs, setting.n, same_class_weight=cell.same_class_weight)
        mean = mt.theory.mmcl_mean_accuracy(model, caps, obs, setting.n, cell.same_class_weight)
        reliable = [
            abs(m - l) <= _LARGEST_CORRECTION
            for m, l in ((mean.aligned, limit.aligned), (mean.conflicting, limit.conflicting))
        ]
        accuracy = jax.tree.map(lambda acc: jnp.where(reliable[0] & reliable[1], acc, jnp.nan), mean)
    else:
        accuracy = mt.theory.supervised_accuracy(model, obs, setting.n)
    return jnp.stack([accuracy.aligned, accuracy.conflicting], -1)
