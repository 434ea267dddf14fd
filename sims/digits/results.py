"""Read a study's results: accuracies with intervals, the rows of its table, and each theory's score over its cells."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from sims import lines
from sims.digits import moments, training
from sims.digits.arms import ARMS
from sims.digits.config import AXES, ITEMS
from sims.engine import store
from sims.engine.lines import inside

VALUES = ("aligned", "conflicting", "shifted", "train", "worst")  # accuracies; see `accuracy`
_CONFIDENCE = 0.95
_RIVALS = {  # the other rule on the same features, for each of moments.THEORIES
    "linear_pixels": "whitened_pixels",
    "whitened_pixels": "linear_pixels",
    "linear_features": "whitened_features",
    "whitened_features": "linear_features",
}


def accuracy(dataset: xr.Dataset) -> xr.DataArray:
    """Measured accuracy (arm, seed, *axes, step, prompt, value) on test items, of the readouts that were measured.

    Values:
      aligned, conflicting: the group's mean over both labels.
      shifted: on P*.
      train: on the training distribution P.
      worst: the smallest of the four cells (label, attribute).
    """
    readouts = _readouts(dataset)
    names = [
        _measure(readout, group, label)
        for readout in readouts
        for group in training.GROUPS
        for label in training.LABELS
    ]
    measured = dataset.measured.sel(measure=names).transpose(..., "measure")
    cells = xr.DataArray(
        measured.values.reshape(*measured.shape[:-1], len(readouts), len(training.GROUPS), len(training.LABELS)),
        dims=(*measured.dims[:-1], "prompt", "group", "label"),
        coords={
            **measured.drop_vars("measure").coords,
            "prompt": store.labels(readouts),
            "group": store.labels(training.GROUPS),
        },
    )
    groups = cells.mean("label", skipna=False)
    aligned, conflicting = (groups.sel(group=group, drop=True) for group in training.GROUPS)
    train = aligned * dataset.p_spu + conflicting * (1 - dataset.p_spu)
    worst = cells.min(["group", "label"], skipna=False)
    values = [aligned, conflicting, (aligned + conflicting) / 2, train, worst]
    named = xr.DataArray(store.labels(VALUES), dims="value", name="value")
    return xr.concat(values, named).transpose(..., "value")


def _measure(readout: str, group: str, label: str) -> str:
    """The name under which a cell's accuracy is stored."""
    return f"{readout} {group} {label}"


def _readouts(dataset: xr.Dataset) -> list[str]:
    """The measured ones of READOUTS: runs of earlier versions have no regression prompt."""
    measured = set(dataset.measure.values)
    one = training.GROUPS[0], training.LABELS[0]
    return [readout for readout in training.READOUTS if _measure(readout, *one) in measured]


def headline(arm: str) -> str:
    """The readout that an arm is judged by: its own prompt if it reads captions, else its classifier."""
    return ARMS[arm].prompt if ARMS[arm].reads else "class"


def by_headline(accuracies: xr.DataArray) -> xr.DataArray:
    """Each arm's accuracy under its headline prompt."""
    arms = [accuracies.sel(arm=arm, prompt=headline(str(arm)), drop=True) for arm in accuracies.arm.values]
    return xr.concat(arms, accuracies.arm)


def interval(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """(mean, half its 95% interval) over seeds (Student's t); NaN where a seed is NaN."""
    n = values.sizes["seed"]
    quantile = scipy.stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1)
    spread = values.std("seed", ddof=1, skipna=False) / n**0.5
    return values.mean("seed", skipna=False), quantile * spread


def lines_of(dataset: xr.Dataset) -> lines.Arms:
    """The points of each arm for `sims.lines`, its stages of training: P* over P; and the worst cell over P.

    Arms that have one accuracy on P at all stages are left out, and so are runs that diverged. Accuracies on P and P*
    are of the same images, which are redrawn as if they were two sets. A cell has half the images of a group.
    """
    images = int(json.loads(dataset.attrs["config"])["test"])
    points = []
    each = by_headline(accuracy(dataset)).stack(run=("seed", *AXES, "step"))
    for panel, names, n in (("P*", ("aligned", "conflicting"), images), ("worst cell", ("worst",), images // 2)):
        for arm in map(str, each.arm.values):
            mine = each.sel(arm=arm).dropna("run")
            on_p = inside(mine.sel(value="train").values * images, images)
            others = [inside(mine.sel(value=v).values * n, n) for v in names]
            seeds = mine["seed"].values
            points += [
                lines.Point(panel, ARMS[arm].label, float(x), float(np.mean(y)), str(seed), "", images,
                            tuple((float(v), n) for v in y))
                for x, y, seed in zip(on_p, np.transpose(others), seeds, strict=True)
            ]  # fmt: skip
    return lines.with_lines(points)


def varying(dataset: xr.Dataset) -> list[str]:
    """Axes with more than one value."""
    return [axis for axis in AXES if dataset.sizes[axis] > 1]


def rows(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """A row for each arm, cell, step and prompt; predictions stand in the rows of their arm, cell and prompt."""
    mean, half = interval(accuracy(dataset))
    kept, kept_half = interval(dataset.measured)
    table = []
    vectors = json.loads(dataset.attrs["config"]).get("captions") == "vectors"
    for arm in dataset.arm.values:
        lacking = () if ARMS[arm].reads else ("item", "ensemble", "regression")
        lacking = lacking if vectors else (*lacking, "regression")
        prompts = [readout for readout in _readouts(dataset) if readout not in lacking]
        for index in np.ndindex(*(dataset.sizes[a] for a in (*AXES, "step"))):
            at = dict(zip((*AXES, "step"), index, strict=True))
            for prompt in prompts:
                row: dict[str, Any] = {"arm": arm, **{a: dataset[a].values[i].item() for a, i in at.items()}}
                row["prompt"] = prompt
                cell = {"arm": arm, "prompt": prompt}
                for value in VALUES:
                    row[value] = mean.isel(at).sel(value=value, **cell).item()
                    row[f"{value}_half"] = half.isel(at).sel(value=value, **cell).item()
                for feature in (*training.FEATURES, "temperature", "loss"):
                    row[feature] = kept.isel(at).sel(arm=arm, measure=feature).item()
                    row[f"{feature}_half"] = kept_half.isel(at).sel(arm=arm, measure=feature).item()
                row |= _predicted_columns(dataset, str(arm), at, prompt)
                table.append(row)
    return table


def digit_rows(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """A row for each arm, cell, step, digit and group: the accuracy of scenes that show the digit.

    Empty for runs of versions that did not measure it.
    """
    cells = [(item, group) for item in range(ITEMS) for group in training.GROUPS]
    measures = [f"digit {item} {group}" for item, group in cells]
    if measures[0] not in dataset.measure.values:
        return []
    accuracies = dataset.measured.sel(measure=measures)
    mean, half = (x.transpose("arm", *AXES, "step", "measure") for x in interval(accuracies))
    table = []
    for index in np.ndindex(*mean.shape):
        row = {name: mean[name].values[i] for name, i in zip(mean.dims[:-1], index, strict=False)}
        row["digit"], row["group"] = cells[index[-1]]
        table.append({**row, "accuracy": mean.values[index], "half": half.values[index]})
    return table


def _predicted_columns(dataset: xr.Dataset, arm: str, at: dict[str, int], prompt: str) -> dict[str, float]:
    cell = {a: at[a] for a in AXES}
    columns = {}
    for theory in dataset.theory.values:
        for group in training.GROUPS:
            value = math.nan
            if prompt in moments.PROMPTS:
                predicted = dataset.accuracy_predicted.isel(cell).sel(arm=arm, theory=theory, group=group)
                value = predicted.sel(predicted_prompt=prompt).item()
            columns[f"{theory}_{group}"] = value
    return columns


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a theory orders the cells of an arm after a number of steps, by the gap aligned - conflicting.

    Attributes:
      rank: Spearman's correlation of predicted and measured gaps. NaN for fewer than three cells, or where predicted or
        measured gaps vary by no more than 1e-3.
      signs: among cells whose measured interval excludes 0, the share whose gap has the predicted sign.
      significant: the number of those cells.
      error: mean absolute difference of the groups' accuracies.
      nearer: cells in which this difference is smaller than the other theory's of the same kind (pixels, features). NaN
        where the other has no prediction.
    """

    arm: str
    step: int
    theory: str
    cells: int
    rank: float
    signs: float
    significant: int
    error: float
    nearer: float


def scores(dataset: xr.Dataset) -> list[Score]:
    """Scores of every theory for each arm that reads captions, after each stage, under the headline prompt.

    A closed form is scored once.
    """
    measured = accuracy(dataset)
    theories = [str(theory) for theory in dataset.theory.values]
    table = []
    for arm in (str(a) for a in dataset.arm.values if ARMS[str(a)].reads):
        predicted = dataset.accuracy_predicted.sel(arm=arm, predicted_prompt=headline(arm))
        flat = predicted.transpose("theory", *AXES, "group").values.reshape(dataset.sizes["theory"], -1, 2)
        of_arm = measured.sel(arm=arm, prompt=headline(arm))
        trained = ARMS[arm].loss is not None
        for step in dataset.step.values[0 if trained else -1 :]:
            groups = [of_arm.sel(step=step, value=group, drop=True) for group in training.GROUPS]
            gap, half = (x.transpose(*AXES).values.ravel() for x in interval(groups[0] - groups[1]))
            means = np.stack([g.mean("seed").transpose(*AXES).values.ravel() for g in groups], -1)
            error_of = dict(zip(theories, np.abs(flat - means).mean(-1), strict=True))
            for theory, groups_of in zip(theories, flat, strict=True):
                if np.isnan(groups_of).any():
                    continue
                expected = groups_of[:, 0] - groups_of[:, 1]
                errors = error_of[theory], error_of[_RIVALS[theory]]
                table.append(_score(arm, int(step), theory, expected, gap, half, *errors))
    return table


def _score(
    arm: str,
    step: int,
    theory: str,
    expected: np.ndarray,
    gap: np.ndarray,
    half: np.ndarray,
    error: np.ndarray,
    other: np.ndarray,
) -> Score:
    significant = np.abs(gap) > half
    rank = math.nan
    if len(gap) > 2 and min(np.ptp(expected), np.ptp(gap)) > 1e-3:
        rank = float(scipy.stats.spearmanr(expected, gap).statistic)
    signs = float((np.sign(expected) == np.sign(gap))[significant].mean()) if significant.any() else math.nan
    nearer = math.nan if np.isnan(other).any() else float((error < other).sum())
    return Score(arm, step, theory, len(gap), rank, signs, int(significant.sum()), float(error.mean()), nearer)
