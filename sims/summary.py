"""Measured beside predicted: means and standard errors over seeds, a verdict for every cell, as rows and as text."""

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr

from sims.config import AXES

# A verdict allows `errors` standard errors plus `bias`, the size of what the prediction leaves out: for the linear loss
# float32 rounding; for max-margin the distance of a finite n from X1's limit, and of a finite training time from
# max-margin.
_ALLOWED = {"mmcl": (5.0, 1e-5), "supervised": (3.0, 0.02)}


MAX_ROWS = 60


def with_shifted(accuracy: xr.DataArray) -> xr.DataArray:
    """The group accuracies with their mean, accuracy on P*, as a third entry `shifted` of the group axis."""
    return xr.concat([accuracy, accuracy.mean("group", skipna=False).assign_coords(group="shifted")], "group")


def seed_statistics(measured: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and standard error over the seeds that have a value; NaN standard error for fewer than two."""
    count = measured.notnull().sum("seed")
    deviation = measured.std("seed", ddof=1) if measured.sizes["seed"] > 1 else measured.mean("seed") * np.nan
    return measured.mean("seed"), deviation / np.sqrt(count)


def verdicts(
    learner: str, predicted: np.ndarray, mean: np.ndarray, error: np.ndarray, failed: np.ndarray
) -> np.ndarray:
    """Judge all group accuracies of each cell together. predicted, mean, error: (cells, groups).  failed: (cells,)."""
    errors, bias = _ALLOWED.get(learner.split("_")[0], (np.nan, np.nan))
    agrees = (np.abs(mean - predicted) <= errors * error + bias).all(-1)
    judged = np.where(agrees, "agrees", "differs").astype(object)
    judged[np.isnan(error).any(-1)] = "one seed: no standard error"
    judged[np.isnan(predicted).any(-1)] = "no prediction"
    reason = "not separable" if learner == "supervised" else "diverged"
    for i in np.flatnonzero(failed):
        judged[i] = f"{reason} in {failed[i]} runs"
    return judged


def columns(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """A row a cell and learner: coordinates, then for each of aligned, conflicting, shifted the prediction, mean,
    se."""
    predicted, measured = with_shifted(dataset.accuracy_predicted), with_shifted(dataset.accuracy_measured)
    mean, error = seed_statistics(measured)
    failed = dataset.accuracy_measured.isnull().any("group").sum("seed")
    order = (*AXES, "learner")
    shape = tuple(dataset.sizes[name] for name in order)
    at = np.indices(shape).reshape(len(order), -1)
    table = {name: dataset[name].values[i] for name, i in zip(order, at, strict=True)}
    p, m, e = (x.transpose(*order, "group").values.reshape(-1, 3) for x in (predicted, mean, error))
    for g, group in enumerate(measured.group.values):
        table |= {f"{group}_predicted": p[:, g], f"{group}_measured": m[:, g], f"{group}_se": e[:, g]}
    lost = failed.transpose(*order).values.ravel()
    table["verdict"] = np.empty(len(lost), object)
    for learner in dataset.learner.values:
        here = table["learner"] == learner
        table["verdict"][here] = verdicts(str(learner), p[here], m[here], e[here], lost[here])
    return table


def text(table: Mapping[str, np.ndarray]) -> str:
    """The first rows as an aligned table; axes that do not vary stand once, above it."""
    shown = min(len(table["learner"]), MAX_ROWS)
    varying = [a for a in AXES if a == "p_spu" or (table[a] != table[a][0]).any()]
    fixed = ", ".join(f"{a} = {table[a][0]:g}" for a in AXES if a not in varying)
    groups = ("shifted", "aligned", "conflicting")
    lines = [[*varying, "learner", *(f"{g}: predicted, measured" for g in groups), "verdict"]]
    for i in range(shown):
        cells = [f"{table[a][i]:g}" for a in varying] + [str(table["learner"][i])]
        lines.append([*cells, *(_triple(table, i, group) for group in groups), table["verdict"][i]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if shown < len(table["learner"]):
        body.append(f"... {len(table['learner']) - shown} more rows in summary.csv")
    agree, differ = ((table["verdict"] == word).sum() for word in ("agrees", "differs"))
    closing = f"{agree} of {agree + differ} judged cells agree with their prediction."
    return "\n".join([*([f"{fixed}"] if fixed else []), *body, closing])


def _triple(table: Mapping[str, np.ndarray], i: int, group: str) -> str:
    predicted, measured, error = (table[f"{group}_{x}"][i] for x in ("predicted", "measured", "se"))
    shown = "  -   " if math.isnan(predicted) else f"{predicted:.4f}"
    spread = "" if math.isnan(error) else f" +- {error:.4f}"
    return f"{shown}  {measured:.4f}{spread}"
