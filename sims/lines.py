"""Compare arms at matched ID accuracy, by the lines of OOD over ID accuracy through any table of points.

    python -m sims.lines --points=paper:3c --at=20 --transform=plain      # the paper's own points, of figure 3c
    python -m sims.lines --points=runs.csv --id=val --ood=sketch,r,a --arm=loss --seed_column=seed --overlay=paper:3a

A row of the table is a run. Its OOD accuracy is the mean of the columns --ood; a group's accuracy or a gap may stand
there too, a gap with --transform=plain. Each arm is read at --at in two ways. `line` is the least-squares line on the
axes of --transform. `curve` is straight between neighbouring points, and has no value beyond them. Intervals are of
95%, by a bootstrap over seeds, or over points where there are no seeds. With --images, the numbers of test images of
--id and of each set of --ood, they cover those images too, and accuracies of 0 and 1 count as half an image from there.
The paper's figures with such points are 3a, 3b, 3c, 6 and 7; paper:3a,3b:coco joins two of them for one data set.
Writes lines.csv and the figure lines.png.
"""

import csv
import itertools
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from absl import flags

from sims.engine.flags import UsageError, check_choice, count, define, names, numbers, optional, path, run_main

TRANSFORMS = ("probit", "logit", "plain")
_SCALES = {"share": 1.0, "percent": 100.0}
_PAPER = "paper:"
_PAPER_FILE = pathlib.Path(__file__).parent / "paper_figures.csv"
_TICKS = (0.1, 0.5, 1, 2, 3, 5, 7, *range(10, 100, 5), 97, 98, 99, 99.5, 99.9)  # percent


_VALUES = ("at", "first_ood", "second_ood", "difference", "low", "high")
COLUMNS = ("panel", "first", "second", "reading", *_VALUES, "extrapolated", "covers")


class Point(NamedTuple):
    """A run: accuracies as shares.

    panel: its data set; "" where there is one.  where: its place in the table.
    id_images, ood_sets: where they are known, the number of ID images, and accuracy and images of each OOD set.
    """

    panel: str
    arm: str
    acc_id: float
    acc_ood: float
    seed: str | None
    where: str
    id_images: int | None = None
    ood_sets: tuple[tuple[float, float], ...] = ()


Arms = dict[str, dict[str, list[Point]]]  # by panel and arm, in the order of the table


def paper_points(spec: str, flag: str) -> list[Point]:
    """The paper's points that `paper:FIGURE[,FIGURE][:DATASET]` names. Raises: UsageError if there are none."""
    with _PAPER_FILE.open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(x for x in file if not x.startswith("#")) if r["x_name"] == "id"]
    figures, _, dataset = spec.removeprefix(_PAPER).partition(":")
    known = sorted({row["figure"] for row in rows})
    for figure in figures.split(","):
        check_choice(flag, figure, known, ", after paper:")
    rows = [row for row in rows if row["figure"] in figures.split(",")]
    if dataset:
        check_choice(flag, dataset, sorted({row["dataset"] for row in rows}), ", as a data set of these figures")
    return [
        Point(row["dataset"], row["arm"], float(row["x"]) / 100, float(row["y"]) / 100, None, f"figure {row['figure']}")
        for row in rows
        if dataset in ("", row["dataset"])
    ]


def table_points(
    file: pathlib.Path,
    acc_id: str,
    acc_ood: Sequence[str],
    arm: Sequence[str],
    seed: str | None,
    unit: float,
    images: Sequence[int] | None = None,
) -> list[Point]:
    """The points of a CSV table, from these columns; accuracies are in 1/unit.

    arm: one column or more; rows that differ in any are of different arms.
    images: of the ID set and of each OOD set, where they are known.
    Raises: UsageError for a bad table.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            columns, rows = list(reader.fieldnames or ()), [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--points={file} cannot be read ({reason}); give a CSV table, or paper:3a.") from None
    for flag, name in (
        ("id", acc_id),
        *(("ood", x) for x in acc_ood),
        *(("arm", x) for x in arm),
        ("seed_column", seed),
    ):
        if name is not None and name not in columns:
            raise UsageError(f"--{flag} must be a column of {file}, got {name!r}; it has {', '.join(columns)}.")
    points = []
    for line, row in rows:
        where = f"{file}, line {line}"
        if None in row or None in row.values():
            raise UsageError(f"{where}: must have {len(columns)} cells, as the first line has.")
        own, *shifted = (_number(row, name, where) / unit for name in (acc_id, *acc_ood))
        name = ", ".join([str(row[arm[0]]), *(f"{x} {row[x]}" for x in arm[1:])])
        known: dict[str, Any] = {}
        if images is not None:
            own, *shifted = (_inside(a, n, where) for a, n in zip((own, *shifted), images, strict=True))
            known = {"id_images": images[0], "ood_sets": tuple(zip(shifted, images[1:], strict=True))}
        mean = math.fsum(shifted) / len(shifted)
        points.append(Point("", name, own, mean, None if seed is None else str(row[seed]), where, **known))
    return points


def _inside(accuracy: float, images: int, where: str) -> float:
    from sims.engine import lines

    try:
        return float(lines.inside(accuracy * images, images))
    except ValueError:
        raise UsageError(f"{where}: with --images, accuracies must be in [0, 1]; see --scale.") from None


def _number(row: dict[str, Any], column: str, where: str) -> float:
    try:
        value = float(row[column])
    except (ValueError, TypeError):
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: {column} must be a finite number, got {row[column]!r}.")
    return value


def grouped(points: Sequence[Point], transform: str, unit: float, flag: str) -> Arms:
    """The points by panel and arm.

    Raises: UsageError for an accuracy out of range, no points, or an arm whose points have one ID accuracy.
    """
    by_panel: Arms = {}
    for point in points:
        for name, value, least in (("ID", point.acc_id, 0), ("OOD", point.acc_ood, -1 if transform == "plain" else 0)):
            if not least <= value <= 1:
                allowed = f"in [{least * unit:g}, {unit:g}]"
                raise UsageError(f"{point.where}: {name} must be {allowed}, got {value * unit:g}; see --scale.")
            if transform != "plain" and value in (0, 1):
                infinite = f"{name} is {value * unit:g}, where {transform} is infinite"
                raise UsageError(f"{point.where}: {infinite}; --transform=plain takes it.")
        by_panel.setdefault(point.panel, {}).setdefault(point.arm, []).append(point)
    if not by_panel:
        raise UsageError(f"{flag} has no points.")
    for panel, arms in by_panel.items():
        for arm, mine in arms.items():
            if len({point.acc_id for point in mine}) < 2:
                name = f"{panel} {arm}".strip()
                raise UsageError(f"{flag}: {name} needs points of two different ID accuracies, for a line.")
    return by_panel


def with_lines(points: Iterable[Point]) -> Arms:
    """The points by panel and arm, without arms whose points have one ID accuracy: these have no line."""
    by_panel: Arms = {}
    for point in points:
        by_panel.setdefault(point.panel, {}).setdefault(point.arm, []).append(point)
    kept = {
        panel: {arm: mine for arm, mine in arms.items() if len({point.acc_id for point in mine}) > 1}
        for panel, arms in by_panel.items()
    }
    return {panel: arms for panel, arms in kept.items() if arms}


def family(points: Sequence[Point], rng: Any = None) -> Any:
    """The points of an arm as a `lines.Family`. rng: redraws the test images, where their numbers are known."""
    import numpy as np

    from sims.engine import lines

    seeds = None if points[0].seed is None else [point.seed for point in points]
    both = [point.acc_id for point in points], [point.acc_ood for point in points]
    if rng is None or points[0].id_images is None:
        return lines.family(*both, seeds)
    images = np.array([point.id_images for point in points])
    accuracy, sizes = np.moveaxis(np.array([point.ood_sets for point in points]), -1, 0)  # (point, set)
    items = lines.redraws((images * both[0], images), (sizes * accuracy, sizes), rng)
    return lines.family(both[0], accuracy, seeds, **items)


def compare(arms: Arms, at: Sequence[float] | None, transform: str, unit: float = 1.0) -> list[dict[str, Any]]:
    """A row for each pair of arms of a panel, reading and ID accuracy; accuracies are in 1/unit.

    at: shares; None: the middle of the ID accuracies that both arms reach.
    """
    import numpy as np

    from sims.engine import lines

    rows = []
    for panel, inside in arms.items():
        for first, second in itertools.combinations(inside, 2):
            rng = np.random.default_rng(0)
            both = family(inside[first], rng), family(inside[second], rng)
            where = [lines.middle(*both)] if at is None else at
            for reading in lines.READINGS:
                rng = np.random.default_rng(0)
                match = lines.matched(*both, where, rng, transform=transform, reading=reading)
                table = match.to_dataframe().rename(columns={"first": "first_ood", "second": "second_ood"})
                table[list(_VALUES)] *= unit
                common = {"panel": panel, "first": first, "second": second, "reading": reading}
                rows += [common | row for row in table.to_dict("records")]
    return rows


def text(arms: Arms, rows: Sequence[dict[str, Any]], transform: str, unit: float) -> str:
    """The arms with their lines, and the differences at matched ID."""
    from sims.engine import lines

    shown, digits = [], 3 if unit == 1 else 1
    for panel, inside in arms.items():
        for arm, points in inside.items():
            mine = family(points)
            line = lines.fit_line(mine.acc_id, mine.acc_ood, transform)
            seeds = f" of {mine.unit.max() + 1} seeds" if mine.seeds else ""
            ends = (f"{unit * x:.{digits}f}" for x in (mine.acc_id.min(), mine.acc_id.max()))
            shown.append(
                f"{panel} {arm}: {len(points)} points{seeds}, ID {' to '.join(ends)}; {transform} line of slope"
                f" {line.slope:.3f}, intercept {line.intercept:.3f}".strip()
            )
    shown += [""] * bool(rows)
    for row in rows:
        at, first, second = (f"{row[x]:.{digits}f}" for x in ("at", "first_ood", "second_ood"))
        change, low, high = (f"{row[x]:+.{digits}f}" for x in ("difference", "low", "high"))
        interval = f"[{low}, {high}] over {row['covers']}" if row["covers"] else "(no interval)"
        result = f"{first} - {second} = {change} {interval}" if math.isfinite(row["difference"]) else "not reached"
        mark = ", extrapolated" if row["extrapolated"] and math.isfinite(row["difference"]) else ""
        pair = f"{row['panel']} {row['first']} - {row['second']}".strip()
        shown.append(f"{pair}, at ID {at}, {row['reading']}: {result}{mark}")
    return "\n".join(shown)


def matched_text(arms: Arms, transform: str) -> str:
    """The lines of each panel, and the differences of arms at the middle of the ID accuracies that two have in common.

    Pairs without any are named, and not compared: their lines would be extrapolated.
    """
    parts = []
    for panel, inside in arms.items():
        alone = {"": inside}
        rows = compare(alone, None, transform)
        within = [row for row in rows if not row["extrapolated"]]
        parts.append(f"Against ID accuracy: {panel}\n{text(alone, within, transform, 1.0)}")
        pairs_of_all, compared = ({(row["first"], row["second"]) for row in some} for some in (rows, within))
        if apart := sorted(pairs_of_all - compared):
            pairs = "; ".join(" and ".join(pair) for pair in apart)
            parts[-1] += f"\nNo ID accuracy in common, so that nothing is compared: {pairs}"
    return "\n\n".join(parts)


def draw(arms: Arms, at: Sequence[float] | None, transform: str, unit: float, overlay: Sequence[Point] = ()) -> Any:
    """A panel for each data set: points, lines with 95% bands, thin curves, and the overlay's points under them."""
    from sims.engine import style  # noqa: F401  sets the backend, before pyplot is imported

    import matplotlib.pyplot as plt  # isort: skip

    named = max(len(inside) for inside in arms.values()) + len({(p.panel, p.arm) for p in overlay}) + 2
    size = (5.4 * len(arms), 4.8 + 0.2 * -(-named // (2 * len(arms))))
    figure, axes = plt.subplots(1, len(arms), figsize=size, layout="constrained", squeeze=False)
    for ax, (panel, inside) in zip(axes.flat, arms.items(), strict=True):
        below = [point for point in overlay if point.panel == panel] or overlay
        _panel(ax, inside, at, transform, unit, below)
        ax.set(title=panel, xlabel=f"ID accuracy ({_unit_name(unit)}, {transform} axis)")
    labels = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=2 * len(arms), fontsize=8, frameon=False
    )
    axes[0, 0].set_ylabel(f"OOD accuracy ({_unit_name(unit)}, {transform} axis)")
    return figure


def _unit_name(unit: float) -> str:
    return "share" if unit == 1 else "%"


def _panel(
    ax: Any, arms: dict[str, list[Point]], at: Sequence[float] | None, transform: str, unit: float,
    overlay: Sequence[Point],
) -> None:  # fmt: skip
    import numpy as np

    from sims.engine import lines, style

    forward = lines.TRANSFORMS[transform][0]
    below = {f"paper: {p.panel} {p.arm}": [q for q in overlay if (q.panel, q.arm) == (p.panel, p.arm)] for p in overlay}
    for (name, points), (_, marker) in zip(below.items(), itertools.cycle(style.LOOKS)):
        drawn = forward([[p.acc_id for p in points], [p.acc_ood for p in points]])
        ax.plot(*drawn, marker, color="0.65", mfc="none", ms=5, label=name, zorder=1)
    for (arm, points), (colour, marker) in zip(arms.items(), itertools.cycle(style.LOOKS)):
        mine = family(points, np.random.default_rng(0))
        ends = np.array([mine.acc_id.min(), mine.acc_id.max()])
        ax.plot(forward(mine.acc_id), forward(mine.acc_ood), marker, color=colour, ms=5, label=arm, zorder=3)
        for seed in dict.fromkeys(point.seed for point in points):  # the curves
            x, y = zip(*sorted((p.acc_id, p.acc_ood) for p in points if p.seed == seed), strict=True)
            ax.plot(forward(x), forward(y), color=colour, lw=0.6, alpha=0.6, zorder=2)
        line = lines.fit_line(mine.acc_id, mine.acc_ood, transform)
        ax.plot(forward(ends), forward(line.at(ends)), color=colour, lw=1.3, zorder=2)
        for end, far in ((ends[0], min(at)), (ends[1], max(at))) if at else ():
            if not ends[0] <= far <= ends[1]:
                beyond = np.array([end, far])
                ax.plot(forward(beyond), forward(line.at(beyond)), "--", color=colour, lw=1, zorder=2)
        grid = np.linspace(*ends, 60)
        band = lines.read(mine, grid, np.random.default_rng(0), transform=transform)
        low, high = (forward(_within(x, transform)) for x in (band.low, band.high))
        ax.fill_between(forward(grid), low, high, color=colour, alpha=0.12, lw=0, zorder=1)
    ax.fill([], [], color="0.6", alpha=0.3, lw=0, label="95% bands of the lines")
    limits = _limits(arms, overlay, at, forward)
    ax.plot(limits[0], limits[0], ":", color="0.6", lw=1, label="OOD = ID", zorder=0)
    for x in at or ():
        ax.axvline(forward(x), color="0.6", lw=0.8, ls=(0, (1, 3)), zorder=0)
    ax.set(xlim=limits[0], ylim=limits[1])
    for axis, ends in zip((ax.xaxis, ax.yaxis), limits, strict=True):
        if transform == "plain":
            axis.set_major_formatter(lambda value, _: f"{value * unit:g}")
            continue
        ticks = [t / 100 for t in _TICKS if ends[0] <= forward(t / 100) <= ends[1]]
        ticks = ticks[:: 1 + len(ticks) // 10]
        axis.set_ticks(forward(ticks), [f"{t * unit:g}" for t in ticks])
    ax.grid(alpha=0.2)


def _within(values: Any, transform: str) -> Any:
    import numpy as np

    return values if transform == "plain" else np.clip(values, 1e-4, 1 - 1e-4)


def _limits(arms: dict[str, list[Point]], overlay: Sequence[Point], at: Any, forward: Any) -> list[Any]:
    """Limits of both axes: all points, and `at`, with a margin."""
    import numpy as np

    points = [*itertools.chain(*arms.values()), *overlay]
    limits = []
    for values in ([*(p.acc_id for p in points), *(at or ())], [p.acc_ood for p in points]):
        drawn = forward(np.array(values))
        margin = 0.06 * max(np.ptp(drawn), 1e-3)
        limits.append((drawn.min() - margin, drawn.max() + margin))
    return limits


def _images(text: str) -> tuple[int, ...]:
    """`5000,10000` as (5000, 10000)."""
    return tuple(count(part, 1, 10**9) for part in text.split(","))


def _define_flags() -> None:
    define("points", None, "a CSV table, or paper:FIGURE for the paper's own points; needed", optional(path))
    define("id", "id", "column of ID accuracies", str)
    define("ood", "ood", "columns of OOD accuracies, joined by commas; their mean is taken", names)
    define(
        "images", None, "test images of --id and of each of --ood, joined by commas; none: not known", optional(_images)
    )
    define("arm", "arm", "columns that name the arm, joined by commas: --arm=arm,attribute,detail", names)
    define("seed_column", None, "column that names the seed; none: each row is a run of its own", optional(str))
    define(
        "at", None, "ID accuracies, on the table's scale; none: the middle of what two arms reach", optional(numbers)
    )
    define("scale", None, "of the table: share or percent; none: share, and percent for the paper's", optional(str))
    define("transform", "probit", f"of both axes: {', '.join(TRANSFORMS)}", str)
    define("overlay", None, "paper:FIGURE, whose points are drawn under the figure", optional(str))
    define("out", "runs/lines", "folder for the table and the figure", path)


def _main() -> None:
    values = flags.FLAGS
    check_choice("transform", values.transform, TRANSFORMS)
    if values.points is None:
        raise UsageError("--points=FILE.csv is needed, or --points=paper:3a.")
    own = values.points.startswith(_PAPER)
    scale = values.scale or ("percent" if own else "share")
    check_choice("scale", scale, tuple(_SCALES))
    unit = _SCALES[scale]
    at = None if values.at is None else [x / unit for x in values.at]
    for x in at or ():
        if not (0 <= x <= 1 if values.transform == "plain" else 0 < x < 1):
            raise UsageError(f"--at must be between 0 and {unit:g}, got {x * unit:g}; see --scale.")
    if values.overlay is not None and not values.overlay.startswith(_PAPER):
        raise UsageError(f"--overlay must be paper:FIGURE, such as paper:3a, got {values.overlay!r}.")
    overlay = [] if values.overlay is None else paper_points(values.overlay, "overlay")
    if values.images is not None and (own or len(values.images) != 1 + len(values.ood)):
        needed = (
            "be left out for the paper's points"
            if own
            else f"have a number for --id and for each of --ood, {1 + len(values.ood)}"
        )
        raise UsageError(f"--images must {needed}, got {len(values.images)}.")
    if own:
        points = paper_points(values.points, "points")
    else:
        file = pathlib.Path(values.points)
        points = table_points(file, values.id, values.ood, values.arm, values.seed_column, unit, values.images)
    arms = grouped(points, values.transform, unit, f"--points={values.points}")
    out = pathlib.Path(values.out)

    from sims.engine import files, runs, store

    files.check_folder(out, f"--out={out}")
    rows = compare(arms, at, values.transform, unit)
    figure = draw(arms, at, values.transform, unit, overlay)
    out.mkdir(parents=True, exist_ok=True)
    store.write_csv(out / "lines.csv", {name: [row[name] for row in rows] for name in COLUMNS})
    runs.save_figure(figure, out, "lines", 150)
    print(f"{text(arms, rows, values.transform, unit)}\n\nTable and figure: {out}/lines.csv, {out}/lines.png")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
