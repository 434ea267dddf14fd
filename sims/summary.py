"""Measured beside predicted: means and standard errors over seeds, a verdict for every cell, as rows and as text."""

import math
from typing import Any

import numpy as np
import xarray as xr

from sims.config import AXES

# A verdict allows `errors` standard errors plus `bias`, the size of what the prediction leaves out: for the linear loss
# float32 rounding; for max-margin the distance of a finite n from X1's limit, and of a finite training time from
# max-margin.
_ALLOWED = {"mmcl": (5.0, 1e-5), "supervised": (3.0, 0.02)}


def with_shifted(accuracy: xr.DataArray) -> xr.DataArray:
    """The group accuracies with their mean, accuracy on P*, as a third entry `shifted` of the group axis."""
    return xr.concat([accuracy, accuracy.mean("group", skipna=False).assign_coords(group="shifted")], "group")


def seed_statistics(measured: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and standard error over the seeds that have a value; NaN standard error for fewer than two."""
    count = measured.notnull().sum("seed")
    deviation = measured.std("seed", ddof=1) if measured.sizes["seed"] > 1 else measured.mean("seed") * np.nan
    return measured.mean("seed"), deviation / np.sqrt(count)


def verdict(learner: str, predicted: np.ndarray, mean: np.ndarray, error: np.ndarray, failed: int) -> str:
    """Judge all group accuracies of a cell together."""
    if failed:
        return f"{'not separable' if learner == 'supervised' else 'diverged'} in {failed} runs"
    if np.isnan(predicted).any():
        return "no prediction"
    if np.isnan(error).any():
        return "one seed: no standard error"
    errors, bias = _ALLOWED[learner.split("_")[0]]
    return "agrees" if (np.abs(mean - predicted) <= errors * error + bias).all() else "differs"


def rows(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """One row a cell and learner: coordinates, then for each of aligned, conflicting, shifted the prediction, mean,
    se."""
    predicted = with_shifted(dataset.accuracy_predicted)
    measured = with_shifted(dataset.accuracy_measured)
    mean, error = seed_statistics(measured)
    failed = dataset.accuracy_measured.isnull().any("group").sum("seed")
    order = ("learner", *AXES)
    stacked = [x.transpose(*order, "group").values for x in (predicted, mean, error)]
    groups = list(measured.group.values)
    table = []
    for index in np.ndindex(*stacked[0].shape[:-1]):
        point = dict(zip(order, (dataset[name].values[i] for name, i in zip(order, index, strict=True)), strict=True))
        row: dict[str, Any] = {name: point[name] for name in (*AXES, "learner")}
        p, m, e = (x[index] for x in stacked)
        for g, group in enumerate(groups):
            row |= {f"{group}_predicted": p[g], f"{group}_measured": m[g], f"{group}_se": e[g]}
        row["verdict"] = verdict(str(row["learner"]), p, m, e, int(failed.transpose(*order).values[index]))
        table.append(row)
    learner_order = list(dataset.learner.values)
    return sorted(table, key=lambda r: (*(r[a] for a in AXES), learner_order.index(r["learner"])))


def text(table: list[dict[str, Any]]) -> str:
    """The rows as an aligned table; axes that do not vary stand once, above it."""
    varying = [a for a in AXES if a == "p_spu" or len({r[a] for r in table}) > 1]
    fixed = ", ".join(f"{a} = {table[0][a]:g}" for a in AXES if a not in varying)
    header = [
        *varying,
        "learner",
        *(f"{g}: predicted, measured" for g in ("shifted", "aligned", "conflicting")),
        "verdict",
    ]
    lines = [header]
    for row in table:
        cells = [f"{row[a]:g}" for a in varying] + [str(row["learner"])]
        cells += [_triple(row, group) for group in ("shifted", "aligned", "conflicting")]
        lines.append([*cells, row["verdict"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    judged = [row["verdict"] for row in table if row["verdict"] in ("agrees", "differs")]
    closing = f"{judged.count('agrees')} of {len(judged)} judged cells agree with their prediction."
    return "\n".join([*([f"{fixed}"] if fixed else []), *body, closing])


def _triple(row: dict[str, Any], group: str) -> str:
    predicted, measured, error = (row[f"{group}_{x}"] for x in ("predicted", "measured", "se"))
    shown = "  -   " if math.isnan(predicted) else f"{predicted:.4f}"
    spread = "" if math.isnan(error) else f" +- {error:.4f}"
    return f"{shown}  {measured:.4f}{spread}"
