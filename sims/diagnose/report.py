"""A diagnosis as text, figure, tables, JSON, and one HTML page that needs no other file."""

import dataclasses
import html
import io
import pathlib
from collections.abc import Mapping
from typing import Any

from sims.engine import runs, style  # noqa: F401  style sets the backend, before pyplot is imported

import matplotlib.pyplot as plt  # isort: skip
import numpy as np
from matplotlib.figure import Figure

import mmcl_theory as mt
from mmcl_theory.features import Advice, Diagnosis, verdict
from sims.engine import files, page, store
from sims.features import heads
from sims.features.config import ARMS, CLOSED

LOOKS = {
    "mmcl": ("#0072B2", "o", "MMCL, linear loss"),
    "whitened": ("#009E73", "^", "MMCL, whitened"),
    "ridge": ("#E69F00", "v", "MMCL, ridge"),
    "supervised": ("#D55E00", "s", "supervised, least squares"),
}
_OF_HEADS = ("#CC79A7", "#56B4E9", "#000000", "#999933", "#882255", "#44AA99", "#777777")
LOOKS |= {
    f"{arm} head": (colour, "D", f"trained head, {heads.LABELS[arm]}")
    for arm, colour in zip((arm for arm in ARMS if arm not in CLOSED), _OF_HEADS, strict=True)
}
KNOBS = {
    "attribute": "captions name the attribute at {:g} of the rate now",
    "detail": "captions tell other details at {:g} of the rate now",
    "minority": "{:g} times the weight of small groups, up to an equal part",
    "same_class_weight": "same-class weight {:g}",
    "theta": "whitening theta {:g}",
    "kappa": "ridge kappa {:g}",
    "shrinkage": "shrinkage {:g}",
}
_WHERE = {"train": "P, as in training", "shifted": "P*, shifted", "worst": "worst group"}
_MOST = 18  # changes that the figure shows
_TOLD = 12  # that the text shows
_GAUSSIAN = 0.02  # difference of predicted and measured accuracy up to which they agree
_RESOLUTION = 0.05  # standard error of an accuracy up to which that can be told


def changes_with_evidence(diagnosis: Diagnosis, most: int) -> list[Advice]:
    """The best gain and the worst loss on P* of each learner and knob, and in the worst group where P* has none.

    By the size of the effect on P*.
    """
    kept: dict[tuple[str, ...], Advice] = {}
    for where in ("shifted", "worst"):
        for change in diagnosis.advice:
            sign = verdict(getattr(change, where))
            key = change.learner, change.knob
            if sign == "no evidence" or (where == "worst" and any(k[:2] == key and k[2] == "shifted" for k in kept)):
                continue
            best = kept.get((*key, where, sign))
            if best is None or abs(getattr(change, where).value) > abs(getattr(best, where).value):
                kept[*key, where, sign] = change
    return sorted(dict.fromkeys(kept.values()), key=lambda change: -abs(change.shifted.value))[:most]


def described(change: Advice) -> str:
    """What a change is."""
    said = f"{look(change.learner)[2]}: {KNOBS[change.knob].format(change.setting)}"
    if change.knob == "kappa" and change.now > 0:  # kappa = rho tau^2, at the same weight decay
        said += f", as {(change.setting / change.now) ** 0.5:.3g} times the temperature gives"
    return said


def look(learner: str) -> tuple[str, str, str]:
    """Colour, marker and label of a learner; of a name of one's own, a grey one."""
    return LOOKS.get(learner, ("#777777", "D", learner))


def text(diagnosis: Diagnosis) -> str:
    """The diagnosis in lines: groups, learners, whether Gaussian scores predict them, directions, changes."""
    counted = ", ".join(f"{n} {x}" for n, x in zip(diagnosis.size, diagnosis.groups, strict=True))
    lines = [f"{diagnosis.size.sum()} pairs: {counted}"]
    for name, outcome in diagnosis.outcomes.items():
        parts = [f"{label} {_value(outcome.at(where))}" for where, label in _WHERE.items()]
        gap = diagnosis.gap(name)
        shown = "" if np.isnan(gap.value) else f"aligned - conflicting {_change(gap)}, "
        lines.append(
            f"{look(name)[2]}: {', '.join(parts)}; {shown}{diagnosis.regime(name)}; {_gaussian(diagnosis, name)}"
        )
    names = [f"class {c}" for c in diagnosis.classes[1:]] + [f"attribute {a}" for a in diagnosis.attributes[1:]]
    shares = ", ".join(f"{name} {max(share, 0.0):.2f}" for name, share in zip(names, diagnosis.caption_r2, strict=True))
    lines.append(f"Share of the variance within groups that captions tell, along each direction: {shares}")
    lines.append(f"Found first, as X7 has it: {_first(diagnosis)}")
    for change in changes_with_evidence(diagnosis, _TOLD):
        lines.append(
            f"{described(change)}: P* {_change(change.shifted)}, {verdict(change.shifted)}; worst group"
            f" {_change(change.worst)}, {verdict(change.worst)}"
        )
    if diagnosis.advice:
        certain = sum(verdict(change.shifted) != "no evidence" for change in diagnosis.advice)
        lines.append(
            f"{certain} of {len(diagnosis.advice)} settings have evidence on P*, each at 95%; shown are the best and"
            " the worst of each knob, which is optimistic."
        )
    for purchase in diagnosis.purchases:
        kept = f"{purchase.attribute:.3g} of the attribute's mentions and {purchase.detail:.3g} of the other details"
        lines.append(
            f"{look(purchase.learner)[2]}, best captions within the budget for {_WHERE[purchase.where]}: keep {kept};"
            f" {_change(purchase.gain)} to spending it evenly, {verdict(purchase.gain)}"
        )
    return "\n".join(lines)


_METHODS = {"contrast": "linear loss", "predict": "prediction of texts from images", "align": "alignment, as whitened"}


def _first(diagnosis: Diagnosis) -> str:
    """What each method finds first, with the shares that class and attribute have of its first component."""
    leading = {c.method: c for c in diagnosis.components if c.number == 1}
    return "; ".join(
        f"{_METHODS[name]}: {diagnosis.recovered(name)} (class {c.of_class:.2f}, attribute {c.of_attribute:.2f} of the"
        f" first component's variance, difference {_change(c.lead)}; correlation {c.correlation.value:.2f})"
        for name, c in leading.items()
    )


def _gaussian(diagnosis: Diagnosis, name: str) -> str:
    """Where the accuracies of Gaussian scores agree with those measured."""
    outcome = diagnosis.outcomes[name]
    errors = np.array([outcome.group(g).error for g in range(len(diagnosis.size))])
    far = np.abs(outcome.predicted - outcome.by_group) > np.maximum(_GAUSSIAN, 2 * errors)
    vague = ~far & (errors > _RESOLUTION)

    def where(chosen: np.ndarray) -> str:
        return "; ".join(x for x, c in zip(diagnosis.groups, chosen, strict=True) if c)

    if np.isnan(outcome.predicted).any():
        return "Gaussian scores are not computed for so many classes"
    said = [f"Gaussian scores predict P* {outcome.predicted @ outcome.shifted_weight:.3f}"]
    if far.any():
        said.append(f"they disagree in {where(far)}")
    if vague.any():
        said.append(f"too few samples to tell in {where(vague)}")
    if not (far | vague).all():
        said.append("they agree elsewhere" if (far | vague).any() else "they agree in every group")
    return ", ".join(said)


def _value(estimate: Any) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _change(estimate: Any) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def draw(diagnosis: Diagnosis) -> Figure:
    """Accuracy of each learner by group, with the Gaussian prediction; below, the effects of changes on P*."""
    changes = changes_with_evidence(diagnosis, _MOST)
    tall = 0.26 * len(changes) + 1.0
    learners = len(diagnosis.outcomes)
    apart = min(0.16, 0.8 / learners)  # in a column; columns are 1 apart
    size = 9.5 + 0.8 * max(0, learners - 5), 4.4 + tall * bool(changes)
    figure = plt.figure(figsize=size, layout="constrained", dpi=120)
    parts = figure.subfigures(2, 1, height_ratios=[4.4, tall]) if changes else [figure]
    ax = parts[0].subplots()
    named = [(*group.split(", ", 1), n) for group, n in zip(diagnosis.groups, diagnosis.size, strict=True)]
    columns = [*(f"{c},\n{a}\n(n = {n})" for c, a, n in named), *(x.replace(", ", ",\n") for x in _WHERE.values())]
    for i, (name, outcome) in enumerate(diagnosis.outcomes.items()):
        colour, marker, label = look(name)
        x = np.arange(len(columns)) + (i - (learners - 1) / 2) * apart
        estimates = [outcome.group(g) for g in range(len(diagnosis.size))] + [outcome.at(where) for where in _WHERE]
        value = np.array([e.value for e in estimates])
        ends = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T
        ax.errorbar(x, value, ends, fmt=marker, color=colour, ms=5, lw=0, elinewidth=1.2, capsize=2, label=label)
        predicted = [*outcome.predicted, *(outcome.predicted @ outcome.weights(where) for where in _WHERE)]
        ax.plot(x, predicted, "_", color="black", ms=10, mew=1.2, label="if scores were Gaussian" if i == 0 else None)
    ax.axhline(1 / len(diagnosis.classes), color="0.6", lw=0.8, ls=":")
    ax.axvline(len(diagnosis.size) - 0.5, color="0.8", lw=0.8)
    ax.set_xticks(range(len(columns)), [_plain(x) for x in columns], fontsize=8)
    ax.set(ylim=(-0.03, 1.03), ylabel="held-out accuracy (share correct)")
    ax.grid(axis="y", alpha=0.25, lw=0.6)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    if changes:
        _effects(parts[1].subplots(), changes)
    return figure


def _plain(label: str) -> str:
    """A label in which Matplotlib sees no formula."""
    return label.replace("$", r"\$")


def _effects(ax: Any, changes: list[Advice]) -> None:
    for i, change in enumerate(changes):
        colour, marker, _ = look(change.learner)
        e = change.shifted
        ends = [[e.value - e.low], [e.high - e.value]]
        ax.errorbar(e.value, -i, xerr=ends, fmt=marker, color=colour, ms=5, elinewidth=1.2, capsize=2)
    words = [_plain(described(change)) for change in changes]
    ax.set_yticks([-i for i in range(len(changes))], words, fontsize=8)
    ax.axvline(0, color="0.4", lw=0.8)
    ax.set_xlabel("change of accuracy on P* (95% interval)")
    title = "what would change it: of each knob with evidence, the best and the worst setting"
    ax.set_title(title, fontsize=9, loc="right")
    ax.grid(axis="x", alpha=0.25, lw=0.6)


def write(diagnosis: Diagnosis, given: Mapping[str, Any], notes: list[str], out: pathlib.Path) -> None:
    """Write accuracies.csv, advice.csv, diagnosis.json, diagnose.png and .pdf, and report.html into `out`."""
    accuracies, advice = diagnosis.to_dataframe(), diagnosis.advice_dataframe()
    store.write_csv(out / "accuracies.csv", accuracies)
    store.write_csv(out / "advice.csv", advice)
    figure = draw(diagnosis)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=figure.dpi)
    runs.save_figure(figure, out, "diagnose", figure.dpi)
    fitted = diagnosis.fitted
    gaps = {name: {k: float(v) for k, v in diagnosis.gap(name)._asdict().items()} for name in diagnosis.outcomes}
    content = {
        "settings": given,
        "version": mt.__version__,
        "warnings": notes,
        "groups": [{"name": x, "samples": int(n)} for x, n in zip(diagnosis.groups, diagnosis.size, strict=True)],
        "regimes": {name: diagnosis.regime(name) for name in diagnosis.outcomes},
        "aligned": [x for x, is_aligned in zip(diagnosis.groups, diagnosis.aligned(), strict=True) if is_aligned],
        "gaps": gaps,
        "accuracies": accuracies.to_dict("records"),
        "advice": advice.to_dict("records"),
        "purchases": [
            {**dataclasses.asdict(p), "gain": p.gain._asdict(), "verdict": verdict(p.gain)} for p in diagnosis.purchases
        ],
        "fitted": {"mean": np.asarray(fitted.mean).tolist(), "covariance": np.asarray(fitted.covariance).tolist()},
        "caption_r2": [float(x) for x in diagnosis.caption_r2],
        "components": [dataclasses.asdict(c) for c in diagnosis.components],
        "found_first": {method: diagnosis.recovered(method) for method in _METHODS},
    }
    files.write_json(out / "diagnosis.json", content)
    files.write_text(out / "report.html", html_page(diagnosis, given, notes, picture.getvalue()))


def html_page(diagnosis: Diagnosis, given: Mapping[str, Any], notes: list[str], picture: bytes) -> str:
    """The HTML page, with style and picture in it."""
    said = [*(f"Warning: {note}" for note in notes), *text(diagnosis).split("\n")]
    lines = "\n".join(f"<li>{html.escape(line)}</li>" for line in said)
    settings = ", ".join(f"{k} = {v}" for k, v in given.items() if v is not None)
    tables = [
        f"<h2>{title}</h2>{page.table(list(frame.columns), frame.round(4).astype(object).fillna('').to_numpy())}"
        for title, frame in (("Accuracies", diagnosis.to_dataframe()), ("Changes", diagnosis.advice_dataframe()))
        if len(frame)
    ]
    body = f"""<p><code>{html.escape(settings)}</code></p>
{page.picture(picture, "held-out accuracy by group, and effects of changes")}
<ul>{lines}</ul>
<p>Accuracies are of held-out folds; intervals are of 95% (Nadeau and Bengio). <i>predicted</i> is the accuracy if the
held-out scores were Gaussian in each group, as in the theory. <i>skewness</i> and <i>kurtosis</i> of the score
difference to the closest rival are 0 for a Gaussian. A change counts as a gain or a loss if its interval excludes 0. A
group is aligned if its class and attribute occur together more often than if they were independent.</p>
{"".join(tables)}"""
    return page.page("Diagnosis of features", body)
