"""Predict, measure, judge, store and draw a phase diagram."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.interpolate
import xarray as xr
from matplotlib.figure import Figure

from sims.engine import runs, statistics, store
from sims.engine.flags import DEFAULTS, Options
from sims.engine.grid import Grid, Task
from sims.latent import cells, panels, plots, summary
from sims.latent.cells import Params
from sims.latent.panels import Panel
from sims.phase_diagram import diagrams
from sims.phase_diagram.config import ROW_SIZES, Config, Resolved


def grid_of(config: Resolved) -> Grid:
    """The panels' learners over the measured cells."""
    diagram = select(config)
    x_cell, y_cell = cells_of(config)
    kernels = {panel.name: panel for panel in diagram.panels}

    def task(name: str) -> Task | None:
        measure = kernels[name].measure
        if measure is None:
            return None

        def kernel(key: jax.Array, at: Params) -> jax.Array:
            swept = {config.x.name: at["x_cell"], config.y.name: at["y_cell"]}
            return measure(key, cells.point(config.parameters, **swept))

        return Task(kernel, kernels[name].may_lack)

    return Grid(
        tasks={"panel": [panel.name for panel in diagram.panels]},
        task=task,
        axes={"y_cell": y_cell.tolist(), "x_cell": x_cell.tolist()},
        outcomes={"outcome": diagram.outcomes},
        seeds=config.seeds,
        seed=config.seed,
        sizes=("y_cell",) if config.y.name in ROW_SIZES else (),
    )


def axes_of(config: Resolved) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the plane's points."""
    return np.asarray(config.x.values), np.asarray(config.y.values)


def cells_of(config: Resolved) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the measured cells."""
    x, y = axes_of(config)
    return x[_centres(len(x), config.cells)], y[_centres(len(y), config.cells)]


def complete(config: Resolved, measured: np.ndarray) -> xr.Dataset:
    """All variables but the measurements: predictions and boundaries over the plane, predictions of the cells."""
    diagram = select(config)
    (x, y), (x_cell, y_cell) = axes_of(config), cells_of(config)
    boundaries = list(dict.fromkeys(label for panel in diagram.panels for label in panel.boundaries))
    planes = [_plane(config, panel, boundaries) for panel in diagram.panels]
    predicted, boundary, cell_predicted = (np.stack(parts) for parts in zip(*planes, strict=True))
    left_out = np.array([panel.left_out for panel in diagram.panels])[:, None, None, None]
    trials = np.array([panel.trials or np.inf for panel in diagram.panels])[:, None, None, None]
    z = statistics.z_scores(cell_predicted, np.moveaxis(measured, 1, -1), left_out, trials)
    return xr.Dataset(
        {
            "predicted": (("panel", "y", "x", "outcome"), predicted),
            "value": (("panel", "y", "x"), _value(config, predicted, x, y)),
            "boundary": (("panel", "boundary_label", "y", "x"), boundary),
            "cell_predicted": (("panel", "y_cell", "x_cell", "outcome"), cell_predicted),
            "cell_value": (("panel", "y_cell", "x_cell"), _value(config, cell_predicted, x_cell, y_cell)),
            "measured_value": (("panel", "y_cell", "x_cell"), _value(config, measured.mean(1), x_cell, y_cell)),
            "z": (("panel", "y_cell", "x_cell", "outcome"), z),
        },
        coords={"boundary_label": store.labels(boundaries), "x": x, "y": y},
    )


def select(config: Resolved) -> diagrams.Diagram:
    """The diagram with the panels that were asked for."""
    diagram = diagrams.DIAGRAMS[config.diagram]()
    asked = [panel for panel in diagram.panels if panel.name in config.panels]
    return diagrams.Diagram(tuple(asked), diagram.outcomes)


def _centres(count: int, cells: int) -> np.ndarray:
    """Indices of `cells` evenly spaced points, half a spacing from the edges."""
    return ((np.arange(cells) + 0.5) / max(cells, 1) * count).astype(int)


def _mapped(config: Resolved, f: Callable[[Params], Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f at all points of the plane, (y, x, ...), in float64."""
    return panels.over(config.parameters, f, {config.y.name: y, config.x.name: x})


def _plane(config: Resolved, panel: Panel, boundaries: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(predictions (y, x, outcome), fields (boundary, y, x), NaN for other panels' boundaries, cells' predictions)."""
    (x, y), (x_cell, y_cell) = axes_of(config), cells_of(config)

    def over_plane(f: Callable[[Params], Any]) -> np.ndarray:
        if panel.coarse is None:
            return _mapped(config, f, x, y)
        coarse_x, coarse_y = (values[_knots(len(values), panel.coarse)] for values in (x, y))
        return _interpolate(_mapped(config, f, coarse_x, coarse_y), coarse_x, coarse_y, x, y)

    def predict_all(p: Params) -> jax.Array:
        outcomes = panel.predict(p)
        fields = [jnp.asarray(field(p, outcomes), float) for field in panel.boundaries.values()]
        return jnp.concatenate([jnp.asarray(outcomes, float), jnp.array(fields)])

    layers = over_plane(predict_all)
    predicted, values = np.split(layers, [layers.shape[-1] - len(panel.boundaries)], axis=-1)
    fields = np.full((len(boundaries), len(y), len(x)), np.nan)
    for label, value in zip(panel.boundaries, np.moveaxis(values, -1, 0), strict=True):
        fields[boundaries.index(label)] = value
    if not len(x_cell) or panel.measure is None:
        return predicted, fields, np.full((len(y_cell), len(x_cell), predicted.shape[-1]), np.nan)
    return predicted, fields, _mapped(config, panel.predict_cell or panel.predict, x_cell, y_cell)


def _knots(count: int, coarse: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(coarse, count)).round().astype(int))


def _interpolate(knots: np.ndarray, coarse_x: np.ndarray, coarse_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
    """Cubic interpolation in the axes' indices, so that log axes are even; if some knots are NaN, linear, with gaps."""
    at = [np.interp(fine, coarse, np.arange(len(coarse))) for fine, coarse in ((y, coarse_y), (x, coarse_x))]
    index = [np.arange(len(coarse), dtype=float) for coarse in (coarse_y, coarse_x)]
    grid = np.stack(np.meshgrid(*at, indexing="ij"), -1)

    def layer(values: np.ndarray) -> np.ndarray:
        if np.isnan(values).any():
            return scipy.interpolate.RegularGridInterpolator(index, values)(grid)
        degrees = {"kx": min(3, len(coarse_y) - 1), "ky": min(3, len(coarse_x) - 1)}
        return scipy.interpolate.RectBivariateSpline(*index, values, **degrees)(*at)

    return np.stack([layer(values) for values in np.moveaxis(knots, -1, 0)], -1)


def _value(config: Resolved, outcomes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The value to show of outcomes (..., y, x, outcome)."""
    if outcomes.shape[-1] == 1:
        return outcomes[..., 0]
    aligned, conflicting = outcomes[..., 0], outcomes[..., 1]
    p_spu: Any = config.parameters["p_spu"]
    if config.x.name == "p_spu":
        p_spu = x[None, :]
    elif config.y.name == "p_spu":
        p_spu = y[:, None]
    return {
        "shifted": (aligned + conflicting) / 2,
        "aligned": aligned,
        "conflicting": conflicting,
        "worst": np.minimum(aligned, conflicting),
        "train": p_spu * aligned + (1 - p_spu) * conflicting,
        "gap": aligned - conflicting,
    }[config.value]


def table(dataset: xr.Dataset) -> pd.DataFrame:
    """A row per measured cell and panel: coordinates; prediction, mean, standard error and z of each outcome."""
    cell, measured = ("panel", "y_cell", "x_cell"), dataset.measured
    mean, error = (
        measured.mean("seed", skipna=False),
        measured.std("seed", ddof=1, skipna=False) / measured.seed.size**0.5,
    )
    parts = {"predicted": dataset.cell_predicted, "measured": mean, "se": error, "z": dataset.z}
    frame = summary.tabulate(cell, "outcome", **parts).rename(columns={"x_cell": "x", "y_cell": "y"})
    frame["failed"] = measured.isnull().any("outcome").sum("seed").transpose(*cell).values.ravel()
    frame.insert(1, "x", frame.pop("x"))
    return frame[measured.notnull().any(("seed", "outcome")).transpose(*cell).values.ravel()]


def text(dataset: xr.Dataset) -> str:
    """A line per panel: number of cells judged, largest |z| over cells and outcomes, largest difference."""
    lines = []
    for panel in select(_config(dataset)).panels:
        cells = dataset.sel(panel=panel.name)
        judged = cells.z.notnull().all("outcome")
        if not judged.any():
            lines.append(f"{panel.name}: no measured cell to judge")
            continue
        difference = np.abs(cells.measured.mean("seed", skipna=False) - cells.cell_predicted)
        beyond = f" beyond {panel.left_out:g}" if panel.left_out >= 1e-3 else ""
        failed = cells.measured.isnull().any("outcome").sum().item()
        lines.append(
            f"{panel.name}: {int(judged.sum())} of {judged.size} cells judged, largest |z|{beyond}"
            f" {statistics.z_text(cells.z.values, dataset.z.values)}, largest difference {difference.max():.4f}"
            + (f"; {failed} runs without an answer" if failed else "")
        )
    return "\n".join(lines)


def draw(dataset: xr.Dataset) -> Figure:
    """The panels, two per row, with one colour scale."""
    config = _config(dataset)
    panels = select(config).panels
    step = plots.CONTOUR_STEPS[config.value]
    shown = dataset.value.sel(panel=[panel.name for panel in panels if not panel.regimes])
    low, high = (0.0, 1.0) if config.value == "regime" else _round_range(shown.values, 2 * step)
    scale = (low, high, 2 * step if high - low > 12 * step else step)
    columns = min(len(panels), 2)
    down = -(-len(panels) // columns)
    size = (5.2 * columns + 0.8, 5.4 * down)
    figure, axes = plt.subplots(down, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, panel in zip(axes.flat, panels, strict=True):
        cells = dataset.sel(panel=panel.name)
        if panel.regimes:
            plots.regimes(ax, cells, panel.regimes)
        else:
            image = plots.phase_plane(ax, cells, scale, list(panel.boundaries), panel.contours)
            plots.name_sides(ax, cells, list(panel.boundaries), panel.sides)
        plots.name_plane(ax, config.x.name, config.y.name, config.x.log, config.y.log)
        ax.set_title(panel.title, fontsize=10)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False, ncols=1)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    if len(shown.panel):
        bar = figure.colorbar(image, ax=axes.ravel().tolist(), fraction=0.05, pad=0.02)
        bar.set_label(plots.VALUE_SYMBOLS[config.value])
    figure.set_dpi(100 if len(figure.axes) <= 2 else 80)
    return figure


def _config(dataset: xr.Dataset) -> Resolved:
    return Resolved.of_flat(json.loads(dataset.attrs["config"]))


def _round_range(values: np.ndarray, step: float) -> tuple[float, float]:
    """The range of the values, widened to multiples of step."""
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = np.floor(np.nanmin(values) / step + 1e-9), np.ceil(np.nanmax(values) / step - 1e-9)
    return step * low, step * max(high, low + 1)


EXPERIMENT = runs.Experiment("phase_diagram_{diagram}", "measured", table, draw, text)
show = EXPERIMENT.show


def run(config: Config, out: pathlib.Path, options: Options = DEFAULTS) -> xr.Dataset | None:
    """As `runs.Experiment.run`. Raises: UsageError for a bad config too."""
    resolved = config.checked()
    return EXPERIMENT.run(resolved.flat(), grid_of(resolved), functools.partial(complete, resolved), out, options)
