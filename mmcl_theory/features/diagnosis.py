"""What contrastive and supervised learners make of a user's own features, group by group, and what would change it.

Symbols: x image and t text features, y class, a attribute, g = (y, a) group with weights P_g in training and P*_g under
the shift; R rules, one row a class, b_k their offsets; M folds.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory.data import ClassMoments, Mixture, mixture
from mmcl_theory.data.mixture import covariances
from mmcl_theory.features.moments import AS_IT_IS, GroupSums, Policy, group_sums, policy_moments
from mmcl_theory.learners import linear_optimum, ridge_optimum, whitened_optimum
from mmcl_theory.theory.mixtures import class_cross_covariance

KINDS = ("mmcl", "whitened", "ridge", "supervised")
FEW = 30  # samples of a group below which a warning is given
MOST_CLASSES = 64


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
_POLICIES = ("attribute", "detail", "minority")
# The kinds of learners that have a knob; all others have it.
_ONLY = {
    "attribute": ("mmcl", "whitened", "ridge"),
    "detail": ("mmcl", "whitened", "ridge"),
    "same_class_weight": ("mmcl",),
    "theta": ("whitened",),
    "kappa": ("ridge",),
    "shrinkage": ("whitened", "supervised"),
}


def feature_rules(
    mom: ClassMoments, prompts: np.ndarray | Float[Array, "c d_t"], learner: Learner
) -> tuple[Float[Array, "c d_i"], Float[Array, " c"]]:
    """The rules that a learner finds from the moments of a training set: the class of x is argmax_k R_k . x + b_k.

        mmcl         R = P C_lambda^T                          with P the prompts, of rank `rank`
        whitened     R = P (S_I^-theta/2 SVD(S_I^-theta/2 C S_T^-theta/2) S_T^-theta/2)^T
        ridge        R = P W^T,  S_I W S_T + kappa W = (1 + kappa) C
        supervised   R = Cov(e_y, x) S_I^-1,  b = E e_y - R E x   with e_y the one-hot label

    The images are centred: b = -R E x for the contrastive learners.

    Args:
        mom: moments of the classes; z is the image, u the text.
        prompts: text features of the classes, with the same origin as the texts.
        learner: the learner.

    Returns:
        R and b. NaN for a covariance that is singular where `shrinkage` is 0.
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
        left, _ = _shrunk(image, shrinkage)
        rules = jnp.linalg.solve(left, towards.T).T
        return rules, mom.weight - rules @ mean
    if kind == "mmcl":
        score = linear_optimum(class_cross_covariance(mom, weight), rank=rank)
    elif kind == "whitened":
        score = whitened_optimum(cross, _shrunk(image, shrinkage)[0], _shrunk(text, shrinkage)[0], theta, rank)
    else:
        (left, size), (right, other) = _shrunk(image, shrinkage), _shrunk(text, shrinkage)
        score = ridge_optimum(cross, left, right, kappa * size * other)
    rules = prompts @ score.T
    return rules, -rules @ mean


def _shrunk(covariance: Array, shrinkage: Array) -> tuple[Array, Array]:
    """The covariance with its multiple of the identity, NaN if it is singular still; and its mean eigenvalue."""
    d = len(covariance)
    size = jnp.trace(covariance) / d
    values = jnp.linalg.eigvalsh(covariance)
    least = values[0] + shrinkage * size
    singular = least <= values[-1] * d * jnp.finfo(covariance.dtype).eps
    return jnp.where(singular, jnp.nan, covariance + shrinkage * size * jnp.eye(d, dtype=covariance.dtype)), size


class Estimate(NamedTuple):
    """A value with its standard error and 95% interval."""

    value: float
    error: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Cross-validated accuracies of a learner.

    Attributes:
        by_fold: the accuracy in each fold and group, (M, G).
        weight: P_g, (G,).
        shifted_weight: P*_g, (G,).
        predicted: the accuracy in each group if its held-out scores were Gaussian, (G,).
        skewness: of the held-out score of the own class minus that of its closest rival, in each group, (G,); 0 if
            Gaussian.
        kurtosis: its excess kurtosis, (G,); 0 if Gaussian.
    """

    by_fold: np.ndarray  # (M, G)
    weight: np.ndarray  # (G,)
    shifted_weight: np.ndarray  # (G,)
    predicted: np.ndarray  # (G,)
    skewness: np.ndarray  # (G,)
    kurtosis: np.ndarray  # (G,)

    def weights(self, where: str) -> np.ndarray:
        """The weights of the groups on "train" (P) or "shifted" (P*); "worst": 1 on the group of lowest accuracy."""
        if where == "worst":
            return np.eye(len(self.weight))[self.by_fold.mean(0).argmin()]
        return {"train": self.weight, "shifted": self.shifted_weight}[where]

    def group(self, number: int) -> Estimate:
        """The accuracy in a group."""
        return _inside(interval(self.by_fold[:, number]))

    def at(self, where: str) -> Estimate:
        """The accuracy on "train", "shifted" or in the "worst" group, which is the one that is worst here."""
        return _inside(interval(self.by_fold @ self.weights(where)))


def interval(folds: Float[np.ndarray, " m"]) -> Estimate:
    """The mean over folds with its standard error and 95% interval.

    Each of M folds is scored by rules learnt from the M - 1 others, which share samples. The variance over folds, s^2,
    counts as s^2 (1/M + 1/(M - 1)), and Student's t of M - 1 degrees of freedom gives the interval.

    Source: Nadeau and Bengio 2003, with test share 1/M.
    """
    m = len(folds)
    value, error = folds.mean(), folds.std(ddof=1) * np.sqrt(1 / m + 1 / (m - 1))
    half = scipy.special.stdtrit(m - 1, 0.975) * error
    return Estimate(float(value), float(error), float(value - half), float(value + half))


def _inside(found: Estimate) -> Estimate:
    """The interval of an accuracy, which is in [0, 1]."""
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))


@dataclasses.dataclass(frozen=True)
class Advice:
    """What a change of one knob does to a learner, beside the features as they are.

    Attributes:
        learner: name of the learner.
        knob: of KNOBS.
        setting: the knob's value.
        shifted: the difference of accuracy on P*.
        worst: the difference in the worst group; the groups that are worst before and after may differ.
    """

    learner: str
    knob: str
    setting: float
    shifted: Estimate
    worst: Estimate

    @property
    def verdict(self) -> str:
        """ "gain", "loss" or "no evidence", by the interval of the difference on P*."""
        if self.shifted.low > 0:
            return "gain"
        return "loss" if self.shifted.high < 0 else "no evidence"


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        classes: names of the classes, K.
        attributes: names of the attributes, A.
        size: number of samples of each group, (G,); group g is of class g // A and attribute g % A.
        outcomes: the cross-validated accuracies of each learner, by its name.
        advice: the differences that changes of knobs make.
        fitted: the mixture model of the held-out images, in K - 1 directions that separate the classes and A - 1 that
            separate the attributes, each in units of its standard deviation within groups.
        told: the share of each direction's variance within groups that the captions tell, on held-out samples, (l,);
            <= 0 if they tell nothing.
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    size: np.ndarray
    outcomes: dict[str, Outcome]
    advice: tuple[Advice, ...]
    fitted: Mixture
    told: np.ndarray

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, "class, attribute"."""
        return tuple(f"{y}, {a}" for y in self.classes for a in self.attributes)

    def aligned(self) -> np.ndarray:
        """Whether a group is the largest of its class, (G,). The largest groups together are the aligned ones."""
        table = self.size.reshape(len(self.classes), len(self.attributes))
        return (table == table.max(1, keepdims=True)).ravel()

    def gap(self, learner: str) -> Estimate:
        """Accuracy in the aligned groups minus that in the others, each class and group in equal parts."""
        aligned = self.aligned().reshape(len(self.classes), -1)
        parts = [x / np.maximum(x.sum(1, keepdims=True), 1) / len(aligned) for x in (aligned, ~aligned)]
        return interval(self.outcomes[learner].by_fold @ (parts[0] - parts[1]).ravel())

    def regime(self, learner: str) -> str:
        """ "the shortcut wins", "over-correction" or "balanced", by the interval of `gap`."""
        gap = self.gap(learner)
        if gap.low > 0:
            return "the shortcut wins"
        return "over-correction" if gap.high < 0 else "balanced"

    def to_dataframe(self) -> Any:
        """The accuracies as a pandas DataFrame: a row for each learner and group, and for P, P* and the worst group."""
        import pandas as pd

        rows = []
        for name, outcome in self.outcomes.items():
            for g, group in enumerate(self.groups):
                shape = (float(outcome.skewness[g]), float(outcome.kurtosis[g]))
                rows.append((name, group, int(self.size[g]), *outcome.group(g), outcome.predicted[g], *shape))
            for where in ("train", "shifted", "worst"):
                predicted = float(outcome.predicted @ outcome.weights(where))
                rows.append((name, where, int(self.size.sum()), *outcome.at(where), predicted, np.nan, np.nan))
        names = ["learner", "group", "samples", "accuracy", "se", "low", "high", "predicted", "skewness", "kurtosis"]
        return pd.DataFrame(rows, columns=names)

    def advice_dataframe(self) -> Any:
        """The advice as a pandas DataFrame: a row for each learner, knob and setting."""
        import pandas as pd

        fields = ("gain", "se", "low", "high")
        names = ["learner", "knob", "setting", *(f"{w}_{x}" for w in ("shifted", "worst") for x in fields), "verdict"]
        rows = [(a.learner, a.knob, a.setting, *a.shifted, *a.worst, a.verdict) for a in self.advice]
        return pd.DataFrame(rows, columns=names)


def diagnose(
    image: np.ndarray,
    text: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    attributes: Sequence[Any] | np.ndarray,
    *,
    prompts: np.ndarray | None = None,
    learners: Mapping[str, Learner] = LEARNERS,
    shifted_weight: Sequence[float] | np.ndarray | None = None,
    folds: int = 10,
    components: int = 256,
    seed: int = 0,
    knobs: Mapping[str, Sequence[float]] = KNOBS,
) -> Diagnosis:
    """How each learner classifies the groups of one's own features, and which captions or samples would change it.

    The features are those of frozen encoders, or of any other origin. Every learner is fitted in closed form on M - 1
    of M folds and scores the last. Beside each measured accuracy stands what it would be if the held-out scores were
    Gaussian in each group, which is what the theory of mixtures assumes: where both agree, the theory's view of these
    features holds.

    The advice fits every learner again to the training set that a `Policy` makes (how often captions name the
    attribute, and other details; more samples of small groups), or with other settings, and scores the same held-out
    images. A difference counts as a gain or a loss if its 95% interval excludes 0. With many knobs some will by chance.

    Args:
        image: image features, one sample a row, (n, d_i); floats. Memory-mapped arrays are read in chunks.
        text: text features of the samples' captions, (n, d_t).
        labels: class of each sample, numbers or strings.
        attributes: attribute of each sample, the background for example; numbers or strings.
        prompts: text features of a prompt for each class in sorted order, (K, d_t). None: the class means of the
            captions, with all attributes in equal parts.
        learners: by name.
        shifted_weight: P*_g, one weight for each pair of class and attribute, of sum 1. None: all groups equal.
        folds: M, at least 2; fewer are used if a group has fewer samples.
        components: features beyond this number are reduced to that many principal components.
        seed: of the division into folds.
        knobs: the settings that the advice tries, by name; KNOBS has all. {} for no advice. Each learner is tried with
            the knobs that it has.

    Returns:
        The diagnosis.

    Raises:
        ValueError: for arrays that disagree, features that are not finite floats, fewer than two classes or attributes,
            a group with fewer than two samples, more than 64 classes, a singular covariance without shrinkage, or an
            unknown knob or a setting out of its range.

    Warns:
        UserWarning: for a group of fewer than 30 samples, whose intervals are wide.

    Example:
        Pairs of the intra-class model. Whitening over-corrects, and the linear loss follows the shortcut:

        >>> import jax
        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> model, obs = mt.intra_class(p_spu=0.9, sigma_core=1.0, sigma_spu=0.3), mt.observation(8, 6, 0.5, 0.5)
        >>> key_dictionaries, key_pairs = jax.random.split(jax.random.key(0))
        >>> dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
        >>> pairs = mt.sample_pairs(key_pairs, model, mt.captions(), obs, 2000, dictionaries)
        >>> found = mt.diagnose(*map(np.asarray, (pairs.image, pairs.text, pairs.label, pairs.attribute)), knobs={})
        >>> for name in ("mmcl", "whitened"):
        ...     print(f"{name}: {found.regime(name)}")
        mmcl: the shortcut wins
        whitened: over-correction

    Source: docs/theory.md X14.  Check: proofs_checks/x14.py.
    """
    image, text = (_features(name, x) for name, x in (("image", image), ("text", text)))
    y, a = (_codes(name, x, len(image)) for name, x in (("labels", labels), ("attributes", attributes)))
    if len(text) != len(image):
        raise ValueError(f"image and text must have the same number of rows, got {len(image)} and {len(text)}.")
    k, num_attributes = len(y.names), len(a.names)
    if k > MOST_CLASSES:
        raise ValueError(f"labels must have at most {MOST_CLASSES} classes, got {k}.")
    groups = k * num_attributes
    group = y.number * num_attributes + a.number
    size = np.bincount(group, minlength=groups)
    named = [f"({c}, {b})" for c in y.names for b in a.names]
    if (few := size < 2).any():
        raise ValueError(f"every group must have at least 2 samples, got {size[few][0]} of {named[int(few.argmax())]}.")
    for g in np.flatnonzero(size < FEW):
        warnings.warn(
            f"group {named[g]} has {size[g]} samples, fewer than {FEW}: its intervals are wide.", stacklevel=2
        )
    if shifted_weight is None:
        shifted = np.full(groups, 1 / groups)
    else:
        shifted = np.asarray(_checks.distribution("shifted_weight", shifted_weight, groups), float)
    for name, learner in learners.items():
        if learner.rank is not None and learner.rank > min(image.shape[1], text.shape[1], components):
            raise ValueError(f"rank of {name} must be at most the number of features, got {learner.rank}.")
    for knob in knobs:
        _checks.choice("knobs", knob, tuple(KNOBS))
    if prompts is not None:
        prompts = _features("prompts", prompts)
        if prompts.shape != (k, text.shape[1]):
            raise ValueError(f"prompts must have shape ({k}, {text.shape[1]}), got {prompts.shape}.")
    m = min(_checks.integer("folds", folds, 2), int(size.min()))
    fold = _folds(group, m, seed)
    with jax.enable_x64(True):
        image, _ = _reduced(image, components)
        text, basis = _reduced(text, components)
        if prompts is not None and basis is not None:
            prompts = prompts @ basis
        sums = group_sums(image, text, fold * groups + group, m * groups)
        sums = _by_fold(sums, m, groups)
        data = _Data(image, fold, group, sums, np.arange(groups) // num_attributes, prompts, shifted)
        outcomes = {name: data.outcome(learner) for name, learner in learners.items()}
        advice = [x for name in learners for x in _advice(data, name, learners[name], outcomes[name], knobs)]
        fitted, told = _fit(data, text, num_attributes)
    fitted = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float), fitted)  # in the caller's precision
    return Diagnosis(y.names, a.names, size, outcomes, tuple(advice), fitted, told)


@dataclasses.dataclass(frozen=True, eq=False)
class _Data:
    """The images with their folds and groups, and the sums over both."""

    image: np.ndarray  # (n, d_i)
    fold: np.ndarray  # (n,)
    group: np.ndarray  # (n,)
    sums: GroupSums  # (M, G, ...)
    classes: np.ndarray  # (G,)
    prompts: np.ndarray | None
    shifted: np.ndarray  # (G,)

    def scores(self, learner: Learner, policy: Policy) -> np.ndarray:
        """Scores of each sample by the rules learnt from the other folds, (n, K)."""
        scores = np.empty((len(self.image), self.classes.max() + 1))
        for f in range(len(self.sums.size)):
            others = self.sums.without(f)
            mom = policy_moments(others, self.classes, policy)
            rules, offsets = map(np.asarray, feature_rules(mom, self.prompt(others), learner))
            if not np.isfinite(rules).all():
                raise ValueError(
                    f"a covariance is singular, which {learner.kind} inverts; use shrinkage > 0, or fewer components."
                )
            mine = self.fold == f
            scores[mine] = (self.image[mine] - self.sums.image_origin) @ rules.T + offsets
        return scores

    def prompt(self, others: GroupSums) -> np.ndarray:
        """The prompts of the classes: those given, or the mean texts as they are, all attributes in equal parts."""
        if self.prompts is not None:
            return self.prompts - self.sums.text_origin
        means = others.text / others.size[:, None]
        return means.reshape(self.classes.max() + 1, -1, means.shape[1]).mean(1)

    def accuracy(self, scores: np.ndarray) -> np.ndarray:
        """The accuracy in each fold and group, (M, G)."""
        right = scores.argmax(1) == self.classes[self.group]
        folds, groups = self.sums.size.shape
        hits = np.bincount(self.fold * groups + self.group, right, folds * groups)
        return hits.reshape(folds, groups) / self.sums.size

    def outcome(self, learner: Learner) -> Outcome:
        scores = self.scores(learner, AS_IT_IS)
        groups = len(self.classes)
        mean = np.stack([scores[self.group == g].mean(0) for g in range(groups)])
        spread = np.stack([np.cov(scores[self.group == g].T) for g in range(groups)])
        size = self.sums.size.sum(0)
        model = mixture(size / size.sum(), mean, spread, self.classes.tolist(), self.shifted)
        eye = np.eye(scores.shape[1])
        skewness, kurtosis = zip(*(self._shape(scores, mean[g], spread[g], g) for g in range(groups)), strict=True)
        return Outcome(
            by_fold=self.accuracy(scores),
            weight=size / size.sum(),
            shifted_weight=self.shifted,
            predicted=np.asarray(model.rule_accuracy(eye, eye).by_group),
            skewness=np.array(skewness),
            kurtosis=np.array(kurtosis),
        )

    def _shape(self, scores: np.ndarray, mean: np.ndarray, spread: np.ndarray, g: int) -> tuple[float, float]:
        """Skewness and excess kurtosis of the own score minus the closest rival's, in group g."""
        own = self.classes[g]
        variance = np.diag(spread) + spread[own, own] - 2 * spread[own]
        lead = (mean[own] - mean) / np.sqrt(np.where(variance > 0, variance, np.inf))
        lead[own] = np.inf
        rival = int(lead.argmin())
        margin = scores[self.group == g, own] - scores[self.group == g, rival]
        sd = margin.std()
        z = (margin - margin.mean()) / (sd if sd > 0 else 1.0)
        return float((z**3).mean()), float((z**4).mean() - 3)


def _advice(
    data: _Data, name: str, learner: Learner, now: Outcome, knobs: Mapping[str, Sequence[float]]
) -> list[Advice]:
    found = []
    for knob, settings in knobs.items():
        if learner.kind not in _ONLY.get(knob, KINDS):
            continue
        for setting in settings:
            change: dict[str, Any] = {knob: setting}
            policy = dataclasses.replace(AS_IT_IS, **change) if knob in _POLICIES else AS_IT_IS
            changed = learner if knob in _POLICIES else dataclasses.replace(learner, **change)
            if (policy, changed) == (AS_IT_IS, learner):
                continue
            by_fold = data.accuracy(data.scores(changed, policy))
            after = dataclasses.replace(now, by_fold=by_fold)
            differences = [
                interval(by_fold @ after.weights(where) - now.by_fold @ now.weights(where))
                for where in ("shifted", "worst")
            ]
            found.append(Advice(name, knob, setting, *differences))
    return found


def _fit(data: _Data, text: np.ndarray, num_attributes: int) -> tuple[Mixture, np.ndarray]:
    """The mixture of the held-out images along directions of classes and attributes, and what captions tell of them.

    The directions of fold f are S^-1 m, learnt from the other folds: S the covariance within groups, m the differences
    of the means of classes, or of attributes, from that of the first.
    """
    k, groups = data.classes.max() + 1, len(data.classes)
    l = k + num_attributes - 2
    z, guess = np.empty((len(data.image), l)), np.empty((len(data.image), l))
    for f in range(len(data.sums.size)):
        others = data.sums.without(f)
        mom = [x / others.size[:, None, None] for x in (others.image_image, others.image_text, others.text_text)]
        x, t = others.image / others.size[:, None], others.text / others.size[:, None]
        share = others.size / others.size.sum()
        xx, xt, tt = (
            np.einsum("g,gij->ij", share, product - left[:, :, None] * right[:, None, :])
            for product, left, right in zip(mom, (x, x, t), (x, t, t), strict=True)
        )
        xx, tt = (s + 0.01 * np.trace(s) / len(s) * np.eye(len(s)) for s in (xx, tt))
        means = x.reshape(k, num_attributes, -1)
        by_class, by_attribute = means.mean(1), means.mean(0)
        contrasts = np.concatenate([by_class[1:] - by_class[:1], by_attribute[1:] - by_attribute[:1]])
        directions = np.linalg.solve(xx, contrasts.T)  # (d_i, l)
        directions = directions / np.sqrt(np.einsum("il,ij,jl->l", directions, xx, directions))
        mine = data.fold == f
        middle = means.mean((0, 1))
        z[mine] = (data.image[mine] - data.sums.image_origin - middle) @ directions
        slope = np.linalg.solve(tt, xt.T @ directions)
        groups_here = data.group[mine]
        guess[mine] = (text[mine] - data.sums.text_origin - t[groups_here]) @ slope
    mean = np.stack([z[data.group == g].mean(0) for g in range(groups)])
    spread = np.stack([np.atleast_2d(np.cov(z[data.group == g].T)) for g in range(groups)])
    within = z - mean[data.group]
    told = 1 - ((within - guess) ** 2).mean(0) / (within**2).mean(0)
    weight = np.bincount(data.group) / len(data.group)
    return mixture(weight, mean, spread, data.classes.tolist(), data.shifted), told


class _Codes(NamedTuple):
    number: np.ndarray
    names: tuple[str, ...]


def _features(name: str, values: Any) -> np.ndarray:
    if not hasattr(values, "dtype") or values.dtype.kind != "f" or values.ndim != 2 or not values.size:
        got = f"{values.dtype} of shape {values.shape}" if hasattr(values, "dtype") else type(values).__name__
        raise ValueError(f"{name} must be floats, one sample a row, got {got}.")
    return values


def _codes(name: str, values: Any, rows: int) -> _Codes:
    array = np.asarray(values)
    if array.dtype.kind not in "biuU" or array.shape != (rows,):
        raise ValueError(f"{name} must be {rows} whole numbers or strings, got {array.dtype} of shape {array.shape}.")
    kinds, number = np.unique(array, return_inverse=True)
    if len(kinds) < 2:
        raise ValueError(f"{name} must have at least two values, got {len(kinds)}.")
    return _Codes(number, tuple(map(str, kinds)))


def _folds(group: np.ndarray, m: int, seed: int) -> np.ndarray:
    """A fold for each sample; every group is divided into parts that differ by at most one sample."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(group), int)
    for g in np.unique(group):
        members = rng.permutation(np.flatnonzero(group == g))
        fold[members] = (np.arange(len(members)) + rng.integers(m)) % m
    return fold


def _by_fold(sums: GroupSums, m: int, groups: int) -> GroupSums:
    names = [field.name for field in dataclasses.fields(sums) if not field.name.endswith("origin")]
    shaped = {name: getattr(sums, name) for name in names}
    return dataclasses.replace(sums, **{name: x.reshape(m, groups, *x.shape[1:]) for name, x in shaped.items()})


def _reduced(x: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The features, or their projections on the leading principal components, with the basis (d, components)."""
    _checks.integer("components", components, 1)
    if x.shape[1] <= components:
        return x, None
    sums = group_sums(x, x[:, :1], np.zeros(len(x), int), 1)
    mean = sums.image[0] / sums.size[0]
    covariance = sums.image_image[0] / sums.size[0] - np.outer(mean, mean)
    basis = np.linalg.eigh(covariance)[1][:, ::-1][:, :components]
    rows = [np.asarray(x[i : i + 8192], float) @ basis for i in range(0, len(x), 8192)]
    return np.concatenate(rows).astype(np.float32), basis
