"""The study `shares`, the paper's setting 2: arms trained on shares of the data give points of OOD over ID accuracy.

ID accuracy is that on COCO's val2017, or on the validation part of other data. OOD accuracy is the mean over six sets:
ImageNet val or its scenes, V2, Sketch, R, A and ObjectNet. Arms are read at the same ID accuracy, by `sims.lines`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sims import lines
from sims.clip.comparison import runs
from sims.clip.comparison.config import NAMES, SIX, Share, Shares
from sims.clip.comparison.runs import Row, select
from sims.clip.config import ARMS
from sims.clip.fit import prepare, trained, training
from sims.clip.fit.prepare import TOKENIZER
from sims.clip.model import models
from sims.clip.model.encoder import Encoder
from sims.clip.records import class_maps, classes, sources
from sims.clip.records.classes import Classes
from sims.clip.records.reading import sealed, unsealed
from sims.clip.scenes import generation
from sims.clip.zero_shot import evaluation, prompts, sets
from sims.clip.zero_shot.sets import EvaluationSet
from sims.engine import files, processes, store
from sims.engine.flags import UsageError, check_choice
from sims.engine.lines import inside

ID = "id"  # the set of a row on ID accuracy
TRANSFORM = "probit"  # of the lines
_PAPER = "paper:3c"  # the figure whose points are laid under
_IMAGES = 256  # encoded at once


def run(config: Shares, out: pathlib.Path, *, workers: int = 1, overwrite: bool = False) -> list[Row]:
    """Train and measure every run that is not done; returns all rows, and writes them to OUT/measured.csv.

    workers: processes that train at the same time, each on its share of the cores.
    Raises: UsageError before anything is written, if data, sets or vocabulary are missing or do not fit.
    """
    config.check()
    flat = config.flat(generation.read_config(pathlib.Path(config.root)) if config.on_scenes else None)
    store.check(out, flat, overwrite)
    source = sources.open_source(config.data, classes=prepare.class_names(config.training.classes))
    evaluation_sets, words = open_sets(config, source), _tokenizer(config, source, out, overwrite)
    _templates(config)
    evaluation.warn(evaluation_sets.shortfalls, strict=False)
    with runs.begun(out, flat, overwrite):
        if words is not None and not (out / TOKENIZER).exists():
            words.save(out / TOKENIZER)
        del source, evaluation_sets, words  # each process opens its own
        rows = runs.measured_by(_measured, [(config, each, out) for each in config.runs()], workers)
        store.write_csv(out / "measured.csv", {name: [row[name] for row in rows] for name in rows[0]})
        return rows


def _tokenizer(config: Shares, source: sources.Source, out: pathlib.Path, overwrite: bool) -> Any:
    """The tokenizer to keep in OUT, trained on the captions for all runs; None if the config names a vocabulary.

    Raises: UsageError if an arm's records are too few at some share, or architecture and vocabulary do not fit.
    """
    recipe = config.training
    check_choice("architecture", recipe.architecture, models.ARCHITECTURES)
    for arm in config.arms:
        prepare.select(config.of_run(Share(arm, config.percent[0], 0), None), source)  # larger shares have more
    whole, _ = prepare.select(config.of_run(Share(config.arms[0], 100.0, 0), None), source)
    began = out if (out / TOKENIZER).exists() and not overwrite else None
    words = prepare.tokenizer_of(recipe, source, whole, began)
    prepare.architecture(recipe, words)
    return words if recipe.vocabulary is None else None


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What runs are measured on: the ID set and the six OOD sets, each with its classes.

    shortfalls: what the six lack of the published sets, before a map drops images; None for a whole one.
    """

    id: dict[str, EvaluationSet]
    id_classes: Classes
    ood: dict[str, EvaluationSet]
    ood_classes: Classes
    shortfalls: tuple[str | None, ...]


def open_sets(config: Shares, source: sources.Source) -> Found:
    """Open all sets. Raises: UsageError if one is missing, or ID and OOD classes do not go together."""
    root, spec = pathlib.Path(config.root), f"--data={config.data}"
    if not root.is_dir():
        raise UsageError(f"--root={root} is not there; give the folder of the evaluation sets.")
    if lacking := sets.lacking(root, SIX):
        folders = ", ".join(sets.FOLDERS[name] for name in lacking)
        raise UsageError(f"--root={root} lacks {folders}; OOD accuracy is the mean over all six sets.")
    if config.validation:
        kept = prepare.validation(source.labels, config.validation)
        if not len(kept):
            raise UsageError(f"{spec} has too few labelled records to keep 3 of 10 of a class for ID; see --labels.")
        own = sets.of_records(source, kept, ID)
        id_classes = Classes(source.classes, source.classes, source.classes)
    else:
        opened, id_classes = sets.of_source(f"{config.data}:val2017")
        own = dataclasses.replace(next(iter(opened.values())), name=ID)
        if id_classes.names != source.classes:
            raise UsageError(f"{spec}: its val2017 has other categories than its train2017, in annotations/.")
    listed = classes.read_classes(root, config.classes)
    ood = sets.open_sets(root, SIX, listed)
    shortfalls = tuple(one.shortfall() for one in ood.values())
    if config.class_map is not None:
        named = config.class_map == NAMES
        by = class_maps.of_names(source.classes, spec) if named else class_maps.read_map(config.class_map)
        ood, listed = sets.mapped(ood, listed, by)
    if odd := [name for name in listed.names if name not in source.classes]:
        raise UsageError(
            f"{spec} has no class {odd[0]!r}, by which --root={root} is scored ({len(odd)} such classes); give a"
            " --class_map of the data's classes, or names."
        )
    return Found({ID: own}, id_classes, ood, listed, shortfalls)


def _measured(task: tuple[Shares, Share, pathlib.Path]) -> list[Row]:
    """A run's rows; it is trained and measured if they are missing."""
    config, each, out = task
    kept, folder = out / "measured" / f"{each.name}.json", out / "runs" / each.name
    if not kept.exists():
        vocabulary = config.training.vocabulary or str(out / TOKENIZER)
        if config.on_scenes:
            how = training.How(save_every=10**9, tensorboard=False, quiet=True)
        else:
            how = training.How(workers=processes.cores() - 1)
        result = training.run(config.of_run(each, vocabulary), folder, how)
        common = {**dataclasses.asdict(each), "records": result["records"], "steps": result["steps"]}
        measured = [common | row for row in measure(config, trained.load(folder))]
        files.write_text(kept, sealed({"rows": measured}))
    mend = f"remove {kept}, and the same command measures that run again"
    return unsealed(kept, mend)["rows"]


@functools.lru_cache(maxsize=1)
def _found(config: Shares) -> Found:
    source = sources.open_source(config.data, classes=prepare.class_names(config.training.classes))
    return open_sets(config, source)


def measure(config: Shares, encoder: Encoder) -> list[Row]:
    """Counts of right answers on the ID set and the six OOD sets."""
    opened = _found(config)
    templates, how = _templates(config), evaluation.How(batch_size=_IMAGES)
    rows = []
    for of, listed in ((opened.id, opened.id_classes), (opened.ood, opened.ood_classes)):
        for row in evaluation.evaluate(encoder.name, encoder, of, listed, templates, how=how):
            rows.append({name: row[name] for name in ("set", "images", "correct", "accuracy", "chance", "unreadable")})
    return rows


def _templates(config: Shares) -> Sequence[str]:
    if config.on_scenes and config.templates is None:
        return runs.TEMPLATES
    return prompts.read_templates(config.templates)


def points(rows: Sequence[Row], config: Shares) -> list[lines.Point]:
    """A point for each run: OOD accuracy, the mean over the six sets, against ID accuracy; see `lines.inside`."""
    drawn = []
    for each in config.runs():
        own = {row["set"]: row for row in select(rows, **dataclasses.asdict(each))}
        accuracy = {name: float(inside(row["correct"], row["images"])) for name, row in own.items()}
        shifted = tuple((accuracy[name], own[name]["images"]) for name in SIX)
        mean, seed = float(np.mean([share for share, _ in shifted])), str(each.seed) if config.seeds > 1 else None
        place = config.panel, ARMS[each.arm].label
        drawn.append(lines.Point(*place, accuracy[ID], mean, seed, each.name, own[ID]["images"], shifted))
    return drawn


@dataclasses.dataclass(frozen=True)
class Result:
    """The points of the arms that have a line, the arms that have none, and the arms' differences at matched ID."""

    arms: lines.Arms
    without: tuple[str, ...]
    rows: list[Mapping[str, Any]]


def at_matched_id(rows: Sequence[Row], config: Shares) -> Result:
    """Read the arms at the config's ID accuracies. An arm whose runs all have one ID accuracy has no line."""
    arms = lines.with_lines(points(rows, config))
    without = [label for arm in config.arms if (label := ARMS[arm].label) not in arms.get(config.panel, {})]
    at = None if config.at is None else [value / 100 for value in config.at]
    return Result(arms, tuple(without), lines.compare(arms, at, TRANSFORM, 100))


def write(result: Result, config: Shares, out: pathlib.Path) -> None:
    """Write OUT/lines.csv, and the figure OUT/shares.png with the paper's points under it, if any arm has a line."""
    from sims.engine import runs as results

    store.write_csv(out / "lines.csv", {name: [row[name] for row in result.rows] for name in lines.COLUMNS})
    if result.arms:
        at = None if config.at is None else [value / 100 for value in config.at]
        figure = lines.draw(result.arms, at, TRANSFORM, 100, lines.paper_points(_PAPER, "overlay"))
        results.save_figure(figure, out, "shares", 150)


def text(rows: Sequence[Row], result: Result, config: Shares) -> str:
    """The accuracies of each arm and share in percent, and the arms at matched ID."""
    shown = [f"{'arm':34}{'data':>6}{'pairs':>9}" + "".join(f"{name:>12}" for name in ("ID", "OOD", *SIX))]
    for arm in config.arms:
        for percent in config.percent:
            mine = list(select(rows, arm=arm, percent=percent))
            cells = [_cell(mine, names) for names in ((ID,), SIX, *((name,) for name in SIX))]
            head = f"{ARMS[arm].label:34}{percent:>5g}%{mine[0]['records']:>9}"
            shown.append(head + "".join(f"{cell:>12}" for cell in cells))
    shown += ["", lines.text(result.arms, result.rows, TRANSFORM, 100)]
    shown += [f"{arm}: no line, as all its runs have one ID accuracy." for arm in result.without]
    return "\n".join(shown)


def _cell(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The mean accuracy over these sets, with half its 95% interval where there are seeds."""
    of = [list(select(rows, set=name)) for name in names]
    accuracy, images = [[row["accuracy"] for row in one] for one in of], [one[0]["images"] for one in of]
    if len(accuracy[0]) < 2:
        return f"{100 * np.mean(accuracy):.1f}"
    mean, half = runs.mean_interval(accuracy, images)
    return f"{100 * mean:.1f}±{100 * half:.1f}"
