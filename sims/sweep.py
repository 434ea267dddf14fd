"""Predict, measure, judge, store and draw every cell of a sweep."""

import functools
import itertools
import pathlib
import sys
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from sims import grid, measure, plots, results, store, summary
from sims.config import AXES, Config

VARIABLES = ("accuracy_predicted", "accuracy_measured", "accuracy_curve")
MAX_PANELS = 6
FINE_POINTS = 201


def run(config: Config, out: pathlib.Path) -> xr.Dataset:
    """Measure what is not yet measured, predict, and write results, table and figures into `out`; returns the dataset.

    Raises: UsageError for a bad config, or a folder of another run; then nothing is written.
    """
    config.check()
    dataset = results.run_once(out, config.flat(), lambda: _dataset(config, _measure(config, out)), VARIABLES)
    store.write_csv(out / "summary.csv", summary.rows(dataset))
    if (panels := _num_panels(config.axes)) > MAX_PANELS:
        print(f"the figure shows the first {MAX_PANELS} of {panels} combinations of the other axes.", file=sys.stderr)
    figure = draw(dataset)
    results.save_figure(figure, out, "sweep_spurious", dpi=160)
    plt.close(figure)
    (out / "partial.npz").unlink(missing_ok=True)
    return dataset


def _measure(config: Config, out: pathlib.Path) -> np.ndarray:
    """Accuracies (learner, cell * seeds + run, group), resumed from and saved to `out` chunk by chunk."""
    points = grid.cells(config.axes)
    chunks = [grid.num_chunks(config.setting, learner, config.runs) for learner in config.learners]
    partial = store.Partial(out, len(config.learners), config.runs, len(measure.GROUPS), chunks)
    skipped = sum(int(done[:k].sum()) for done, k in zip(partial.done, chunks, strict=True))
    if skipped:
        print(f"resuming: {skipped} of {sum(chunks)} chunks were already measured.", file=sys.stderr)
    total = config.runs * len(config.learners)
    with tqdm(total=total, unit="run", disable=None, smoothing=0.1) as bar:
        for i, learner in enumerate(config.learners):
            bar.set_description(learner)
            size = grid.chunk_size(config.setting, learner, config.runs)
            bar.update(min(int(partial.done[i, : chunks[i]].sum()) * size, config.runs))
            runs = grid.run_chunks(config.setting, learner, points, config.seeds, config.seed, partial.done[i].copy())
            for flat, values in runs:
                partial.values[i, flat] = values
                partial.done[i, flat[0] // size] = True
                partial.save()
                bar.update(len(flat))
    return partial.values


def _dataset(config: Config, measured: np.ndarray) -> xr.Dataset:
    """Measured and predicted accuracies on named axes, every axis present."""
    axes = config.axes
    shape = tuple(len(v) for v in axes.values())
    groups = list(measure.GROUPS)
    names = {"learner": results.names(config.learners), "group": results.names(groups)}
    coords = {**names, **{k: list(v) for k, v in axes.items()}}
    by_seed = measured.reshape(len(config.learners), *shape, config.seeds, len(groups))
    fine = {**axes, "p_spu": _fine(axes["p_spu"])} if _num_panels(axes) <= MAX_PANELS else axes
    curve = _predict(config, fine)
    predicted = curve[:, [fine["p_spu"].index(p) for p in axes["p_spu"]]]
    dims = ("learner", *axes, "group")
    dataset = xr.Dataset(
        {
            "accuracy_predicted": (dims, predicted),
            "accuracy_measured": (("learner", "seed", *axes, "group"), np.moveaxis(by_seed, -2, 1)),
            "accuracy_curve": (("learner", "p_spu_fine", *list(axes)[1:], "group"), curve),
        },
        coords={**coords, "seed": np.arange(config.seeds), "p_spu_fine": list(fine["p_spu"])},
    )
    dataset.accuracy_predicted.attrs["long_name"] = "predicted accuracy; NaN where no prediction exists"
    dataset.accuracy_measured.attrs["long_name"] = "exact accuracy of the rule learnt from one sample"
    dataset.accuracy_curve.attrs["long_name"] = "predicted accuracy on a fine grid of p_spu, for the figure"
    return dataset


def _predict(config: Config, axes: dict[str, Any]) -> np.ndarray:
    """Predictions (learner, axes..., group) in float64, whatever the precision of the measurement."""
    shape = tuple(len(v) for v in axes.values())
    with jax.enable_x64(True):
        cell = grid.cell_arrays(grid.cells(axes))
        families = [name.removesuffix("_gradient") for name in config.learners]  # each has one prediction
        by_family = {f: jax.jit(functools.partial(measure.predict, config.setting, f))(cell) for f in set(families)}
        values = [np.asarray(by_family[f]) for f in families]
    return np.stack(values).reshape(len(values), *shape, len(measure.GROUPS))


def _fine(p_spu: tuple[float, ...]) -> tuple[float, ...]:
    between = np.linspace(min(p_spu), max(p_spu), FINE_POINTS).tolist()
    return tuple(sorted({*p_spu, *between}))


def _num_panels(axes: dict[str, Any]) -> int:
    return int(np.prod([len(v) for k, v in axes.items() if k != "p_spu"]))


def draw(dataset: xr.Dataset) -> Figure:
    """Accuracy against p_spu; a row of panels for each combination of the other axes (the first MAX_PANELS)."""
    others = [a for a in AXES if a != "p_spu"]
    combinations = list(itertools.product(*(range(dataset.sizes[a]) for a in others)))[:MAX_PANELS]
    mean, error = summary.seed_statistics(summary.with_shifted(dataset.accuracy_measured))
    curve = summary.with_shifted(dataset.accuracy_curve.rename(p_spu_fine="p_spu"))
    mean, error, curve = (x.sortby("p_spu") for x in (mean, error, curve))
    size = (13.5, 4.2 * len(combinations) + 1)
    figure, panels = plt.subplots(len(combinations), 3, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for row, index in zip(panels, combinations, strict=True):
        at = dict(zip(others, index, strict=True))
        here = [x.isel(at) for x in (curve, mean, error)]
        where = ", ".join(f"{plots.SYMBOLS[a]} = {dataset[a].values[i]:g}" for a, i in at.items())
        for ax, (group, title) in zip(row, plots.PANELS.items(), strict=True):
            thin = ["aligned", "conflicting"] if group == "shifted" else []
            plots.accuracy_against_p_spu(ax, *here, thick=[group], thin=thin)
            ax.set_title(f"{title}\n{where}", fontsize=10)
        row[0].set_ylabel("zero-shot / test accuracy (share correct)")
    learners = list(dataset.learner.values)
    with_theory = [name for name in learners if dataset.accuracy_predicted.sel(learner=name).notnull().any()]
    handles = plots.legend_handles(learners, with_theory)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure
