"""The page: widgets, figures and table. `script` fills them in; here they are made and laid out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.events import DocumentReady
from bokeh.models import (
    CategoricalSlider,
    Column,
    ColumnDataSource,
    CustomJS,
    Div,
    InlineStyleSheet,
    Row,
    Select,
)
from bokeh.palettes import Cividis256

from sims.engine.style import GROUP_LOOKS
from sims.explore import figures, script
from sims.explore.config import AXES, DIALS, MASKINGS, Config, shown
from sims.explore.model import DEPENDS, MOST
from sims.latent.plots import STYLE

TITLE = "MMCL under distribution shift: the theory with sliders"
_BORDERS = {"solid": "solid", "dotted": "dotted", "dashdot": "double", "dashed": "dashed"}  # of CSS, in the table
_TRAINING = (STYLE["mmcl"].colour, "solid", "linear loss at the time", "X6; n = ∞, ordinary weight")
_REASONS = {
    "mmcl": "Linear loss: no prediction. Its rule is 0, or at this n it varies too much for the limit of X2.",
    "supervised": "SL: no prediction. Samples of this size are almost surely not linearly separable (X1).",
    "noiseless": "SL: no prediction. X1 needs image noise, sigma_image &gt; 0.",
    "training": "Training time: no prediction. X6 needs same_class_weight = 0.5 and a rule that is not 0.",
    "plane": "Phase diagram: choose two different parameters.",
}
_VALUES = {
    "shifted": ("accuracy on P*", 0.0, 1.0, Cividis256),
    "conflicting": ("accuracy of the conflicting group", 0.0, 1.0, Cividis256),
    "gap": ("aligned minus conflicting accuracy", -1.0, 1.0, figures.BLUE_ORANGE),
    "beside": ("accuracy on P*, minus that of SL", -0.5, 0.5, figures.BLUE_ORANGE[::-1]),
}
_SECTIONS = {
    "data": ("p_spu", "sigma_core", "sigma_spu", "mu_core", "mu_spu"),
    "captions": ("pi_core", "pi_spu"),
    "sample": ("n", "sigma_image", "sigma_text", "dim_image", "dim_text"),
    "learners": ("same_class_weight", "kappa", "theta", "time"),
}
_TURN = 3.1416  # added to directions before they are stored
NONE = 65535  # stored where there is no number
TEMPLATE = """{% block preamble %}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.45 system-ui, sans-serif; color: #222; background: #fff; height: auto }
h1 { font-size: 1.3em; margin: .4em 0 } h2 { font-size: 1.05em; margin: .8em 0 .2em } p { margin: .3em 0 }
main { max-width: 1500px; margin: 0 auto; padding: 0 12px; display: grid; gap: 0 24px; grid-template-columns: 1fr }
section, .panel { min-width: 0 } .panels { display: grid; gap: 0 24px; grid-template-columns: 1fr }
.more { font-size: .87em; color: #444 }
section.controls > h2:first-child { margin-top: .3em }
@media (min-width: 900px) {
  main { grid-template-columns: 312px 1fr } header, footer { grid-column: 1 / 3 }
  section.controls { position: sticky; top: 0; max-height: 100vh; overflow: hidden auto; align-self: start;
    padding: 0 12px 12px 8px }
  .panels { grid-template-columns: 1fr 1fr }
}
</style>
{% endblock %}
{% block contents %}{% from macros import embed %}
<main>
<header><h1>{{ title }}</h1>
<p class="more">{{ about }}</p></header>
<section class="controls" aria-label="Parameters">
{% for name, heading in headings.items() %}<h2>{{ heading }}</h2>{{ embed(roots[name]) }}{% endfor %}
</section>
<section aria-label="Predictions">
<h2>Accuracies here</h2><div aria-live="polite">{{ embed(roots.table) }}</div>
<div class="panels">
{% for name, heading, text in panels %}
<div class="panel"><h2>{{ heading }}</h2><p class="more">{{ text }}</p>
{% if name == "plane" %}{{ embed(roots.choices) }}{% endif %}{{ embed(roots[name]) }}</div>
{% endfor %}
</div></section>
<footer><p class="more">{{ more }}</p></footer>
</main>
{% endblock %}
"""
_HEADINGS = {"data": "Data", "captions": "Captions", "learners": "Learner and loss", "sample": "Sample and noise"}
_PANELS = (
    ("curve", "Accuracy against p_spu", "The chosen learner in its colour, SL beside it; the points mark this p_spu."),
    (
        "latent",
        "Latent codes and rules",
        "One and two standard deviations of each group, with its share of training: orange aligned, blue conflicting. "
        "Arrows are the rules of all learners, in the colours of the table; the thick one is the chosen learner's.",
    ),
    ("plane", "Phase diagram", "Of the chosen learner; the cross marks this point, grey has no prediction."),
    ("time", "Accuracy along training", "Linear loss, from small aligned encoders (X6); the points mark this time."),
)
_ABOUT = (
    "Linear zero-shot rules in the intra-class model: classes ±1, a core and a spurious feature. Sliders take the "
    "arrow keys. Accuracies are shares of correct answers; P* is the shifted distribution, P that of training. MMCL is "
    "multimodal contrastive learning, SL supervised learning."
)
_LIVE = "Computed here, by the library, at each move of a slider. Numbers are rounded to 4 digits."
_STORED = (
    "The accuracies of both groups were computed by the library, at the values that the sliders have, and rounded to 4 "
    "digits. P* and P follow from them, to .0001. Nothing is interpolated. Fixed in this file: {}."
)
_SLIDER = """
.bk-slider-title { font-size: 13.5px; white-space: normal }
.noUi-handle:focus { outline: 3px solid #D55E00; outline-offset: 1px }
"""
_TABLE = """
table { border-collapse: collapse; font: 14px/1.4 system-ui, sans-serif; color: #222; width: 100% }
th, td { padding: .2em .35em; text-align: right; border-bottom: 1px solid #ccc; font-variant-numeric: tabular-nums }
th:first-child { text-align: left; font-weight: normal } p { font: 14px/1.4 system-ui, sans-serif; margin: .4em 0 }
.scope { color: #555; font-size: 12px } .note { color: #a30000 } #state { color: #444; font-size: 13px }
@media (max-width: 600px) {
  tr { display: grid; grid-template-columns: repeat(4, 1fr) }
  tr > th:first-child { grid-column: 1 / -1; border: 0 }
}
"""


@dataclasses.dataclass
class Page:
    """A document's roots, and what the server listens to and fills.

    sliders, selects: the widgets, by name; a file lacks the sliders of what is fixed in it.
    fixed: what that is, in words; "" for a live page.
    """

    sliders: dict[str, CategoricalSlider]
    selects: dict[str, Select]
    numbers: ColumnDataSource
    roots: list[Any]
    ready: list[CustomJS]
    fixed: str

    @property
    def asked(self) -> list[CategoricalSlider | Select]:
        """The widgets on which the numbers depend."""
        return [*self.sliders.values(), *(self.selects[name] for name in ("masking", "x", "y"))]

    def key(self) -> str:
        """Their values, as the browser writes them."""
        return " ".join(widget.value for widget in self.asked)

    def add_to(self, doc: Document) -> None:
        """Fill a document."""
        with doc.models.freeze():
            for root in self.roots:
                doc.add_root(root)
        doc.title = TITLE
        doc.template = TEMPLATE
        doc.template_variables.update(variables(self.fixed))
        doc.js_on_event(DocumentReady, *self.ready)


def variables(fixed: str) -> dict[str, Any]:
    """What the template needs beside the document."""
    more = _STORED.format(fixed) if fixed else _LIVE
    return {"about": _ABOUT, "more": more, "headings": _HEADINGS, "panels": _PANELS}


def build(config: Config, tables: Mapping[str, np.ndarray] | None = None) -> Page:
    """A page at the config's start. tables: of `model.tables`, for a file; None for a live page."""
    live = tables is None
    values = {name: dial.values for name, dial in DIALS.items()} if live else config.grid
    dials = {name: list(values.get(name, (config.at[name],))) for name in DIALS}
    ticks = {name: [shown(value) for value in dials[name]] for name in DIALS}
    sliders = {name: _slider(name, ticks[name], shown(config.at[name])) for name in values}
    selects = _selects(config, [name for name in AXES if name in values], live)
    numbers = ColumnDataSource(data={"key": [""], "point": [[]], "curve": [[]], "plane": [[]], "time": [[]]})
    table = Div(name="table", sizing_mode="stretch_width", stylesheets=[InlineStyleSheet(css=_TABLE)])
    drawn = {"curve": figures.curve(), "latent": figures.latent(), "plane": figures.plane(), "time": figures.time()}
    stored = None if tables is None else {name: _stored(name, array, values) for name, array in tables.items()}
    fixed = [f"{name} = {ticks[name][0]}" for name in DIALS if name not in values]
    args = {"sliders": sliders, "selects": selects, "dials": dials, "ticks": ticks, "most": MOST, **_written()}
    args |= {"numbers": numbers, "tables": stored, "table": table, **_drawings(drawn)}
    page = Page(sliders, selects, numbers, [], [], "" if live else ", ".join([*fixed, f"masking = {config.masking}"]))
    draw = CustomJS(args={**args, "asked": page.asked}, code=script.DRAW)
    for widget in (*sliders.values(), *selects.values()):
        widget.js_on_change("value", draw)
    numbers.js_on_change("data", draw)
    drawn["latent"].figure.js_on_change("inner_width", draw)
    page.ready = [draw, CustomJS(args={"sliders": sliders}, code=script.NAME_HANDLES)]
    page.roots = [*_controls(sliders, selects), table, *(f.figure for f in drawn.values())]
    for model in draw.references() - set(page.asked):
        model.syncable = False  # what the script changes, the server need not hear of
    return page


def _written() -> dict[str, Any]:
    """What the script writes, and its colours."""
    return {
        "titles": {name: dial.title.partition(";")[0] for name, dial in DIALS.items()},
        "learners": {name: _look(*look) for name, look in figures.LOOKS.items()},
        "training": _look(*_TRAINING),
        "groups": {name: look[0] for name, look in GROUP_LOOKS.items()},
        "values": {name: {"low": low, "high": high, "palette": list(p)} for name, (_, low, high, p) in _VALUES.items()},
        "reasons": _REASONS,
    }


def _drawings(drawn: Mapping[str, figures.Drawing]) -> dict[str, Any]:
    """What the script changes of the figures."""
    return {
        "figures": {name: drawing.figure for name, drawing in drawn.items()},
        "sources": {name: source for drawing in drawn.values() for name, source in drawing.sources.items()},
        "coloured": drawn["curve"].coloured,
        "mapper": drawn["plane"].mapper,
        "axes": {"x": drawn["plane"].figure.xaxis[0], "y": drawn["plane"].figure.yaxis[0]},
    }


def _controls(sliders: Mapping[str, CategoricalSlider], selects: Mapping[str, Select]) -> list[Column]:
    """The columns of widgets, by the names that the template has for them."""
    columns = {name: [sliders[dial] for dial in section if dial in sliders] for name, section in _SECTIONS.items()}
    columns["captions"].append(selects["masking"])
    columns["learners"].insert(0, selects["learner"])
    columns["choices"] = [selects["value"], Row(selects["x"], selects["y"], sizing_mode="stretch_width")]
    return [Column(*widgets, name=name, sizing_mode="stretch_width") for name, widgets in columns.items()]


def _slider(name: str, ticks: list[str], start: str) -> CategoricalSlider:
    return CategoricalSlider(
        name=name,
        title=DIALS[name].title,
        categories=ticks,
        value=start,
        tooltips=False,
        bar_color="#0072B2",
        sizing_mode="stretch_width",
        stylesheets=[InlineStyleSheet(css=_SLIDER)],
    )


def _selects(config: Config, axes: list[str], live: bool) -> dict[str, Select]:
    options: dict[str, tuple[str, list[Any], str]] = {
        "masking": ("masking: of unmentioned details", list(MASKINGS) if live else [config.masking], config.masking),
        "learner": ("learner", [(name, look[2]) for name, look in figures.LOOKS.items()], "mmcl"),
        "value": ("value", [(name, look[0]) for name, look in _VALUES.items()], "beside"),
        "x": ("horizontal", axes, "p_spu"),
        "y": ("vertical", axes, "mu_spu"),
    }
    return {
        name: Select(name=name, title=title, options=given, value=start, sizing_mode="stretch_width")
        for name, (title, given, start) in options.items()
    }


def _look(colour: str, dash: str, label: str, scope: str) -> dict[str, str]:
    return {"colour": colour, "dash": dash, "border": _BORDERS[dash], "label": label, "scope": scope}


def _stored(name: str, array: np.ndarray, values: Mapping[str, Any]) -> dict[str, Any]:
    """A table as whole numbers, of 1e-4 each; directions start at -pi."""
    shift = np.array([0, 0, _TURN])[: array.shape[-1]]
    codes = np.where(np.isnan(array), NONE, np.round((np.nan_to_num(array) + shift) * 1e4)).astype(np.uint16)
    dials = [dial for dial in values if dial in DEPENDS[name]]
    return {"dials": dials, "width": array.shape[-1], "turn": _TURN, "codes": codes.ravel()}
