"""Predict, measure, judge, store and draw every cell of a sweep."""

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sims.engine import grid, runs, style
from sims.engine.flags import DEFAULTS, Options
from sims.engine.grid import Grid
from sims.latent import measure, plots, summary
from sims.latent.parameters import PARAMETERS
from sims.latent.settings import AXES
from sims.sweep_spurious.config import Config

MAX_PANELS = 6
FINE_POINTS = 201


def grid_of(config: Config) -> Grid:
    """The learners over the five axes."""
    return Grid(
        tasks={"learner": config.learners},
        task=lambda learner: measure.task(config.setting, learner),
        axes=config.axes,
        outcomes={"group": measure.GROUPS},
        seeds=config.seeds,
        seed=config.seed,
    )


def _complete(config: Config, measured: np.ndarray) -> xr.Dataset:
    """Predicted accuracies of the cells and on a fine grid of p_spu, and the p-values of the cells.

    measured: (learner, seed, axes..., group).
    """
    axes = config.axes
    fine = {**axes, "p_spu": _fine(axes["p_spu"])} if _num_panels(axes) <= MAX_PANELS else axes
    curve = _predict(config, fine)
    predicted = curve[:, [fine["p_spu"].index(p) for p in axes["p_spu"]]]
    cell, groups = ("learner", *axes), {"group": list(measure.GROUPS)}
    dataset = xr.Dataset(
        {
            "accuracy_predicted": ((*cell, "group"), predicted),
            "accuracy_curve": (("learner", "p_spu_fine", *list(axes)[1:], "group"), curve),
        },
        coords={"p_spu_fine": list(fine["p_spu"]), **groups},
    )
    dataset["p_value"] = summary.p_values(
        dataset.accuracy_predicted,
        xr.DataArray(measured, dims=("learner", "seed", *axes, "group"), coords=groups),
        xr.DataArray(_predict(config, axes, measure.predict_spread), dims=(*cell, "group", "moment")),
    )
    dataset.accuracy_predicted.attrs["long_name"] = "predicted accuracy; NaN where no prediction exists"
    dataset.accuracy_curve.attrs["long_name"] = "predicted accuracy on a fine grid of p_spu, for the figure"
    dataset.p_value.attrs["long_name"] = "probability of measurements this far from their prediction, if it holds"
    dataset.attrs["samplers"] = ", ".join(f"{x}: {config.setting.sampler_of(x)}" for x in config.learners)
    return dataset


def _predict(
    config: Config, axes: Mapping[str, Sequence[float]], what: Callable[..., jax.Array] = measure.predict
) -> np.ndarray:
    """`what` of every learner, (learner, axes..., ...); always in float64."""
    families = [
        name.removesuffix("_gradient") for name in config.learners
    ]  # all learners of a family have the same prediction
    by_family = {f: grid.evaluate(lambda point, f=f: what(config.setting, f, point), axes) for f in set(families)}
    return np.stack([by_family[f] for f in families])


def _fine(p_spu: tuple[float, ...]) -> tuple[float, ...]:
    between = np.linspace(min(p_spu), max(p_spu), FINE_POINTS).tolist()
    return tuple(sorted({*p_spu, *between}))


def _num_panels(axes: dict[str, Any]) -> int:
    return int(np.prod([len(v) for k, v in axes.items() if k != "p_spu"]))


def text(dataset: xr.Dataset) -> str:
    """The sampler of each learner, and the table."""
    return f"Samplers: {dataset.attrs['samplers']}\n{summary.text(summary.columns(dataset))}"


def draw(dataset: xr.Dataset) -> Figure:
    """Accuracy against p_spu; a row of panels for each combination of the other axes (the first MAX_PANELS)."""
    others = [a for a in AXES if a != "p_spu"]
    combinations = list(itertools.product(*(range(dataset.sizes[a]) for a in others)))
    if (panels := len(combinations)) > MAX_PANELS:
        print(f"the figure shows the first {MAX_PANELS} of {panels} combinations of the other axes.", file=sys.stderr)
        combinations = combinations[:MAX_PANELS]
    mean, error = summary.seed_statistics(summary.with_shifted(dataset.accuracy_measured))
    curve = summary.with_shifted(dataset.accuracy_curve.rename(p_spu_fine="p_spu"))
    mean, error, curve = (x.sortby("p_spu") for x in (mean, error, curve))
    size = (13.5, 4.2 * len(combinations) + 1)
    figure, panels = plt.subplots(len(combinations), 3, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for row, index in zip(panels, combinations, strict=True):
        at = dict(zip(others, index, strict=True))
        lines = [x.isel(at) for x in (curve, mean, error)]
        where = ", ".join(f"{PARAMETERS[a].symbol} = {dataset[a].values[i]:g}" for a, i in at.items())
        for ax, (group, title) in zip(row, style.PANELS.items(), strict=True):
            thin = ["aligned", "conflicting"] if group == "shifted" else []
            plots.accuracy_against_p_spu(ax, *lines, thick=[group], thin=thin)
            ax.set_title(f"{title}\n{where}", fontsize=10)
        row[0].set_ylabel("zero-shot / test accuracy (share correct)")
    learners = list(dataset.learner.values)
    with_theory = [name for name in learners if dataset.accuracy_predicted.sel(learner=name).notnull().any()]
    handles = plots.legend_handles(learners, with_theory)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.set_dpi(160)
    return figure


EXPERIMENT = runs.Experiment("sweep_spurious", "accuracy_measured", summary.columns, draw, text)
show = EXPERIMENT.show


def run(config: Config, out: pathlib.Path, options: Options = DEFAULTS) -> xr.Dataset | None:
    """As `runs.Experiment.run`. Raises: UsageError for a bad config too."""
    config.check()
    return EXPERIMENT.run(config.flat(), grid_of(config), functools.partial(_complete, config), out, options)
