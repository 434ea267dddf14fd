"""Figures: data and an `ax` in, `ax` out. Nothing is computed here. Theory is a line, measurements are points with
intervals."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from sims.engine.style import INTERVAL
from sims.latent.parameters import PARAMETERS


class Look(NamedTuple):
    """How a learner's line and markers look."""

    colour: str
    marker: str
    dashes: str
    label: str


# Okabe and Ito's colours; each learner has its own marker and dashes, so the figure reads without colour.
STYLE = {
    "mmcl": Look("#0072B2", "o", "-", "MMCL, linear loss, closed form"),
    "mmcl_gradient": Look("#56B4E9", "D", "-", "MMCL, linear loss, gradient-trained"),
    "info_nce": Look("#009E73", "^", ":", "MMCL, InfoNCE"),
    "supervised": Look("#D55E00", "s", "--", "SL, max-margin"),
    "supervised_gradient": Look("#E69F00", "v", "--", "SL, gradient-trained"),
}


def accuracy_against_p_spu(
    ax: Axes, predicted: xr.DataArray, mean: xr.DataArray, error: xr.DataArray, thick: list[str], thin: list[str]
) -> Axes:
    """Accuracy against p_spu: the groups `thick` as theory line and measured points, the groups `thin` as thin lines
    only.

    predicted: (learner, p_spu, group), a fine grid of p_spu. mean, error: (learner, p_spu, group), the measured cells
    and their standard errors, drawn as 1.96 standard errors. A learner without a prediction gets a dotted guide
    through its points.
    """
    learners = list(mean.learner.values)
    for i, learner in enumerate(learners):
        colour, marker, dashes, _ = STYLE[learner]
        for group in [*thick, *thin]:
            curve = predicted.sel(learner=learner, group=group, drop=True)
            points = mean.sel(learner=learner, group=group)
            width = 1.8 if group in thick else 0.7
            # Learners with the same prediction share one line.
            if not any(curve.equals(predicted.sel(learner=other, group=group, drop=True)) for other in learners[:i]):
                ax.plot(curve.p_spu, curve, dashes, color=colour, lw=width, zorder=2)
            if not curve.notnull().any():
                ax.plot(points.p_spu, points, ":", color=colour, lw=0.7, zorder=1)
            if group in thick:
                half = INTERVAL * np.nan_to_num(error.sel(learner=learner, group=group).values)
                face = "white" if "gradient" in learner else colour
                size = 7.5 - i  # later markers are smaller, so that coinciding ones stay visible
                look: dict[str, Any] = {"fmt": marker, "color": colour, "mfc": face, "ms": size, "capsize": 2, "lw": 1}
                ax.errorbar(points.p_spu, points, half, zorder=3 + i, **look)
    ax.set_xlabel(PARAMETERS["p_spu"].label)
    ax.set_ylim(-0.03, 1.03)
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def legend_handles(learners: list[str], with_theory: list[str]) -> list[Line2D]:
    """One handle per learner: always its marker, and its line if it has a prediction."""
    handles = []
    for learner in learners:
        colour, marker, dashes, label = STYLE[learner]
        face = "white" if "gradient" in learner else colour
        style = dashes if learner in with_theory else ":"
        width = 1.8 if learner in with_theory else 0.8
        name = label if learner in with_theory else f"{label} (no prediction)"
        handles.append(Line2D([], [], color=colour, marker=marker, mfc=face, ls=style, lw=width, ms=6, label=name))
    return handles


VALUE_SYMBOLS = {
    "shifted": r"accuracy on P* (share correct)",
    "aligned": "accuracy, aligned group (share correct)",
    "conflicting": "accuracy, conflicting group (share correct)",
    "worst": "accuracy of the worse group (share correct)",
    "train": "accuracy on the training distribution P (share correct)",
    "gap": "aligned minus conflicting accuracy",
    "regime": "chance that the leading mode is the signal's",
}
CONTOUR_STEPS = {name: 0.05 for name in VALUE_SYMBOLS} | {"gap": 0.1, "regime": 0.25}
_BOUNDARY = [("#D55E00", "-"), ("black", "--"), ("#CC79A7", "-."), ("#56B4E9", ":")]


def phase_plane(
    ax: Axes, data: xr.Dataset, scale: tuple[float, float, float], boundaries: list[str], contours: bool
) -> QuadMesh:
    """The predicted value as colour with numbered contour lines, boundaries, and measured cells in the same colours.

    data: `value`, `boundary`, `measured_value` of one panel.  scale: lowest and highest colour, spacing of the contour
    lines.  boundaries: those of this panel. Returns the image, for a colour bar.
    """
    low, high, spacing = scale
    value = data.value.values
    x, y = data.x.values, data.y.values
    image = ax.pcolormesh(x, y, value, cmap="cividis", vmin=low, vmax=high, shading="nearest", rasterized=True)
    levels = spacing * np.arange(np.floor(low / spacing), np.ceil(high / spacing) + 1)
    inside = levels[(levels > np.nanmin(value)) & (levels < np.nanmax(value))] if not np.isnan(value).all() else []
    if contours and len(inside):
        lines = ax.contour(x, y, value, levels=inside, colors="0.85", linewidths=0.6)
        ax.clabel(lines, fontsize=7, fmt="%g")
    for i, label in enumerate(boundaries):
        _boundary(ax, data, label, i)
    columns, rows = np.meshgrid(data.x_cell.values, data.y_cell.values)
    measured = data.measured_value.values
    known = ~np.isnan(measured)
    look: dict[str, Any] = {"marker": "s", "s": 110, "edgecolors": "white", "linewidths": 1.2, "zorder": 5}
    if known.any():
        ax.scatter(columns[known], rows[known], c=measured[known], cmap="cividis", vmin=low, vmax=high, **look)
        ax.scatter([], [], c="0.5", label="measured, mean over seeds (same colours)", **(look | {"edgecolors": "0.2"}))
        if not known.all():
            cross: dict[str, Any] = {"marker": "X", "s": 70, "c": "white", "edgecolors": "black", "linewidths": 1}
            ax.scatter(columns[~known], rows[~known], label="no answer in some runs", zorder=5, **cross)
    if np.isnan(value).any():
        ax.set_facecolor("0.92")
    return image


def regimes(ax: Axes, data: xr.Dataset, names: tuple[str, ...]) -> Axes:
    """Whole-number regimes as flat colours, each named at its middle, with their boundaries."""
    x, y, value = data.x.values, data.y.values, data.value.values
    colours = ["#f0f0f0", "#bdd7e7", "#fdd0a2", "#c7e9c0"]
    ax.pcolormesh(x, y, value, cmap=ListedColormap(colours[: len(names)]), vmin=-0.5, vmax=3.5)
    for number, name in enumerate(names):
        inside = np.argwhere(value == number)
        if len(inside):
            row, column = np.median(inside, axis=0).astype(int)
            ax.text(x[column], y[row], name, ha="center", va="center", fontsize=10, fontweight="bold")
    for i, label in enumerate(data.boundary_label.values):
        _boundary(ax, data, label, i)
    return ax


def name_sides(ax: Axes, data: xr.Dataset, boundaries: list[str], sides: tuple[str, str]) -> Axes:
    """Name the regions below and above the first boundary, each at its middle."""
    field = data.boundary.sel(boundary_label=boundaries[0]).values
    for name, region in zip(sides, (field < 0, field > 0), strict=True):
        inside = np.argwhere(region)
        if name and len(inside):
            row, column = np.median(inside, axis=0).astype(int)
            look: dict[str, Any] = {"fontsize": 10, "color": "white", "fontweight": "bold"}
            text = ax.text(data.x.values[column], data.y.values[row], name, ha="center", va="center", zorder=6, **look)
            text.set_path_effects([withStroke(linewidth=2.5, foreground="black")])
    return ax


def _boundary(ax: Axes, data: xr.Dataset, label: str, i: int) -> None:
    """Draw the line where the boundary's field is 0, if there is one, with an entry in the legend."""
    field = data.boundary.sel(boundary_label=label).values
    known = field[~np.isnan(field)]
    if not len(known) or known.min() > 0 or known.max() < 0:
        return
    colour, dashes = _BOUNDARY[i % len(_BOUNDARY)]
    ax.contour(data.x.values, data.y.values, field, levels=[0.0], colors=colour, linewidths=2.2, linestyles=dashes)
    ax.plot([], [], color=colour, ls=dashes, lw=2.2, label=label)


def name_plane(ax: Axes, x: str, y: str, log_x: bool, log_y: bool) -> Axes:
    """Name both axes with symbol and unit, and set log scales."""
    ax.set_xlabel(PARAMETERS[x].label)
    ax.set_ylabel(PARAMETERS[y].label)
    if log_x:
        ax.set_xscale("log")
    if log_y:
        ax.set_yscale("log")
    return ax


def accuracy_against_time(ax: Axes, data: xr.Dataset) -> Axes:
    """Theory as a line, the mean of the runs as points in a band of all runs, the end points as horizontal lines.

    data: `accuracy_predicted` (time), `accuracy_measured` (loss, seed, time), `end_points` (end_point) of one group.
    """
    looks = {"mmcl_gradient": ("linear loss", 2), "info_nce": ("InfoNCE", 3)}
    time = data.time.values
    ax.plot(time, data.accuracy_predicted, color=STYLE["mmcl"].colour, lw=2, label="linear loss, theory (X6)", zorder=2)
    for loss, (name, order) in looks.items():
        colour, marker = STYLE[loss].colour, STYLE[loss].marker
        runs = data.accuracy_measured.sel(loss=loss).values
        ax.fill_between(time, runs.min(0), runs.max(0), color=colour, alpha=0.25, lw=0, zorder=1)
        face: dict[str, Any] = {"mfc": "white" if loss == "mmcl_gradient" else colour, "ms": 4.5, "zorder": order}
        ax.plot(time, runs.mean(0), marker, color=colour, ls="", label=f"{name}, trained (band: all runs)", **face)
    ends = {
        "mmcl": (STYLE["mmcl"].colour, "--", "linear loss, end point"),
        "info_nce": (STYLE["info_nce"].colour, "--", "InfoNCE, population optimum (X10)"),
        "whitened": ("0.4", ":", "whitened rule (X5)"),
    }
    for name, (colour, dashes, label) in ends.items():
        ax.axhline(data.end_points.sel(end_point=name).item(), color=colour, ls=dashes, lw=1.2, label=label, zorder=0)
    ax.set_xscale("log")
    ax.set_xlabel("time (steps x learning rate; InfoNCE's times $(N-1)/(N\\tau)$)")
    ax.grid(alpha=0.25, lw=0.6)
    return ax


VALUE_NAMES = {"shifted": "P*", "aligned": "aligned group", "conflicting": "conflicting group"}
_BY_PI_SPU = [("#0072B2", "o", "-"), ("#009E73", "^", "--"), ("#D55E00", "s", "-."), ("#CC79A7", "D", ":")]


def accuracy_against_pi_core(ax: Axes, data: xr.Dataset) -> Axes:
    """For each pi_spu theory as a line and measurements +- 1.96 standard errors; the best captions within the budget.

    data: `curve` (pi_spu, pi_core_fine), `mean` and `error` (pi_spu, pi_core), `best` (detail), `best_value` and
    `sharing_threshold`. NaN is not drawn.
    """
    for i, pi_spu in enumerate(data.pi_spu.values):
        colour, marker, dashes = _BY_PI_SPU[i % len(_BY_PI_SPU)]
        line = data.isel(pi_spu=i)
        ax.plot(line.pi_core_fine, line.curve, dashes, color=colour, lw=1.6, zorder=2)
        size = 6.5 - 1.2 * (i % 4)
        look: dict[str, Any] = {"fmt": marker, "ls": dashes, "lw": 0, "elinewidth": 1, "capsize": 2, "ms": size}
        name = rf"$\pi_{{\mathrm{{spu}}}}$ = {pi_spu:g}"
        ax.errorbar(line.pi_core, line["mean"], INTERVAL * line.error, color=colour, zorder=3 + i, label=name, **look)
    if np.isfinite(data.best_value.item()):
        core, spu = data.best.values
        ax.plot(
            core, data.best_value.item(), "*", ms=14, color="#F0E442", mec="black", zorder=9, label="best in budget"
        )
        note = rf"$\pi$ = ({core:.2f}, {spu:.2f})"
        side = "right" if core > 0.6 else "left" if core < 0.4 else "center"
        at = (core, data.best_value.item())
        ax.annotate(note, at, (0, 9), textcoords="offset points", ha=side, fontsize=8, zorder=9)
    if np.isfinite(data.sharing_threshold.item()):
        ax.axvline(data.sharing_threshold.item(), color="black", ls=":", lw=1.2, label=r"$\pi^*$ (T6)")
    ax.set_xlabel(r"$\pi_{\mathrm{core}}$ (probability)")
    ax.set_xlim(-0.04, 1.04)
    ax.set_ylim(-0.03, 1.13)
    ax.grid(alpha=0.25, lw=0.6)
    return ax
