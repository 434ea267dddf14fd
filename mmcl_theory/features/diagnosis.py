"""Which learners fail on which groups of a user's own features, by cross-validation, and what would change it.

Symbols: x image and t text features, y class, a attribute, g = (y, a) group with weights P_g in training and P*_g under
the shift; M folds.
"""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_theory import _checks
from mmcl_theory.features._cross_validation import Samples, SingularError, divided, own_scores
from mmcl_theory.features._directions import fitted_mixture, leading_components
from mmcl_theory.features.closed_form import KINDS, KNOBS, LEARNERS, ONLY, POLICIES, Fit, Learner
from mmcl_theory.features.moments import AS_IT_IS, CHUNK, Policy, group_sums
from mmcl_theory.features.results import Advice, Diagnosis, Outcome, Purchase

FEW = 30  # samples of a group below which a warning is given
MOST_CLASSES = 64
_PURCHASES = 9  # settings of captions that a budget may buy


def diagnose(
    image: np.ndarray,
    text: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    attributes: Sequence[Any] | np.ndarray,
    *,
    prompts: np.ndarray | None = None,
    learners: Mapping[str, Learner | Fit] = LEARNERS,
    shifted_weight: Sequence[float] | np.ndarray | None = None,
    units: Sequence[Any] | np.ndarray | None = None,
    folds: int = 10,
    components: int = 256,
    seed: int = 0,
    knobs: Mapping[str, Sequence[float]] = KNOBS,
    budget: float | None = None,
    cost: tuple[float, float] = (1.0, 1.0),
) -> Diagnosis:
    """How each learner classifies the groups of one's own features, and which captions or samples would change it.

    The features are those of frozen encoders, or of any other origin. Every learner is fitted on M - 1 of M folds
    and scores the last. Beside each measured accuracy stands what it would be if the held-out scores were
    Gaussian in each group, which is what the theory of mixtures assumes.

    The advice fits every closed form again to the training set that a `Policy` makes (how often captions name the
    attribute, and other details; more weight on small groups), or with other settings, and scores the same held-out
    images. With many settings some will have a gain or a loss by chance, and the best of many is optimistic.

    Sums by fold and group are kept, (M, G, d, d), and the features reduced to `components`. Gaussian scores cost
    seconds for each learner from four classes on.

    Args:
        image: image features, one sample a row, (n, d_i); floats. The sums read memory-mapped arrays in chunks.
        text: text features of the samples' captions, (n, d_t).
        labels: class of each sample, numbers or strings.
        attributes: attribute of each sample, the background for example; numbers or strings.
        prompts: text features of a prompt for each class in sorted order, (K, d_t). None: the class means of the
            captions, with all attributes in equal parts.
        learners: by name: a `Learner`, fitted in closed form, or a function of one's own. The function is called once
            for each fold with a `Training`, which has the features as they are given here, and returns a function that
            gives images (m, d_i) their scores of the classes, (m, K). It gets no advice.
        shifted_weight: P*_g, one weight for each pair of class and attribute, of sum 1. None: all groups equal.
        units: what samples belong together, such as the image of several captions; folds do not divide them. None:
            samples with equal image features.
        folds: M, at least 2.
        components: features beyond this number are reduced to that many principal components of all samples.
        seed: of the division into folds, >= 0.
        knobs: the settings that the advice tries, by name; KNOBS has all. {} for no advice. Each learner is tried with
            the knobs that it has, and without settings that change nothing or make a covariance singular.
        budget: share, above 0 and below 1, of what captions cost now. The best captions within it are then among the
            results. None: no such search.
        cost: of all mentions of the attribute, and of all other details, as captions are now; finite and > 0. Captions
            that keep the shares b and h of them cost b cost[0] + h cost[1].

    Returns:
        The diagnosis.

    Raises:
        ValueError: for arrays that disagree, features that are not finite floats, are too large or do not vary, equal
            prompts, fewer than two classes or attributes, a group with fewer than two units, more than 64 classes, a
            singular covariance without shrinkage, scores of one's own that are not finite or of another shape, or an
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
        >>> dictionaries = jax.jit(mt.draw_dictionaries)(key_dictionaries, model, obs)
        >>> draw = jax.jit(mt.sample_pairs, static_argnames="n")
        >>> pairs = draw(key_pairs, model, mt.captions(), obs, n=2000, dictionaries=dictionaries)
        >>> found = mt.diagnose(*map(np.asarray, (pairs.image, pairs.text, pairs.label, pairs.attribute)), knobs={})
        >>> for name in ("mmcl", "whitened"):
        ...     print(f"{name}: {found.regime(name)}")
        mmcl: the shortcut wins
        whitened: over-correction

        A learner of one's own, here the nearest class mean, beside them:

        >>> def nearest_mean(train):
        ...     means = np.stack([train.image[train.label == c].mean(0) for c in range(2)])
        ...     return lambda image: image @ means.T - (means**2).sum(1) / 2
        >>> arrays = (pairs.image, pairs.text, pairs.label, pairs.attribute)
        >>> print(mt.diagnose(*map(np.asarray, arrays), learners={"mean": nearest_mean}).regime("mean"))
        the shortcut wins

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
    unit = _equal_rows(image) if units is None else _codes("units", units, len(image)).number
    counts = np.bincount(np.unique(np.stack([group, unit]), axis=1)[0], minlength=groups)
    if (few := counts < 2).any():
        g = int(few.argmax())
        raise ValueError(f"every group must have at least 2 different samples, got {counts[g]} of {named[g]}.")
    for name, count in zip(named, counts, strict=True):
        if count < FEW:
            warnings.warn(f"group {name} has {count} samples, fewer than {FEW}: its intervals are wide.", stacklevel=2)
    if shifted_weight is None:
        shifted = np.full(groups, 1 / groups)
    else:
        shifted = np.asarray(_checks.distribution("shifted_weight", shifted_weight, groups), float)
    for name, learner in learners.items():
        most = min(image.shape[1], text.shape[1], components)
        rank = learner.rank if isinstance(learner, Learner) and learner.kind in ("mmcl", "whitened") else None
        if rank is not None and rank > most:
            raise ValueError(f"rank of {name} must be at most the number of features, {most}, got {rank}.")
    for knob in knobs:
        _checks.choice("knobs", knob, tuple(KNOBS))
    if prompts is not None:
        prompts = _features("prompts", prompts)
        if prompts.shape != (k, text.shape[1]):
            raise ValueError(f"prompts must have shape ({k}, {text.shape[1]}), got {prompts.shape}.")
        if not np.isfinite(prompts).all():
            raise ValueError("prompts must be finite.")
        if len(np.unique(prompts, axis=0)) < k:
            raise ValueError("prompts must differ from class to class, got two equal ones.")
    if budget is not None and not 0 < budget < 1:
        raise ValueError(f"budget must be above 0 and below 1, got {budget}.")
    costs = np.asarray(_checks.real("cost", np.asarray(cost), "finite and > 0"), float)
    if costs.shape != (2,):
        raise ValueError(f"cost must be two numbers, of the attribute and of other details, got {cost}.")
    m = _checks.integer("folds", folds, 2)
    fold = divided(group, unit, m, _checks.integer("seed", seed, 0))
    classes = np.arange(groups) // num_attributes
    given, x64 = (image, text, prompts), jax.config.read("jax_enable_x64")
    with jax.enable_x64(True):
        image, _, _ = _reduced("image", image, components)
        text, basis, middle = _reduced("text", text, components)
        if prompts is not None and basis is not None:
            prompts = (prompts - middle) @ basis
        sums = group_sums(image, text, fold * groups + group, m * groups).by_fold(m)
        total = sums.total()
        for name, squares in (("image", total.image_image), ("text", total.text_text)):
            if not np.isfinite(squares).all():
                raise ValueError(f"{name} features are too large for their squares.")
            if not np.trace(squares, axis1=1, axis2=2).sum() > 0:
                raise ValueError(f"{name} features must differ from sample to sample.")
        data = Samples(image, text, fold, group, counts, sums, total, classes, prompts, shifted)
        outcomes, right, advice, purchases = {}, {}, [], []
        for name, learner in learners.items():
            if not isinstance(learner, Learner):
                with jax.enable_x64(x64):  # a function of the caller's, in the caller's precision
                    scores = own_scores(name, learner, *given, group, classes, unit, fold)
                outcomes[name], _ = data.outcome(scores)
                continue
            outcomes[name], right[name] = data.outcome(data.scores(learner, AS_IT_IS))
            advice += _advice(data, name, learner, outcomes[name], right[name], knobs)
            if budget is not None and learner.kind in ONLY["attribute"]:
                purchases += _purchases(data, name, learner, outcomes[name], budget, costs)
        fitted, caption_r2 = fitted_mixture(data, num_attributes)
        leading = leading_components(data, num_attributes)
    fitted = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), float), fitted)  # in the caller's precision
    return Diagnosis(y.names, a.names, size, outcomes, tuple(advice), tuple(purchases), fitted, caption_r2, leading)


def _advice(
    data: Samples, name: str, learner: Learner, now: Outcome, right: np.ndarray, knobs: Mapping[str, Sequence[float]]
) -> list[Advice]:
    advice = []
    size = data.total.size
    for knob, settings in knobs.items():
        if learner.kind not in ONLY.get(knob, KINDS):
            continue
        tried = [AS_IT_IS.weights(size, data.classes)]
        for setting in settings:
            change: dict[str, Any] = {knob: setting}
            policy = dataclasses.replace(AS_IT_IS, **change) if knob in POLICIES else AS_IT_IS
            changed = learner if knob in POLICIES else dataclasses.replace(learner, **change)
            weights = policy.weights(size, data.classes)
            repeated = knob == "minority" and any(np.allclose(weights, other) for other in tried)
            if repeated or (policy, changed) == (AS_IT_IS, learner):
                continue
            tried.append(weights)
            try:
                after = data.right(data.scores(changed, policy))
            except SingularError:
                continue
            outcome = dataclasses.replace(now, hits=data.hits(after))
            moved = np.bincount(data.group, after != right, len(data.classes))
            shifted, worst = (outcome.minus(now, where, moved) for where in ("shifted", "worst"))
            own = getattr(learner, knob, 1.0)
            advice.append(Advice(name, knob, setting, shifted, worst, np.nan if own is None else own))
    return advice


def _purchases(
    data: Samples, name: str, learner: Learner, now: Outcome, budget: float, cost: np.ndarray
) -> list[Purchase]:
    """The best captions within the budget, beside the same budget spent evenly.

    All of the budget is spent, up to what there is to buy: the shares of the attribute's mentions are a grid, and the
    other details get the rest.
    """
    total = budget * cost.sum()
    most = min(1.0, total / cost[0])
    attribute = np.unique([budget, *np.linspace(max(0.0, (total - cost[1]) / cost[0]), most, _PURCHASES)])
    detail = np.clip((total - attribute * cost[0]) / cost[1], 0, 1)
    policies = [Policy(float(b), float(h)) for b, h in zip(attribute, detail, strict=True)]
    even = next(policy for policy in policies if policy.attribute == budget)
    answered: dict[Policy, np.ndarray] = {}
    for policy in [even, *policies]:  # of equal ones the even one is kept
        try:
            answered[policy] = data.right(data.scores(learner, policy))
        except SingularError:
            if policy == even:
                return []
    policies, right = list(answered), np.array(list(answered.values()))
    hits = np.array([data.hits(each) for each in right])  # (policies, M, G)
    size, purchases = data.sums.size, []
    for where in ("shifted", "worst"):

        def value(kept: np.ndarray, where: str = where) -> np.ndarray:
            """The accuracy of each policy on these folds."""
            by_group = hits[:, kept].sum(1) / np.maximum(size[kept].sum(0), 1)
            return by_group.min(1) if where == "worst" else by_group @ data.shifted

        folds = np.arange(len(size))
        best = np.array([value(folds != f).argmax() for f in folds])
        answers = right[best[data.fold], np.arange(len(data.fold))]
        chosen, plain = (dataclasses.replace(now, hits=h) for h in (data.hits(answers), hits[0]))
        moved = np.bincount(data.group, answers != right[0], len(data.classes))
        of_all = policies[int(value(folds >= 0).argmax())]
        purchases.append(Purchase(name, where, of_all.attribute, of_all.detail, chosen.minus(plain, where, moved)))
    return purchases


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
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(value, str) for value in array):
        array = array.astype(str)  # a pandas column of words
    if array.dtype.kind not in "biuU" or array.shape != (rows,):
        raise ValueError(f"{name} must be {rows} whole numbers or strings, got {array.dtype} of shape {array.shape}.")
    kinds, number = np.unique(array, return_inverse=True)
    if len(kinds) < 2:
        raise ValueError(f"{name} must have at least two values, got {len(kinds)}.")
    return _Codes(number, tuple(map(str, kinds)))


def _equal_rows(image: np.ndarray) -> np.ndarray:
    """A number for each row, the same for equal rows."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(np.asarray(row).tobytes(), len(seen)) for row in image])


def _reduced(name: str, x: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | float]:
    """The features, or their projections on the leading principal components, with the basis and the mean."""
    _checks.integer("components", components, 1)
    if x.shape[1] <= components:
        return x, None, 0.0
    sums = group_sums(x, x[:, :1], np.zeros(len(x), int), 1)
    mean = sums.image[0] / sums.size[0]
    covariance = sums.image_image[0] / sums.size[0] - np.outer(mean, mean)
    if not np.isfinite(covariance).all():
        raise ValueError(f"{name} features are too large for their squares.")
    basis = np.linalg.eigh(covariance)[1][:, ::-1][:, :components]
    middle = sums.image_origin + mean
    reduced = np.empty((len(x), components), np.float32)
    for start in range(0, len(x), CHUNK):
        reduced[start : start + CHUNK] = (np.asarray(x[start : start + CHUNK], float) - middle) @ basis
    return reduced, basis, middle
