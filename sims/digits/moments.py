"""Predictions for the digits from measured moments: the linear loss's theory (T2, T5) and the whitened one (X10).

`pixels`: the images' pixels and the captions' features (word counts or vectors) take the place of z and u. C, S_I and
S_T are measured on scenes of training items. With t the prompts, the linear loss's rule is w = C (t_+ - t_-), the
whitened one S_I^-1 C S_T^-1 (t_+ - t_-). A group's accuracy is predicted on scenes of test items, as if w.x were normal
in each of its cells (label, attribute, and the digit's kind where labels are noisy). X3 gives the linear loss's C under
a same-class weight; the whitened rule has no prediction there.

`features`: the two-feature model of the theory. Its means and spreads are measured along two directions of pixel space:
the hue's, and the classes' at right angles to it. What captions can name (digit, style, shade) is the spread of a
feature; the rest is noise. The model has one strength of noise, the mean over the two directions. Captions have no
noise. The model knows no small digits, so it has no prediction where scenes may have them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

import mmcl_theory as mt
from mmcl_theory import learners
from sims.digits import scenes
from sims.digits.training import GROUPS, Setup, draw, prompt_texts, ridge, text_features, write

PROMPTS = ("class", "ensemble")
THEORIES = ("linear_pixels", "whitened_pixels", "linear_features", "whitened_features")
MOMENTS = ("mu_core", "sigma_core", "mu_spu", "sigma_spu", "noise", "threshold")
LAW = ("p_spu", "hue_contrast", "p_companion")  # parameters of scenes, not of captions or losses
_SAMPLES = 16384
_KEY = 20  # key of the scenes that moments are measured on; no run has it


@dataclasses.dataclass(frozen=True)
class Seen:
    """Drawn scenes: their pixels, (n, d) in float64, and what is in them."""

    scenes: scenes.Scenes
    pixels: np.ndarray

    @classmethod
    def draw(cls, setup: Setup, point: Mapping[str, Any], items: str, p_spu: float, key: int) -> "Seen":
        """Scenes of the point's `train` or `test` items."""
        drawn = draw(setup, jax.random.key(key), point, items, _SAMPLES, p_spu)
        return cls(drawn, np.asarray(drawn.image, float).reshape(_SAMPLES, -1))

    def cells(self) -> list[tuple[int, str, np.ndarray]]:
        """(label, group, members) of the four cells."""
        label, attribute = np.asarray(self.scenes.label), np.asarray(self.scenes.attribute)
        return [
            (y, GROUPS[int(a != y)], np.flatnonzero((label == y) & (attribute == a))) for y in (-1, 1) for a in (-1, 1)
        ]


class Predictor:
    """Predictions for one distribution of scenes, whatever the captions.

    point: `train` and `test` items, p_spu, hue_contrast, p_companion.
    """

    def __init__(self, setup: Setup, point: Mapping[str, Any]):
        self.setup, p_spu = setup, point["p_spu"]
        self.model, self.obs = two_features(setup, point)
        self.seen = Seen.draw(setup, point, "train", p_spu, _KEY)
        self.shifted = Seen.draw(setup, point, "test", 0.5, _KEY + 1)
        self.mean = self.seen.pixels.mean(0)
        self.centred = self.seen.pixels - self.mean
        self.cov = ridge(np.cov(self.centred, rowvar=False))

    def moments(self) -> np.ndarray:
        """MOMENTS: the two-feature model, its noise a direction, and the mu_spu above which the linear loss fails (X4).

        The last is the threshold for captions that name everything.
        """
        with jax.enable_x64(True):
            threshold = mt.theory.strong_spurious_threshold(self.model, mt.captions(1.0, 1.0))
            m = self.model
            values = (m.mu_core, m.sigma_core, m.mu_spu, m.sigma_spu, self.obs.sd_image, threshold)
            return np.array([float(value) for value in values])

    def words(self, seen: Seen, caps: mt.data.Captions, pi_companion: float) -> np.ndarray:
        """Text features of the scenes' captions: vectors or word counts."""
        texts = write(self.setup, jax.random.key(_KEY + 3), seen.scenes, caps, pi_companion)
        return np.asarray(text_features(self.setup, texts), float)

    def accuracy(self, pi_core: float, pi_spu: float, pi_companion: float, weight: float | None) -> np.ndarray:
        """Predicted accuracy, (THEORIES, PROMPTS, GROUPS).

        The prompts name the class alone, or are the mean over captions that a class can have.
        weight: of same-class negatives; None: the ordinary loss.
        """
        caps = mt.captions(pi_core, pi_spu, self.setup.masking)
        counts = self.words(self.seen, caps, pi_companion)
        number = None if weight is None else jnp.asarray((self.seen.scenes.label + 1) // 2)
        with jax.enable_x64(True):
            both = jnp.asarray(self.centred), jnp.asarray(counts)
            cross = np.asarray(learners.cross_covariance(*both, number, weight))
        cov_text = ridge(np.cov(counts, rowvar=False))
        possible, label = self.words(self.shifted, caps, pi_companion), np.asarray(self.shifted.scenes.label)
        low, high = np.asarray(text_features(self.setup, jnp.asarray(prompt_texts(self.setup, "class"))), float)
        prompts = (high - low, possible[label > 0].mean(0) - possible[label < 0].mean(0))
        linear = [self._groups(cross @ t) for t in prompts]
        whitened = [self._groups(np.linalg.solve(self.cov, cross @ np.linalg.solve(cov_text, t))) for t in prompts]
        with jax.enable_x64(True):
            linear_loss = mt.theory.mmcl_accuracy(self.model, caps, self.obs, same_class_weight=weight)
            by_theory = linear_loss, mt.theory.whitened_accuracy(self.model, caps, self.obs)
            two = [np.array([[float(f.aligned), float(f.conflicting)]] * len(prompts)) for f in by_theory]
        every = np.stack([np.array(linear), np.array(whitened), *two])
        if weight is not None:
            every[[THEORIES.index("whitened_pixels"), THEORIES.index("whitened_features")]] = np.nan
        if self.setup.companion:
            every[[THEORIES.index("linear_features"), THEORIES.index("whitened_features")]] = np.nan
        return every

    def _groups(self, rule: np.ndarray) -> list[float]:
        """Accuracy of each group, as if the rule's score were normal in each cell."""
        score = (self.shifted.pixels - self.mean) @ rule
        kinds = np.array(self.setup.kinds)[np.asarray(self.shifted.scenes.item)]
        right: dict[str, list[float]] = {group: [] for group in GROUPS}
        for y, group, members in self.shifted.cells():
            parts = [members[kinds[members] == kind] for kind in (y, -y)]
            shares = [len(part) / len(members) * _share(y * score[part]) for part in parts if len(part)]
            right[group].append(sum(shares))
        return [float(np.mean(right[group])) for group in GROUPS]


def _share(score: np.ndarray) -> float:
    """P(score > 0), as if scores were normal."""
    mean, deviation = score.mean(), score.std()
    return float(scipy.special.ndtr(mean / deviation)) if deviation > 0 else 0.5


def two_features(setup: Setup, point: Mapping[str, Any]) -> tuple[mt.data.IntraClass, mt.data.Observation]:
    """`features` of training items; point as of `Predictor`."""
    return features(Seen.draw(setup, point, "train", 0.5, _KEY + 2), point["p_spu"])


def features(shifted: Seen, p_spu: float) -> tuple[mt.data.IntraClass, mt.data.Observation]:
    """The two-feature model and its noise, measured on scenes of P*."""
    at = shifted.scenes
    label, attribute = np.asarray(at.label), np.asarray(at.attribute)
    centred = shifted.pixels - shifted.pixels.mean(0)
    hue = (attribute[:, None] * centred).mean(0)
    hue /= np.linalg.norm(hue)
    core = (label[:, None] * centred).mean(0)
    core -= (core @ hue) * hue
    core /= np.linalg.norm(core)
    style = np.asarray(at.style) @ np.array([1, 2, 4])
    parts = [
        _parts(centred @ core, label, np.asarray(at.named_item) * 8 + style),
        _parts(centred @ hue, attribute, np.asarray(at.shade) + 3 * (attribute > 0)),
    ]
    (mu_core, named_core, left_core), (mu_spu, named_spu, left_spu) = parts
    with jax.enable_x64(True):
        model = mt.intra_class(p_spu, named_core**0.5, named_spu**0.5, mu_core, mu_spu)
        # The noise is then s_I^2 = sigma_image^2 / dim_image, the mean over the two directions.
        obs = mt.observation(dim_image=2, sigma_image=(left_core + left_spu) ** 0.5, dim_text=2, sigma_text=0.0)
    return model, obs


def _parts(score: np.ndarray, sign: np.ndarray, named: np.ndarray) -> tuple[float, float, float]:
    """(mean of sign x score, variance between the named cells of a sign, variance within them), averaged over signs."""
    mean = float((sign * score).mean())
    cells = np.zeros(len(score))
    for cell in np.unique(named):
        cells[named == cell] = score[named == cell].mean()
    between = [np.var(cells[sign == s]) for s in (-1, 1)]
    return mean, float(np.mean(between)), float(np.mean((score - cells) ** 2))
