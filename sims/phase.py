"""Predict, measure, judge, store and draw a phase diagram."""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.interpolate
import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from sims import diagrams, plots, results, store
from sims.phase_config import INTEGERS, ROW_SIZES, Config, Resolved

VARIABLES = ("predicted", "value", "boundary", "cell_predicted", "measured", "cell_value", "measured_value", "z")


def run(config: Config, out: pathlib.Path) -> xr.Dataset:
    """Predict the plane, measure its cells, and write results, table and figure into `out`; returns the dataset.

    Raises: UsageError for a bad config, or a folder of another run; then nothing is written.
    """
    resolved = config.checked()
    dataset = results.run_once(out, resolved.flat(), lambda: make(resolved, out), VARIABLES)
    if dataset.sizes["y_cell"]:
        store.write_csv(out / "summary.csv", rows(dataset))
    figure = draw(resolved, dataset)
    results.save_figure(figure, out, f"phase_diagram_{resolved.diagram}", dpi=100 if len(figure.axes) <= 2 else 80)
    plt.close(figure)
    (out / "partial.npz").unlink(missing_ok=True)
    return dataset


def make(config: Resolved, out: pathlib.Path) -> xr.Dataset:
    """Everything that is stored: the plane's predictions and boundaries, the cells' predictions and measurements."""
    diagram = select(config)
    x, y = (np.asarray(axis.values) for axis in (config.x, config.y))
    x_cell, y_cell = (values[_centres(len(values), config.cells)] for values in (x, y))
    boundaries = list(dict.fromkeys(label for panel in diagram.panels for label in panel.boundaries))
    # The predictions of all panels and cells come first: they are quick, and a wrong one should be seen early.
    planes = [_plane(config, panel, boundaries, x, y, x_cell, y_cell) for panel in diagram.panels]
    predicted, boundary, cell_predicted = (np.stack(parts) for parts in zip(*planes, strict=True))
    measured = measure_cells(config, diagram, x_cell, y_cell, out)
    left_out = np.array([panel.left_out for panel in diagram.panels])[:, None, None, None]
    trials = np.array([panel.trials or np.inf for panel in diagram.panels])[:, None, None, None]
    z = results.z_scores(cell_predicted, np.moveaxis(measured, 1, -1), left_out, trials)

    return xr.Dataset(
        {
            "predicted": (("panel", "y", "x", "outcome"), predicted),
            "value": (("panel", "y", "x"), _value(config, predicted, x, y)),
            "boundary": (("panel", "boundary_label", "y", "x"), boundary),
            "cell_predicted": (("panel", "y_cell", "x_cell", "outcome"), cell_predicted),
            "measured": (("panel", "seed", "y_cell", "x_cell", "outcome"), measured),
            "cell_value": (("panel", "y_cell", "x_cell"), _value(config, cell_predicted, x_cell, y_cell)),
            "measured_value": (("panel", "y_cell", "x_cell"), _value(config, measured.mean(1), x_cell, y_cell)),
            "z": (("panel", "y_cell", "x_cell", "outcome"), z),
        },
        coords={
            "panel": results.names([panel.name for panel in diagram.panels]),
            "outcome": results.names(diagram.outcomes),
            "boundary_label": results.names(boundaries),
            "seed": np.arange(config.seeds),
            **{"x": x, "y": y, "x_cell": x_cell, "y_cell": y_cell},
        },
    )


def select(config: Resolved) -> diagrams.Diagram:
    """The diagram with the panels that were asked for."""
    diagram = diagrams.DIAGRAMS[config.diagram]()
    asked = [panel for panel in diagram.panels if panel.name in config.panels]
    return diagrams.Diagram(tuple(asked), diagram.outcomes)


def _centres(count: int, cells: int) -> np.ndarray:
    """Indices of `cells` evenly spaced points, half a spacing from the edges."""
    return ((np.arange(cells) + 0.5) / max(cells, 1) * count).astype(int)


def point(config: Resolved, x: Any, y: Any) -> dict[str, Any]:
    """Parameters of one point; what shapes depend on stays a whole number."""
    fixed = {k: int(v) if k in INTEGERS else v for k, v in config.parameters.items()}
    return {**fixed, config.x.name: x, config.y.name: y}


def mapped(config: Resolved, f: Callable[[dict[str, Any]], Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f at all points, (y, x, ...), in float64."""
    with jax.enable_x64(True):
        if config.y.name == "num_pairs":
            rows = [jax.jit(jax.vmap(lambda at, m=m: f(point(config, at, int(m)))))(jnp.asarray(x)) for m in y]
            return np.stack([np.asarray(row) for row in rows])
        row = jax.vmap(lambda at_x, at_y: f(point(config, at_x, at_y)), (0, None))
        return np.asarray(jax.jit(jax.vmap(row, (None, 0)))(jnp.asarray(x), jnp.asarray(y)))


def _plane(
    config: Resolved,
    panel: diagrams.Panel,
    boundaries: list[str],
    x: np.ndarray,
    y: np.ndarray,
    x_cell: np.ndarray,
    y_cell: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions (y, x, outcome), boundary fields (boundary, y, x; NaN: not this panel's), cells' predictions."""

    def over_plane(f: Callable[[dict[str, Any]], Any]) -> np.ndarray:
        if panel.coarse is None:
            return mapped(config, f, x, y)
        coarse_x, coarse_y = (values[_knots(len(values), panel.coarse)] for values in (x, y))
        return _interpolate(mapped(config, f, coarse_x, coarse_y), coarse_x, coarse_y, x, y)

    def predict_all(p: dict[str, Any]) -> jax.Array:
        outcomes = panel.predict(p)
        fields = [jnp.asarray(field(p, outcomes), float) for field in panel.boundaries.values()]
        return jnp.concatenate([jnp.asarray(outcomes, float), jnp.array(fields)])

    found = over_plane(predict_all)
    predicted, values = np.split(found, [found.shape[-1] - len(panel.boundaries)], axis=-1)
    fields = np.full((len(boundaries), len(y), len(x)), np.nan)
    for label, value in zip(panel.boundaries, np.moveaxis(values, -1, 0), strict=True):
        fields[boundaries.index(label)] = value
    if not len(x_cell) or panel.measure is None:
        return predicted, fields, np.full((len(y_cell), len(x_cell), predicted.shape[-1]), np.nan)
    return predicted, fields, mapped(config, panel.predict_cell or panel.predict, x_cell, y_cell)


def _knots(count: int, coarse: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(coarse, count)).round().astype(int))


def _interpolate(knots: np.ndarray, coarse_x: np.ndarray, coarse_y: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
    """Cubic in the index of the axes, so that log axes are even; linear, with gaps, where some knots are NaN."""
    at = [np.interp(fine, coarse, np.arange(len(coarse))) for fine, coarse in ((y, coarse_y), (x, coarse_x))]
    index = [np.arange(len(coarse), dtype=float) for coarse in (coarse_y, coarse_x)]
    grid = np.stack(np.meshgrid(*at, indexing="ij"), -1)

    def layer(values: np.ndarray) -> np.ndarray:
        if np.isnan(values).any():
            return scipy.interpolate.RegularGridInterpolator(index, values)(grid)
        degrees = {"kx": min(3, len(coarse_y) - 1), "ky": min(3, len(coarse_x) - 1)}
        return scipy.interpolate.RectBivariateSpline(*index, values, **degrees)(*at)

    return np.stack([layer(values) for values in np.moveaxis(knots, -1, 0)], -1)


def measure_cells(
    config: Resolved,
    diagram: diagrams.Diagram,
    x_cell: np.ndarray,
    y_cell: np.ndarray,
    out: pathlib.Path,
    name: str = "partial.npz",
) -> np.ndarray:
    """(panel, seed, y_cell, x_cell, outcome), resumed from and saved to `out` row by row."""
    rows, columns, kinds = len(y_cell), len(x_cell), len(diagram.outcomes)
    per_row = columns * config.seeds
    if not rows:
        return np.full((len(diagram.panels), config.seeds, 0, 0, kinds), np.nan)
    partial = store.Partial(out, len(diagram.panels), rows * per_row, kinds, [rows] * len(diagram.panels), name)
    root = jax.random.key(config.seed)
    with tqdm(total=len(diagram.panels) * rows * per_row, unit="run", disable=None, smoothing=0.1) as bar:
        for i, panel in enumerate(diagram.panels):
            bar.set_description(panel.name)
            compiled = None
            for j, at_y in enumerate(y_cell):
                if not partial.done[i, j] and panel.measure is not None:
                    if compiled is None or config.y.name in ROW_SIZES:
                        compiled = _row(config, panel.measure, at_y)
                    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(root, i), j), per_row)
                    at_x = jnp.repeat(jnp.asarray(x_cell, float), config.seeds)
                    runs = zip(keys, at_x, strict=True)
                    values = np.array([compiled(key, x, jnp.asarray(at_y, float)) for key, x in runs], np.float64)
                    partial.values[i, j * per_row : (j + 1) * per_row] = values
                    partial.done[i, j] = True
                    partial.save()
                bar.update(per_row)
    values = partial.values.reshape(len(diagram.panels), rows, columns, config.seeds, kinds)
    return np.moveaxis(values, 3, 1)


def _row(config: Resolved, measure: Callable[[jax.Array, Any], jax.Array], y: float) -> Callable[..., jax.Array]:
    """Compiled (key, x, y) -> outcomes of a run of the row at y.

    Not mapped over runs: jaxlib's batched LAPACK waits on XLA's thread pool from within it, so that two batched
    factorisations which may run at once, such as those of both modalities' covariances, can wait for ever on two cores.
    """
    sized = config.y.name in ROW_SIZES
    return jax.jit(lambda key, at_x, at_y: measure(key, point(config, at_x, int(y) if sized else at_y)))


def _value(config: Resolved, outcomes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The shown number of outcomes (..., y, x, outcome)."""
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


def rows(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """One row a measured cell and panel: coordinates, then prediction, mean, standard error and z of each outcome."""
    measured, table = dataset.measured.values, []
    error = measured.std(1, ddof=1) / measured.shape[1] ** 0.5
    for i, j, k in itertools.product(*(range(s) for s in dataset.cell_value.shape)):
        if np.isnan(measured[i, :, j, k]).all():
            continue
        row: dict[str, Any] = {"panel": dataset.panel.values[i]}
        row |= {"x": dataset.x_cell.values[k], "y": dataset.y_cell.values[j]}
        for o, outcome in enumerate(dataset.outcome.values):
            row[f"{outcome}_predicted"] = dataset.cell_predicted.values[i, j, k, o]
            row[f"{outcome}_measured"] = measured[i, :, j, k, o].mean()
            row[f"{outcome}_se"] = error[i, j, k, o]
            row[f"{outcome}_z"] = dataset.z.values[i, j, k, o]
        row["failed"] = int(np.isnan(measured[i, :, j, k]).any(-1).sum())
        table.append(row)
    return table or [{"panel": "no cell measured"}]


def text(config: Resolved, dataset: xr.Dataset) -> str:
    """One line a panel: cells judged, largest |z| over them and their outcomes, largest difference."""
    lines = []
    for panel in select(config).panels:
        here = dataset.sel(panel=panel.name)
        judged = here.z.notnull().all("outcome")
        if not judged.any():
            lines.append(f"{panel.name}: no measured cell to judge")
            continue
        difference = np.abs(here.measured.mean("seed", skipna=False) - here.cell_predicted)
        beyond = f" beyond {panel.left_out:g}" if panel.left_out >= 1e-3 else ""
        failed = here.measured.isnull().any("outcome").sum().item()
        lines.append(
            f"{panel.name}: {int(judged.sum())} of {judged.size} cells judged, largest |z|{beyond} {here.z.max():.1f},"
            f" largest difference {difference.max():.4f}" + (f"; {failed} runs without an answer" if failed else "")
        )
    return "\n".join(lines)


def draw(config: Resolved, dataset: xr.Dataset) -> Figure:
    """The panels, two a row, with one colour scale."""
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
        here = dataset.sel(panel=panel.name)
        if panel.regimes:
            plots.regimes(ax, here, panel.regimes)
        else:
            image = plots.phase_plane(ax, here, scale, list(panel.boundaries), panel.contours)
            plots.name_sides(ax, here, list(panel.boundaries), panel.sides)
        plots.name_plane(ax, config.x.name, config.y.name, (config.x.log, config.y.log))
        ax.set_title(panel.title, fontsize=10)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, frameon=False, ncols=1)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    if len(shown.panel):
        bar = figure.colorbar(image, ax=axes.ravel().tolist(), fraction=0.05, pad=0.02)
        bar.set_label(plots.VALUE_SYMBOLS[config.value])
    return figure


def _round_range(values: np.ndarray, step: float) -> tuple[float, float]:
    """The range of the known values, widened to multiples of step."""
    if np.isnan(values).all():
        return 0.0, 1.0
    low, high = np.floor(np.nanmin(values) / step + 1e-9), np.ceil(np.nanmax(values) / step - 1e-9)
    return step * low, step * max(high, low + 1)
