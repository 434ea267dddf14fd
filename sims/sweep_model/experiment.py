"""Accuracy by group of a mixture model along its axes: predicted, and measured on rules learnt from sampled pairs."""

import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

import mmcl_theory as mt
from mmcl_theory import learners, theory
from sims.engine import runs, statistics
from sims.engine.flags import DEFAULTS, Options
from sims.engine.grid import Grid, Point, Task
from sims.engine.style import INTERVAL
from sims.latent import plots, summary
from sims.latent.measure import aligned_start
from sims.sweep_model import paths
from sims.sweep_model.cells import STEPS, Cell, Cells, assemble, build, group_names, pick
from sims.sweep_model.config import Config

LEFT_OUT = 0.01  # allowed error of the predictions, which are limits; it decreases as 1/n
_BATCH = 20_000  # cells whose predictions are computed at once
_INITIAL = 1e-3  # strength of the modes from which early_stopped starts
_LARGEST_GAP = 1e-3  # relative duality gap of a max-margin rule that counts
_TITLES = {"train": "training distribution P", "shifted": "shifted distribution P*"}
LOOKS: dict[str, Any] = {
    "mmcl": plots.STYLE["mmcl"]._replace(label="MMCL, linear loss, zero-shot"),
    "early_stopped": plots.Look("#56B4E9", "x", ":", "MMCL, linear loss, stopped early"),
    "whitened": plots.Look("#009E73", "^", "-.", "MMCL, whitened, zero-shot"),
    "ridge": plots.Look("#E69F00", "v", ":", "MMCL, ridge, zero-shot"),
    "supervised": plots.STYLE["supervised"],
    "probe": plots.Look("#CC79A7", "D", "--", "least-squares probe of MMCL's encoder"),
}
_CURVES = [("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":")]


def grid_of(config: Config) -> Grid:
    """Every learner in every cell; a run gives the accuracy in each group, on P and on P*."""
    cells = build(config)
    axes = {name: values for name, (_, values) in config.axes.items()}

    def task(learner: str) -> Task:
        def kernel(key: jax.Array, point: Point) -> jax.Array:
            return measure(learner, key, pick(config, cells, point))

        return Task(kernel, may_lack=learner == "supervised", shared={"leaves": cells.leaves})

    return Grid(
        tasks={"learner": config.learners},
        task=task,
        axes=axes,
        outcomes={"accuracy_in": [*group_names(config, cells), *_TITLES]},
        seeds=config.seeds,
        seed=config.seed,
        sizes=config.sizes,
    )


def _outcomes(accuracy: mt.data.AccuracyByGroup) -> jax.Array:
    return jnp.concatenate([accuracy.by_group, accuracy.train[None], accuracy.shifted[None]])


def measure(learner: str, key: jax.Array, cell: Cell) -> jax.Array:
    """Exact accuracies of the rules learnt from n pairs; the same key gives all learners but two the same pairs.

    The linear loss without truncation, and max-margin, draw what the pairs would give (X9). Max-margin gives NaN on
    inseparable data.
    """
    model, obs, sd = cell.model, cell.obs, cell.obs.sd_image
    if learner == "mmcl" and not cell.truncated:
        given = (model, cell.caps, obs, cell.n, cell.same_class_weight, cell.prompts)
        rules = learners.sample_rules(key, *given)
        return _outcomes(model.rule_accuracy(rules.latent, rules.gram, sd))
    if learner == "supervised":
        gram, observed, label = learners.sample_gram(key, model, obs, cell.n)
        fit = learners.max_margin_dual(gram, label)
        weights, norm = learners.dual_rule(fit.dual * label, gram, observed)
        sign = jnp.array([-1.0, 1.0])
        accuracy = model.rule_accuracy(jnp.outer(sign, weights), norm * jnp.outer(sign, sign), sd)
        return jnp.where(fit.separable & (fit.gap < _LARGEST_GAP), _outcomes(accuracy), jnp.nan)
    key_dictionaries, key_pairs = jax.random.split(key)
    d = mt.draw_dictionaries(key_dictionaries, model, obs)
    pairs = mt.sample_pairs(key_pairs, model, cell.caps, obs, cell.n, d)
    rules, offsets = _RULES[learner](cell, pairs, cell.prompts @ d.text.T, d)
    return _outcomes(model.rule_accuracy(rules @ d.image, rules @ rules.T, sd, offsets))


def _covariances(pairs: mt.data.Pairs) -> list[jax.Array]:
    image, text = pairs.image, pairs.text
    return [learners.cross_covariance(*both) for both in ((image, text), (image, image), (text, text))]


def _truncated(cell: Cell, pairs: mt.data.Pairs, prompts: jax.Array, _: Any) -> tuple[jax.Array, None]:
    cross = learners.cross_covariance(pairs.image, pairs.text)
    return prompts @ learners.linear_optimum(cross, rank=cell.embed_dim).T, None


def _early_stopped(
    cell: Cell, pairs: mt.data.Pairs, prompts: jax.Array, d: mt.data.Dictionaries
) -> tuple[jax.Array, None]:
    """Gradient descent from balanced encoders along the singular vectors of the population's C."""
    start = aligned_start(cell.model, cell.caps, d, _INITIAL)
    cross = learners.cross_covariance(pairs.image, pairs.text)
    descent = optax.sgd(cell.time / STEPS)
    trained, _ = learners.train_linear_mmcl(start, cross, optimizer=descent, steps=STEPS, in_span=True)
    return prompts @ trained.product.T, None


def _whitened(cell: Cell, pairs: mt.data.Pairs, prompts: jax.Array, _: Any) -> tuple[jax.Array, None]:
    return prompts @ learners.whitened_optimum(*_covariances(pairs), cell.theta).T, None


def _ridge(cell: Cell, pairs: mt.data.Pairs, prompts: jax.Array, _: Any) -> tuple[jax.Array, None]:
    return prompts @ learners.ridge_optimum(*_covariances(pairs), cell.kappa).T, None


def _probe(cell: Cell, pairs: mt.data.Pairs, prompts: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
    """Least squares with intercept on the leading left singular vectors of the cross-covariance."""
    cross = learners.cross_covariance(pairs.image, pairs.text)
    encoder = jnp.linalg.svd(cross)[0][:, : cell.embed_dim or cell.model.num_latents]
    features = jnp.pad(pairs.image @ encoder, ((0, 0), (1, 0)), constant_values=1.0)
    target = jax.nn.one_hot(mt.class_index(pairs.label), len(prompts), dtype=features.dtype)
    fit = jnp.linalg.solve(features.T @ features, features.T @ target)
    return fit[1:].T @ encoder.T, fit[0]


_RULES = {"mmcl": _truncated, "early_stopped": _early_stopped, "whitened": _whitened, "ridge": _ridge, "probe": _probe}


def predict(learner: str, cell: Cell) -> jax.Array:
    """The prediction of `measure`; NaN where there is none."""
    model, caps, obs, prompts = cell.model, cell.caps, cell.obs, cell.prompts
    if learner == "mmcl":
        weight = cell.same_class_weight
        return _outcomes(theory.mmcl_accuracy(model, caps, obs, cell.n, cell.embed_dim, weight, prompts))
    if learner == "supervised":
        return _outcomes(theory.supervised_accuracy(model, obs, cell.n))
    if learner == "early_stopped":
        return _outcomes(theory.training_accuracy(model, caps, obs, time=cell.time, initial=_INITIAL, prompts=prompts))
    if learner == "probe":
        return _outcomes(theory.probe_accuracy(model, caps, obs, cell.embed_dim))
    if learner == "ridge":
        return _outcomes(theory.ridge_accuracy(model, caps, obs, cell.kappa, prompts))
    return _outcomes(theory.whitened_accuracy(model, caps, obs, cell.theta, prompts))


def predictions(config: Config, axes: dict[str, tuple[float, ...]]) -> np.ndarray:
    """The predictions of all learners, (learner, *axes, outcome), in float64. axes: values of config.axes, by name.

    Cells go through one compiled program in batches. A size that determines shapes has a program for each value.
    """
    static = {name: config.axes[name][0] for name in config.sizes if config.axes[name][0] != "n"}  # theory takes any n
    programs: dict[Any, Callable[..., jax.Array]] = {}
    parts: dict[tuple[int, ...], np.ndarray] = {}
    first = next(iter(axes))
    rows = max(1, _BATCH // math.prod(len(v) for name, v in axes.items() if name != first))
    widths = [1 if name in static else rows if name == first else len(values) for name, values in axes.items()]
    counts = [-(-len(values) // width) for width, values in zip(widths, axes.values(), strict=True)]
    blocks = list(np.ndindex(*counts))
    for block in tqdm(blocks, unit="block", desc="predictions", disable=len(blocks) < 20):
        block_axes = {
            name: values[i * width : (i + 1) * width]
            for i, width, (name, values) in zip(block, widths, axes.items(), strict=True)
        }
        cells = build(config, **block_axes)
        sizes = {path: int(block_axes[name][0]) for name, path in static.items()}
        key = tuple(sizes.values())
        if key not in programs:
            programs[key] = _program(config, cells, sizes)
        with jax.enable_x64(True):
            values = np.asarray(programs[key](cells.leaves))
        parts[block] = values.reshape(len(config.learners), *map(len, block_axes.values()), -1)
    joined = np.empty((len(config.learners), *map(len, axes.values()), next(iter(parts.values())).shape[-1]))
    for block, values in parts.items():
        at = tuple(slice(i * w, i * w + n) for i, w, n in zip(block, widths, values.shape[1:], strict=False))
        joined[(slice(None), *at)] = values
    return joined


def _program(config: Config, cells: Cells, sizes: dict[str, int]) -> Callable[..., jax.Array]:
    """Leaves of cells -> the predictions of all learners, (learner, cells, outcome)."""

    def of_cell(leaves: list[jax.Array]) -> jax.Array:
        cell = assemble(config, cells.tree, leaves, sizes)
        return jnp.stack([predict(learner, cell) for learner in config.learners])

    return jax.jit(jax.vmap(of_cell, out_axes=1))


def complete(config: Config, measured: np.ndarray) -> xr.Dataset:
    """Predictions along the drawn axes and in the cells, and z-scores. measured: (learner, seed, *axes, outcome)."""
    fine = config.drawn()
    drawn = predictions(config, fine)
    predicted = drawn
    for axis, (name, (_, values)) in enumerate(config.axes.items(), start=1):
        predicted = predicted.take([fine[name].index(v) for v in values], axis)
    z = statistics.z_scores(predicted, np.moveaxis(measured, 1, -1), LEFT_OUT)
    labels = {name: paths.label(config.spec, path) for name, (path, _) in config.axes.items()}
    refined = [name if name == "curve" else f"{name}_fine" for name in config.axes]
    return xr.Dataset(
        {
            "accuracy_predicted": (("learner", *config.axes, "accuracy_in"), predicted),
            "accuracy_curve": (("learner", *refined, "accuracy_in"), drawn),
            "z": (("learner", *config.axes, "accuracy_in"), z),
        },
        coords={f"{name}_fine": np.array(values) for name, values in fine.items() if name != "curve"},
        attrs={"labels": json.dumps(labels)},
    )


def _axes_of(dataset: xr.Dataset) -> list[str]:
    return [name for name in ("curve", "y", "x") if name in dataset.accuracy_predicted.dims]


def table(dataset: xr.Dataset) -> pd.DataFrame:
    """A row per learner and cell; the axes by their paths."""
    mean, error = summary.seed_statistics(dataset.accuracy_measured)
    parts = {"predicted": dataset.accuracy_predicted, "measured": mean, "se": error, "z": dataset.z}
    names = json.loads(dataset.attrs["config"])
    renamed = {name: names[flag][0] for name, flag in (("x", "x"), ("y", "y"), ("curve", "curves")) if names.get(flag)}
    return summary.tabulate(("learner", *_axes_of(dataset)), "accuracy_in", **parts).rename(columns=renamed)


def text(dataset: xr.Dataset) -> str:
    """For each learner: how well theory meets the cells, and the range of its accuracy on P*."""
    lines = []
    for learner in dataset.learner.values:
        cells = dataset.sel(learner=learner)
        mean = cells.accuracy_measured.mean("seed")
        shifted = mean.sel(accuracy_in="shifted").values
        difference = np.abs(mean - cells.accuracy_predicted).max().item()
        lacking = int(cells.accuracy_measured.isnull().any("accuracy_in").sum())
        lines.append(
            f"{learner}: accuracy on P* {np.nanmin(shifted, initial=1):.4f} to {np.nanmax(shifted, initial=0):.4f};"
            f" largest |z| beyond {LEFT_OUT:g} {statistics.z_text(cells.z.values, dataset.z.values)},"
            f" largest difference {difference:.4f}" + (f"; {lacking} runs not separable" if lacking else "")
        )
    return "\n".join(lines)


def draw(dataset: xr.Dataset) -> Figure:
    """A panel for P, P* and each group: a line for each learner; with two axes a row of panels for each learner."""
    labels = json.loads(dataset.attrs["labels"])
    shown = [*_TITLES, *(str(x) for x in dataset.accuracy_in.values if x not in _TITLES)]
    two = len(labels) > 1
    rows = [[str(x)] for x in dataset.learner.values] if two else [list(map(str, dataset.learner.values))]
    across = len(shown) if two else -(-len(shown) // -(-len(shown) // 4))
    down = len(rows) * -(-len(shown) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(3.1 * across + 0.4, 2.9 * down + 0.9), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    image: Any = None
    for ax, (learners_shown, name) in zip(axes.flat, ((row, name) for row in rows for name in shown), strict=False):
        for learner in learners_shown:
            data = dataset.sel(learner=learner, accuracy_in=name)
            if "y" in labels:
                image = _map(ax, data)
            else:
                _lines(ax, data, learner)
        ax.set_title(_TITLES.get(name, name), fontsize=9)
    for i in range(len(rows) * len(shown), axes.size):
        axes.flat[i].set_visible(False)
        axes.flat[i - across].tick_params(labelbottom=True)
    for i, ax in enumerate(axes[:, 0]):
        lead = f"{LOOKS[rows[i][0]].label}\n" if two else ""
        ax.set_ylabel(f"{lead}{labels.get('y', 'accuracy (share correct)')}", fontsize=9)
    figure.supxlabel(labels["x"], fontsize=10)
    if "y" in labels:
        figure.colorbar(image, ax=axes, label="accuracy (share correct)", shrink=0.8, aspect=30)
        figure.suptitle("Colour and contours: prediction. Dots: measured, in the same colours.", fontsize=10)
    else:
        handles, names = axes[0, 0].get_legend_handles_labels()
        names = [f"{labels['curve']}: {name}" for name in names] if "curve" in labels else names
        figure.legend(handles, names, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    figure.set_dpi(90)
    return figure


def _map(ax: Axes, data: xr.Dataset) -> Any:
    """The prediction as colour with contours every .1, and the cells' means as dots of the same colours."""
    drawn = data.accuracy_curve
    image = ax.pcolormesh(drawn.x_fine, drawn.y_fine, drawn, vmin=0, vmax=1, cmap="viridis", rasterized=True)
    if np.nanmin(drawn, initial=1) < np.nanmax(drawn, initial=0):
        lines = ax.contour(drawn.x_fine, drawn.y_fine, drawn, np.arange(1, 10) / 10, colors="white", linewidths=0.7)
        ax.clabel(lines, fontsize=7, fmt="%.1f")
    mean, _ = summary.seed_statistics(data.accuracy_measured)
    x, y = np.meshgrid(mean.x, mean.y)
    ax.scatter(
        x, y, 26, mean, vmin=0, vmax=1, cmap="viridis", edgecolors="black", linewidths=0.7, clip_on=False, zorder=3
    )
    return image


def _lines(ax: Axes, data: xr.Dataset, learner: str) -> None:
    """Theory as a line, measurements with 95% intervals; a curve for each value of the second axis."""
    mean, error = summary.seed_statistics(data.accuracy_measured)
    ax.set_ylim(-0.03, 1.03)
    ax.grid(alpha=0.25, lw=0.6)
    if "curve" not in data.dims:
        look = LOOKS[learner]
        _curve(ax, data.accuracy_curve, mean, error, (look.colour, look.marker, look.dashes), look.label)
        return
    for i, value in enumerate(data.curve.values):
        at = {"curve": i}
        look = _CURVES[i % len(_CURVES)]
        _curve(ax, data.accuracy_curve[at], mean[at], error[at], look, f"{value:g}")


def _curve(
    ax: Axes, curve: xr.DataArray, mean: xr.DataArray, error: xr.DataArray, look: tuple[Any, ...], label: str
) -> None:
    colour, marker, dashes = look
    ax.plot(curve.x_fine, curve, ls=dashes, color=colour, lw=1.6, zorder=2)
    interval = INTERVAL * np.nan_to_num(error.values)
    ax.errorbar(
        mean.x, mean, interval, fmt=marker, ls=dashes, lw=0, elinewidth=1, capsize=2, ms=4.5, color=colour, label=label,
        zorder=3,
    )  # fmt: skip


EXPERIMENT = runs.Experiment("model_{file}", "accuracy_measured", table, draw, text)
show = EXPERIMENT.show


def run(config: Config, out: pathlib.Path, options: Options = DEFAULTS) -> xr.Dataset | None:
    """As `runs.Experiment.run`. Raises: UsageError for a bad config too."""
    config.check()
    return EXPERIMENT.run(config.flat(), grid_of(config), functools.partial(complete, config), out, options)
