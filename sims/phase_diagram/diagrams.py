"""The six phase diagrams: what is predicted, which boundaries theory draws, and how a cell is measured.

Everything here maps the parameters of one point, by name, to numbers, and is mapped over the plane by `experiment`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtr

import mmcl_theory as mt
from mmcl_theory import learners, losses
from mmcl_theory.theory.design import unit_interval_argmax
from sims.latent import cells, measure
from sims.latent.cells import Params, captions_of, classes_of, model_of, observation_of
from sims.latent.measure import groups
from sims.latent.panels import (
    TEST_SIZE,
    Boundary,
    Panel,
    linear_loss,
    measure_inter_class,
    measure_of_sweep,
    measure_whitened,
    rule_accuracy,
    whitened_accuracy,
)

_THETAS = 65
_SECTIONS = 40


@dataclasses.dataclass(frozen=True)
class Diagram:
    """Panels over the same plane. outcomes: names of a run's outcomes, both groups' accuracies or one proportion."""

    panels: tuple[Panel, ...]
    outcomes: tuple[str, ...] = measure.GROUPS


def robustness() -> Diagram:
    """T2, X2, X4 and X1: accuracy of the linear contrastive loss, and of max-margin supervised learning."""

    def too_strong(p: Params, outcomes: jax.Array) -> jax.Array:
        threshold = mt.theory.strong_spurious_threshold(model_of(p), captions_of(p), p["same_class_weight"])
        return jnp.where(jnp.isfinite(threshold), p["mu_spu"] - threshold, -1.0)

    def max_margin(p: Params) -> jax.Array:
        return groups(mt.theory.supervised_accuracy(model_of(p), observation_of(p), p["n"]))

    mmcl = linear_loss("MMCL, linear loss", {"conflicting group: half right (X4)": too_strong})
    supervised = Panel(
        "supervised",
        "supervised, max-margin",
        max_margin,
        lambda key, p: measure_of_sweep(key, p, "supervised"),
        boundaries={
            "conflicting group: half right": lambda _, accuracy: accuracy[1] - 0.5,
            "separable below this line (X1)": lambda _, accuracy: jnp.where(jnp.isnan(accuracy[0]), -1.0, 1.0),
        },
        left_out=0.02,
        may_lack=True,
    )
    return Diagram((mmcl, supervised))


def same_class_weight() -> Diagram:
    """X3: how much intra-class contrasting is best at n samples."""

    def beyond_best(p: Params, outcomes: jax.Array) -> jax.Array:
        best = mt.theory.optimal_same_class_weight(*cells.intra_class(p), p["n"])
        return p["same_class_weight"] - best.same_class_weight

    boundaries = {"best weight for acc. on P* (X3)": beyond_best}
    boundaries["ordinary loss"] = lambda p, _: p["same_class_weight"] - 0.5
    return Diagram((linear_loss("MMCL, linear loss with same-class weight", boundaries),))


def best_theta(p: Params) -> jax.Array:
    """argmax over theta in [0, 1] of acc_P* of the whitened family."""
    return unit_interval_argmax(lambda theta: whitened_accuracy(p, theta).shifted, _THETAS, _SECTIONS)


def whitening() -> Diagram:
    """X5: the family S_I^-theta C S_T^-theta against modality noise."""
    panel = Panel(
        "whitened",
        r"$S_I^{-\theta} C\, S_T^{-\theta}$",
        lambda p: groups(whitened_accuracy(p, p["theta"])),
        measure_whitened,
        boundaries={
            r"best $\theta$ for acc. on P*": lambda p, _: p["theta"] - best_theta(p),
            r"$\theta = 0$ and $\theta = 1$ equal on P*": lambda p, _: (
                whitened_accuracy(p, 1.0).shifted - whitened_accuracy(p, 0.0).shifted
            ),
        },
    )
    return Diagram((panel,))


def _measure_info_nce(key: jax.Array, p: Params) -> jax.Array:
    """Train both encoders by Adam on minibatches, with a cosine schedule of the learning rate."""
    model, obs = model_of(p), observation_of(p)
    key_dictionaries, key_pairs, key_start, key_batches = jax.random.split(key, 4)
    dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
    pairs = mt.sample_pairs(key_pairs, model, captions_of(p), obs, int(p["n"]), dictionaries)
    sizes = obs.dim_image, obs.dim_text, obs.dim_text
    start = learners.init_encoders(key_start, *sizes, scale=0.3, dtype=pairs.image.dtype)
    steps = int(p["steps"])
    trained, _ = learners.train_encoders(
        key_batches,
        start,
        pairs.image,
        pairs.text,
        pairs.label,
        lambda image, text, _: losses.info_nce(image, text),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.03, steps)),
        steps=steps,
        batch_size=int(p["batch_size"]),
    )
    return rule_accuracy(model, obs, dictionaries, trained.product)


def caption_policy() -> Diagram:
    """X10: which details captions name, under the whitened rule and under InfoNCE on the mixture itself."""

    def balanced(p: Params, outcomes: jax.Array) -> jax.Array:
        return p["pi_spu"] - mt.theory.balanced_pi_spu(*cells.intra_class(p))

    def info_nce(p: Params) -> jax.Array:
        obs = observation_of(p)
        return groups(mt.theory.info_nce_optimum(model_of(p), captions_of(p), obs, nodes=20).accuracy(model_of(p), obs))

    sides = ("collapse: the shortcut wins", "over-correction")
    whitened = Panel(
        "whitened",
        "whitened rule (InfoNCE to second order)",
        lambda p: groups(whitened_accuracy(p, 1.0)),
        measure_whitened,
        boundaries={"balanced captions (X10)": balanced},
        sides=sides,
    )
    exact = Panel(
        "info_nce",
        "bilinear InfoNCE on the mixture, population optimum",
        info_nce,
        _measure_info_nce,
        boundaries={
            "balanced captions": lambda _, accuracy: accuracy[1] - accuracy[0],
            "balanced captions of the whitened rule": balanced,
        },
        left_out=0.01,
        coarse=11,
        sides=sides,
    )
    return Diagram((whitened, exact))


_METHODS = {"align": "align (CCA)", "predict": "predict (reduced-rank regression)", "contrast": "linear MMCL (PLS)"}


def align_predict() -> Diagram:
    """X7: which methods find the shared signal: alignment, prediction, the linear contrastive loss."""

    def criteria(p: Params) -> mt.theory.Recovery:
        shared = p["nuisance_correlation"] * p["nuisance_variance"]
        variance = p["nuisance_variance"]
        return mt.theory.recovery(p["signal"], p["noise_x"], p["noise_y"], shared, variance, variance)

    def boundary(method: str) -> Boundary:
        return lambda p, _: jnp.minimum(getattr(criteria(p), method), 2.0) - 1

    boundaries = {label: boundary(method) for method, label in _METHODS.items()}
    regimes = Panel(
        "regimes",
        "limit of many samples",
        lambda p: jnp.stack([criteria(p).regime]),
        boundaries=boundaries,
        regimes=("neither", "predict only", "align only", "both"),
    )
    methods = [
        Panel(
            method,
            label,
            lambda p, method=method: jnp.stack([recovery_chance(method, p)]),
            lambda key, p, method=method: jnp.stack([_measure_recovery(method, key, p)]),
            boundaries={"limit of many samples": boundaries[label]},
            trials=1,
        )
        for method, label in _METHODS.items()
    ]
    return Diagram((regimes, *methods), outcomes=("recovered",))


def recovery_chance(method: str, p: Params) -> jax.Array:
    """P(the leading mode of n samples is the signal's), to leading order in n: Phi((g_1 - g_2) / sqrt(v_1 + v_2)).

    With a, b the variances of a coordinate in both modalities and c its covariance, g is the coordinate's score and v
    its asymptotic variance (delta method, independent Gaussian coordinates):
        align     g = c / sqrt(a b)   n v = (1 - g^2)^2
        predict   g = c / sqrt(a)     n v = b - g^2 / 2
        contrast  g = c               n v = a b + c^2.
    The 2 x 2 sample matrix's leading left singular vector lies closer to the signal iff the signal's diagonal entry is
    the larger, up to terms of second order in its off-diagonal entries.
    """

    def score(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
        if method == "align":
            g = c / jnp.sqrt(a * b)
            return g, (1 - g**2) ** 2
        if method == "predict":
            g = c / jnp.sqrt(a)
            return g, b - g**2 / 2
        return c, a * b + c**2

    power, variance = p["signal"] ** 2, p["nuisance_variance"]
    signal, v_signal = score(power + p["noise_x"], power + p["noise_y"], power)
    nuisance, v_nuisance = score(variance, variance, p["nuisance_correlation"] * variance)
    return ndtr((signal - nuisance) / jnp.sqrt((v_signal + v_nuisance) / p["n"]))


def _measure_recovery(method: str, key: jax.Array, p: Params) -> jax.Array:
    """1 if the leading left singular vector of the sample matrix is closer to the signal's coordinate, else 0."""
    n = int(p["n"])
    shared, own_x, own_y = jax.random.normal(key, (3, n, 2))
    rho, sd = p["nuisance_correlation"], jnp.sqrt(p["nuisance_variance"])
    common = jnp.stack([jnp.asarray(p["signal"], float), sd * jnp.sqrt(rho)])[None, :]
    left = sd * jnp.sqrt(1 - rho)
    x = common * shared + jnp.stack([jnp.sqrt(p["noise_x"]) + 0 * left, left])[None, :] * own_x
    y = common * shared + jnp.stack([jnp.sqrt(p["noise_y"]) + 0 * left, left])[None, :] * own_y
    cross_cov = learners.cross_covariance(x, y)
    if method == "contrast":
        best = learners.linear_optimum(cross_cov, rank=1)
    else:
        text = jnp.cov(y.T) if method == "align" else jnp.eye(2)
        best = learners.whitened_optimum(cross_cov, jnp.cov(x.T), text, 1.0, rank=1)
    power = p["signal"] ** 2 + p["noise_x"]
    scale = jnp.ones(2) if method == "contrast" else jnp.sqrt(jnp.stack([power, p["nuisance_variance"]]))
    direction = jnp.abs(best).sum(1) * scale  # the matrix has rank one, so its columns are proportional
    return jnp.where(direction[0] > direction[1], 1.0, 0.0)


def sharing() -> Diagram:
    """T4, T6: classes that share details help each other under the linear loss, but not under supervised learning."""

    def linear(p: Params) -> jax.Array:
        return groups(mt.theory.mmcl_accuracy(*cells.inter_class(p)))

    def threshold(p: Params, outcomes: jax.Array) -> jax.Array:
        return jnp.maximum(p["pi_core"] - mt.theory.sharing_threshold(classes_of(p)), -2.0)

    def supervised_threshold(p: Params, outcomes: jax.Array) -> jax.Array:
        return (1 - p["beta"]) / (1 + p["beta"]) - p["alpha"] ** 2

    mmcl = Panel(
        "mmcl",
        "MMCL, linear loss",
        linear,
        lambda key, p: measure_inter_class(key, *cells.inter_class(p), int(p["n"]), 0.0),
        boundaries={r"$\pi^*$ (T6, $p_{\mathrm{spu}} = 1$, no noise)": threshold},
        left_out=0.02,
        trials=TEST_SIZE // 2,
        sides=("", "sharing\nworks"),
    )
    supervised = Panel(
        "supervised",
        "supervised, max-margin, no noise",
        lambda p: groups(mt.theory.supervised_accuracy(classes_of(p))),
        boundaries={r"$\alpha^2 = (1-\beta)/(1+\beta)$ (T4)": supervised_threshold},
        sides=("the shortcut wins", ""),
        contours=False,
    )
    return Diagram((mmcl, supervised))


DIAGRAMS: dict[str, Callable[[], Diagram]] = {
    "robustness": robustness,
    "same_class_weight": same_class_weight,
    "whitening": whitening,
    "caption_policy": caption_policy,
    "align_predict": align_predict,
    "sharing": sharing,
}
