"""Run the studies: train arms over axes, add both theories' predictions, and write results, tables and figures."""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np
import xarray as xr
import zarr

from sims.digits import balance, captions, dial, figures, images, moments, paper, regimes, training
from sims.digits.arms import ARMS, same_class_weight
from sims.digits.config import AXES, BALANCED, PAPER, Config, parse_colours, parse_groups
from sims.digits.results import accuracy, by_headline, digit_rows, interval, lines_of, rows, scores, varying
from sims.digits.scenes import Colours
from sims.engine import runs, store, tables
from sims.engine.flags import Options, UsageError
from sims.engine.grid import Grid, Task
from sims.lines import matched_text


def run(config: Config, out: pathlib.Path, options: Options) -> dict[str, xr.Dataset]:
    """Run every study of the config into out/STUDY, with samples of its scenes; returns the datasets by study.

    A dry run returns none.
    Raises: UsageError for bad data or folders; then nothing is written.
    """
    source = images.load(config.data, parse_groups(config.groups), config.pool)
    _check_source(config, source)
    setups = {}
    for study in config.study:
        measures = training.MEASURES if options.overwrite else measures_of(out / study)
        setups[study] = dataclasses.replace(setup_of(config, study, source), measures=measures)
    grids = {study: grid_of(config, study, setups[study], source) for study in config.study}
    for study, grid in grids.items():
        _check_memory(config, grid)
        store.check(out / study, _config_of(config, study, source), options.overwrite)
    datasets = {}
    for study, grid in grids.items():
        dataset = runs.measure(
            out / study,
            _config_of(config, study, source),
            "measured",
            grid,
            lambda _, study=study: complete(config, study, setups[study], source),
            options,
        )
        if dataset is not None:
            show(dataset, out / study)
            runs.save_figure(figures.samples(setups[study], source), out / study, "samples", dpi=100)
            datasets[study] = dataset
    return datasets


def measures_of(folder: pathlib.Path) -> tuple[str, ...]:
    """What a run in this folder measures: as it began, in case its version measured less; all MEASURES in a new one.

    Raises: UsageError if its results hold what this version does not measure.
    """
    try:
        array: Any = zarr.open_array(folder / store.RESULTS / "measure", mode="r")
        measures = tuple(str(name) for name in array[:])
    except Exception:  # no results yet; damaged ones are refused where they are opened
        return training.MEASURES
    if unknown := [name for name in measures if name not in training.MEASURES]:
        raise UsageError(f"{folder} measures {unknown[0]!r}, which this version does not: use the one that began it, or"
                         " --overwrite.")  # fmt: skip
    return measures


def _config_of(config: Config, study: str, source: images.Source) -> dict[str, Any]:
    return {**config.flat(study, source.digest), "x64": bool(jax.config.jax_enable_x64)}


def setup_of(config: Config, study: str, source: images.Source) -> training.Setup:
    """What all runs of a study share."""
    same = (
        "core_accuracy", "train_size", "masking", "image_encoder", "text_encoder", "embed_dim", "init_scale",
        "normalize", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "test", "bf16",
    )  # fmt: skip
    return training.Setup(
        words=captions.lexicon(source.name),
        kinds=source.kinds,
        side=source.train.side,
        companion=study == "sharing",
        colours=parse_colours(config.colours),
        vectors=config.captions == "vectors",
        symmetric=config.pixels == "-1:1",
        stages=_stages(config),
        learns_temperature=config.learn_temperature and study not in ("temperature", BALANCED),
        **{name: getattr(config, name) for name in same},
    )


def _stages(config: Config) -> tuple[int, ...]:
    if config.epochs is None or config.train_size is None:
        return tuple(int(step) for step in config.steps)
    return tuple(int(epoch) * (config.train_size // config.batch_size) for epoch in config.epochs)


def _check_source(config: Config, source: images.Source) -> None:
    """Raise UsageError for settings that these images do not allow."""
    items, side = len(source.train.item), source.train.side
    if config.train_size is not None:
        if config.train_size > items:
            raise UsageError(f"--train_size must be none or at most {items}, the training images, got"
                             f" {config.train_size}.")  # fmt: skip
        if config.test > len(source.test.item):
            raise UsageError(f"--test must be at most {len(source.test.item)}, the test images, where --train_size is"
                             f" given, got {config.test}.")  # fmt: skip
    sides = (side, *([side + side // 2] if "sharing" in config.study else []))
    if config.image_encoder == "lenet" and any(pixels < 16 or pixels % 4 for pixels in sides):
        shown = " x ".join(str(pixels) for pixels in sides)
        raise UsageError(f"--image_encoder=lenet needs images of 16 + 4k pixels a side, got {shown}.")


def grid_of(config: Config, study: str, setup: training.Setup, source: images.Source) -> Grid:
    """The study's arms over all axes; a run gives the setup's measures after each stage."""
    shared = {"train": source.train, "test": source.test}

    def task(arm: str) -> Task:
        return training.task(arm, setup, shared)

    return Grid(
        tasks={"arm": config.arms_of(study)},
        task=task,
        axes=config.axes(study),
        outcomes={"step": setup.stages, "measure": setup.measures},
        seeds=config.seeds,
        seed=config.seed,
    )


def _check_memory(config: Config, grid: Grid) -> None:
    needed = 16 * math.prod(grid.shape)  # bytes: float64 as stored, and as completed
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UsageError(
            f"--seeds={config.seeds} and the axes make {grid.runs} runs of each arm, whose results need about"
            f" {needed / 2**30:.0f} GiB, this machine has {memory / 2**30:.0f}."
        )


def predictions(config: Config) -> str:
    """What the dial and the two-feature model predict of captions and ridge for the paper's digits, as text.

    Raises: UsageError for bad data.
    """
    kinds = parse_groups(config.groups)
    dial_lines = balance.table(kinds, config.p_spu)
    source = images.load(config.data, kinds, config.pool)
    setup = dataclasses.replace(setup_of(config, BALANCED, source), core_accuracy=1.0)
    model, obs = moments.two_features(
        setup, {"train": source.train, **{name: getattr(config, name) for name in moments.LAW}}
    )
    two = balance.table_of_two_features(model, obs)
    dial_head = "the dial, kappa = 0 to infinity; tilt: weight of the colour over that of the digit at kappa = 0"
    two_head = "the two-feature model with these images' moments, captions that name every digit"
    return f"{dial_head}:\n{tables.as_text(dial_lines)}\n\n{two_head}:\n{tables.as_text(two)}"


def complete(config: Config, study: str, setup: training.Setup, source: images.Source) -> xr.Dataset:
    """What the theories predict for every cell of the arms that read captions; NaN for the others."""
    axes = config.axes(study)
    arms = config.arms_of(study)
    shape = (len(moments.THEORIES), len(arms), *(len(axes[a]) for a in AXES), len(moments.PROMPTS), 2)
    predicted = np.full(shape, np.nan)
    measured = np.full((*(len(axes[a]) for a in moments.LAW), len(moments.MOMENTS)), np.nan)
    law: dict[str, float] = {}  # scenes of `predictor`; their axes vary slowest, so each predictor is made once
    known: dict[tuple[float | None, ...], np.ndarray] = {}
    for place in np.ndindex(*shape[2 : 2 + len(AXES)]):
        at = {a: axes[a][i] for a, i in zip(AXES, place, strict=True)}
        if law != {name: at[name] for name in moments.LAW}:
            law, known = {name: at[name] for name in moments.LAW}, {}
            predictor = moments.Predictor(setup, {"train": source.train, "test": source.test, **law})
            measured[place[: len(law)]] = predictor.moments()
        for i, arm in enumerate(ARMS[name] for name in arms):
            if not arm.reads:
                continue
            policy = (*(arm.captions or (at["pi_core"], at["pi_spu"])), at["pi_companion"])
            case = (*policy, same_class_weight(arm, at))
            if case not in known:
                known[case] = predictor.accuracy(*case)
            predicted[(slice(None), i, *place)] = known[case]
    more = _along_dial(config, study, setup.colours, source) if study in (PAPER, BALANCED) and setup.colours else {}
    return xr.Dataset(
        {
            **more,
            "accuracy_predicted": (("theory", "arm", *AXES, "predicted_prompt", "group"), predicted),
            "moments": ((*moments.LAW, "moment"), measured),
        },
        coords={
            "moment": store.labels(moments.MOMENTS),
            "theory": store.labels(moments.THEORIES),
            "predicted_prompt": store.labels(moments.PROMPTS),
            "group": store.labels(training.GROUPS),
            **({"kappa": dial.KAPPAS, "features": store.labels(dial.FEATURES)} if more else {}),
        },
    )


def _along_dial(config: Config, study: str, colours: Colours, source: images.Source) -> dict[str, Any]:
    """Accuracies that the dial predicts, (arm, features, kappa, group), NaN for an arm that reads nothing."""
    arms = config.arms_of(study)
    accuracies = np.full((len(arms), len(dial.FEATURES), len(dial.KAPPAS), len(training.GROUPS)), np.nan)
    reading = {i: policy for i, arm in enumerate(arms) if (policy := ARMS[arm].captions) is not None}
    for j, features in enumerate(dial.FEATURES if reading else ()):
        if features == "pixels":
            pixels = dial.Pixels(source, colours, config.p_spu)
            accuracies[list(reading), j] = pixels.accuracy(list(reading.values()), dial.KAPPAS, config.masking)
            continue
        for i, policy in reading.items():
            accuracies[i, j] = dial.of_states(source.kinds, features, policy, dial.KAPPAS, config.p_spu, config.masking)
    return {"dial": (("arm", "features", "kappa", "group"), accuracies)}


def show(dataset: xr.Dataset, out: pathlib.Path) -> str:
    """Write tables and figures into `out`; returns the table's last step and the theories' scores as text."""
    study = json.loads(dataset.attrs["config"])["study"]
    store.write_csv(out / "summary.csv", store.columns(rows(dataset)))
    if digits := digit_rows(dataset):
        store.write_csv(out / "digits.csv", store.columns(digits))
    if study == "correlation" and (cells := regimes.cells(dataset)):
        store.write_csv(out / "regimes.csv", store.columns([dataclasses.asdict(cell) for cell in cells]))
    for name, figure in figures.of(study, dataset).items():
        runs.save_figure(figure, out, name, dpi=100)
    return text(dataset)


def text(dataset: xr.Dataset) -> str:
    """As text: each arm and cell after the last step under its headline prompt, then each theory's score.

    The studies paper and balanced have tables of their own.
    """
    if json.loads(dataset.attrs["config"])["study"] == BALANCED:
        head = f"after {int(dataset.step.values[-1])} steps, {dataset.sizes['seed']} seeds, mean and 95% interval"
        return f"{head}:\n{tables.as_text(balance.measured_table(dataset))}"
    if json.loads(dataset.attrs["config"])["study"] == PAPER:
        parts = [tables.as_text(paper.table(dataset))]
        if any(ARMS[arm].reads for arm in dataset.arm.values):
            if lines := paper.regression_table(dataset):
                head = "by the regression prompt, which has nothing to over-correct (X12)"
                parts.append(f"{head}:\n{tables.as_text(lines)}")
            parts.append(f"the dial's nearest points (X11):\n{tables.as_text(paper.dial_table(dataset))}")
        return f"{dataset.sizes['seed']} seeds, 95% intervals:\n" + "\n\n".join(parts)
    mean, half = interval(by_headline(accuracy(dataset)).isel(step=-1))
    axes = varying(dataset)
    shown = ("aligned", "conflicting", "shifted", "worst")
    lines = [["arm", *axes, *(f"{v} +- 95%" for v in shown)]]
    for arm in dataset.arm.values:
        for index in np.ndindex(*(dataset.sizes[a] for a in AXES)):
            at = dict(zip(AXES, index, strict=True))
            line = [ARMS[str(arm)].label, *(f"{dataset[a].values[at[a]]:g}" for a in axes)]
            for value in shown:
                m, h = (x.isel(at).sel(arm=arm, value=value).item() for x in (mean, half))
                line.append(f"{m:.3f} +- {h:.3f}")
            lines.append(line)
    by_theory = [["arm", "steps", "theory", "rank correlation", "signs right", "mean difference", "nearer in cells"]]
    for s in scores(dataset):
        nearer = "-" if math.isnan(s.nearer) else f"{s.nearer:g} of {s.cells}"
        signs = f"{s.signs:.2f} of {s.significant}"
        by_theory.append([ARMS[s.arm].label, str(s.step), s.theory, f"{s.rank:.2f}", signs, f"{s.error:.3f}", nearer])
    by_law = [[*moments.LAW, *moments.MOMENTS]]
    for index in np.ndindex(*(dataset.sizes[a] for a in moments.LAW)):
        at = dict(zip(moments.LAW, index, strict=True))
        features = dataset.moments.isel(at).values
        by_law.append([*(f"{dataset[a].values[i]:g}" for a, i in at.items()), *(f"{v:.3g}" for v in features)])
    strong = (
        "the two features, measured in pixels; with mu_spu over the threshold the linear loss takes the shortcut (X4)"
    )
    head = f"after {int(dataset.step.values[-1])} steps, {dataset.sizes['seed']} seeds:"
    below = "predicted against measured: the gap aligned - conflicting, the accuracies of both groups"
    parts = [head, tables.as_text(lines), "", strong, tables.as_text(by_law), "", below, tables.as_text(by_theory)]
    if json.loads(dataset.attrs["config"])["study"] == "arms" and (matched := lines_of(dataset)):
        parts += ["", matched_text(matched, "probit")]
    return "\n".join(parts)
