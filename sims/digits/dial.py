"""Predictions of the dial between the two theories (X11) for the paper's digits, from the experiment's own moments.

Image features stand for what an encoder sees:

    separate   one-hot digit beside one-hot colour
    joint      one-hot of the 60 states (digit, colour): an encoder that reads everything off
    pixels     the pixels themselves: a linear encoder

Captions are those of `sims.digits.vectors`, without their 198 coordinates of pure noise. All moments are exact, of the
training distribution P. States have its probabilities: digits evenly; for `pixels`, as often as in the training images.
Captions have the moments that their masking gives. The rule of kappa is sign(w . (x - mean)) with

    w = ridge_optimum(C, S_I, S_T, kappa) (1, 0),        (1, 0) the difference of the class prompts:

kappa = 0 is the whitened rule (X10), infinity the linear loss's (T5). A state whose score is 0 up to rounding counts
half.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmcl_theory import learners
from sims.digits.config import ITEMS
from sims.digits.images import Source
from sims.digits.scenes import SHADES, Colours
from sims.digits.vectors import NOISE, class_values

Policy = tuple[float, float]
FEATURES = ("separate", "joint", "pixels")
KAPPAS = np.array([0.0, *np.logspace(-6, 3, 91), np.inf])
_TIE = 1e-9  # relative to the largest score


@dataclasses.dataclass(frozen=True)
class States:
    """The states (digit, attribute, shade) of the paper's digits. Arrays (s,), s = 60 states."""

    item: np.ndarray
    label: np.ndarray
    attribute: np.ndarray
    shade: np.ndarray
    kinds: tuple[int, ...]

    @property
    def colour(self) -> np.ndarray:
        """The value that captions give a colour, -2.5 to 2.5."""
        return self.attribute * (len(SHADES) - 0.5 - self.shade)

    def probability(self, p_spu: float) -> np.ndarray:
        """Probability of each state: digits and shades evenly, attribute = label w.p. p_spu. Sums to 1."""
        agrees = np.where(self.label == self.attribute, p_spu, 1 - p_spu)
        return agrees / (ITEMS * len(SHADES))

    def features(self, kind: str) -> np.ndarray:
        """Features of the states, (s, d); kind: `separate` or `joint`."""
        if kind == "joint":
            return np.eye(len(self.item))
        colour = (self.attribute > 0) * len(SHADES) + self.shade
        return np.concatenate([np.eye(ITEMS)[self.item], np.eye(2 * len(SHADES))[colour]], 1)

    def captions(self, policy: Policy, masking: str = "mean") -> tuple[np.ndarray, np.ndarray]:
        """E[(a, b) | state] and the variances of a and b given the state, without noise: each (s, 2)."""
        low, high = class_values(self.kinds)
        named = np.stack([self.item - (ITEMS - 1) / 2, self.colour], 1)
        unnamed = np.stack([np.where(self.label > 0, high, low), self.attribute * len(SHADES) / 2], 1)
        if masking == "named":
            unnamed[:, 1] = 0
        pi = np.array(policy)
        return pi * named + (1 - pi) * unnamed, pi * (1 - pi) * (named - unnamed) ** 2


def states(kinds: tuple[int, ...]) -> States:
    """All 60 states. kinds: -1 or +1 for each digit."""
    item, sign, shade = (x.ravel() for x in np.meshgrid(range(ITEMS), (-1, 1), range(len(SHADES)), indexing="ij"))
    return States(item, np.array(kinds)[item], sign, shade, kinds)


def moments(
    weight: np.ndarray, image: np.ndarray, text: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(C, S_I, S_T, E x) of the states.

    Args:
      weight: (s,) their probabilities.
      image: (s, d) their features.
      text, spread: (s, 2) mean and variances of captions given the state, without noise.
    """
    mean = weight @ image
    x, u = image - mean, text - weight @ text
    cross, cov_image = x.T @ (weight[:, None] * u), x.T @ (weight[:, None] * x)
    return cross, cov_image, _cov_text(weight, text, spread), mean


def _cov_text(weight: np.ndarray, text: np.ndarray, spread: np.ndarray) -> np.ndarray:
    u = text - weight @ text
    return u.T @ (weight[:, None] * u) + np.diag(weight @ spread + NOISE**2)


def rules(
    cross: np.ndarray,
    cov_image: np.ndarray,
    cov_text: np.ndarray,
    kappas: np.ndarray,
    prompt: tuple[float, float] = (1.0, 0.0),
) -> np.ndarray:
    """w(kappa), (..., kappas, d).

    Args:
      cross, cov_text: (..., d, 2) and (..., 2, 2); the leading axes may run over caption policies.
      cov_image: (d, d), the same for all policies and decomposed once.
      prompt: the difference of the class prompts.
    """
    with jax.enable_x64(True):
        each = jax.vmap(learners.ridge_optimum, (None, None, None, 0))
        for _ in cross.shape[:-2]:
            each = jax.vmap(each, (0, None, 0, None))
        optima = each(*(jnp.asarray(x, float) for x in (cross, cov_image, cov_text, kappas)))
        return np.asarray(optima @ jnp.asarray(prompt))


def of_states(
    kinds: tuple[int, ...],
    features: str,
    policy: Policy,
    kappas: np.ndarray,
    p_spu: float = 0.995,
    masking: str = "mean",
) -> np.ndarray:
    """(kappas, 2): accuracy of the aligned and of the conflicting group, for `separate` or `joint` features."""
    of = states(kinds)
    right = right_of_states(of, features, policy, kappas, p_spu, masking)
    aligned = of.label == of.attribute
    return np.stack([right[aligned].mean(0), right[~aligned].mean(0)], 1)


def scores_of_states(
    of: States,
    features: str,
    policy: Policy,
    kappas: np.ndarray,
    p_spu: float = 0.995,
    masking: str = "mean",
    prompt: tuple[float, float] = (1.0, 0.0),
) -> np.ndarray:
    """(s, kappas): w . (x - mean) of each state."""
    image, weight = of.features(features), of.probability(p_spu)
    cross, cov_image, cov_text, mean = moments(weight, image, *of.captions(policy, masking))
    return (image - mean) @ rules(cross, cov_image, cov_text, kappas, prompt).T


def right_of_states(
    of: States,
    features: str,
    policy: Policy,
    kappas: np.ndarray,
    p_spu: float = 0.995,
    masking: str = "mean",
    prompt: tuple[float, float] = (1.0, 0.0),
) -> np.ndarray:
    """(s, kappas): whether each state is classified right, 1/2 for a tie."""
    score = scores_of_states(of, features, policy, kappas, p_spu, masking, prompt) * of.label[:, None]
    score[np.abs(score) < _TIE * np.abs(score).max(0)] = 0
    return (np.sign(score) + 1) / 2


class Pixels:
    """A linear encoder on the pixels of the training items, x = b 1 + (1 - b) s.

    b is the colour (3,), s the ink (h h,). Given the class they are independent, so moments over P are sums of
    Kronecker products.
    """

    def __init__(self, source: Source, colours: Colours, p_spu: float):
        self.of, self.p_spu = states(source.kinds), p_spu
        rgb = np.array(colours, float)[(self.of.attribute + 1) // 2, self.of.shade] / 255
        train = source.train
        ink = np.asarray(train.ink, float).reshape(len(train.item), -1) / 255
        count = np.bincount(train.item, minlength=ITEMS)
        agrees = np.where(self.of.label == self.of.attribute, p_spu, 1 - p_spu)
        self.weight = count[self.of.item] / count.sum() * agrees / len(SHADES)
        mean_ink = np.stack([ink[train.item == d].mean(0) for d in range(ITEMS)])
        self.image = _blended(rgb, mean_ink[self.of.item])  # E[x | state], (s, d)
        self.mean = self.weight @ self.image
        centred = self.image - self.mean
        self.cov = centred.T @ (self.weight[:, None] * centred)
        for kind in (-1, 1):  # add the ink's covariance within each digit
            members, of_kind = np.array(source.kinds)[train.item] == kind, self.of.label == kind
            within = ink[members] - mean_ink[train.item[members]]
            left = 1 - rgb[of_kind]
            colour = left.T @ (self.weight[of_kind, None] * left)
            self.cov += np.kron(colour, within.T @ within / members.sum())
        test = source.test
        self.test_ink = np.asarray(test.ink, float).reshape(len(test.item), -1) / 255
        self.test_label = np.array(source.kinds)[test.item]
        self.colours = np.array(colours, float) / 255

    def moments(self, policy: Policy, masking: str = "mean") -> tuple[np.ndarray, np.ndarray]:
        """(C, S_T) for a caption policy."""
        text, spread = self.of.captions(policy, masking)
        cross = (self.image - self.mean).T @ (self.weight[:, None] * (text - self.weight @ text))
        return cross, _cov_text(self.weight, text, spread)

    def accuracy(self, policies: Sequence[Policy], kappas: np.ndarray, masking: str = "mean") -> np.ndarray:
        """Accuracy of the aligned and the conflicting group, (policies, kappas, 2), on all test images in all colours.

        At kappa = 0, directions of pixel space without variance are left out.
        """
        cross, cov_text = (np.stack(each) for each in zip(*(self.moments(p, masking) for p in policies), strict=True))
        by_policy = rules(cross, self.cov, cov_text, kappas)
        return np.array([[self._groups(w) for w in of_policy] for of_policy in by_policy])

    def _groups(self, w: np.ndarray) -> list[float]:
        split = w.reshape(3, -1)
        right: dict[bool, list[float]] = {True: [], False: []}
        for sign, shades in zip((-1, 1), self.colours, strict=True):
            for rgb in shades:
                score = rgb @ split.sum(1) + self.test_ink @ ((1 - rgb) @ split) - w @ self.mean
                for label in (-1, 1):
                    members = self.test_label == label
                    right[label == sign].append(float((label * score[members] > 0).mean()))
        return [float(np.mean(right[True])), float(np.mean(right[False]))]


def _blended(rgb: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Pixels, (n, 3 h h) with channels first, of colours (n, 3) and inks (n, h h)."""
    return (rgb[:, :, None] + (1 - rgb)[:, :, None] * ink[:, None, :]).reshape(len(rgb), -1)


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The point of a dial's curve that is nearest to a measured pair of accuracies."""

    kappa: float
    distance: float


def nearest(curve: np.ndarray, kappas: np.ndarray, measured: np.ndarray) -> Nearest:
    """The point of a curve, (kappas, 2), nearest to measured accuracies, (2,), by the larger of both groups' distances.

    Both fields are NaN for runs that diverged.
    """
    if np.isnan(measured).any():
        return Nearest(float("nan"), float("nan"))
    distance = np.abs(curve - measured).max(1)
    at = int(distance.argmin())
    return Nearest(float(kappas[at]), float(distance[at]))
