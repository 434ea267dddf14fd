"""Figures of the comparison: measurement as points with 95% intervals over seeds, fits and predictions beside them."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.special
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sims.clip.comparison import matched
from sims.clip.comparison.config import SHIFTS
from sims.clip.comparison.runs import GROUPS, RIDGES, THEORIES, Row, gap_interval, interval, prompts_of, select
from sims.clip.config import ARMS
from sims.engine import lines, style

_SHIFT_NAMES = {"v2": "V2", "sketch": "Sketch", "r": "R", "a": "A", "objectnet": "ObjectNet"}
_NEAREST = (0.01, 0.99)  # shares nearer to 0 or 1 are drawn here
_TICKS = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
_PANEL_NAMES = {"clip": "measured: CLIP", "whitened": "whitened rule (X10)", "linear": "linear loss's rule (T5)"}


def against_id(rows: Sequence[Row], arms: Sequence[str], chance: dict[str, float]) -> Figure:
    """Shifted accuracy against ID accuracy, a panel for each shift.

    An arm has a point for each time of training, the last one larger and with its interval. Its line is fitted to all
    its runs at all these times.
    """
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.4), layout="constrained")
    for ax, shift in zip(axes.flat, SHIFTS, strict=False):
        spans = []
        for arm, (colour, marker) in zip(arms, style.LOOKS, strict=False):
            points = list(select(rows, set=shift, arm=arm, prompts=prompts_of(arm), pi_core=None))
            spans.append(_arm(ax, points, arm, colour, marker))
        seen = np.array(spans)
        limits = np.stack([seen[..., 0].min(0), seen[..., 1].max(0)], 1)
        limits[1, 0] = min(limits[1, 0], scipy.special.logit(chance[shift]))
        limits += np.array([-0.25, 0.25])
        ax.plot([-9, 9], [-9, 9], color="0.6", lw=0.9, ls=":", label="no loss under shift")
        ax.axhline(scipy.special.logit(chance[shift]), color="0.6", lw=0.9, ls=(0, (1, 3)), label="chance")
        for which, (low, high) in zip((ax.xaxis, ax.yaxis), limits, strict=True):
            shown = [t for t in _TICKS if low <= scipy.special.logit(t) <= high]
            shown = shown[:: 1 + len(shown) // 9]
            which.set_ticks(scipy.special.logit(shown), [f"{t:g}" for t in shown])
        ax.set(xlim=limits[0], ylim=limits[1], title=_SHIFT_NAMES[shift])
        ax.set_xlabel("accuracy on val, the shift's classes (share, logit axis)")
        ax.set_ylabel("accuracy under shift (share, logit axis)")
        ax.grid(alpha=0.2)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(handles, labels, loc="center left", frameon=False)
    return figure


def _arm(ax: Axes, rows: list[Row], arm: str, colour: str, marker: str) -> np.ndarray:
    """Draw an arm; returns the ends of what is drawn, (x or y, low or high), on the logit axes."""
    steps = sorted({row["step"] for row in rows})
    family = matched.family(rows, arm, rows[0]["set"])
    if family is not None:
        fit = lines.fit_line(family.acc_id, family.acc_ood, matched.TRANSFORM)
        span = np.clip([family.acc_id.min(), family.acc_id.max()], *_NEAREST)
        ax.plot(scipy.special.logit(span), scipy.special.logit(fit.at(span)), color=colour, lw=1.0, alpha=0.7)
    ends = []
    for step in steps:
        at = [row for row in rows if row["step"] == step]
        images = {"id_accuracy": at[0]["id_images"], "accuracy": at[0]["images"]}
        three = np.array([[m - h, m, m + h] for m, h in (interval([r[k] for r in at], n) for k, n in images.items())])
        low, centre, high = scipy.special.logit(np.clip(three, *_NEAREST)).T
        ends.append(np.stack([centre, centre], 1))
        if step < steps[-1]:
            ax.plot(*centre[:, None], marker, color=colour, ms=3.5)
            continue
        ends.append(np.stack([low, high], 1))
        bars = np.stack([centre - low, high - centre], 1)[..., None]
        ax.errorbar(
            *centre[:, None], xerr=bars[0], yerr=bars[1], fmt=marker, color=colour, ms=7, lw=1.0,
            label=ARMS[arm].label,
        )  # fmt: skip
    every = np.stack(ends)
    return np.stack([every[..., 0].min(0), every[..., 1].max(0)], 1)


def groups(rows: Sequence[Row], arms: Sequence[str]) -> Figure:
    """Each arm's aligned and conflicting accuracy after the last step."""
    figure, ax = plt.subplots(figsize=(8, 0.55 * len(arms) + 1.5), layout="constrained")
    for group, (colour, marker) in style.GROUP_LOOKS.items():
        intervals = [interval(*last(rows, arm, group)) for arm in arms]
        mean, half = np.array(intervals).T
        at = np.arange(len(arms)) + (0.1 if group == "conflicting" else -0.1)
        ax.errorbar(mean, at, xerr=half, fmt=marker, color=colour, capsize=3, label=group)
    ax.axvline(0.1, color="0.6", lw=0.9, ls=":", label="chance")
    ax.set_yticks(np.arange(len(arms)), [ARMS[arm].label for arm in arms])
    ax.invert_yaxis()
    ax.set(xlabel="accuracy on balanced scenes (share correct)", xlim=(-0.02, 1.02))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def last(rows: Sequence[Row], arm: str, group: str, on: str = "balanced") -> tuple[list[float], int]:
    """(accuracies by seed, number of images behind each), of an arm's group in the set `on` after the last step."""
    chosen = list(select(rows, arm=arm, set=on, group=group, scope="all", prompts=prompts_of(arm), pi_core=None))
    end = max(row["step"] for row in chosen)
    return [row["accuracy"] for row in chosen if row["step"] == end], chosen[0]["images"]


def caption_map(table: dict[str, Any], grid: Sequence[float]) -> Figure:
    """Aligned minus conflicting accuracy, within pairs, over what captions name; over-correction, below 0, is orange.

    Measured and predicted; the numbers are accuracies. table: of `policy_table`.
    """
    figure, axes = plt.subplots(1, 3, figsize=(4.1 * 3, 4.4), layout="constrained")
    for ax, who in zip(axes, ("clip", *THEORIES), strict=True):
        aligned, conflicting = (table[who][group] for group in GROUPS)
        gap = aligned - conflicting
        drawn = ax.imshow(gap, cmap="PuOr", vmin=-1, vmax=1, origin="lower")
        for i, j in np.ndindex(gap.shape):
            text = f"{aligned[i, j]:.2f} / {conflicting[i, j]:.2f}"
            if who == "clip":
                text += f"\n±{table['half'][i, j]:.2f}"
            colour = "white" if abs(gap[i, j]) > 0.6 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
        names = [f"{v:g}" for v in grid]
        ax.set_xticks(range(len(grid)), names)
        ax.set_yticks(range(len(grid)), names)
        ax.set(title=_PANEL_NAMES[who], xlabel=r"captions name the context, $\pi_{\mathrm{spu}}$ (probability)")
    axes[0].set_ylabel(r"captions name each core detail, $\pi_{\mathrm{core}}$ (probability)")
    figure.colorbar(drawn, ax=axes, label="aligned minus conflicting accuracy, within pairs of classes", shrink=0.85)
    return figure


def policy_table(rows: Sequence[Row], grid: Sequence[float], prompts: str = "ensemble") -> dict[str, Any]:
    """Accuracies within pairs: {"clip" or a theory: {group: (pi_core, pi_spu)}}.

    Theories have the first of RIDGES; their "gap", aligned minus conflicting, is (ridge, pi_core, pi_spu). "half" is
    half the interval of the measured gap.
    """
    size = (len(grid),) * 2
    table: dict[str, Any] = {who: {g: np.empty(size) for g in GROUPS} for who in ("clip", *THEORIES)}
    table["half"] = np.empty(size)
    for who in THEORIES:
        table[who]["gap"] = np.empty((len(RIDGES), *size))
    for i, core in enumerate(grid):
        for j, spu in enumerate(grid):
            of = {"pi_core": core, "pi_spu": spu, "set": "balanced", "scope": "pair"}
            for who in THEORIES:
                both = [
                    [next(select(rows, arm=who, group=g, ridge=ridge, **of))["accuracy"] for g in GROUPS]
                    for ridge in RIDGES
                ]
                for g, value in zip(GROUPS, both[0], strict=True):
                    table[who][g][i, j] = value
                table[who]["gap"][:, i, j] = [aligned - conflicting for aligned, conflicting in both]
            every = [row for row in select(rows, arm="clip", prompts=prompts, **of)]
            end = max(row["step"] for row in every)
            values = {g: [r["accuracy"] for r in every if r["group"] == g and r["step"] == end] for g in GROUPS}
            for g in GROUPS:
                table["clip"][g][i, j] = np.mean(values[g])
            images = min(row["images"] for row in every)
            table["half"][i, j] = gap_interval(values["aligned"], values["conflicting"], images)[1]
    return table
