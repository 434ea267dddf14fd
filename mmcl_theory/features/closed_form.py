"""Learners in closed form, from the moments of a training set, and what a learner of the user's own is given.

Symbols: x image and t text features, y class with one-hot e_y, C cross-covariance, S_I and S_T covariances of images
and texts, P prompts, R rules, one row a class, b_k their offsets.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory.data import ClassMoments
from mmcl_theory.data.mixture import covariances
from mmcl_theory.learners import linear_optimum, ridge_optimum, whitened_optimum
from mmcl_theory.theory.mixtures import class_cross_covariance

KINDS = ("mmcl", "whitened", "ridge", "supervised")


@dataclasses.dataclass(frozen=True)
class Learner:
    """A learner in closed form, with its settings.

    "mmcl" is the linear loss (same_class_weight, rank), "whitened" the family to CCA (theta, rank), "ridge"
    second-order InfoNCE with a ridge (kappa), and "supervised" least squares on the labels, with an intercept.

    Attributes:
        kind: of KINDS.
        same_class_weight: lambda in [0, 1] of "mmcl"; None for the ordinary loss.
        theta: of "whitened", in [0, 1]; 1 is CCA.
        kappa: of "ridge", >= 0, in units of the mean product of an image and a text eigenvalue. An InfoNCE with penalty
            (rho/2) |W|_F^2 at temperature tau has kappa = rho tau^2 over that product.
        rank: embedding size of "mmcl" and "whitened", >= 1; None for no limit.
        shrinkage: s >= 0; a multiple s tr(S)/d of the identity is added to every covariance S that is inverted.

    Example:
        Without whitening, "whitened" is "mmcl":

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.9, sigma_core=1.0, sigma_spu=0.3).as_mixture()
        >>> learners = mt.features.Learner("whitened", theta=0.0, shrinkage=0.0), mt.features.Learner("mmcl")
        >>> mom, prompts = model.class_moments(), model.prompts()
        >>> rules = [mt.features.feature_rules(mom, prompts, learner)[0] for learner in learners]
        >>> print(bool(jnp.allclose(*rules, atol=1e-5)))
        True
    """

    kind: str
    same_class_weight: float | None = None
    theta: float = 1.0
    kappa: float = 1.0
    rank: int | None = None
    shrinkage: float = 0.01

    def __post_init__(self) -> None:
        _checks.choice("kind", self.kind, KINDS)
        if self.same_class_weight is not None:
            _checks.real("same_class_weight", self.same_class_weight, "in [0, 1]")
        _checks.real("theta", self.theta, "in [0, 1]")
        _checks.real("kappa", self.kappa, "finite and >= 0")
        _checks.real("shrinkage", self.shrinkage, "finite and >= 0")
        if self.rank is not None:
            _checks.integer("rank", self.rank, 1)


LEARNERS = {kind: Learner(kind) for kind in KINDS}
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# The settings that the advice tries: of a policy (attribute, detail, minority), and of a learner.
KNOBS: dict[str, tuple[float, ...]] = {
    "attribute": _SHARES,
    "detail": _SHARES,
    "minority": (2.0, 4.0, 8.0),
    "same_class_weight": _SHARES,
    "theta": _SHARES,
    "kappa": (0.01, 0.1, 1.0, 10.0, 100.0),
    "shrinkage": (0.001, 0.01, 0.1, 1.0),
}
POLICIES = ("attribute", "detail", "minority")
# The kinds of learners that have a knob; what is not here all have.
ONLY = {
    "attribute": ("mmcl", "whitened", "ridge"),
    "detail": ("mmcl", "whitened", "ridge"),
    "same_class_weight": ("mmcl",),
    "theta": ("whitened",),
    "kappa": ("ridge",),
    "shrinkage": ("whitened", "ridge", "supervised"),
}


class Training(NamedTuple):
    """What a learner of one's own is given: the samples of all folds but one.

    Attributes:
        image: (n, d_i).
        text: (n, d_t).
        label: (n,), in 0..K-1, the place among the sorted classes.
        unit: (n,), equal for samples that belong together, such as the captions of one image.
        prompts: (K, d_t), those given to `diagnose`, or the class means of these captions.
        fold: number of the fold that is left out; a learner may draw its random numbers from it.

    Example:
        The nearest class mean as a learner, on three samples:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> def means(train):
        ...     return np.stack([train.image[train.label == c].mean(0) for c in range(len(train.prompts))])
        >>> x, label = np.array([[0.0], [2.0], [3.0]]), np.array([0, 1, 1])
        >>> print(means(mt.features.Training(x, x, label, unit=np.arange(3), prompts=x[:2], fold=0)).tolist())
        [[0.0], [2.5]]
    """

    image: np.ndarray
    text: np.ndarray
    label: np.ndarray
    unit: np.ndarray
    prompts: np.ndarray
    fold: int


Fit = Callable[[Training], Callable[[np.ndarray], np.ndarray]]


def feature_rules(
    mom: ClassMoments, prompts: np.ndarray | Float[Array, "c d_t"], learner: Learner
) -> tuple[Float[Array, "c d_i"], Float[Array, " c"]]:
    """The rules that a learner finds from the moments of a training set: the class of x is argmax_k R_k . x + b_k.

        mmcl         R = P C_lambda^T                          with P the prompts, of rank `rank`
        whitened     R = P (S_I^-theta/2 SVD(S_I^-theta/2 C S_T^-theta/2) S_T^-theta/2)^T
        ridge        R = P W^T,  S_I W S_T + k W = (1 + k) C,  k = kappa tr(S_I) tr(S_T) / (d_i d_t)
        supervised   R = Cov(e_y, x) S_I^-1,  b = E e_y - R E x

    S_I and S_T stand for S + shrinkage tr(S)/d; the traces in k are those without it. The images are centred:
    b = -R E x for the contrastive learners.

    Args:
        mom: moments of the classes; z is the image, u the text.
        prompts: text features of the classes, with the same origin as the texts.
        learner: the learner.

    Example:
        Where the features are the latents themselves, whitening over-corrects:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.9, sigma_core=1.0, sigma_spu=0.3).as_mixture()
        >>> learner = mt.features.Learner("whitened", shrinkage=0.0)
        >>> rules, offsets = mt.features.feature_rules(model.class_moments(), model.prompts(), learner)
        >>> core, spurious = rules[1]
        >>> print(bool(core > 0 > spurious))
        True

    Returns:
        R and b. NaN if a covariance that must be inverted is singular.
    """
    weight = jnp.nan if learner.same_class_weight is None else learner.same_class_weight
    numbers = [jnp.asarray(x, float) for x in (weight, learner.theta, learner.kappa, learner.shrinkage)]
    return _rules(mom, jnp.asarray(prompts), *numbers, learner.kind, learner.rank)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _rules(
    mom: ClassMoments,
    prompts: Array,
    weight: Array,
    theta: Array,
    kappa: Array,
    shrinkage: Array,
    kind: str,
    rank: int | None,
) -> tuple[Array, Array]:
    image, cross, text = covariances(mom)
    mean = mom.weight @ mom.z_mean
    if kind == "supervised":
        towards = mom.weight[:, None] * (mom.z_mean - mean[None, :])  # Cov(e_y, x)
        rules = jnp.linalg.solve(regular(shrunk(image, shrinkage)), towards.T).T
        return rules, mom.weight - rules @ mean
    left, right = shrunk(image, shrinkage), shrunk(text, shrinkage)
    if kind == "mmcl":
        score = linear_optimum(class_cross_covariance(mom, weight), rank=rank)
    elif kind == "whitened":
        inverted = theta > 0
        left, right = (jnp.where(inverted, regular(s), s) for s in (left, right))
        score = whitened_optimum(cross, left, right, theta, rank)
    else:
        unit = jnp.trace(image) * jnp.trace(text) / (len(image) * len(text))
        left, right = (jnp.where(kappa > 0, s, regular(s)) for s in (left, right))
        score = ridge_optimum(cross, left, right, kappa * unit)
    rules = prompts @ score.T
    return rules, -rules @ mean


def shrunk(covariance: Array, shrinkage: Array) -> Array:
    """The covariance with a multiple of its mean eigenvalue on the diagonal."""
    d = len(covariance)
    return covariance + shrinkage * jnp.trace(covariance) / d * jnp.eye(d, dtype=covariance.dtype)


def regular(covariance: Array) -> Array:
    """The covariance, NaN if it is singular."""
    values = jnp.linalg.eigvalsh(covariance)
    singular = values[0] <= values[-1] * len(covariance) * jnp.finfo(covariance.dtype).eps
    return jnp.where(singular, jnp.nan, covariance)
