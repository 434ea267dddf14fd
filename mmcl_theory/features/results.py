"""What a diagnosis finds: accuracies by group with intervals, differences that changes make, regimes.

Symbols: g group of weight P_g, y its class, a its attribute; M folds; n_g samples and h_g right answers of a group.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

from mmcl_theory.data import Mixture

BALANCED = 0.05  # gap of two groups' accuracies up to which they count as alike
_ASSOCIATED = 0.01  # p-value below which the attribute counts as a predictor of the class
PLACES = ("train", "shifted", "worst")


class Estimate(NamedTuple):
    """A value with its standard error and 95% interval.

    Example:
        >>> import mmcl_theory as mt
        >>> gain = mt.features.Estimate(value=0.10, error=0.02, low=0.06, high=0.14)
        >>> print(gain.low > 0, mt.features.verdict(gain))
        True gain
    """

    value: float
    error: float
    low: float
    high: float


def verdict(difference: Estimate) -> str:
    """ "gain", "loss" or "no evidence", by the interval of a difference.

    Example:
        >>> import mmcl_theory as mt
        >>> certain, vague = mt.features.Estimate(0.1, 0.02, 0.06, 0.14), mt.features.Estimate(0.1, 0.1, -0.1, 0.3)
        >>> print(mt.features.verdict(certain), mt.features.verdict(vague), sep=", ")
        gain, no evidence
    """
    if difference.low > 0:
        return "gain"
    return "loss" if difference.high < 0 else "no evidence"


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """Held-out answers of a learner, and what Gaussian scores would give.

    Attributes:
        hits: number of right answers in each fold and group, (M, G).
        size: number of samples, (M, G); a group may be absent from a fold.
        units: number of different units, such as images, in each group, (G,).
        weight: P_g in training, (G,).
        shifted_weight: P*_g, (G,).
        predicted: the accuracy in each group if its held-out scores were Gaussian, (G,); NaN beyond 10 classes.
        skewness: of the held-out score of the own class minus that of its closest rival, in each group, (G,); 0 if
            Gaussian.
        kurtosis: its excess kurtosis, (G,); 0 if Gaussian.

    Example:
        Two folds of two groups, 9 and 5 of 10 right. The first group is nine tenths of the training distribution:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> size, none = np.full((2, 2), 10.0), np.zeros(2)
        >>> hits, weights = np.array([[9.0, 4.0], [9.0, 6.0]]), (np.array([0.9, 0.1]), np.array([0.5, 0.5]))
        >>> outcome = mt.features.Outcome(hits, size, size.sum(0), *weights, none, none, none)
        >>> print([f"{where} {outcome.at(where).value:.2f}" for where in ("train", "shifted", "worst")])
        ['train 0.86', 'shifted 0.70', 'worst 0.50']
    """

    hits: np.ndarray  # (M, G)
    size: np.ndarray  # (M, G)
    units: np.ndarray  # (G,)
    weight: np.ndarray  # (G,)
    shifted_weight: np.ndarray  # (G,)
    predicted: np.ndarray  # (G,)
    skewness: np.ndarray  # (G,)
    kurtosis: np.ndarray  # (G,)

    @property
    def by_group(self) -> np.ndarray:
        """The accuracy in each group, (G,), over all folds."""
        return self.hits.sum(0) / self.size.sum(0)

    def weights(self, where: str) -> np.ndarray:
        """The weights of the groups on "train" (P) or "shifted" (P*); "worst": 1 on the group of lowest accuracy."""
        if where == "worst":
            return np.eye(len(self.weight))[self.by_group.argmin()]
        return {"train": self.weight, "shifted": self.shifted_weight}[where]

    def group(self, number: int) -> Estimate:
        """The accuracy in a group."""
        return self._accuracy(np.eye(len(self.weight))[number])

    def at(self, where: str) -> Estimate:
        """The accuracy on "train", "shifted" or in the "worst" group, which is the one that is worst here.

        The interval of "worst" does not count that the group was chosen.
        """
        return self._accuracy(self.weights(where))

    def _accuracy(self, weights: np.ndarray) -> Estimate:
        estimate = self.contrast(weights)
        return estimate._replace(low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))

    def contrast(self, weights: Float[np.ndarray, " g"]) -> Estimate:
        """sum_g weights_g (h_g / n_g), with its standard error and interval.

        Each of M folds is scored by rules learnt from the M - 1 others, which share samples. With s^2 the variance over
        folds of M sum_g weights_g (h_fg - (h_g / n_g) n_fg) / n_g, the variance counts as s^2 (1/M + 1/(M - 1)), but at
        least as that of independent units: sum_g weights_g^2 p (1 - p) / u_g, p = (h + 2) / (u + 4) in units.
        Student's t of M - 1 degrees of freedom gives the interval.

        Source: Nadeau and Bengio 2003, with test share 1/M; Agresti and Coull 1998.
        """
        return _interval(weights @ self.by_group, self._influence(weights), self._floor(weights))

    def minus(self, now: "Outcome", where: str, changed: Float[np.ndarray, " g"]) -> Estimate:
        """The difference to another outcome on the same folds, on P, P* or in each one's worst group.

        changed: number of samples in each group of which one outcome alone is right. The variance is at least that of
        independent units: (c + 1) / (u + 2)^2 in a group, c of whose u units change.
        """
        mine, theirs = self.weights(where), now.weights(where)
        influence = self._influence(mine) - now._influence(theirs)
        if (mine == theirs).all():
            share = changed / self.size.sum(0)
            floor = (mine**2 * (share * self.units + 1) / (self.units + 2) ** 2).sum()
        else:
            floor = self._floor(mine) + now._floor(theirs)
        return _interval(mine @ self.by_group - theirs @ now.by_group, influence, floor)

    def _influence(self, weights: np.ndarray) -> np.ndarray:
        return len(self.hits) * ((self.hits - self.by_group * self.size) / self.size.sum(0)) @ weights

    def _floor(self, weights: np.ndarray) -> float:
        p = (self.by_group * self.units + 2) / (self.units + 4)
        return float((weights**2 * p * (1 - p) / self.units).sum())


def _interval(value: float, influence: np.ndarray, floor: float) -> Estimate:
    m = len(influence)
    error = np.sqrt(max(influence.var(ddof=1) * (1 / m + 1 / (m - 1)), floor))
    return _of_error(float(value), float(error), m)


def _of_error(value: float, error: float, m: int) -> Estimate:
    """The estimate with Student's interval of m - 1 degrees of freedom."""
    half = scipy.special.stdtrit(m - 1, 0.975) * error
    return Estimate(value, error, float(value - half), float(value + half))


def over_folds(values: np.ndarray) -> Estimate:
    """The mean of held-out values, one a fold. Source: Nadeau and Bengio 2003, with test share 1/M."""
    return _interval(float(values.mean()), values, 0.0)


def jackknife(values: np.ndarray) -> Estimate:
    """The mean of values that were each computed without one fold; its variance is (M - 1)/M sum (v - mean v)^2.

    Source: Efron and Stein 1981, of groups of samples.
    """
    m = len(values)
    return _of_error(float(values.mean()), float(np.sqrt((m - 1) ** 2 / m * values.var(ddof=1))), m)


@dataclasses.dataclass(frozen=True)
class Advice:
    """What a change of one knob does to a learner, beside the features as they are.

    Attributes:
        learner: name of the learner.
        knob: of KNOBS.
        setting: the knob's value.
        shifted: the difference of accuracy on P*.
        worst: the difference in the worst group; the groups that are worst before and after may differ.
        now: the learner's own value of the knob; 1 for captions and samples as they are.

    Example:
        Where the shortcut wins, more weight on the rare groups helps the worst one:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> y = np.arange(1000) % 2
        >>> a = np.where(np.arange(1000) % 5, y, 1 - y)
        >>> x = np.random.default_rng(0).normal(size=(1000, 2)) + np.stack([3 * y, 6 * a], 1)
        >>> learners = {"mmcl": mt.features.Learner("mmcl")}
        >>> (advice,) = mt.diagnose(x, x, y, a, learners=learners, knobs={"minority": (4.0,)}).advice
        >>> print(advice.knob, advice.setting, mt.features.verdict(advice.worst))
        minority 4.0 gain
    """

    learner: str
    knob: str
    setting: float
    shifted: Estimate
    worst: Estimate
    now: float = 1.0


@dataclasses.dataclass(frozen=True)
class Purchase:
    """The captions that are best for a learner within a budget.

    Attributes:
        learner: name of the learner.
        where: what they are best for: "shifted" or "worst".
        attribute: share of the mentions of the attribute that is kept.
        detail: share of the mentions of other details that is kept.
        gain: the difference of accuracy there to the same budget spent evenly, attribute = detail. Each
            fold is scored with the captions that are best on the others, so that it has not the optimism of a choice on
            the images that are scored; they may differ from `attribute` and `detail`, which are best on all folds. All
            of the budget is spent: naming less is not tried.

    Example:
        Half of the mentions are best spent on the details, and none on the attribute, which is the shortcut:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> y = np.arange(1000) % 2
        >>> a = np.where(np.arange(1000) % 5, y, 1 - y)
        >>> x = np.random.default_rng(0).normal(size=(1000, 2)) + np.stack([3 * y, 6 * a], 1)
        >>> learners = {"mmcl": mt.features.Learner("mmcl")}
        >>> shifted, worst = mt.diagnose(x, x, y, a, learners=learners, knobs={}, budget=0.5).purchases
        >>> print(shifted.attribute, shifted.detail)
        0.0 1.0
    """

    learner: str
    where: str
    attribute: float
    detail: float
    gain: Estimate


METHODS = ("contrast", "predict", "align")


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """A leading direction of the images by one of METHODS, learnt on M - 1 folds and measured on the last (X7).

    They are the singular vectors of the cross-covariance C of images and texts, of S_I^-1/2 C and of
    S_I^-1/2 C S_T^-1/2: what the linear loss, prediction of the text from the image, and alignment (CCA) find first. A
    covariance that is inverted has .01 of its mean eigenvalue added, which can decide where two are nearly alike.

    Attributes:
        method: of METHODS.
        number: its place, from 1.
        correlation: of its image and text score, on held-out samples.
        of_class: the share of its image score's variance that the class has, in groups of equal weight; the mean over
            the folds, of training samples.
        of_attribute: that of the attribute. The rest is within groups, or of both together.
        lead: of_class - of_attribute.
        gap: its singular value less that of the next component. Where it may be 0 the two are one plane, and which
            direction in it comes first is an accident of the sample.

    Example:
        The strongest feature is the attribute, which the linear loss finds first:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> y = np.arange(1000) % 2
        >>> a = np.where(np.arange(1000) % 5, y, 1 - y)
        >>> x = np.random.default_rng(0).normal(size=(1000, 2)) + np.stack([3 * y, 6 * a], 1)
        >>> learners = {"mmcl": mt.features.Learner("mmcl")}
        >>> first = mt.diagnose(x, x, y, a, learners=learners, knobs={}).components[0]
        >>> print(first.method, first.number, first.of_attribute > first.of_class, first.lead.high < 0)
        contrast 1 True True
    """

    method: str
    number: int
    correlation: Estimate
    of_class: float
    of_attribute: float
    lead: Estimate
    gap: Estimate


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        classes: names of the classes, K.
        attributes: names of the attributes, A.
        size: number of samples of each group, (G,); group g is of class g // A and attribute g % A.
        outcomes: the held-out answers of each learner, by its name.
        advice: the differences that changes of knobs make.
        fitted: the mixture model of the held-out images, in K - 1 directions that separate the classes and A - 1 that
            separate the attributes, each about in units of its standard deviation within groups.
        purchases: the best captions within a budget, if one was given.
        caption_r2: the share of each direction's variance within groups that the captions predict, R^2 on held-out
            samples, (l,); <= 0 if they tell nothing.
        components: the leading directions of each of METHODS, in order.

    Example:
        An attribute y in four of five images, twice as far apart as the classes, is a shortcut:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> y = np.arange(1000) % 2
        >>> a = np.where(np.arange(1000) % 5, y, 1 - y)
        >>> x = np.random.default_rng(0).normal(size=(1000, 2)) + np.stack([3 * y, 6 * a], 1)
        >>> learners = {"mmcl": mt.features.Learner("mmcl")}
        >>> found = mt.diagnose(x, x, y, a, learners=learners, knobs={})
        >>> print(found.regime("mmcl"), found.recovered("contrast"), sep=", ")
        the shortcut wins, attribute
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    size: np.ndarray
    outcomes: dict[str, Outcome]
    advice: tuple[Advice, ...]
    purchases: tuple[Purchase, ...]
    fitted: Mixture
    caption_r2: np.ndarray
    components: tuple[Component, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, "class, attribute"."""
        return tuple(f"{y}, {a}" for y in self.classes for a in self.attributes)

    def aligned(self) -> np.ndarray:
        """Whether a group is aligned, (G,): its class and attribute occur together more often than if independent."""
        table = self.size.reshape(len(self.classes), len(self.attributes))
        return np.greater(table * table.sum(), table.sum(1, keepdims=True) * table.sum(0, keepdims=True)).ravel()

    def associated(self) -> bool:
        """Whether the attribute predicts the class: their independence is rejected by a G test at 1%."""
        table = self.size.reshape(len(self.classes), len(self.attributes)).astype(float)
        expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
        freedom = (len(table) - 1) * (table.shape[1] - 1)
        statistic = 2 * scipy.special.rel_entr(table, expected).sum()
        return bool(scipy.special.chdtrc(freedom, max(statistic, 0.0)) < _ASSOCIATED)

    def gap(self, learner: str) -> Estimate:
        """Accuracy in the aligned groups minus that in the others, in classes that have both; NaN if none has.

        Classes count in equal parts, and within a class its groups of each kind.
        """
        aligned = self.aligned().reshape(len(self.classes), -1)
        both = np.asarray(aligned.any(1) & ~aligned.all(1))
        if not both.any():
            return Estimate(np.nan, np.nan, np.nan, np.nan)
        parts = [x / np.maximum(x.sum(1, keepdims=True), 1) for x in (aligned, ~aligned)]
        weights = np.where(both[:, None], parts[0] - parts[1], 0.0) / both.sum()
        return self.outcomes[learner].contrast(weights.ravel())

    def regime(self, learner: str) -> str:
        """ "the shortcut wins", "over-correction", "balanced" or "no evidence", by the interval of `gap`.

        It is balanced if the whole interval is within .05 of 0. If the attribute does not predict the class it is "no
        shortcut in the data".
        """
        gap = self.gap(learner)
        if not self.associated() or np.isnan(gap.value):
            return "no shortcut in the data"
        if gap.low > 0:
            return "the shortcut wins"
        if gap.high < 0:
            return "over-correction"
        return "balanced" if max(-gap.low, gap.high) <= BALANCED else "no evidence"

    def recovered(self, method: str) -> str:
        """What a method finds first (X7): "class", "attribute" or "no evidence", by 95% intervals.

        It is the class if the first K - 1 components have each more of the class than of the attribute, and the
        attribute if none has; in both cases where their scores are correlated, and their singular values apart from the
        next.

        Raises: ValueError for another method.
        """
        if method not in METHODS:
            raise ValueError(f"method must be of {', '.join(METHODS)}, got {method!r}.")
        first = [c for c in self.components if c.method == method][: len(self.classes) - 1]
        if not first or first[-1].gap.low <= 0 or any(c.correlation.low <= 0 for c in first):
            return "no evidence"
        if all(c.lead.low > 0 for c in first):
            return "class"
        return "attribute" if all(c.lead.high < 0 for c in first) else "no evidence"

    def to_dataframe(self) -> Any:
        """The accuracies as a pandas DataFrame: a row for each learner and group, and for P, P* and the worst group."""
        import pandas as pd

        rows = []
        for name, outcome in self.outcomes.items():
            for g, group in enumerate(self.groups):
                shape = (float(outcome.skewness[g]), float(outcome.kurtosis[g]))
                rows.append((name, group, int(self.size[g]), *outcome.group(g), outcome.predicted[g], *shape))
            for where in PLACES:
                predicted = float(outcome.predicted @ outcome.weights(where))
                rows.append((name, where, int(self.size.sum()), *outcome.at(where), predicted, np.nan, np.nan))
        names = ["learner", "group", "samples", "accuracy", "se", "low", "high", "predicted", "skewness", "kurtosis"]
        return pd.DataFrame(rows, columns=names)

    def advice_dataframe(self) -> Any:
        """The advice as a pandas DataFrame: a row for each learner, knob and setting."""
        import pandas as pd

        fields = ("gain", "se", "low", "high")
        places = PLACES[1:]
        names = ["learner", "knob", "setting", *(f"{w}_{x}" for w in places for x in fields)]
        names += [f"{w}_verdict" for w in places]
        rows = [
            (a.learner, a.knob, a.setting, *a.shifted, *a.worst, verdict(a.shifted), verdict(a.worst))
            for a in self.advice
        ]
        return pd.DataFrame(rows, columns=names)
