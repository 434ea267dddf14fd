"""Figures: data and an `ax` in, `ax` out. Nothing is computed here; theory is a line, measurement points with
intervals."""

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

matplotlib.use("Agg")

# Okabe and Ito's colours; each learner has its own marker and dashes, so the figure reads without colour.
STYLE = {
    "mmcl": ("#0072B2", "o", "-", "MMCL, linear loss, closed form"),
    "mmcl_gradient": ("#56B4E9", "D", "-", "MMCL, linear loss, gradient-trained"),
    "info_nce": ("#009E73", "^", ":", "MMCL, InfoNCE"),
    "supervised": ("#D55E00", "s", "--", "SL, max-margin"),
    "supervised_gradient": ("#E69F00", "v", "--", "SL, gradient-trained"),
}
INTERVAL = 1.96
PANELS = {
    "shifted": "shifted distribution P* (thin: its two groups)",
    "aligned": "aligned group: attribute = label",
    "conflicting": "conflicting group: attribute = -label",
}
SYMBOLS = {
    "p_spu": r"$p_{\mathrm{spu}}$",
    "sigma_core": r"$\sigma_{\mathrm{core}}$",
    "sigma_spu": r"$\sigma_{\mathrm{spu}}$",
    "pi_core": r"$\pi_{\mathrm{core}}$",
    "same_class_weight": r"$\lambda$",
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
            # Learners that share a prediction share its line, which then is drawn once.
            if not any(curve.equals(predicted.sel(learner=other, group=group, drop=True)) for other in learners[:i]):
                ax.plot(curve.p_spu, curve, dashes, color=colour, lw=width, zorder=2)
            if not curve.notnull().any():
                ax.plot(points.p_spu, points, ":", color=colour, lw=0.7, zorder=1)
            if group in thick:
                half = INTERVAL * np.nan_to_num(error.sel(learner=learner, group=group).values)
                face = "white" if "gradient" in learner else colour
                size = 7.5 - i  # later markers are smaller, so that coinciding ones stay visible
                look = {"fmt": marker, "color": colour, "mfc": face, "ms": size, "capsize": 2, "lw": 1}
                ax.errorbar(points.p_spu, points, half, zorder=3 + i, **look)
    ax.set_xlabel(r"spurious correlation $p_{\mathrm{spu}}$ in training (probability)")
    ax.set_ylim(-0.03, 1.03)
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def legend_handles(learners: list[str], with_theory: list[str]) -> list[Line2D]:
    """One handle a learner: its line where it has a prediction, its marker always."""
    handles = []
    for learner in learners:
        colour, marker, dashes, label = STYLE[learner]
        face = "white" if "gradient" in learner else colour
        style = dashes if learner in with_theory else ":"
        width = 1.8 if learner in with_theory else 0.8
        name = label if learner in with_theory else f"{label} (no prediction)"
        handles.append(Line2D([], [], color=colour, marker=marker, mfc=face, ls=style, lw=width, ms=6, label=name))
    return handles
