"""Effective robustness: accuracy on shifted images beyond what accuracy on ordinary ones predicts.

g: logit or probit of an accuracy.  A line of standard models is g(acc_shift) = slope g(acc_id) + intercept; then
rho = acc_shift - g^-1(slope g(acc_id) + intercept).  acc_id: accuracy on ImageNet val over the classes of the shift.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.special

TRANSFORMS = {
    "logit": (scipy.special.logit, scipy.special.expit),
    "probit": (scipy.special.ndtri, scipy.special.ndtr),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """g(shifted accuracy) = slope g(ID accuracy) + intercept, slope > 0; transform names g."""

    slope: float
    intercept: float
    transform: str = "logit"

    def at(self, accuracy: Any) -> np.ndarray:
        """The line's shifted accuracy at an ID accuracy, both in [0, 1]; at 0 and 1 it is the limit, the same number.

        Raises: ValueError outside [0, 1], NaN included.
        """
        forward, back = TRANSFORMS[self.transform]
        return back(self.slope * forward(_shares("accuracy", accuracy)) + self.intercept)


# Lines fitted to the standard models of the public ImageNet testbed (Taori et al. 2020). `weak` is fitted to its models
# below 40% on val.
LINES = {
    "v2": {
        "logit": Line(0.9232, -0.4977),
        "probit": Line(0.9617, -0.3247, "probit"),
        "weak": Line(0.961, -0.430),
    },
    "sketch": {
        "logit": Line(1.0709, -2.3701),
        "probit": Line(1.0435, -1.4259, "probit"),
        "weak": Line(0.843, -2.753),
    },
    "r": {
        "logit": Line(0.6368, -2.1077),
        "probit": Line(0.7719, -1.4212, "probit"),
        "weak": Line(0.657, -2.132),
    },
    "a": {
        "logit": Line(1.9900, -7.6325),
        "probit": Line(1.8884, -4.1595, "probit"),
        "weak": Line(0.140, -4.180),
    },
    "objectnet": {
        "logit": Line(0.9809, -1.9283),
        "probit": Line(1.0192, -1.2049, "probit"),
        "weak": Line(0.597, -2.425),
    },
}
WEAK = 0.40
# The accuracies, on all of val, between which a line has models. The source gives only the weak models' upper end. The
# rest is assumed: AlexNet (0.565) is the weakest standard model, 0.90 is above the strongest, and hardly a model was
# scored below 0.05.
RANGES = {"logit": (0.55, 0.90), "probit": (0.55, 0.90), "weak": (0.05, WEAK)}


def effective_robustness(acc_id: Any, acc_shift: Any, line: Line) -> np.ndarray:
    """rho = acc_shift - line.at(acc_id), in [-1, 1].  Accuracies in [0, 1], arrays of one shape.

    At acc_id 0 or 1 g is infinite and the line is at its limit, 0 or 1: rho is acc_shift or acc_shift - 1.
    Raises: ValueError outside [0, 1], NaN included.  Source: Taori et al. 2020, section 3.
    """
    return _shares("acc_shift", acc_shift) - line.at(acc_id)


def default_line(val_accuracy: float, transform: str = "logit") -> str:
    """The published line that a model is compared with: "weak" below 40% on val, else the standard one of `transform`.

    In probit there is no line of weak models, so it is the standard one.
    """
    return "weak" if val_accuracy < WEAK and transform == "logit" else transform


def extrapolated(line: str, val_accuracy: float) -> bool:
    """Whether a published line is used outside the accuracies, on all of val, that its models had (RANGES)."""
    low, high = RANGES[line]
    return not low <= val_accuracy <= high


def inside(correct: Any, images: Any) -> np.ndarray:
    """The share correct / images, where 0 and 1 are moved inwards by half an image, so that g is finite.

    For fits and axes only. images: > 0.
    Raises: ValueError for counts that are not 0 <= correct <= images.
    """
    k, n = np.asarray(correct, float), np.asarray(images, float)
    if not ((n > 0) & (0 <= k) & (k <= n)).all():
        raise ValueError(f"needs 0 <= correct <= images and images > 0, got {correct} of {images}.")
    return np.clip(k, 0.5, n - 0.5) / n


def fit_line(acc_id: Any, acc_shift: Any, transform: str = "logit") -> Line:
    """The least-squares line of g(acc_shift) on g(acc_id).

    Raises: ValueError for an accuracy that is not inside (0, 1) (see `inside`), or fewer than two different ID
    accuracies.
    """
    x, y = (_transformed(name, a, transform) for name, a in (("acc_id", acc_id), ("acc_shift", acc_shift)))
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"needs one ID and one shifted accuracy a model, got shapes {x.shape} and {y.shape}.")
    if len(np.unique(x)) < 2:
        raise ValueError("a line needs models of two different ID accuracies or more.")
    slope, intercept = _fit(x[None], y[None])
    return Line(float(slope[0]), float(intercept[0]), transform)


def bootstrap_band(
    acc_id: Any,
    acc_shift: Any,
    transform: str,
    at: Any,
    rng: np.random.Generator,
    *,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) ends of a band around the fitted line at the ID accuracies `at`, by bootstrap over models.

    The ends are percentiles (1 - level)/2 and (1 + level)/2 of `draws` lines, each fitted to models drawn with
    replacement. A draw whose models all share one ID accuracy has no line and is left out. at: inside (0, 1).
    Raises: ValueError as `fit_line`, and for fewer than three models.
    """
    x, y = (_transformed(name, a, transform) for name, a in (("acc_id", acc_id), ("acc_shift", acc_shift)))
    grid = _transformed("at", at, transform)
    fit_line(acc_id, acc_shift, transform)
    if len(x) < 3:
        raise ValueError(f"a bootstrap band needs three models or more, got {len(x)}.")
    picked = rng.integers(0, len(x), (draws, len(x)))
    picked = picked[np.ptp(x[picked], axis=1) > 0]
    slope, intercept = _fit(x[picked], y[picked])
    lines = slope[:, None] * grid + intercept[:, None]
    low, high = np.quantile(lines, [(1 - level) / 2, (1 + level) / 2], axis=0)
    back = TRANSFORMS[transform][1]
    return back(low), back(high)


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slopes, intercepts) of least squares, a line for each row."""
    dx = x - x.mean(1, keepdims=True)
    slope = (dx * y).sum(1) / (dx**2).sum(1)
    return slope, y.mean(1) - slope * x.mean(1)


def _shares(name: str, values: Any) -> np.ndarray:
    found = np.asarray(values, float)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"{name} must be in [0, 1], got {values}.")
    return found


def _transformed(name: str, values: Any, transform: str) -> np.ndarray:
    found = np.asarray(values, float)
    if not ((found > 0) & (found < 1)).all():
        raise ValueError(f"{name} must be inside (0, 1), where {transform} is finite, got {values}.")
    return TRANSFORMS[transform][0](found)
