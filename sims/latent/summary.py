"""Measured against predicted: means and standard errors over seeds, and a verdict for every cell, as table and text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sims.engine import statistics, tables
from sims.latent.settings import AXES

MAX_ROWS = 60


def with_shifted(accuracy: xr.DataArray) -> xr.DataArray:
    """The group accuracies with their mean, accuracy on P*, as a third entry `shifted` of the group axis."""
    return xr.concat([accuracy, accuracy.mean("group", skipna=False).assign_coords(group="shifted")], "group")


def seed_statistics(measured: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and standard error over the seeds that have a value; the error of fewer than two seeds is NaN."""
    count = measured.notnull().sum("seed")
    deviation = measured.std("seed", ddof=1) if measured.sizes["seed"] > 1 else measured.mean("seed") * np.nan
    return measured.mean("seed"), deviation / np.sqrt(count)


def p_values(predicted: xr.DataArray, measured: xr.DataArray, spread: xr.DataArray) -> xr.DataArray:
    """p-value of each cell and learner: 3 min over the outcomes (both groups, shifted), by Bonferroni.

    Uses the distribution of a run if theory gives it, else Student's t. NaN means not judged: no prediction, too few
    seeds, or runs without a value.

    spread: `measure.predict_spread` of all cells and outcomes; sd, skewness and left_out along the last axis.
    """
    measured, predicted = with_shifted(measured), with_shifted(predicted)
    seeds = measured.sizes["seed"]
    gap, deviation = (
        x.transpose(*spread.dims[:-1]).values
        for x in (measured.mean("seed", skipna=False) - predicted, measured.std("seed", ddof=min(seeds - 1, 1)))
    )
    sd, skewness, left_out = np.moveaxis(spread.values, -1, 0)
    difference = np.sign(gap) * np.maximum(np.abs(gap) - left_out, 0)
    by_t = np.full_like(difference, np.nan)
    if seeds >= statistics.LEAST_SEEDS:
        by_t = statistics.t_probabilities(difference, deviation / seeds**0.5, seeds)
    by_law = np.full_like(difference, np.nan)
    if seeds >= statistics.LEAST_SEEDS_BY_LAW:
        by_law = statistics.law_probabilities(difference, sd, skewness, seeds)
    p = np.minimum(3 * np.where(np.isnan(sd), by_t, by_law).min(-1), 1)
    return xr.DataArray(p, dims=spread.dims[:-2])


def verdicts(
    learner: str, p_value: np.ndarray, predicted: np.ndarray, failed: np.ndarray, seeds: int, level: float
) -> np.ndarray:
    """A verdict for each cell. p_value, failed (runs): (cells,).  predicted: (cells, groups).  level: of one cell."""
    judged = np.where(p_value > level, "agrees", "differs").astype(object)
    # Theory gives the distribution for the linear loss, unless n is too small; the others are judged by Student's t.
    least = statistics.LEAST_SEEDS_BY_LAW if learner.startswith("mmcl") else statistics.LEAST_SEEDS
    judged[np.isnan(p_value)] = "not judged: few seeds" if seeds < least else "not judged: n too small"
    judged[np.isnan(predicted).any(-1)] = "no prediction"
    reason = "not separable" if learner == "supervised" else "diverged"
    for i in np.flatnonzero(failed):
        judged[i] = f"{reason} in {failed[i]} runs"
    return judged


def tabulate(rows: Sequence[str], outcome: str, **parts: xr.DataArray) -> pd.DataFrame:
    """A row for each combination of the coordinates `rows`; columns LABEL_NAME of `outcome`'s labels and the parts."""
    columns = {
        f"{label}_{name}": part.sel({outcome: label}, drop=True).transpose(*rows).to_series()
        for label in parts["measured"][outcome].values
        for name, part in parts.items()
    }
    return pd.DataFrame(columns).reset_index()


def columns(dataset: xr.Dataset) -> pd.DataFrame:
    """A row per cell and learner: coordinates; prediction, mean and se of aligned, conflicting, shifted; verdict."""
    order = (*AXES, "learner")
    predicted, measured = with_shifted(dataset.accuracy_predicted), with_shifted(dataset.accuracy_measured)
    mean, error = seed_statistics(measured)
    table = tabulate(order, "group", predicted=predicted, measured=mean, se=error)
    failed = dataset.accuracy_measured.isnull().any("group").sum("seed").transpose(*order).values.ravel()
    table["p_value"] = dataset.p_value.transpose(*order).values.ravel()
    level = statistics.LEVEL / max(int(table.p_value.notnull().sum()), 1)  # Bonferroni
    table["verdict"] = np.empty(len(table), object)
    for learner, cells in table.groupby("learner"):
        known = cells.filter(like="_predicted").values
        judged = verdicts(str(learner), cells.p_value.values, known, failed[cells.index], measured.sizes["seed"], level)
        table.loc[cells.index, "verdict"] = judged
    return table


def text(table: pd.DataFrame) -> str:
    """The first rows as an aligned table, below a line with the axes that do not vary."""
    shown = min(len(table), MAX_ROWS)
    varying = [a for a in AXES if a == "p_spu" or (table[a] != table[a][0]).any()]
    fixed = ", ".join(f"{a} = {table[a][0]:g}" for a in AXES if a not in varying)
    groups = ("shifted", "aligned", "conflicting")
    lines = [[*varying, "learner", *(f"{g}: predicted, measured" for g in groups), "verdict"]]
    for i in range(shown):
        row = table.loc[i]
        cells = [f"{row[a]:g}" for a in varying] + [row.learner]
        lines.append([*cells, *(_triple(row, group) for group in groups), row.verdict])
    body = [tables.as_text(lines)]
    if shown < len(table):
        body.append(f"... {len(table) - shown} more rows in summary.csv")
    agree, differ = ((table.verdict == word).sum() for word in ("agrees", "differs"))
    closing = f"{agree} of {agree + differ} judged cells agree with their prediction"
    closing += (
        f" (chance of any false alarm in all of them: {statistics.LEVEL:.0%} at most)." if agree + differ else "."
    )
    return "\n".join([*([f"{fixed}"] if fixed else []), *body, closing])


def _triple(row: Any, group: str) -> str:
    predicted, measured, error = (row[f"{group}_{x}"] for x in ("predicted", "measured", "se"))
    shown = "  -   " if math.isnan(predicted) else f"{predicted:.4f}"
    spread = "" if math.isnan(error) else f" +- {error:.4f}"
    return f"{shown}  {measured:.4f}{spread}"
