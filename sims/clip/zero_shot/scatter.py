"""Shifted accuracy against val's, both on a transformed axis: models with their intervals, the line, y = x."""

import dataclasses

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from sims.engine.lines import TRANSFORMS, Line

# Ticks in %, from coarse to fine; an axis takes the first set with three ticks in view.
_TICKS = (
    (0.1, 0.2, 0.5, 1, 2, 5, *range(10, 100, 10), 95, 98, 99, 99.8, 99.9),
    (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, *range(10, 100, 5), 97, 98, 99, 99.5, 99.7, 99.8, 99.9),
    (*np.arange(1, 10) / 10, *np.arange(2, 20) / 2, *range(10, 100), *(99 + np.arange(1, 10) / 10)),
)
_NAMED = 12  # more models than this would hide each other's names
_LEAST = 1e-4  # a share nearer to 0 or 1 is drawn at this distance


@dataclasses.dataclass(frozen=True)
class Point:
    """A model: shares in [0, 1], each with its interval's ends; NaN ends draw none.  own: whether it is this run's."""

    name: str
    acc_id: float
    acc_shift: float
    id_interval: tuple[float, float]
    shift_interval: tuple[float, float]
    own: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """A band around the fitted line: its ends at the ID accuracies `at`."""

    at: np.ndarray
    low: np.ndarray
    high: np.ndarray


def against_val(
    ax: Axes,
    points: list[Point],
    transform: str,
    published: tuple[str, Line] | None,
    fitted: tuple[str, Line] | None = None,
    band: Band | None = None,
    chance: float | None = None,
) -> Axes:
    """One panel. published, fitted: the line and its name.  chance: accuracy of guessing."""
    limits = [_limits(points, axis, transform) for axis in ("id", "shift")]
    x = np.linspace(*_forward(transform)(np.array(limits[0])), 200)
    x = TRANSFORMS[transform][1](x)
    ax.plot(x, x, ":", color="0.55", lw=1.2, label="y = x", zorder=1)
    if published is not None:
        ax.plot(x, published[1].at(x), "-", color="black", lw=1.8, label=published[0], zorder=2)
    if fitted is not None:
        ax.plot(x, fitted[1].at(x), "--", color="#0072B2", lw=1.8, label=fitted[0], zorder=3)
    if band is not None:
        label = "95% band of that line (bootstrap over models)"
        ax.fill_between(band.at, band.low, band.high, color="#56B4E9", alpha=0.35, lw=0, label=label, zorder=1)
    if chance is not None and limits[1][0] < chance < limits[1][1]:
        ax.axhline(chance, color="0.3", ls=(0, (1, 3)), lw=1, label="chance", zorder=1)
    for own in (False, True):
        chosen = [p for p in points if p.own == own]
        if not chosen:
            continue
        look = (
            {"fmt": "*", "ms": 13, "mfc": "#D55E00", "mec": "black"} if own else {"fmt": "o", "ms": 5.5, "mfc": "white"}
        )
        xs, ys = _drawn([p.acc_id for p in chosen]), _drawn([p.acc_shift for p in chosen])
        ends = [
            np.abs(_drawn(np.array([getattr(p, name) for p in chosen]).T) - middle)
            for name, middle in (("id_interval", xs), ("shift_interval", ys))
        ]
        label = chosen[0].name if own else "other models"
        colour = "black" if own else "0.35"
        ax.errorbar(
            xs, ys, xerr=ends[0], yerr=ends[1], ls="", color=colour, elinewidth=1, capsize=2, label=f"{label}, 99.5%",
            zorder=4 + own, **look,
        )  # fmt: skip
    for p in [p for p in points if not p.own and len(points) <= _NAMED]:
        ax.annotate(p.name, (_drawn(p.acc_id), _drawn(p.acc_shift)), (5, -11), textcoords="offset points", fontsize=6.5)
    for axis, scale, ends in ((ax.xaxis, ax.set_xscale, limits[0]), (ax.yaxis, ax.set_yscale, limits[1])):
        scale("function", functions=(_forward(transform), TRANSFORMS[transform][1]))
        grids = [np.array(percent) / 100 for percent in _TICKS]
        seen = [grid[(ends[0] <= grid) & (grid <= ends[1])] for grid in grids]
        ticks = next((grid for grid in seen if len(grid) >= 3), seen[-1])
        axis.set_major_locator(matplotlib.ticker.FixedLocator(ticks))
        axis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda a, _: f"{100 * a:g}"))
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def _forward(transform: str):
    return lambda a: TRANSFORMS[transform][0](np.clip(a, _LEAST, 1 - _LEAST))


def _drawn(shares) -> np.ndarray:
    return np.clip(np.asarray(shares, float), _LEAST, 1 - _LEAST)


def _limits(points: list[Point], axis: str, transform: str) -> tuple[float, float]:
    """Limits of an axis: the points with their intervals, and a margin.

    The margin is a tenth of their span, and at least 0.15, on the transformed axis.
    """
    ends = [e for p in points for e in (*getattr(p, f"{axis}_interval"), getattr(p, f"acc_{axis}"))]
    low, high = _forward(transform)(np.array([np.nanmin(ends), np.nanmax(ends)]))
    margin = max(0.1 * (high - low), 0.15)
    back = TRANSFORMS[transform][1]
    return float(_drawn(back(low - margin))), float(_drawn(back(high + margin)))
