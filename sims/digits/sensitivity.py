"""What the settings that the paper leaves open move: a table from the folders of runs, finished or not.

    for p in -1:1 0:1; do for t in 0.5 1; do
      python -m sims.digits --preset=paper --data=idx:DIR --arms=clip_1_1 --pixels=$p --temperature=$t --out runs/s/$p$t
    done; done
    python -m sims.digits --sensitivity=runs/s

Every two runs that differ in one of FACTORS alone give its effect, seed by seed, as both draw from the same keys. Arms
are compared after the last epoch that both have measured. Stages that an unfinished run keeps count.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr

from sims.digits import paper, results
from sims.digits.arms import ARMS
from sims.digits.config import PAPER, parse_colours
from sims.engine import store, tables
from sims.engine.flags import UsageError

FACTORS = ("temperature", "pixels", "colours", "init_scale")
_FREE = ("arms", "epochs", "steps", "seeds", "seed")  # runs that differ in these can be compared
_SHOWN = {"shifted": "OOD", "train": "ID", "aligned": "aligned", "conflicting": "conflicting"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the study paper, as far as it has come.

    Attributes:
      levels: the value of each of FACTORS, as text.
      rest: all other settings that must agree.
      dataset: the measured values, NaN where missing.
    """

    folder: pathlib.Path
    levels: Mapping[str, str]
    rest: str
    dataset: xr.Dataset


def so_far(folder: pathlib.Path) -> xr.Dataset:
    """What the run in a folder has measured, and its checkpoints' stages; NaN where it is missing or a run diverged.

    Raises: UsageError if the folder holds no run of this version, or its results cannot be read.
    """
    config = store.read_config(folder)
    try:
        with xr.open_zarr(folder / store.RESULTS, consolidated=False) as opened:
            dataset = opened[["measured"]].load()
        array: Any = zarr.open_array(folder / store.RESULTS / "measured", mode="r")
    except Exception as error:  # zarr raises many kinds for what is not there or damaged
        raise UsageError(f"{folder} has no results that can be read ({type(error).__name__}).") from None
    values = dataset.measured.values
    tasks, (steps, measures) = 1, values.shape[-2:]
    size = array.chunks[tasks:-2]  # runs of a block: (seed, *axes)
    for file in (folder / "checkpoints").glob("*.npz"):
        place = tuple(int(i) for i in file.stem.split("-"))
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["owner"]) != f"{store.run_of(folder)} {file.stem}" or kept["outcomes"].shape[-1] != measures:
                continue
            outcomes = kept["outcomes"][:, : int(np.prod(size))]
        stages = np.moveaxis(outcomes.reshape(len(outcomes), *size, measures), 0, -2)
        where = tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, array.chunks, strict=False))
        inside = values[where]
        stages = stages[tuple(slice(0, n) for n in inside.shape[tasks:-2])]
        values[where][..., : min(steps, len(outcomes)), :] = stages[None]
    dataset.measured.values = np.where(np.isinf(values), np.nan, values).astype(float)
    dataset.attrs["config"] = json.dumps(config)
    return dataset


def runs_below(root: pathlib.Path) -> list[Run]:
    """All runs of the study paper in a folder and the folders in it.

    Raises: UsageError if there is none.
    """
    runs = []
    for file in sorted(root.rglob("config.json")):
        try:
            config = store.read_config(file.parent)
            if config.get("command") != "digits" or config.get("study") != PAPER:
                continue
            dataset = so_far(file.parent)
        except UsageError:
            continue  # of another version, or not begun
        levels = {name: _level(name, config[name]) for name in FACTORS}
        rest = {name: value for name, value in config.items() if name not in (*FACTORS, *_FREE)}
        runs.append(Run(file.parent, levels, json.dumps(rest, sort_keys=True), dataset))
    if not runs:
        raise UsageError(f"--sensitivity={root} holds no run of sims.digits, study {PAPER}.")
    return runs


def _level(name: str, value: Any) -> str:
    if name != "colours":
        return f"{value[0]:g}" if isinstance(value, list) else f"{value}"
    if value == json.loads(json.dumps(parse_colours(PAPER))):
        return PAPER
    return " ".join("".join(f"{round(channel):02x}" for channel in rgb) for of in value for rgb in of)


def table(runs: list[Run]) -> list[list[str]]:
    """Each run and arm after its last measured epoch: its levels, accuracies with 95% intervals, and dead runs."""
    lines = [["setting", *FACTORS, "epoch", *_SHOWN.values(), "dead"]]
    for run in runs:
        for arm in (str(name) for name in run.dataset.arm.values):
            epochs = _measured_epochs(run, arm)
            if not epochs:
                continue
            accuracy = _accuracy(run, arm, epochs[-1])
            step = int(np.flatnonzero(paper.epochs(run.dataset) == epochs[-1])[0])
            died = f"{paper.deaths(run.dataset, arm)[step]} of {run.dataset.sizes['seed']}"
            lines.append([ARMS[arm].label, *run.levels.values(), f"{epochs[-1]:g}", *_shown(accuracy), died])
    return lines


def effects(runs: list[Run]) -> list[list[str]]:
    """Every two runs that differ in one factor alone: what it moves, with 95% intervals over seeds."""
    lines = [["setting", "factor", "from", "to", "epoch", *(f"change of {name}" for name in _SHOWN.values())]]
    for one, other in itertools.combinations(runs, 2):
        differing = [name for name in FACTORS if one.levels[name] != other.levels[name]]
        if len(differing) != 1 or one.rest != other.rest:
            continue
        name = differing[0]
        for arm in (str(x) for x in one.dataset.arm.values if x in other.dataset.arm.values):
            common = sorted({*_measured_epochs(one, arm)} & {*_measured_epochs(other, arm)})
            if not common:
                continue
            first, second = (_accuracy(run, arm, common[-1]) for run in (one, other))
            seeds = min(first.sizes["seed"], second.sizes["seed"])
            change = second.isel(seed=slice(seeds)) - first.isel(seed=slice(seeds))
            where = [ARMS[arm].label, name, one.levels[name], other.levels[name], f"{common[-1]:g}"]
            lines.append([*where, *_shown(change, "+.3f")])
    return lines


def _measured_epochs(run: Run, arm: str) -> list[float]:
    """The epochs after which an arm is measured; those after which every seed had diverged are not."""
    whole = run.dataset.measured.sel(arm=arm, measure="class aligned low").notnull()
    any_seed = whole.any([dim for dim in whole.dims if dim != "step"]).values
    return [float(epoch) for epoch in paper.epochs(run.dataset)[any_seed]]


def _accuracy(run: Run, arm: str, epoch: float) -> xr.DataArray:
    """(seed, value) of an arm under the prompt it is judged by."""
    accuracy = results.accuracy(run.dataset.sel(arm=[arm])).sel(prompt=results.headline(arm), drop=True)
    accuracy = accuracy.isel(step=int(np.flatnonzero(paper.epochs(run.dataset) == epoch)[0]), drop=True)
    return accuracy.squeeze([dim for dim in accuracy.dims if dim not in ("seed", "value")], drop=True)


def _shown(accuracy: xr.DataArray, form: str = ".3f") -> list[str]:
    mean, half = results.interval(accuracy)
    return [f"{mean.sel(value=v).item():{form}} +- {half.sel(value=v).item():.3f}" for v in _SHOWN]


def text(root: pathlib.Path) -> str:
    """`table` and `effects` of the runs below a folder.

    Raises: UsageError if there is none.
    """
    runs = runs_below(root)
    parts = [f"{len(runs)} runs, each arm after its last measured epoch:", tables.as_text(table(runs)), ""]
    return "\n".join([*parts, "runs that differ in one setting alone:", tables.as_text(effects(runs))])
