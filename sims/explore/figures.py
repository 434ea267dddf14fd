"""The four figures. Here they are made; `script` fills them."""

import dataclasses
from typing import Any

from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColumnDataSource,
    CustomJSTickFormatter,
    Legend,
    LegendItem,
    LinearColorMapper,
    Range1d,
)
from bokeh.palettes import PuOr11, interp_palette
from bokeh.plotting import figure

from sims.explore.config import DIALS
from sims.latent.plots import STYLE

LOOKS = {  # colour, dashes, name, where it holds
    "mmcl": (STYLE["mmcl"].colour, "solid", "linear loss", "X2, X3; n samples"),
    "whitened": ("#666666", "dotted", "whitened", "X5; n = ∞"),
    "ridge": (STYLE["info_nce"].colour, "dashdot", "InfoNCE, ridge", "X11, second order; n = ∞"),
    "supervised": (STYLE["supervised"].colour, "dashed", "SL, max-margin", "X1; n samples"),
}
# Orange is the colour of the aligned group, and near that of SL: it marks where they are ahead.
BLUE_ORANGE = interp_palette(PuOr11, 256)
_HEIGHT = 340
_PARTS = {"shifted": ("P*", "circle"), "aligned": ("aligned", "triangle"), "conflicting": ("conflicting", "square")}
_DASHES = {"shifted": "solid", "aligned": "dashed", "conflicting": "dotted"}


@dataclasses.dataclass
class Drawing:
    """A figure, the sources that the script fills by name, and what else it changes."""

    figure: figure
    sources: dict[str, ColumnDataSource]
    coloured: list[Any] = dataclasses.field(default_factory=list)  # lines in the chosen learner's colour
    mapper: LinearColorMapper | None = None


def _figure(name: str, x_label: str, y_label: str, **more: Any) -> figure:
    plot = figure(
        name=name,
        height=_HEIGHT,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_axis_label=x_label,
        y_axis_label=y_label,
        **more,
    )
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "13px"
    return plot


def _source(name: str, *columns: str) -> ColumnDataSource:
    return ColumnDataSource(name=f"{name} source", data={column: [] for column in columns})


def _legend(plot: figure, items: list[LegendItem], columns: int) -> None:
    style = {
        "location": "center",
        "border_line_color": None,
        "label_text_font_size": "12px",
        "padding": 2,
        "spacing": 2,
        "margin": 2,
    }
    plot.add_layout(Legend(items=items, ncols=columns, glyph_width=30, **style), "below")


def curve() -> Drawing:
    """P* thick, the groups thin; the chosen learner beside SL."""
    plot = _figure(
        "curve", "p_spu (probability)", "accuracy (share correct)", x_range=(0.49, 1.01), y_range=(-0.03, 1.03)
    )
    curve = _source("curve", "p", *(f"{who}_{part}" for who in ("chosen", "sl") for part in _PARTS))
    now = _source("now", "p", "colour", *_PARTS)
    lines = {}
    for who, colour in (("sl", LOOKS["supervised"][0]), ("chosen", "black")):
        for part, dash in _DASHES.items():
            width = 3 if part == "shifted" else 1.8
            look = {"line_width": width, "line_dash": dash, "line_color": colour}
            lines[who, part] = plot.line("p", f"{who}_{part}", source=curve, **look)
    for part, (_, marker) in _PARTS.items():
        plot.scatter("p", part, source=now, marker=marker, size=10, color="colour", line_color="white")
    items = [
        LegendItem(label=f"{'SL' if who == 'sl' else 'chosen'}: {_PARTS[part][0]}", renderers=[lines[who, part]])
        for part in _PARTS
        for who in ("chosen", "sl")
    ]
    _legend(plot, items, 2)
    return Drawing(plot, {"curve": curve, "now": now}, [lines["chosen", part] for part in _PARTS])


def latent() -> Drawing:
    """The four groups as ellipses, the rules as arrows."""
    plot = _figure("latent", "core feature (latent units)", "spurious feature (latent units)")
    plot.x_range = Range1d(-3, 3)
    plot.y_range = Range1d(-3, 3)
    clouds = _source("clouds", "x", "y", "width", "height", "colour", "alpha")
    names = _source("names", "x", "y", "text", "align")
    rules = _source("rules", "x0", "y0", "x1", "y1", "colour", "width", "dash", "turn")
    plot.ellipse("x", "y", "width", "height", source=clouds, color="colour", fill_alpha="alpha", line_width=1.5)
    plot.scatter("x", "y", source=names, size=5, color="#222222")
    halo = {"background_fill_color": "white", "background_fill_alpha": 0.75}
    plot.text("x", "y", "text", source=names, text_font_size="12px", text_align="align", y_offset=-6, **halo)
    segment = {"line_color": "colour", "line_width": "width", "line_dash": "dash"}
    plot.segment("x0", "y0", "x1", "y1", source=rules, **segment)
    plot.scatter("x1", "y1", source=rules, marker="triangle", size=14, angle="turn", color="colour", line_color="white")
    return Drawing(plot, {"clouds": clouds, "names": names, "rules": rules})


def plane() -> Drawing:
    """The axes count the values of the dials; their labels name them."""
    plot = _figure("plane", "", "")
    plot.x_range = Range1d(0, 1)
    plot.y_range = Range1d(0, 1)
    plane = _source("plane", "x", "y", "value")
    here = _source("here", "x", "y")
    mapper = LinearColorMapper(palette=BLUE_ORANGE, low=-1, high=1, nan_color="#d4d4d4")
    colour = {"field": "value", "transform": mapper}
    plot.rect("x", "y", 1, 1, source=plane, fill_color=colour, line_color=colour)
    look = {"source": here, "marker": "cross", "size": 22}
    plot.scatter("x", "y", line_width=6, line_color="white", **look)
    plot.scatter("x", "y", line_width=3, line_color="black", **look)
    for side in plot.axis:
        side.ticker = BasicTicker(min_interval=1, num_minor_ticks=0, desired_num_ticks=6)
        side.formatter = CustomJSTickFormatter(args={"shown": []}, code="return shown[tick] ?? ''")
    plot.grid.visible = False
    plot.add_layout(ColorBar(color_mapper=mapper, width=12, padding=4, major_label_text_font_size="12px"), "right")
    return Drawing(plot, {"plane": plane, "here": here}, mapper=mapper)


def time() -> Drawing:
    plot = _figure(
        "time",
        "time (steps times learning rate)",
        "accuracy (share correct)",
        x_axis_type="log",
        x_range=(DIALS["time"].values[0] / 1.1, DIALS["time"].values[-1] * 1.1),
        y_range=(-0.03, 1.03),
    )
    along, moment = (_source(name, "time", *_PARTS) for name in ("time", "moment"))
    items = []
    for part, (label, marker) in _PARTS.items():
        look = {
            "line_color": LOOKS["mmcl"][0],
            "line_dash": _DASHES[part],
            "line_width": 3 if part == "shifted" else 1.8,
        }
        line = plot.line("time", part, source=along, **look)
        plot.scatter("time", part, source=moment, marker=marker, size=10, color=LOOKS["mmcl"][0], line_color="white")
        items.append(LegendItem(label=label, renderers=[line]))
    _legend(plot, items, 3)
    return Drawing(plot, {"time": along, "moment": moment})
