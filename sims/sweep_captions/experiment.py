"""Accuracy over what captions name: predicted, measured, and the best captions within a budget."""

import functools
import pathlib
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from mmcl_theory import theory
from sims.engine import runs, statistics, store
from sims.engine.flags import DEFAULTS, Options
from sims.engine.grid import Grid, Task
from sims.latent import cells, measure, panels, plots, summary
from sims.latent.cells import Params
from sims.latent.measure import groups
from sims.latent.panels import Panel
from sims.sweep_captions.config import Config

LOSSES = ("linear", "whitened")
FINE_POINTS = 101
_VARIABLES = ("accuracy_predicted", "accuracy_curve", "z", "best", "best_value", "kkt_residual", "sharing_threshold")
# The inter-class prediction is the limit of many samples; its error decreases as 1/n.
_LEFT_OUT = {"intra_class": 1e-3, "inter_class": 0.02}


def grid_of(config: Config) -> Grid:
    """Both losses on each model over what captions name."""

    def task(model: str, loss: str) -> Task:
        kernel = _panels(model)[LOSSES.index(loss)].measure
        assert kernel is not None
        return Task(lambda key, at: kernel(key, cells.point(config.of(model), **at)))

    return Grid(
        tasks={"model": config.model, "loss": LOSSES},
        task=task,
        axes={"pi_spu": config.pi_spu, "pi_core": config.pi_core},
        outcomes={"group": measure.GROUPS},
        seeds=config.seeds,
        seed=config.seed,
    )


def _panels(model: str) -> tuple[Panel, Panel]:
    """The linear loss and the whitened rule on one data model."""
    if model == "intra_class":
        whitened = Panel("whitened", "", lambda p: groups(panels.whitened_accuracy(p, 1.0)), panels.measure_whitened)
        return panels.linear_loss("", {}), whitened

    def of(loss: str, theta: float) -> Panel:
        def predict(p: Params) -> jax.Array:
            return groups(theory.whitened_accuracy(*cells.inter_class(p), theta))

        def measured(key: jax.Array, p: Params) -> jax.Array:
            return panels.measure_inter_class(key, *cells.inter_class(p), int(p["n"]), theta)

        return Panel(loss, "", predict, measured, trials=panels.TEST_SIZE // 2)

    return of("linear", 0.0), of("whitened", 1.0)


def complete(config: Config, measured: np.ndarray) -> xr.Dataset:
    """All variables but the measurements; these are (model, loss, seed, pi_spu, pi_core, group)."""
    core, spu, fine = np.array(config.pi_core), np.array(config.pi_spu), np.linspace(0, 1, FINE_POINTS)
    parts: dict[str, list[Any]] = {name: [] for name in _VARIABLES}
    for model, samples in zip(config.model, measured, strict=True):
        both, parameters = _panels(model), config.of(model)
        at_cells, along = ({"pi_spu": spu, "pi_core": x} for x in (core, fine))
        predicted = np.stack([panels.over(parameters, p.predict_cell or p.predict, at_cells) for p in both])
        parts["accuracy_predicted"].append(predicted)
        parts["accuracy_curve"].append(np.stack([panels.over(parameters, p.predict, along) for p in both]))
        best = [_best(config, parameters, panel) for panel in both]
        parts["best"].append([b.pi for b in best])
        parts["best_value"].append([b.value for b in best])
        parts["kkt_residual"].append([b.kkt_residual for b in best])
        parts["sharing_threshold"].append(_threshold(model, parameters))
        trials = np.array([panel.trials or np.inf for panel in both])[:, None, None, None]
        parts["z"].append(statistics.z_scores(predicted, np.moveaxis(samples, 1, -1), _LEFT_OUT[model], trials))
    cell = ("pi_spu", "pi_core", "group")
    dims = {
        "accuracy_predicted": ("model", "loss", *cell),
        "accuracy_curve": ("model", "loss", "pi_spu", "pi_core_fine", "group"),
        "z": ("model", "loss", *cell),
        "best": ("model", "loss", "detail"),
        "best_value": ("model", "loss"),
        "kkt_residual": ("model", "loss"),
        "sharing_threshold": ("model",),
    }
    return xr.Dataset(
        {name: (dims[name], np.array(values, float)) for name, values in parts.items()},
        coords={
            "detail": store.labels(("pi_core", "pi_spu")),
            "pi_core_fine": fine,
        },
    )


def _best(config: Config, parameters: dict[str, float], panel: Panel) -> theory.CaptionBudget:
    """X8: the captions within the budget that have the best predicted accuracy on P*."""
    with jax.enable_x64(True):
        return theory.optimal_captions(
            lambda pi: panel.predict(cells.point(parameters, pi_core=pi[0], pi_spu=pi[1])).mean(),
            np.array([config.cost_core, config.cost_spu]),
            config.budget,
        )


def _threshold(model: str, parameters: dict[str, float]) -> float:
    """T6's pi*; NaN if it does not apply."""
    if model == "intra_class":
        return np.nan
    with jax.enable_x64(True):
        threshold = float(theory.sharing_threshold(cells.classes_of(parameters)))
    return threshold if threshold <= 1 and parameters["p_spu"] == 1 else np.nan


def table(dataset: xr.Dataset) -> pd.DataFrame:
    """A row per model, loss and cell."""
    mean, error = summary.seed_statistics(dataset.accuracy_measured)
    parts = {"predicted": dataset.accuracy_predicted, "measured": mean, "se": error, "z": dataset.z}
    return summary.tabulate(("model", "loss", "pi_spu", "pi_core"), "group", **parts)


def text(dataset: xr.Dataset) -> str:
    """For each model and loss: how well theory meets the cells, and the best captions within the budget."""
    lines = []
    for model in dataset.model.values:
        for loss in dataset.loss.values:
            cells = dataset.sel(model=model, loss=loss)
            difference = np.abs(cells.accuracy_measured.mean("seed") - cells.accuracy_predicted).max().item()
            core, spu = cells.best.values
            lines.append(
                f"{model}, {loss}: largest |z| beyond {_LEFT_OUT[str(model)]:g}"
                f" {statistics.z_text(cells.z.values, dataset.z.values)}, largest difference {difference:.4f}; best"
                f" captions within the budget pi_core {core:.3f}, pi_spu {spu:.3f},"
                f" accuracy on P* {cells.best_value.item():.4f}, KKT residual {cells.kkt_residual.item():.1e}"
            )
    return "\n".join(lines)


def draw(dataset: xr.Dataset) -> Figure:
    """A row of panels per model: accuracy on P* and in both groups, for the linear loss, then for the whitened rule."""
    shown = [(loss, value) for loss in dataset.loss.values for value in ("shifted", "aligned", "conflicting")]
    models = dataset.model.values
    size = (17, 3.7 * len(models) + 0.6)
    figure, axes = plt.subplots(len(models), 6, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for row, model in zip(axes, models, strict=True):
        for ax, (loss, value) in zip(row, shown, strict=True):
            plots.accuracy_against_pi_core(ax, _of_value(dataset.sel(model=model, loss=loss), value))
            name = {"linear": "linear loss", "whitened": "whitened rule"}[str(loss)]
            ax.set_title(f"{str(model).replace('_', '-')}, {name}\n{plots.VALUE_NAMES[value]}", fontsize=9)
        row[0].set_ylabel("zero-shot accuracy (share correct)")
    entries = {}
    for ax in axes.flat:
        entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    figure.set_dpi(80)
    return figure


def _of_value(data: xr.Dataset, value: str) -> xr.Dataset:
    """Curve, mean and error of one accuracy; the best captions too, if they maximise that accuracy."""

    def pick(x: xr.DataArray) -> xr.DataArray:
        return x.mean("group") if value == "shifted" else x.sel(group=value)

    mean, error = summary.seed_statistics(pick(data.accuracy_measured))
    best = data.best_value.item() if value == "shifted" else np.nan
    return xr.Dataset(
        {
            "curve": pick(data.accuracy_curve),
            "mean": mean,
            "error": error,
            "best": data.best,
            "best_value": best,
            "sharing_threshold": data.sharing_threshold if data.loss == "linear" else np.nan,
        }
    )


EXPERIMENT = runs.Experiment("sweep_captions", "accuracy_measured", table, draw, text)
show = EXPERIMENT.show


def run(config: Config, out: pathlib.Path, options: Options = DEFAULTS) -> xr.Dataset | None:
    """As `runs.Experiment.run`. Raises: UsageError for a bad config too."""
    config.check()
    return EXPERIMENT.run(config.flat(), grid_of(config), functools.partial(complete, config), out, options)
