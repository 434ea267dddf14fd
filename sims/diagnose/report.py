"""A diagnosis as text, figure, tables, JSON, and one HTML page that needs no other file."""

import base64
import html
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sims.engine import runs, style  # noqa: F401  style sets the backend, before pyplot is imported

import matplotlib.pyplot as plt  # isort: skip
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import mmcl_theory as mt
from mmcl_theory.features import Advice, Diagnosis
from sims.engine import files, store

LOOKS = {
    "mmcl": ("#0072B2", "o", "MMCL, linear loss"),
    "whitened": ("#009E73", "^", "MMCL, whitened"),
    "ridge": ("#E69F00", "v", "MMCL, ridge"),
    "supervised": ("#D55E00", "s", "supervised, least squares"),
}
KNOBS = {
    "attribute": "captions name the attribute at {:g} of the rate now",
    "detail": "captions tell other details at {:g} of the rate now",
    "minority": "{:g} times the samples of small groups",
    "same_class_weight": "same-class weight {:g}",
    "theta": "whitening theta {:g}",
    "kappa": "ridge kappa {:g}",
    "shrinkage": "shrinkage {:g}",
}
_WHERE = {"train": "P, as in training", "shifted": "P*, shifted", "worst": "worst group"}
_MOST = 18  # changes that the figure shows
_TOLD = 12  # that the text shows
_GAUSSIAN = 0.02  # difference of predicted and measured accuracy up to which the theory is said to hold


def best_changes(found: Diagnosis, most: int) -> list[Advice]:
    """The changes with evidence, by the size of their effect on P*: the best setting of each learner and knob."""
    best: dict[tuple[str, str], Advice] = {}
    for change in found.advice:
        if change.verdict == "no evidence":
            continue
        key = change.learner, change.knob
        if key not in best or abs(change.shifted.value) > abs(best[key].shifted.value):
            best[key] = change
    return sorted(best.values(), key=lambda change: -abs(change.shifted.value))[:most]


def told_in_words(change: Advice) -> str:
    """What a change is."""
    return f"{LOOKS[change.learner][2]}: {KNOBS[change.knob].format(change.setting)}"


def text(found: Diagnosis) -> str:
    """The diagnosis in lines: groups, learners, whether Gaussian scores predict them, directions, changes."""
    lines = [
        f"{found.size.sum()} pairs: " + ", ".join(f"{n} {x}" for n, x in zip(found.size, found.groups, strict=True))
    ]
    for name, outcome in found.outcomes.items():
        parts = [f"{label} {_value(outcome.at(where))}" for where, label in _WHERE.items()]
        gap = found.gap(name)
        lines.append(
            f"{LOOKS[name][2]}: {', '.join(parts)}; aligned - conflicting {gap.value:+.3f} ({found.regime(name)});"
            f" Gaussian scores predict P* {outcome.predicted @ outcome.shifted_weight:.3f}, {_holds(found, name)}"
        )
    names = [f"class {c}" for c in found.classes[1:]] + [f"attribute {a}" for a in found.attributes[1:]]
    shares = ", ".join(f"{name} {max(share, 0.0):.2f}" for name, share in zip(names, found.told, strict=True))
    lines.append(f"Share of the variance within groups that captions tell, along each direction: {shares}")
    for change in best_changes(found, _TOLD):
        lines.append(
            f"{change.verdict}: {told_in_words(change)}: P* {_change(change.shifted)}, worst group"
            f" {_change(change.worst)}"
        )
    tried = len(found.advice)
    if tried:
        certain = sum(change.verdict != "no evidence" for change in found.advice)
        lines.append(f"{certain} of {tried} changes have evidence at 95%; by chance about {tried / 20:.0f} would.")
    return "\n".join(lines)


def _holds(found: Diagnosis, name: str) -> str:
    outcome = found.outcomes[name]
    errors = np.array([outcome.group(g).error for g in range(len(found.size))])
    far = np.abs(outcome.predicted - outcome.by_fold.mean(0)) > np.maximum(_GAUSSIAN, 2 * errors)
    if not far.any():
        return "so the theory holds in every group"
    return "and the theory fails in " + "; ".join(x for x, bad in zip(found.groups, far, strict=True) if bad)


def _value(estimate: Any) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _change(estimate: Any) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def draw(found: Diagnosis) -> Figure:
    """Accuracy of each learner by group, with the Gaussian prediction; below, the effects of changes on P*."""
    changes = best_changes(found, _MOST)
    tall = 0.26 * len(changes) + 1.0
    figure = plt.figure(figsize=(9.5, 4.4 + tall * bool(changes)), layout="constrained", dpi=120)
    parts = figure.subfigures(2, 1, height_ratios=[4.4, tall]) if changes else [figure]
    ax = parts[0].subplots()
    named = [(*group.split(", ", 1), n) for group, n in zip(found.groups, found.size, strict=True)]
    columns = [*(f"{c},\n{a}\n(n = {n})" for c, a, n in named), *(x.replace(", ", ",\n") for x in _WHERE.values())]
    for i, (name, outcome) in enumerate(found.outcomes.items()):
        colour, marker, label = LOOKS[name]
        x = np.arange(len(columns)) + (i - (len(found.outcomes) - 1) / 2) * 0.16
        estimates = [outcome.group(g) for g in range(len(found.size))] + [outcome.at(where) for where in _WHERE]
        value = np.array([e.value for e in estimates])
        ends = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T
        ax.errorbar(x, value, ends, fmt=marker, color=colour, ms=5, lw=0, elinewidth=1.2, capsize=2, label=label)
        predicted = [*outcome.predicted, *(outcome.predicted @ outcome.weights(where) for where in _WHERE)]
        ax.plot(x, predicted, "_", color="black", ms=10, mew=1.2, label="if scores were Gaussian" if i == 0 else None)
    ax.axhline(1 / len(found.classes), color="0.6", lw=0.8, ls=":")
    ax.axvline(len(found.size) - 0.5, color="0.8", lw=0.8)
    ax.set_xticks(range(len(columns)), columns, fontsize=8)
    ax.set(ylim=(-0.03, 1.03), ylabel="held-out accuracy (share correct)")
    ax.grid(axis="y", alpha=0.25, lw=0.6)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    if changes:
        _effects(parts[1].subplots(), changes)
    return figure


def _effects(ax: Any, changes: list[Advice]) -> None:
    for i, change in enumerate(changes):
        colour, marker, _ = LOOKS[change.learner]
        e = change.shifted
        ends = [[e.value - e.low], [e.high - e.value]]
        ax.errorbar(e.value, -i, xerr=ends, fmt=marker, color=colour, ms=5, elinewidth=1.2, capsize=2)
    ax.set_yticks([-i for i in range(len(changes))], [told_in_words(change) for change in changes], fontsize=8)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.set_xlabel("change of accuracy on P* (95% interval)")
    ax.set_title(
        "what would change it: of each knob with evidence, the setting of largest effect", fontsize=9, loc="right"
    )
    ax.grid(axis="x", alpha=0.25, lw=0.6)


def write(found: Diagnosis, given: Mapping[str, Any], notes: list[str], out: pathlib.Path) -> None:
    """Write accuracies.csv, advice.csv, diagnosis.json, diagnose.png and .pdf, and report.html into `out`."""
    accuracies, advice = found.to_dataframe(), found.advice_dataframe()
    store.write_csv(out / "accuracies.csv", accuracies)
    store.write_csv(out / "advice.csv", advice)
    figure = draw(found)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=figure.dpi)
    runs.save_figure(figure, out, "diagnose", figure.dpi)
    fitted = found.fitted
    content = {
        "settings": given,
        "version": mt.__version__,
        "warnings": notes,
        "groups": [{"name": x, "samples": int(n)} for x, n in zip(found.groups, found.size, strict=True)],
        "regimes": {name: found.regime(name) for name in found.outcomes},
        "accuracies": _records(accuracies),
        "advice": _records(advice),
        "fitted": {"mean": np.asarray(fitted.mean).tolist(), "covariance": np.asarray(fitted.covariance).tolist()},
        "told": found.told.tolist(),
    }
    files.write_text(out / "diagnosis.json", json.dumps(content, indent=1))
    files.write_text(out / "report.html", page(found, given, notes, picture.getvalue()))


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{k: None if v != v else v for k, v in row.items()} for row in table.to_dict("records")]


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100% } table { border-collapse: collapse; font-size: 14px; margin: 1em 0 }
td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd } td:first-child { text-align: left }
.scroll { overflow-x: auto } code { background: #f3f3f3; padding: 0 .2em }
"""


def page(found: Diagnosis, given: Mapping[str, Any], notes: list[str], picture: bytes) -> str:
    """The HTML page, with style and picture in it."""
    lines = "\n".join(
        f"<li>{html.escape(line)}</li>" for line in [*(f"Warning: {n}" for n in notes), *text(found).split("\n")]
    )
    settings = ", ".join(f"{k} = {v}" for k, v in given.items() if v is not None)
    image = base64.b64encode(picture).decode()
    tables = [
        f"<h2>{title}</h2><div class=scroll>{frame.round(4).to_html(index=False, border=0, na_rep='')}</div>"
        for title, frame in (
            ("Accuracies", found.to_dataframe()),
            ("Changes", found.advice_dataframe()),
        )
        if len(frame)
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Diagnosis of features</title><style>{_STYLE}</style></head><body>
<h1>Diagnosis of features</h1>
<p><code>{html.escape(settings)}</code></p>
<img alt="held-out accuracy by group, and effects of changes" src="data:image/png;base64,{image}">
<ul>{lines}</ul>
<p>Accuracies are of held-out folds; intervals are of 95% (Nadeau and Bengio). <i>predicted</i> is the accuracy if the
held-out scores were Gaussian in each group, as in the theory. <i>skewness</i> and <i>kurtosis</i> of the score
difference to the closest rival are 0 for a Gaussian. A change counts as a gain or a loss if its interval on P* excludes
0. The groups of largest share in each class are the aligned ones.</p>
{"".join(tables)}
</body></html>
"""
