"""Effective robustness: accuracy on shifted images beyond what accuracy on ordinary ones predicts.

g: logit or probit of an accuracy.  A line of standard models is g(acc_shift) = slope g(acc_id) + intercept; then
rho = acc_shift - g^-1(slope g(acc_id) + intercept).  acc_id: accuracy on ImageNet val over the classes of the shift.
"""

from typing import Any

import numpy as np

from sims.engine.lines import Line

# Lines fitted to the standard models of the public ImageNet testbed (Taori et al. 2020). `weak` is fitted to its models
# below 40% on val.
LINES = {
    "v2": {"logit": Line(0.9232, -0.4977), "probit": Line(0.9617, -0.3247, "probit"), "weak": Line(0.961, -0.430)},
    "sketch": {"logit": Line(1.0709, -2.3701), "probit": Line(1.0435, -1.4259, "probit"), "weak": Line(0.843, -2.753)},
    "r": {"logit": Line(0.6368, -2.1077), "probit": Line(0.7719, -1.4212, "probit"), "weak": Line(0.657, -2.132)},
    "a": {"logit": Line(1.9900, -7.6325), "probit": Line(1.8884, -4.1595, "probit"), "weak": Line(0.140, -4.180)},
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
    shifted = np.asarray(acc_shift, float)
    if not ((shifted >= 0) & (shifted <= 1)).all():
        raise ValueError(f"acc_shift must be in [0, 1], got {acc_shift}.")
    return shifted - line.at(acc_id)


def default_line(val_accuracy: float, transform: str = "logit") -> str:
    """The published line that a model is compared with: "weak" below 40% on val, else the standard one of `transform`.

    In probit there is no line of weak models, so it is the standard one.
    """
    return "weak" if val_accuracy < WEAK and transform == "logit" else transform


def extrapolated(line: str, val_accuracy: float) -> bool:
    """Whether a published line is used outside the accuracies, on all of val, that its models had (RANGES)."""
    low, high = RANGES[line]
    return not low <= val_accuracy <= high
