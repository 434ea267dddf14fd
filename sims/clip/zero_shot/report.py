"""Rows of results as a table to read, and as the figure of effective robustness."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sims.clip.zero_shot.evaluation import Choice, Row, fit, inside, of_shift
from sims.clip.zero_shot.robustness import LINES
from sims.clip.zero_shot.scoring import Share
from sims.engine import tables
from sims.engine.lines import Line, bootstrap_band

_NAMES = {
    "val": "ImageNet val",
    "balanced": "balanced",
    "v2": "ImageNet-V2",
    "sketch": "ImageNet-Sketch",
    "r": "ImageNet-R",
    "a": "ImageNet-A",
    "objectnet": "ObjectNet",
}
_LINE_NAMES = {
    "logit": "standard models",
    "probit": "standard models",
    "weak": "weak models (val < 40%)",
    "fit": "fitted to the other models",
}
_COLUMNS = 3


def text(rows: Sequence[Row], choice: Choice) -> str:
    """The run's sets as an aligned table, accuracies in %."""
    lines = [["set", "images", "classes", "top-1 [95%]", "top-5", "worst class [95%]", "chance", "val, same classes"]]
    lines[0] += ["rho [95%]", "line", "marks"]
    groups = sorted({group for row in rows for group in ("aligned", "conflicting") if group in row})
    lines[0][5:5] = [f"{group} [95%]" for group in groups]
    for row in rows:
        expected, count = row["expected_images"], row["expected_classes"]
        worst, name = row["worst_class"], row["line"]
        rho = "-"
        if name is not None:
            low, high = row["rho_interval_95"]
            rho = f"{100 * row['rho'][name]:+.2f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        line = [
            row["set"],
            f"{row['images']}" + (f" of {expected}" if expected not in (None, row["images"]) else ""),
            f"{row['classes_found']}" + (f" of {count}" if count not in (None, row["classes_found"]) else ""),
            _percent(row),
            f"{100 * row['top5']['accuracy']:.2f}" if "top5" in row else "-",
            f"{worst['name']} {_percent(worst, 1)}",
            f"{100 * row['chance']:.2g}",
            f"{100 * row['id_accuracy']:.2f}" if "id_accuracy" in row else "-",
            rho,
            name or "-",
            ", ".join(row["marks"]),
        ]
        line[5:5] = [_percent(row[group], 1) if group in row else "-" for group in groups]
        lines.append(line)
    note = [f"warning: {n} of {row['set']} could not be read." for row in rows if (n := row["unreadable"])]
    note += [f"{row['set']}: top-1 {_percent(row['either'])} where either of two classes that share their prompts"
             " counts." for row in rows if "either" in row]  # fmt: skip
    if all(row["line"] is None for row in rows):
        more = " that other models have too" if choice.line == "fit" else ""
        note.append(f"rho needs val and a shifted set{more}.")
    if any(row["line"] == "fit" for row in rows):
        note.append("rho [95%] takes the fitted line as exact; the figure's band shows how far it is known.")
    return "\n".join([rows[0]["run"], tables.as_text(lines), *note])


def _percent(share: Row, digits: int = 2) -> str:
    low, high = share["interval_95"]
    return f"{100 * share['accuracy']:.{digits}f} [{100 * low:.1f}, {100 * high:.1f}]"


def draw(
    rows: Sequence[Row], known: Sequence[Row], models: Sequence[Row], choice: Choice, out: pathlib.Path
) -> pathlib.Path | None:
    """Draw effective_robustness.png and .pdf in `out`, a panel for each shifted set; returns the path of the first.

    None, and no figure, if no row has an accuracy on val.
    known: all rows to draw beside `rows`.  models: rows that the line is fitted to.
    """
    shifted = [row for row in rows if "id_accuracy" in row and row["val_accuracy"] is not None]
    if not shifted:
        return None
    import matplotlib.pyplot as plt

    from sims.clip.zero_shot import scatter
    from sims.engine import runs

    columns = min(len(shifted), _COLUMNS)
    shape = (math.ceil(len(shifted) / columns), columns)
    size = (4.6 * columns, 4.3 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for ax, row in zip(axes.flat, shifted, strict=False):
        others = of_shift(known, row)
        points = [_point(other, False) for other in others] + [_point(row, True)]
        fitted, band = _fitted(of_shift(models, row), choice.transform)
        line = _published(row, choice)
        scatter.against_val(ax, points, choice.transform, line, fitted, band, row["chance"])
        same = row["set"] in ("v2", "sketch", "balanced")
        ax.set_xlabel(f"accuracy on val{'' if same else ', its classes'} (%, {choice.transform} axis)")
        ax.set_ylabel(f"accuracy on {_NAMES[row['set']]} (%)")
        marks = f"\n({', '.join(row['marks'])})" if row["marks"] else ""
        rho = f"$\\rho$ = {100 * row['rho'][row['line']]:+.1f} points" if row["line"] else ""
        ax.set_title(f"{_NAMES[row['set']]}{': ' if rho else ''}{rho}{marks}", fontsize=9)
    for ax in axes.flat[len(shifted) :]:
        ax.axis("off")
    entries: dict[str, Any] = {}
    for ax in axes.flat[: len(shifted)]:
        entries |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 4), fontsize=8)
    out.mkdir(parents=True, exist_ok=True)
    runs.save_figure(figure, out, "effective_robustness", 150)
    return out / "effective_robustness.png"


def _published(row: Row, choice: Choice) -> tuple[str, Line] | None:
    lines = LINES.get(row["set"], {})
    name = choice.of(row["val_accuracy"])
    name = choice.transform if name == "fit" else name
    return (_LINE_NAMES[name], lines[name]) if name in lines else None


def _fitted(others: Sequence[Row], transform: str):
    """((name, line), band) fitted to other models; None where they are too few."""
    from sims.clip.zero_shot import scatter

    line = fit(others, transform)
    if line is None:
        return None, None
    x, y = inside(others, "id_"), inside(others, "")
    band = None
    if len(x) >= 3:
        at = np.linspace(x.min(), x.max(), 60)
        band = scatter.Band(at, *bootstrap_band(x, y, transform, at, np.random.default_rng(0)))
    return (_LINE_NAMES["fit"], line), band


def _point(row: Row, own: bool):
    from sims.clip.zero_shot import scatter

    ends = _interval(row, "id_"), _interval(row, "")
    return scatter.Point(row["run"], row["id_accuracy"], row["accuracy"], *ends, own)


def _interval(row: Row, axis: str) -> tuple[float, float]:
    """The 99.5% interval of an accuracy; NaN if the number of images is not known."""
    n = row.get(f"{axis}images")
    if n is None:
        return math.nan, math.nan
    return Share(round(row[f"{axis}accuracy"] * n), n).interval(0.995)
