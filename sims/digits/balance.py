"""What the dial predicts of captions and ridge for the paper's digits: which policy, and which kappa, is the best.

    tilt = score of colours of attribute +1 less that of -1, over that of digits of class +1 less that of -1,

each the mean over all 60 states: the ratio w_s / w_c of X10 and X11 where the encoder sees more than two features.
Above 0 the rule takes the shortcut, below 0 it over-corrects. A policy or a kappa is balanced where the tilt is 0.

With masking "mean" the colour's hue is always named, so that Cov(a, b) is positive whatever the policy. Then S_T^-1 p
gives the colour a negative weight at kappa = 0, and no policy is balanced (X12). With masking "named" that weight goes
to 0 with pi_spu.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import scipy.optimize
import xarray as xr

import mmcl_theory as mt
from mmcl_theory.zero_shot import GroupAccuracy
from sims.digits import dial, results
from sims.digits.arms import ARMS
from sims.digits.config import PAPER_POLICIES
from sims.digits.dial import Policy

FEATURES = ("separate", "joint")


@dataclasses.dataclass(frozen=True)
class Balanced:
    """Where the tilt is 0.

    Attributes:
      at: the balanced pi_spu, in [0, 1]; NaN where the tilt has one sign on all of it.
      ends: the tilt at pi_spu = 0 and at 1, the certificate: a root lies between ends of different signs.
    """

    at: float
    ends: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Best:
    """The best kappas of a curve.

    Attributes:
      accuracy: the highest on the grid of kappas.
      least, most: of the kappas that reach it, the ends of the range. It may have gaps.
    """

    accuracy: float
    least: float
    most: float


def tilt(
    kinds: tuple[int, ...], features: str, policy: Policy, kappa: float, p_spu: float = 0.995, masking: str = "mean"
) -> float:
    """The tilt of the rule at one kappa.

    Args:
      kinds: -1 or +1 for each digit.
      features: `separate` or `joint`.
      policy: (pi_core, pi_spu).
      kappa: the ridge, in [0, inf].
      p_spu: P(attribute = label) in training.
      masking: "mean" or "named".
    """
    of = dial.states(kinds)
    score = dial.scores_of_states(of, features, policy, np.array([kappa]), p_spu, masking)[:, 0]
    spurious, core = (score[sign > 0].mean() - score[sign < 0].mean() for sign in (of.attribute, of.label))
    return float(spurious / core)


def balanced_pi_spu(
    kinds: tuple[int, ...], features: str, pi_core: float, kappa: float, p_spu: float = 0.995, masking: str = "mean"
) -> Balanced:
    """The pi_spu in [0, 1] at which the tilt is 0, by Brent's method; arguments as of `tilt`.

    Source: X10.  Check: tests/digits/test_balance.py.
    """

    def at(pi_spu: float) -> float:
        return tilt(kinds, features, (pi_core, pi_spu), kappa, p_spu, masking)

    ends = at(0.0), at(1.0)
    zero = [pi for pi, value in zip((0.0, 1.0), ends, strict=True) if abs(value) < 1e-9]
    if zero:
        return Balanced(zero[0], ends)
    return Balanced(float(scipy.optimize.brentq(at, 0, 1)) if ends[0] * ends[1] < 0 else float("nan"), ends)


def best_kappa(curve: np.ndarray, kappas: np.ndarray, group: str) -> Best:
    """The best kappas of a curve, (kappas, 2), for `shifted` (the groups' mean) or for the `worst` group.

    Source: X11.  Check: tests/digits/test_balance.py.
    """
    value = curve.mean(1) if group == "shifted" else curve.min(1)
    at = kappas[value >= value.max() - 1e-12]
    return Best(float(value.max()), float(at.min()), float(at.max()))


def table(kinds: tuple[int, ...], p_spu: float, policies: Sequence[Policy] = PAPER_POLICIES) -> list[list[str]]:
    """For each masking, features and policy: both groups at kappa = 0, the tilt, and the best kappas.

    The policies are those given and the balanced one at pi_core = 1, if there is one.
    """
    lines = [["masking", "features", "captions", "aligned", "conflicting", "tilt", "best kappa for P*", "P*",
              "best kappa for the worst group", "worst"]]  # fmt: skip
    for masking in ("mean", "named"):
        for features in FEATURES:
            root = balanced_pi_spu(kinds, features, 1.0, 0.0, p_spu, masking)
            own = [] if np.isnan(root.at) else [(1.0, root.at)]
            for policy in dict.fromkeys([*policies, *own]):
                curve = dial.of_states(kinds, features, policy, dial.KAPPAS, p_spu, masking)
                name = f"({policy[0]:g}, {policy[1]:g})" + (", balanced" if policy in own else "")
                line = [masking, features, name, *(f"{share:.3f}" for share in curve[0])]
                line.append(f"{round(tilt(kinds, features, policy, 0.0, p_spu, masking), 2) + 0.0:+.2f}")
                for group in ("shifted", "worst"):
                    best = best_kappa(curve, dial.KAPPAS, group)
                    line += [f"{best.least:.2g} to {best.most:.2g}", f"{best.accuracy:.3f}"]
                lines.append(line)
    return lines


def table_of_two_features(model: mt.data.IntraClass, obs: mt.data.Observation) -> list[list[str]]:
    """The same of the two-feature model: rich captions whitened, with the best ridge, and the balanced captions."""

    def line(name: str, accuracy: GroupAccuracy) -> list[str]:
        shares = (accuracy.aligned, accuracy.conflicting, accuracy.shifted)
        return [name, *(f"{float(share):.3f}" for share in shares)]

    with jax.enable_x64(True):
        rich = mt.captions(1.0, 1.0)
        lines = [["rule", "aligned", "conflicting", "P*"]]
        lines.append(line("captions (1, 1), kappa = 0", mt.theory.whitened_accuracy(model, rich, obs)))
        best = mt.theory.optimal_ridge(model, rich, obs)
        lines.append(line(f"captions (1, 1), the best kappa = {float(best.kappa):.3g}", best.accuracy))
        pi_spu = mt.theory.balanced_pi_spu(model, mt.captions(1.0, 1.0, "named"), obs)
        inside = mt.captions(1.0, min(1.0, float(pi_spu)), "named")
        name = f"captions (1, {float(pi_spu):.3g}), balanced, kappa = 0"
        name += "" if pi_spu <= 1 else ": no captions over-correct; at pi_spu = 1"
        lines.append(line(name, mt.theory.whitened_accuracy(model, inside, obs)))
    return lines


def measured_table(dataset: xr.Dataset) -> list[list[str]]:
    """Trained networks by captions and temperature, read out by the class and by the regression prompt.

    Beside them the dial's joint features at kappa = 0, and at the kappa that is best for the worst group.
    """
    mean, half = results.interval(results.accuracy(dataset).isel(step=-1))
    shown = {"class": ("aligned", "conflicting", "shifted"), "regression": ("aligned", "conflicting", "shifted")}
    names = [f"{prompt}: {value}" for prompt, values in shown.items() for value in values]
    lines = [["captions", "temperature", *names, "predicted aligned/conflicting: kappa = 0", "best kappa"]]
    for arm in dataset.arm.values:
        curve = dataset.dial.sel(arm=arm, features="joint").transpose("kappa", "group").values
        best = best_kappa(curve, dataset.kappa.values, "worst")
        at = int(np.flatnonzero(dataset.kappa.values == best.least)[0])
        predicted = ["/".join(f"{share:.3f}" for share in curve[i]) for i in (0, at)]
        for temperature in dataset.temperature.values:
            line = [ARMS[str(arm)].label, f"{temperature:g}"]
            for prompt, values in shown.items():
                for value in values:
                    cell = {"arm": arm, "temperature": temperature, "prompt": prompt, "value": value}
                    line.append(" +- ".join(f"{x.sel(cell).item():.3f}" for x in (mean, half)))
            lines.append([*line, predicted[0], f"{predicted[1]} from {best.least:.2g} on"])
    return lines
