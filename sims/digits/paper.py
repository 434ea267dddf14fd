"""The paper's Figures 2 and 5 beside ours, with the groups apart, and the course of training.

The paper's aligned and conflicting accuracies follow from its two numbers: ID = p_spu aligned + (1 - p_spu)
conflicting, and OOD is their mean.
"""

import csv
import json
import math
import pathlib

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sims.digits import dial, results
from sims.digits.arms import ARMS
from sims.digits.config import PAPER_POLICIES, paper_arm
from sims.engine import style

SUPERVISED_EPOCHS = 40
_FILE = pathlib.Path(__file__).parent.parent / "paper_figures.csv"
FIGURES = {"ood": "2", "id": "5"}
_VALUE_OF = {"ood": "shifted", "id": "train"}
_NAMES = {"ood": "OOD, Figure 2", "id": "ID, Figure 5"}
_CURVES = {
    "separate": ("#009E73", "-", "dial: digit and colour"),
    "joint": ("#D55E00", "--", "dial: 60 states"),
    "pixels": ("#CC79A7", ":", "dial: pixels"),
}
_OURS, _PAPERS = "#0072B2", "#D55E00"
_DEAD = 0.01  # a contrastive loss this near log(batch size), or above it: all images are embedded alike


def points() -> dict[tuple[str, tuple[float, float] | None], float]:
    """The paper's accuracies, as shares, by (`ood` or `id`, (pi_core, pi_spu)); policy None is supervised learning."""
    accuracies: dict[tuple[str, tuple[float, float] | None], float] = {}
    with open(_FILE, encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            if row["dataset"] != "digits":
                continue
            policy = None
            if row["arm"] == "clip pi_spu=1":
                policy = float(row["x"]), 1.0
            elif row["arm"] == "clip pi_core=1":
                policy = 1.0, float(row["x"])
            accuracies[row["y_name"], policy] = float(row["y"]) / 100
    return accuracies


def groups(ood: float, within: float, p_spu: float = 0.995) -> tuple[float, float]:
    """(aligned a, conflicting c) from ood = (a + c)/2 and within = p_spu a + (1 - p_spu) c. Needs p_spu != 1/2."""
    conflicting = (2 * p_spu * ood - within) / (2 * p_spu - 1)
    return 2 * ood - conflicting, conflicting


def dead(dataset: xr.Dataset) -> xr.DataArray:
    """Whether each run, (arm, seed, *axes, step), diverged or embeds all images alike.

    The latter is a contrastive loss of about log(batch size) or above.
    """
    batch = json.loads(dataset.attrs["config"])["batch_size"]
    reads = xr.DataArray([arm != "cross_entropy" for arm in dataset.arm.values], coords={"arm": dataset.arm})
    loss = dataset.measured.sel(measure="loss", drop=True)
    return ((loss >= math.log(batch) - _DEAD) & reads) | loss.isnull()


def deaths(dataset: xr.Dataset, arm: str) -> np.ndarray:
    """How many runs of an arm are `dead` at each step."""
    of_arm = dead(dataset).sel(arm=arm)
    return of_arm.sum([dim for dim in of_arm.dims if dim != "step"]).values


def epochs(dataset: xr.Dataset) -> np.ndarray:
    """Passes over the training set at each step."""
    config = json.loads(dataset.attrs["config"])
    return dataset.step.values / (config["train_size"] // config["batch_size"])


def of_arm(dataset: xr.Dataset, arm: str) -> tuple[xr.DataArray, xr.DataArray]:
    """(mean, half the 95% interval) of an arm's accuracies, (step, value), under the prompt it is judged by."""
    accuracy = results.accuracy(dataset.sel(arm=[arm]))
    mean, half = results.interval(accuracy.sel(prompt=results.headline(arm), drop=True))
    single = [d for d in mean.dims if d not in ("step", "value")]
    return mean.squeeze(single, drop=True), half.squeeze(single, drop=True)


def _last(dataset: xr.Dataset, arm: str) -> int:
    """Index of the step that the paper's number is about: the last; for supervised learning, that nearest 40 epochs."""
    if arm != "cross_entropy":
        return -1
    return int(np.abs(epochs(dataset) - SUPERVISED_EPOCHS).argmin())


def against_paper(dataset: xr.Dataset, name: str) -> Figure:
    """The paper's Figure 2 (`ood`) or 5 (`id`) beside ours; below, both groups."""
    given, arms = points(), [str(a) for a in dataset.arm.values]
    epoch = epochs(dataset)[-1]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.6), sharex="col", sharey="row", layout="constrained")
    for column, (axis, fixed) in enumerate((("core", "spu"), ("spu", "core"))):
        policies = [p for p in PAPER_POLICIES if p[1 - column] == 1 and paper_arm(*p) in arms]
        policies.sort(key=lambda p: p[column])
        x = np.array([p[column] for p in policies])
        ours = [[v.isel(step=-1) for v in of_arm(dataset, paper_arm(*p))] for p in policies]
        top, below = axes[:, column]
        _drawn(top, x, ours, _VALUE_OF[name], _OURS, "o", f"ours, {epoch:g} epochs, 95% interval")
        theirs = [given[name, p] for p in policies]
        top.plot(x, theirs, "D--", color=_PAPERS, mfc="none", label="the paper's")
        if "cross_entropy" in arms:
            mean, half = (v.isel(step=_last(dataset, "cross_entropy")) for v in of_arm(dataset, "cross_entropy"))
            level, spread = (v.sel(value=_VALUE_OF[name]).item() for v in (mean, half))
            top.axhline(level, color=_OURS, lw=1, ls=":", label="supervised, ours")
            top.axhspan(level - spread, level + spread, color=_OURS, alpha=0.1, lw=0)
        top.axhline(given[name, None], color=_PAPERS, lw=1, ls=":", label="supervised, the paper's")
        for i, (group, (colour, marker)) in enumerate(style.GROUP_LOOKS.items()):
            _drawn(below, x, ours, group, colour, marker, f"{group}, ours")
            inferred = [groups(given["ood", p], given["id", p])[i] for p in policies]
            below.plot(x, inferred, marker + "--", color=colour, mfc="none", label=f"{group}, the paper's")
        _mark_dead(below, dataset, x, [paper_arm(*p) for p in policies])
        below.set_xlabel(rf"$\pi_{{\mathrm{{{axis}}}}}$ at $\pi_{{\mathrm{{{fixed}}}}} = 1$ (probability)")
    axes[0, 0].set_ylabel(f"{_NAMES[name]}: accuracy (share correct)")
    axes[1, 0].set_ylabel("groups: accuracy (share correct)")
    for ax in axes.flat:
        ax.grid(alpha=0.25, lw=0.6)
        ax.set_ylim(max(0.0, ax.get_ylim()[0]), min(1.02, ax.get_ylim()[1]))
    for ax in axes[:, 1]:
        ax.legend(fontsize=8, frameon=False)
    return figure


def _drawn(
    ax: Axes, x: np.ndarray, ours: list[list[xr.DataArray]], value: str, colour: str, marker: str, label: str
) -> None:
    mean, half = (
        ([each.sel(value=value).item() for each in row] for row in zip(*ours, strict=True)) if ours else ([], [])
    )
    ax.errorbar(x, mean, yerr=half, fmt=marker + "-", color=colour, capsize=2, label=label)


def _mark_dead(ax: Axes, dataset: xr.Dataset, x: np.ndarray, arms: list[str]) -> None:
    seeds = dataset.sizes["seed"]
    for at, arm in zip(x, arms, strict=True):
        count = deaths(dataset, arm)[-1]
        if count:
            ax.annotate(f"{count} of {seeds} dead", (at, ax.get_ylim()[0]), ha="center", va="bottom", fontsize=8)


def along_training(dataset: xr.Dataset) -> Figure:
    """Accuracy of both groups over epochs in each setting, with 95% intervals; at the foot, counts of `dead` runs."""
    arms = [a for a in (*(paper_arm(*p) for p in PAPER_POLICIES), "cross_entropy") if a in dataset.arm.values]
    figure, axes = plt.subplots(2, -(-len(arms) // 2), figsize=(12, 6), sharex=True, sharey=True, layout="constrained",
                                squeeze=False)  # fmt: skip
    x = epochs(dataset)
    for ax, arm in zip(axes.flat, arms, strict=False):
        mean, half = of_arm(dataset, arm)
        for group, (colour, marker) in style.GROUP_LOOKS.items():
            m, h = mean.sel(value=group), half.sel(value=group)
            ax.plot(x, m, marker=marker, ms=3, color=colour, label=group)
            ax.fill_between(x, m - h, m + h, color=colour, alpha=0.2, lw=0)
        died = deaths(dataset, arm)
        for at, count in zip(x[died > 0], died[died > 0], strict=True):
            ax.text(at, 0.02, f"{count}", ha="center", fontsize=7)
        ax.set_title(ARMS[arm].label, fontsize=9)
        ax.axhline(0.5, color="0.6", lw=0.8, zorder=0)
        ax.grid(alpha=0.25, lw=0.6)
    for ax in axes.flat[len(arms) :]:
        ax.set_axis_off()
    axes[0, 0].set_xscale("log")
    axes[0, 0].set_ylim(-0.02, 1.02)
    figure.supxlabel("epochs; at the foot: runs that tell no image from another", fontsize=10)
    figure.supylabel("accuracy (share correct)", fontsize=10)
    axes[0, 0].legend(fontsize=8, frameon=False)
    return figure


def along_dial(dataset: xr.Dataset) -> Figure:
    """Conflicting against aligned accuracy: the dial's curves, whitened (dot) to linear (cross); training's path."""
    arms = [paper_arm(*p) for p in PAPER_POLICIES if paper_arm(*p) in dataset.arm.values]
    figure, axes = plt.subplots(2, len(arms) // 2 + 1, figsize=(12, 6.2), sharex=True, sharey=True,
                                layout="constrained", squeeze=False)  # fmt: skip
    x = epochs(dataset)
    for ax, arm in zip(axes.flat, arms, strict=False):
        for features, (colour, dashes, name) in _CURVES.items():
            curve = dataset.dial.sel(arm=arm, features=features).transpose("kappa", "group").values
            ax.plot(*curve.T, dashes, color=colour, lw=1, label=name)
            ax.plot(*curve[0], "o", color=colour, ms=4)
            ax.plot(*curve[-1], "x", color=colour, ms=5)
        mean, half = of_arm(dataset, arm)
        way, spread = ([v.sel(value=group).values for group in style.GROUP_LOOKS] for v in (mean, half))
        ax.plot(*way, "-", color="0.2", lw=1)
        points = ax.scatter(*way, c=np.log10(x), cmap="viridis", s=22, zorder=3, label="trained")
        ax.errorbar(way[0][-1], way[1][-1], xerr=spread[0][-1], yerr=spread[1][-1], color="0.2", capsize=2)
        ax.plot([0, 1], [0, 1], color="0.8", lw=0.8, zorder=0)
        ax.set_title(ARMS[arm].label, fontsize=9)
        ax.grid(alpha=0.25, lw=0.6)
    for ax in axes.flat[len(arms) :]:
        ax.set_axis_off()
    figure.colorbar(points, ax=axes, label="log10 of epochs")
    axes[0, 0].set(xlim=(0.35, 1.03), ylim=(-0.03, 1.03))
    figure.supxlabel("aligned: accuracy (share correct); dot: whitened, cross: linear loss", fontsize=10)
    figure.supylabel("conflicting: accuracy (share correct)", fontsize=10)
    axes.flat[-1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", fontsize=8, frameon=False)
    return figure


def dial_table(dataset: xr.Dataset) -> list[list[str]]:
    """For each setting and measured epoch, the nearest point of each curve: its kappa and its distance."""
    lines = [["setting", "epochs", "aligned", "conflicting", *(f"{f}: kappa, distance" for f in _CURVES)]]
    for arm in (paper_arm(*p) for p in PAPER_POLICIES if paper_arm(*p) in dataset.arm.values):
        mean, _ = of_arm(dataset, arm)
        for step, epoch in enumerate(epochs(dataset)):
            measured = np.array([mean.isel(step=step).sel(value=group).item() for group in style.GROUP_LOOKS])
            line = [ARMS[arm].label, f"{epoch:g}", *(f"{m:.3f}" for m in measured)]
            for features in _CURVES:
                curve = dataset.dial.sel(arm=arm, features=features).transpose("kappa", "group").values
                nearest = dial.nearest(curve, dataset.kappa.values, measured)
                line.append(f"{nearest.kappa:.2g}, {nearest.distance:.3f}")
            lines.append(line)
    return lines


def regression_table(dataset: xr.Dataset) -> list[list[str]]:
    """Each setting after the last epoch, read out by the regression prompt (X12); empty where it was not measured."""
    accuracy = results.accuracy(dataset)
    if "regression" not in accuracy.prompt.values:
        return []
    shown = {"shifted": "OOD", "train": "ID", "aligned": "aligned", "conflicting": "conflicting"}
    lines = [["setting", *shown.values()]]
    for arm in (paper_arm(*p) for p in PAPER_POLICIES if paper_arm(*p) in dataset.arm.values):
        mean, half = results.interval(accuracy.sel(arm=arm, prompt="regression").isel(step=-1))
        both = ([x.sel(value=value).item() for value in shown] for x in (mean, half))
        lines.append([ARMS[arm].label, *(f"{m:.3f} +- {h:.3f}" for m, h in zip(*both, strict=True))])
    return lines


def table(dataset: xr.Dataset) -> list[list[str]]:
    """Each setting: OOD, ID and both groups, ours beside the paper's, and how many runs are `dead`."""
    given = points()
    lines = [["setting", "OOD", "paper", "ID", "paper", "aligned", "paper", "conflicting", "paper", "dead"]]
    for arm in (str(a) for a in dataset.arm.values):
        policy = None if arm == "cross_entropy" else next(p for p in PAPER_POLICIES if paper_arm(*p) == arm)
        theirs = given["ood", policy], given["id", policy]
        theirs = (*theirs, *groups(*theirs))
        step = _last(dataset, arm)
        mean, half = (v.isel(step=step) for v in of_arm(dataset, arm))
        line = [f"{ARMS[arm].label}, {epochs(dataset)[step]:g} epochs"]
        for value, their in zip(("shifted", "train", "aligned", "conflicting"), theirs, strict=True):
            line += [f"{mean.sel(value=value).item():.3f} +- {half.sel(value=value).item():.3f}", f"{their:.3f}"]
        line.append(f"{deaths(dataset, arm)[step]} of {dataset.sizes['seed']}")
        lines.append(line)
    return lines
