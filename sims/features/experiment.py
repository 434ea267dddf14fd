"""Arms on frozen features, over widths, shares of the data and times: ID-OOD lines and matched accuracies."""

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from sims import lines
from sims.engine import runs, tables
from sims.engine.flags import DEFAULTS, Options
from sims.engine.grid import Grid
from sims.engine.lines import inside
from sims.features import heads
from sims.features.config import Config

TRANSFORM = "probit"
POLICY = ("attribute", "detail")


def grid_of(config: Config) -> Grid:
    """Every arm at every width, share of the data and caption policy; an outcome for each number of epochs."""
    return Grid(
        tasks={"arm": config.arms},
        task=lambda arm: heads.task(arm, config),
        axes={name: getattr(config, name) for name in ("width", "percent", *POLICY)},
        outcomes={"epochs": tuple(map(int, config.epochs)), "measure": heads.measures(config)},
        seeds=config.seeds,
        seed=config.seed,
        sizes=("width", "percent"),
    )


def complete(config: Config, measured: np.ndarray) -> xr.Dataset:
    """The sets, with the numbers of images behind the measured values; nothing is predicted."""
    sets = [
        {"name": s.name, "images": len(s.label), "groups": list(s.groups), "sizes": s.sizes.tolist()}
        for s in config.data.sets
    ]
    return xr.Dataset(attrs={"sets": json.dumps(sets), "notes": json.dumps(config.data.notes)})


def table(dataset: xr.Dataset) -> pd.DataFrame:
    """A row for each run and number of epochs; `ood` is the mean over the OOD sets, or of the ID set's groups."""
    rows = dataset["measured"].to_dataset("measure").to_dataframe().reset_index()
    rows[["width", "percent"]] = rows[["width", "percent"]].astype(int)
    names = list(dataset["measure"].values)
    rows = rows[rows["id all"].notna()].reset_index(drop=True)
    means = rows[list(_ood(dataset))].mean(axis=1)
    front = [name for name in rows.columns if name not in names]
    return pd.concat([rows[front], rows["id all"].rename("id"), means.rename("ood"), rows[names]], axis=1)


def _sets(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """Name, images, groups and their sizes of each set, ID first."""
    sets: list[dict[str, Any]] = json.loads(dataset.attrs["sets"])
    return sets


def _name(dataset: xr.Dataset, row: Mapping[Any, Any]) -> str:
    """An arm's label, with its caption policy where the run has several."""
    swept = [name for name in POLICY if dataset.sizes[name] > 1]
    return heads.LABELS[row["arm"]] + "".join(f", {name} {row[name]:g}" for name in swept)


def _ood(dataset: xr.Dataset) -> dict[str, int]:
    """The columns that OOD accuracy is the mean of, and the number of images behind each."""
    own, *rest = _sets(dataset)
    if rest:
        return {f"{s['name']} all": s["images"] for s in rest}
    return {"id groups": _harmonic(own["sizes"])}


def _harmonic(sizes: list[int]) -> int:
    """The whole n whose p (1 - p) / n is closest to the variance of the mean of G accuracies, all of value p."""
    return round(len(sizes) ** 2 / float(np.sum(1 / np.array(sizes))))


def arms_of(dataset: xr.Dataset) -> lines.Arms:
    """The points of each arm for `sims.lines`, a panel for OOD accuracy and one for the worst group."""
    own, rows = _sets(dataset)[0], table(dataset)
    points = []
    for panel, columns in _panels(dataset):
        for row in rows.to_dict("records"):
            values = [(float(row[name]), images) for name, images in columns.items()]
            acc_id, *acc_ood = (float(inside(a * n, n)) for a, n in ((row["id"], own["images"]), *values))
            point = lines.Point(
                panel, _name(dataset, row), acc_id, float(np.mean(acc_ood)), str(row["seed"]), "",
                own["images"], tuple(zip(acc_ood, columns.values(), strict=True)),
            )  # fmt: skip
            points.append(point)
    return lines.with_lines(points)


def _panels(dataset: xr.Dataset) -> Iterator[tuple[str, dict[str, int]]]:
    """Titles, and the columns whose mean is drawn with the number of images behind each."""
    own, *rest = _sets(dataset)
    names = ", ".join(s["name"] for s in rest)
    yield (f"mean of {names}" if len(rest) > 1 else names or "groups of the ID set at equal weight"), _ood(dataset)
    if own["groups"]:
        yield "worst group of the ID set", {"id worst": min(own["sizes"])}


def draw(dataset: xr.Dataset) -> Figure:
    """The lines of all arms, a panel for each accuracy; where no arm has two ID accuracies, the points alone."""
    if arms := arms_of(dataset):
        return lines.draw(arms, None, TRANSFORM, 1.0)
    figure, ax = plt.subplots(layout="constrained")
    for arm, rows in table(dataset).groupby("arm", sort=False):
        ax.plot(rows["id"], rows["ood"], "o", label=heads.LABELS[str(arm)])
    ax.set(xlabel="ID accuracy (share)", ylabel="OOD accuracy (share)", title="one ID accuracy an arm: no lines")
    ax.legend(fontsize=8, frameon=False)
    return figure


def text(dataset: xr.Dataset) -> str:
    """Accuracies of each arm at its best width, the lines, and the differences at matched ID accuracy."""
    parts = [_best(dataset)]
    if arms := arms_of(dataset):
        parts.append(lines.matched_text(arms, TRANSFORM))
        images = _sets(dataset)[0]["images"], _harmonic(list(_ood(dataset).values()))
        parts.append(f"At other ID accuracies: sims.lines --seed_column=seed --images={images[0]},{images[1]}")
    notes: list[str] = json.loads(dataset.attrs.get("notes", "[]"))  # runs of earlier versions have none
    return "\n\n".join(parts + ["\n".join(f"note: {note}." for note in notes)] * bool(notes))


def _best(dataset: xr.Dataset) -> str:
    """Mean over seeds at the setting of highest mean ID accuracy, which says nothing of robustness."""
    rows = table(dataset)
    places = {"id": "ID", "ood": "OOD", **{f"id {name}": name for name in ("aligned", "conflicting", "worst")}}
    shown = [["at its highest ID accuracy", "width", "percent", "epochs", *places.values()]]
    keys = ["width", "percent", *POLICY, "epochs"]
    for arm, mine in rows.groupby("arm", sort=False):
        means = mine.groupby(keys)[list(places)].mean()
        best = means.loc[means["id"].idxmax()]
        spread = mine.set_index(keys).loc[[best.name]]
        values = [
            f"{best[name]:.3f}" + (f" +- {spread[name].std() / len(spread) ** 0.5:.3f}" if len(spread) > 1 else "")
            for name in places
        ]
        setting = {"arm": arm, **dict(zip(keys, best.name, strict=True))}
        numbers = [f"{setting[x]:g}" for x in ("width", "percent", "epochs")]
        shown.append([_name(dataset, setting), *numbers, *values])
    return tables.as_text(shown)


EXPERIMENT = runs.Experiment("features", "measured", table, draw, text)
show = EXPERIMENT.show


def run(config: Config, out: pathlib.Path, options: Options = DEFAULTS) -> xr.Dataset | None:
    """As `runs.Experiment.run`. Raises: UsageError for a bad config too."""
    config.check()
    return EXPERIMENT.run(config.flat(), grid_of(config), functools.partial(complete, config), out, options)
