"""When captions protect: gains on P* over how many conflicting images there are, and how much has been learnt.

The study correlation sweeps p_spu. A cell is one p_spu and one measured stage of the arm `clip`. It has

    conflicting images     n (1 - p_spu), n the training set's size, or the images drawn so far where it is not fixed
    information extracted  (log N - loss) / plateau: N the batch size, 2 for supervised learning; the plateau is the
                           highest mean over seeds of any stage, so that arms of unequal losses compare at equal fit
    gain                   accuracy on P* less that of another arm, seed by seed, at that arm's stage of the nearest
                           share of information

A gain is of one of these kinds:

    unmatched        the two shares differ by more than .1: no stage of the other arm is at equal fit
    both groups      the gain is above 0, and each group is above the other arm's accuracy on P*
    over-correction  the gain is above 0, but the aligned group is not, and it is the worse one
    shortcut         the gain is above 0, but the conflicting group is not
    none, loss       the 95% interval over seeds contains 0, or lies below it
"""

import dataclasses
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from sims.digits import results
from sims.digits.arms import ARMS

ARM = "clip"
OTHERS = ("cross_entropy", "label_only", "no_intra_class")
_LOOKS = {"both groups": "o", "over-correction": "^", "shortcut": "D", "none": "X", "loss": "s", "unmatched": "."}
_MEANINGS = {
    "both groups": "gain: both groups above the other's P*",
    "over-correction": "gain by over-correction: aligned < conflicting",
    "shortcut": "gain: aligned group alone",
    "none": "within its interval",
    "loss": "loss",
    "unmatched": "not at equal information",
}
_APART = 0.1  # difference of shares of information from which on two stages are not compared
_BEYOND = 1.02  # the share at infinity of the figure's scale
_MOST_TICKS = 6
_COLOURS = plt.get_cmap("PuOr").with_extremes(bad="0.6")
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell and its gain; see the module's docstring. Accuracies are means over seeds.

    Attributes:
      over: the other arm.
      step, other_step: the stages that are compared.
      information, other_information: the arms' shares of their plateaus.
      half: half the gain's 95% interval.
      reference: the other arm's accuracy on P*.
    """

    over: str
    p_spu: float
    step: int
    other_step: int
    conflicting_images: float
    information: float
    other_information: float
    gain: float
    half: float
    aligned: float
    conflicting: float
    reference: float
    kind: str


def information(dataset: xr.Dataset, arm: str) -> np.ndarray:
    """The share of the plateau that an arm has extracted, (p_spu, step), mean over seeds; NaN if a seed diverged."""
    config = json.loads(dataset.attrs["config"])
    classes = 2 if arm == "cross_entropy" else config["batch_size"]
    loss = dataset.measured.sel(arm=arm, measure="loss").mean("seed", skipna=False)
    nats = math.log(classes) - loss.transpose("p_spu", "step", ...).values.reshape(dataset.sizes["p_spu"], -1)
    best = np.max(np.where(np.isnan(nats), -np.inf, nats), axis=1, keepdims=True)
    return np.where(best > 0, nats / np.where(best > 0, best, 1.0), np.nan)


def cells(dataset: xr.Dataset) -> list[Cell]:
    """All cells over each of OTHERS that was trained. Cells in which a seed diverged are left out."""
    trained = [str(arm) for arm in dataset.arm.values]
    compared = []
    for other in OTHERS if ARM in trained else ():
        if other not in trained:
            continue
        own_share, other_share = information(dataset, ARM), information(dataset, other)
        own, reference = _accuracy(dataset, ARM), _accuracy(dataset, other)
        for i, j in np.argwhere(np.isfinite(own_share)):
            if not np.isfinite(other_share[i]).any():
                continue
            k = int(np.nanargmin(np.abs(other_share[i] - own_share[i, j])))
            ours, theirs = own.isel(p_spu=i, step=j), reference.isel(p_spu=i, step=k).sel(value="shifted")
            gain, half = (x.item() for x in results.interval(ours.sel(value="shifted") - theirs))
            aligned, conflicting = (ours.sel(value=group).mean("seed").item() for group in ("aligned", "conflicting"))
            mean = theirs.mean("seed").item()
            far = abs(own_share[i, j] - other_share[i, k]) > _APART
            kind = "unmatched" if far else kind_of(gain, half, aligned, conflicting, mean)
            p_spu, step = dataset.p_spu.values[i].item(), int(dataset.step.values[j])
            count = _images(dataset, step) * (1 - p_spu)
            shares = own_share[i, j].item(), other_share[i, k].item()
            steps = step, int(dataset.step.values[k])
            compared.append(Cell(other, p_spu, *steps, count, *shares, gain, half, aligned, conflicting, mean, kind))
    return compared


def kind_of(gain: float, half: float, aligned: float, conflicting: float, reference: float) -> str:
    """The kind of a gain; see the module's docstring."""
    if not abs(gain) > half:
        return "none"
    if gain < 0:
        return "loss"
    if min(aligned, conflicting) > reference:
        return "both groups"
    return "over-correction" if aligned < conflicting else "shortcut"


def _accuracy(dataset: xr.Dataset, arm: str) -> xr.DataArray:
    """(seed, p_spu, step, value) under the arm's headline prompt."""
    accuracy = results.accuracy(dataset.sel(arm=[arm])).sel(prompt=results.headline(arm), drop=True)
    single = [dim for dim in accuracy.dims if dim not in ("seed", "p_spu", "step", "value")]
    return accuracy.squeeze(single, drop=True)


def _images(dataset: xr.Dataset, step: int) -> int:
    config = json.loads(dataset.attrs["config"])
    return config["train_size"] or step * config["batch_size"]


def drawn(dataset: xr.Dataset) -> Figure:
    """Above, the cells in the plane, coloured by gain; below, gains with intervals. A column for each other arm."""
    table = cells(dataset)
    others = [other for other in OTHERS if any(cell.over == other for cell in table)]
    figure, axes = plt.subplots(2, len(others), figsize=(4.6 * len(others) + 1.6, 8.6), layout="constrained",
                                squeeze=False, sharey="row")  # fmt: skip
    largest = max([0.05, *(abs(cell.gain) for cell in table if cell.kind != "unmatched")])
    for column, other in zip(axes.T, others, strict=True):
        of_other = [cell for cell in table if cell.over == other]
        _plane(column[0], of_other, largest)
        _against_information(column[1], of_other)
        column[0].set_title(f"gain on P* over:\n{_label(dataset, other)}", fontsize=10)
    lines, names = axes[1, -1].get_legend_handles_labels()
    figure.legend(lines, names, title="conflicting images", loc="outside right center", fontsize=8, title_fontsize=8,
                  frameon=False)  # fmt: skip
    axes[0, 0].set_ylabel("information extracted (share of its plateau)")
    axes[1, 0].set_ylabel(f"gain on P* (share correct); 95% over {dataset.sizes['seed']} seeds")
    figure.colorbar(axes[0, -1].collections[0], ax=axes[0], label="gain on P* (share correct)")
    kinds = [kind for kind in _LOOKS if any(cell.kind == kind for cell in table)]
    handles = [Line2D([], [], color="0.2", marker=_LOOKS[kind], ls="", label=_MEANINGS[kind]) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _label(dataset: xr.Dataset, arm: str) -> str:
    """An arm's label. Under masking "mean" captions without details have the mean of the hue, and so the attribute."""
    config = json.loads(dataset.attrs["config"])
    names_hue = config.get("captions") == "vectors" and config.get("masking") == "mean"
    return "CLIP, captions name class and hue only" if arm == "label_only" and names_hue else ARMS[arm].label


def _plane(ax: Axes, table: list[Cell], largest: float) -> None:
    for kind, marker in _LOOKS.items():
        chosen = [cell for cell in table if cell.kind == kind]
        gains = [np.nan if kind == "unmatched" else cell.gain for cell in chosen]
        ax.scatter([cell.conflicting_images for cell in chosen], [cell.information for cell in chosen],
                   c=gains, cmap=_COLOURS, vmin=-largest, vmax=largest, s=90, marker=marker, edgecolors="0.2",
                   linewidths=0.8, plotnonfinite=True)  # fmt: skip
    counts = sorted({round(cell.conflicting_images, 6) for cell in table})
    if min(counts) > 0.5:
        ax.set_xscale("log")
        ax.set_xlim(min(counts) / 1.6, max(counts) * 1.6)
    else:  # 0 at p_spu = 1
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(-0.3, max(2.0, *counts) * 1.6)
    ax.xaxis.set_minor_formatter(NullFormatter())
    if len(counts) <= _MOST_TICKS:
        ax.set_xticks(counts, [f"{count:.3g}" for count in counts])
    _spread(ax, "y", table)
    ax.set_xlabel(r"conflicting training images, $n (1 - p_{\mathrm{spu}})$")
    ax.grid(alpha=0.25, lw=0.6)


def _against_information(ax: Axes, table: list[Cell]) -> None:
    for i, p_spu in enumerate(dict.fromkeys(cell.p_spu for cell in table)):
        counts = sorted({cell.conflicting_images for cell in table if cell.p_spu == p_spu})
        chosen = [cell for cell in table if cell.p_spu == p_spu and cell.kind != "unmatched"]
        chosen.sort(key=lambda cell: cell.information)
        colour = _LINES[i % len(_LINES)]
        label = f"{counts[0]:.0f}" if len(counts) == 1 else f"{counts[0]:.0f} to {counts[-1]:.0f}"
        ax.plot([cell.information for cell in chosen], [cell.gain for cell in chosen], color=colour, lw=1.2,
                label=rf"{label} ($p_{{\mathrm{{spu}}}}$ = {p_spu:g})")  # fmt: skip
        for cell in chosen:
            ax.errorbar(cell.information, cell.gain, cell.half, fmt=_LOOKS[cell.kind], color=colour, capsize=2, ms=6)
    ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    ax.set_xlabel("information extracted (share of its plateau)")
    ax.grid(alpha=0.25, lw=0.6)
    _spread(ax, "x", table)


def _spread(ax: Axes, axis: str, table: list[Cell]) -> None:
    """Spread the shares near the plateau, where most stages are."""
    shares = [cell.information for cell in table]
    least = min(shares)
    scale = {"functions": (lambda s: -np.log10(_BEYOND - np.minimum(s, 1.015)), lambda v: _BEYOND - 10.0**-v)}
    ticks = [tick for tick in (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0) if tick >= least - 0.02]
    (ax.set_yscale if axis == "y" else ax.set_xscale)("function", **scale)
    (ax.set_yticks if axis == "y" else ax.set_xticks)(ticks, [f"{tick:g}" for tick in ticks])
    (ax.set_ylim if axis == "y" else ax.set_xlim)(least - 0.3 * (_BEYOND - least), 1.005)
