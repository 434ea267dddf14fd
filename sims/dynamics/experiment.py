"""Train both losses from the same small initialisation, record the exact accuracy, and compare it with theory."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

import mmcl_theory as mt
from mmcl_theory import learners, losses, theory
from sims.dynamics.config import Config
from sims.engine import runs, statistics, store, style
from sims.engine.flags import DEFAULTS, Options
from sims.engine.grid import Grid, Task
from sims.latent import cells, measure, panels, plots, summary

LOSSES = ("mmcl_gradient", "info_nce")
END_POINTS = ("mmcl", "info_nce", "whitened")
# X6 neglects the finite length of steps; the error is of first order in the rate (tests/theory/test_dynamics.py).
LEFT_OUT = 0.003
_BLOCK = 4  # steps between two changes of the learning rate


def grid_of(config: Config) -> Grid:
    """Both losses; a run gives the accuracies at all recorded times."""
    rates, times, recorded = schedule(config)
    return Grid(
        tasks={"loss": LOSSES},
        task=lambda loss: Task(lambda key, _: measure_run(config, loss, rates, key)[recorded]),
        axes={},
        outcomes={"time": times[recorded].tolist(), "group": measure.GROUPS},
        seeds=config.seeds,
        seed=config.seed,
    )


def schedule(config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(learning rates of blocks of steps, time after each block, indices of the blocks after which to record)."""
    rates, time = [], 0.0
    while time < config.end:
        rates.append(min(max(config.rate, config.rate * time), config.largest_rate))
        time += _BLOCK * rates[-1]
    times = np.cumsum(_BLOCK * np.array(rates))
    wanted = np.geomspace(config.end / 1000, config.end, config.points)
    return np.array(rates), times, np.unique(np.searchsorted(times, wanted).clip(0, len(times) - 1))


def complete(config: Config, measured: np.ndarray) -> xr.Dataset:
    """Predictions at the recorded times, end points, and z-scores. measured: (loss, seed, time, group)."""
    _, times, recorded = schedule(config)
    predicted, ends = _predict(config, times[recorded])
    nothing = np.full_like(predicted, np.nan)
    z = statistics.z_scores(np.stack([predicted, nothing]), np.moveaxis(measured, 1, -1), LEFT_OUT)
    return xr.Dataset(
        {
            "accuracy_predicted": (("time", "group"), predicted),
            "end_points": (("end_point", "group"), ends),
            "z": (("loss", "time", "group"), z),
        },
        coords={"end_point": store.labels(END_POINTS)},
    )


def _predict(config: Config, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of the linear loss (time, group) and end points (end point, group), in float64."""
    with jax.enable_x64(True):
        model, caps, obs = cells.intra_class(config.flat())
        along = theory.training_accuracy(model, caps, obs, time=jnp.asarray(at), initial=config.initial)
        info_nce = jax.jit(theory.info_nce_optimum)(model, caps, obs).accuracy(model, obs)
        ends = [theory.mmcl_accuracy(model, caps, obs), info_nce, theory.whitened_accuracy(model, caps, obs)]
        return np.asarray(measure.groups(along)), np.stack([measure.groups(end) for end in ends])


def measure_run(config: Config, loss: str, rates: np.ndarray, key: jax.Array) -> jax.Array:
    """Exact accuracy after each block of steps, (block, group). The same key gives both losses the same samples."""
    model, caps, obs = cells.intra_class(config.flat())
    negatives = (config.batch_size - 1) / config.batch_size / config.temperature
    key_dictionaries, key_pairs, key_batches = jax.random.split(key, 3)
    dictionaries = mt.draw_dictionaries(key_dictionaries, model, obs)
    pairs = mt.sample_pairs(key_pairs, model, caps, obs, config.n, dictionaries)
    cross_cov = learners.cross_covariance(pairs.image, pairs.text)

    def block(encoders: learners.Encoders, step: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        key, rate = step
        if loss == "mmcl_gradient":
            encoders, _ = learners.train_linear_mmcl(encoders, cross_cov, optimizer=optax.sgd(rate), steps=_BLOCK)
        else:
            encoders, _ = learners.train_encoders(
                key,
                encoders,
                pairs.image,
                pairs.text,
                pairs.label,
                lambda image, text, _: losses.info_nce(image, text, temperature=config.temperature),
                optimizer=optax.sgd(rate / negatives),
                steps=_BLOCK,
                batch_size=config.batch_size,
            )
        return encoders, panels.rule_accuracy(model, obs, dictionaries, encoders.product)

    start = measure.aligned_start(model, caps, dictionaries, config.initial)
    keys = jax.random.split(key_batches, len(rates))
    return jax.lax.scan(block, start, (keys, jnp.asarray(rates, float)))[1]


def table(dataset: xr.Dataset) -> pd.DataFrame:
    """A row per loss and recorded time."""
    mean, error = summary.seed_statistics(dataset.accuracy_measured)
    predicted = dataset.accuracy_predicted.where(dataset.loss == "mmcl_gradient")
    return summary.tabulate(("loss", "time"), "group", predicted=predicted, measured=mean, se=error, z=dataset.z)


def text(dataset: xr.Dataset) -> str:
    """End points, and how far the linear loss is from theory."""
    last = dataset.accuracy_measured.mean("seed").isel(time=-1)
    lines = ["end point             aligned  conflicting"]
    for name, label in (
        ("mmcl", "linear loss, predicted"),
        ("info_nce", "InfoNCE, predicted"),
        ("whitened", "whitened"),
    ):
        lines.append(f"{label:24s}{'  '.join(f'{v:.4f}' for v in dataset.end_points.sel(end_point=name).values)}")
    for loss, label in (("mmcl_gradient", "linear loss, trained"), ("info_nce", "InfoNCE, trained")):
        lines.append(f"{label:24s}{'  '.join(f'{v:.4f}' for v in last.sel(loss=loss).values)}")
    linear = dataset.sel(loss="mmcl_gradient")
    difference = np.abs(linear.accuracy_measured.mean("seed") - dataset.accuracy_predicted).max().item()
    lines.append(
        f"linear loss along time: largest |z| beyond {LEFT_OUT:g}"
        f" {statistics.z_text(linear.z.values, dataset.z.values)}, largest difference {difference:.4f}"
    )
    return "\n".join(lines)


def draw(dataset: xr.Dataset) -> Figure:
    """A panel for each group."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for ax, group in zip(axes, dataset.group.values, strict=True):
        plots.accuracy_against_time(ax, dataset.sel(group=group))
        ax.set_title(style.PANELS[str(group)], fontsize=10)
    axes[0].set_ylabel("zero-shot accuracy (share correct)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.set_dpi(100)
    return figure


EXPERIMENT = runs.Experiment("dynamics", "accuracy_measured", table, draw, text)
show = EXPERIMENT.show


def run(config: Config, out: pathlib.Path, options: Options = DEFAULTS) -> xr.Dataset | None:
    """As `runs.Experiment.run`. Raises: UsageError for a bad config too."""
    config.check()
    return EXPERIMENT.run(config.flat(), grid_of(config), functools.partial(complete, config), out, options)
