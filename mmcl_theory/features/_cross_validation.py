"""Cross-validation of a diagnosis: folds, rules learnt from all but one, and held-out scores.

Symbols: n samples, K classes, g = (class, attribute) one of G groups, M folds.
"""

import dataclasses

import numpy as np

from mmcl_theory.data import mixture
from mmcl_theory.features.closed_form import Fit, Learner, Training, feature_rules
from mmcl_theory.features.moments import GroupSums, Policy, policy_moments
from mmcl_theory.features.results import Outcome

_MOST_PREDICTED = 10  # classes up to which the orthant probabilities of Gaussian scores are computed


class SingularError(ValueError):
    """A covariance that must be inverted is singular."""


def divided(group: np.ndarray, unit: np.ndarray, m: int, seed: int) -> np.ndarray:
    """A fold for each sample; the units of every group are divided into parts that differ by at most one.

    A unit in several groups counts in that of its first sample.
    """
    rng = np.random.default_rng(seed)
    kinds, first, number = np.unique(unit, return_index=True, return_inverse=True)
    fold = np.empty(len(kinds), int)
    for g in np.unique(group[first]):
        members = rng.permutation(np.flatnonzero(group[first] == g))
        fold[members] = (np.arange(len(members)) + rng.integers(m)) % m
    return fold[number]


def own_scores(
    name: str, fit: Fit, image: np.ndarray, text: np.ndarray, prompts: np.ndarray | None, group: np.ndarray,
    classes: np.ndarray, unit: np.ndarray, fold: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Scores of each sample by a learner of the user's own, learnt from the other folds, (n, K).

    Raises: ValueError for what is no function, or scores of another shape, or that are no finite numbers.
    """
    k = int(classes.max()) + 1
    scores = np.empty((len(image), k))
    for f in range(fold.max() + 1):
        mine = fold == f
        x, t, g = image[~mine], text[~mine], group[~mine]
        asked = prompts
        if asked is None:
            means = np.stack([np.asarray(t[g == i], float).mean(0) for i in range(len(classes))])
            asked = _of_classes(means, k)
        rule = fit(Training(x, t, classes[g], unit[~mine], asked, f))
        if not callable(rule):
            raise ValueError(f"{name} must return a function from images to scores, got {type(rule).__name__}.")
        given = np.asarray(rule(image[mine]))
        if given.shape != scores[mine].shape or given.dtype.kind not in "biuf":
            got = f"{given.dtype} of shape {given.shape}"
            raise ValueError(f"{name} must give scores of shape {scores[mine].shape}, numbers, got {got}.")
        if not np.isfinite(given).all():
            raise ValueError(f"{name} must give finite scores, got NaN or infinite ones in fold {f}.")
        scores[mine] = given
    return scores


def _of_classes(means: np.ndarray, k: int) -> np.ndarray:
    """The mean of each class, (K, d), from those of its groups, (G, d): all attributes in equal parts."""
    return means.reshape(k, -1, means.shape[1]).mean(1)


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The samples with their folds and groups, and the sums over both."""

    image: np.ndarray  # (n, d_i)
    text: np.ndarray  # (n, d_t)
    fold: np.ndarray  # (n,)
    group: np.ndarray  # (n,)
    units: np.ndarray  # (G,)
    sums: GroupSums  # (M, G, ...)
    total: GroupSums  # (G, ...)
    classes: np.ndarray  # (G,)
    prompts: np.ndarray | None
    shifted: np.ndarray  # (G,)

    def others(self, fold: int) -> GroupSums:
        """The sums over all folds but one."""
        return self.total.minus(self.sums, fold)

    def scores(self, learner: Learner, policy: Policy) -> np.ndarray:
        """Scores of each sample by the rules learnt from the other folds, (n, K)."""
        scores = np.empty((len(self.image), self.classes.max() + 1))
        for f in range(len(self.sums.size)):
            others = self.others(f)
            mom = policy_moments(others, self.classes, policy)
            rules, offsets = map(np.asarray, feature_rules(mom, self.prompt(others), learner))
            if not np.isfinite(rules).all():
                raise SingularError(
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
        return _of_classes(means, int(self.classes.max()) + 1)

    def right(self, scores: np.ndarray) -> np.ndarray:
        """Whether the own class has the highest score, (n,); classes that are tied at the top share it."""
        top = scores == scores.max(1, keepdims=True)
        return top[np.arange(len(scores)), self.classes[self.group]] / top.sum(1)

    def hits(self, right: np.ndarray) -> np.ndarray:
        """The number of right answers in each fold and group, (M, G)."""
        folds, groups = self.sums.size.shape
        return np.bincount(self.fold * groups + self.group, right, folds * groups).reshape(folds, groups)

    def outcome(self, scores: np.ndarray) -> tuple[Outcome, np.ndarray]:
        """The held-out answers of these scores, and for each sample whether it is right."""
        groups, k = len(self.classes), scores.shape[1]
        mean = np.stack([scores[self.group == g].mean(0) for g in range(groups)])
        spread = np.stack([np.cov(scores[self.group == g].T) for g in range(groups)])
        size = self.sums.size.sum(0)
        predicted = np.full(groups, np.nan)
        if k <= _MOST_PREDICTED:
            model = mixture(size / size.sum(), mean, spread, self.classes.tolist(), self.shifted)
            predicted = np.asarray(model.rule_accuracy(np.eye(k), np.eye(k)).by_group)
        skewness, kurtosis = zip(*(self._shape(scores, mean[g], spread[g], g) for g in range(groups)), strict=True)
        right = self.right(scores)
        counted = (self.hits(right), self.sums.size, self.units, size / size.sum(), self.shifted)
        return Outcome(*counted, predicted, np.array(skewness), np.array(kurtosis)), right

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
