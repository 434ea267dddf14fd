"""Compare CLIP, its ablations and supervised learning on generated scenes, over seeds, as the paper does.

    python -m sims.clip.compare                                  # under 30 minutes on 2 cores
    python -m sims.clip.compare --study=captions --pi_grid=0,0.25,0.5,0.75,1 --seeds=5 --out=runs/compare_captions
    python -m sims.clip.compare --study=shares --out=runs/shares
    python -m sims.clip.compare --preset=paper_coco --data=coco:/data/coco --root=/data/sets \\
        --classes=imagenet_class_index.json --vocabulary=bpe_simple_vocab_16e6.txt.gz --out=runs/paper_coco

arms: trains every arm on the scenes' own captions. Shows accuracy under each shift against accuracy on val, at several
times of training, and the accuracy of both groups of the balanced scenes. Prints each arm's accuracy under shift minus
the first arm's at the same accuracy on val, by the lines of both.
captions: trains CLIP on captions that name more or less of the core details and the context. Shows the predictions of
the whitened rule (X10) and of the linear loss (T5) beside it, from the moments of the training images and captions.
shares: trains the arms on shares of the data, by default CLIP with and without same-class negatives on 25 to 100%, as
the paper's Figure 3c. Compares them at the same ID accuracy. It stands alone. --preset=paper_coco and paper_cc do so on
COCO or on Conceptual Captions at the paper's size; what is not said there is --preset=coco_rn50 of train.
Results go to OUT/measured.csv and to figures in OUT. The same command continues a stopped comparison.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from absl import flags

from sims.clip.comparison.config import PRESETS, SHIFTS, STUDIES, Config, Shares
from sims.clip.config import ARMS
from sims.engine import devices
from sims.engine.flags import (
    UsageError,
    WorkFailed,
    check_choice,
    check_range,
    define,
    integer,
    names,
    number,
    numbers,
    optional,
    path,
    run_main,
)

_FLAGS = {
    "study": ("which, of arms, captions; or shares", names),
    "root": ("scenes of make_scenes; the default ones are made if absent; shares: the evaluation sets, too", path),
    "arms": (f"of the studies arms and shares, of {', '.join(ARMS)}", names),
    "pi_grid": ("number list: pi_core and pi_spu of the study captions, in [0, 1]; at most 10000 runs in all", numbers),
    "stages": (
        "number list: shares of the training after which to measure, in (0, 1], the last 1; at most 100",
        numbers,
    ),
    "architecture": "RN-tiny, ViT-tiny, RN50, ...",
    "image_size": ("pixels a side; none: the architecture's", optional(integer)),
    "context_length": ("tokens of a caption", integer),
    "steps": ("updates of each run, >= 1", integer),
    "batch_size": ("pairs, >= 2", integer),
    "learning_rate": ("of AdamW at its peak, in (0, 1]", number),
    "seeds": ("runs of each arm and policy, >= 2", integer),
    "seed": ("of the first run, in [0, 2^32)", integer),
}
# Of the study shares alone, beside flags of _FLAGS: its own, then those of the training.
_OWN = {
    "classes": ("class list of the evaluation sets, as for evaluate; none: ROOT/classes.json", path),
    "class_map": (
        "coco, or a CSV of category and wnid, as for evaluate; or names: the data's own; none: the sets' own",
        optional(str),
    ),
    "templates": ("prompts, as for evaluate", path),
    "percent": ("number list: shares of the training records in percent, in [1, 100]", numbers),
    "at": ("number list: ID accuracies in percent at which arms are compared; none: in the middle", optional(numbers)),
}
_TRAINING = {
    "data": ("as for train: scenes, coco:DIR, tars:GLOB, csv:FILE, parquet:FILE or cifar10:DIR", str),
    "labels": ("as train's --classes: names that label the captions of tars, a JSON list", path),
    "vocabulary": ("as for train; none: one BPE for all runs, trained on the captions", path),
    "epochs": ("passes over a run's part of the data, > 0", number),
    "chunks": ("parts in which a batch is embedded, as for train", integer),
    "held_out": ("records kept from training, as for train", integer),
}
_RECIPE = ("architecture", "image_size", "context_length", "batch_size", "learning_rate", "seed")  # of _FLAGS


def _define_flags() -> None:
    for name, given in _FLAGS.items():
        text, convert = (given, str) if isinstance(given, str) else given
        define(name, getattr(Config, name), text, convert)
    text = f"defaults of the study shares, of {', '.join(PRESETS)}; a paper's gives this study"
    define("preset", "scenes", text, str)
    for name, (text, convert) in {**_OWN, **_TRAINING}.items():
        shown = "; ".join(f"{preset}: {_default(config, name)}" for preset, config in PRESETS.items())
        define(name, None, f"{text}. Study shares only; presets: {shown}", convert)
    flags.DEFINE_bool("overwrite", False, "measure again, whatever --out holds")
    text = "processes that train at the same time, >= 1; none: one a core; one on a GPU or TPU, or real data"
    define("workers", None, text, optional(integer))
    define("out", "runs/compare", "folder of the results; another comparison's is refused", path)


def _default(config: Shares, name: str) -> Any:
    value = getattr(config if name in _OWN else config.training, "classes" if name == "labels" else name)
    value = ",".join(f"{x:g}" for x in value) if isinstance(value, tuple) else value
    return "needed" if value == "" else "none" if value is None else value


def text(rows: Sequence[dict[str, Any]], config: Any) -> str:
    """The results as tables."""
    from sims.clip.comparison import figures, runs

    parts = []
    if "arms" in config.study:
        parts.append(_arms_table(rows, config.arms))
        if len(config.arms) > 1:
            parts.append(_matched_table(rows, config.arms))
    if "captions" in config.study:
        for prompts in ("ensemble", "class"):
            table = figures.policy_table(rows, config.pi_grid, prompts)
            scores = "; ".join(runs.verdict(table, theory) for theory in runs.THEORIES)
            parts.append(f"captions, {prompts} prompts: {scores}.")
    return "\n\n".join(parts)


def _arms_table(rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    from sims.clip.comparison import figures, runs

    sets = ("val", *SHIFTS)
    lines = [f"{'arm':34}" + "".join(f"{name:>12}" for name in (*sets, "aligned", "conflicting"))]
    for arm in arms:
        cells = [runs.interval(*figures.last(rows, arm, "all", name)) for name in sets]
        cells += [runs.interval(*figures.last(rows, arm, group)) for group in runs.GROUPS]
        lines.append(f"{ARMS[arm].label:34}" + "".join(f"   {mean:.2f}±{half:.2f}" for mean, half in cells))
    return "\n".join(lines)


def _matched_table(rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    from sims.clip.comparison import matched

    head = f"Under shift, minus {ARMS[arms[0]].label}, at the same accuracy on val (logit lines; mean: all of val;"
    notes = "*: val beyond one arm's points; -: no line):"
    table = matched.table(rows, arms)
    return "\n".join([f"{head} {notes}", *(f"{line[0]:34}" + "".join(f"{x:>13}" for x in line[1:]) for line in table)])


def _config() -> Config | Shares:
    """The settings of the study that the flags name."""
    values = flags.FLAGS
    check_choice("preset", values.preset, PRESETS)
    for value in values.study:
        check_choice("study", value, (*STUDIES, "shares"))
    given = [name for name in (*_FLAGS, *_OWN, *_TRAINING) if values[name].present]
    paper = values.preset != "scenes"
    if "shares" not in values.study and not (paper and "study" not in given):
        of_shares = ["preset"] * paper + [name for name in given if name not in _FLAGS]
        if of_shares:
            raise UsageError(f"--{of_shares[0]} is of --study=shares; leave it out.")
        return Config(**{f.name: values[f.name].value for f in dataclasses.fields(Config)})
    if len(values.study) > 1 and "study" in given:
        raise UsageError("--study=shares stands alone, as its runs are of other sizes; run the other studies apart.")
    own = {f.name for f in dataclasses.fields(Shares)} - {"training", "preset"}
    if others := [name for name in given if name in _FLAGS and name not in {*own, *_RECIPE, "study"}]:
        raise UsageError(f"--{others[0]} is of the studies arms and captions; --study=shares is not set by it.")
    preset = PRESETS[values.preset]
    recipe = {name: values[name].value for name in given if name in (*_RECIPE, *_TRAINING)}
    if "labels" in recipe:
        recipe["classes"] = recipe.pop("labels")
    training = dataclasses.replace(preset.training, **recipe)
    return dataclasses.replace(preset, training=training, **{name: values[name].value for name in given if name in own})


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    config = _config()
    config.check()
    if values["workers"] is not None:
        check_range("workers", values["workers"], 1)
    # JAX reads these when it is imported: the cache of compiled programs, for this process and those that train.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(devices.cache()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    import jax

    from sims.clip.comparison import figures, runs
    from sims.clip.config import SCENES
    from sims.clip.records import classes
    from sims.clip.records.images import BadImage
    from sims.clip.scenes import generation
    from sims.clip.zero_shot import sets
    from sims.engine import processes
    from sims.engine import runs as results

    root, out = pathlib.Path(config.root), pathlib.Path(values["out"])
    if config.root == SCENES:
        generation.default(root)
    alone = jax.default_backend() != "cpu" or (isinstance(config, Shares) and not config.on_scenes)
    workers = values["workers"] or (1 if alone else processes.cores())
    try:
        if isinstance(config, Shares):
            return _shares(config, out, workers, values["overwrite"])
        rows = runs.run(config, out, workers=workers, overwrite=values["overwrite"])
    except BrokenProcessPool:
        raise WorkFailed(
            "a training process was killed, as for lack of memory; the same command goes on; --workers=1 needs less."
        ) from None
    except BadImage as error:
        raise UsageError(f"{error.id} cannot be read ({error.why}); make the scenes again, with --overwrite.") from None
    drawn = {}
    if "arms" in config.study:
        evaluation_sets = sets.open_sets(root, None, classes.read_classes(root))
        chance = {name: each.chance for name, each in evaluation_sets.items()}
        drawn["arms"] = figures.against_id(rows, config.arms, chance)
        drawn["groups"] = figures.groups(rows, config.arms)
    if "captions" in config.study:
        drawn["captions"] = figures.caption_map(figures.policy_table(rows, config.pi_grid), config.pi_grid)
    for name, figure in drawn.items():
        results.save_figure(figure, out, name, 150)
    print(f"{text(rows, config)}\n\nTable and figures: {out}")
    return 0


def _shares(config: Shares, out: pathlib.Path, workers: int, overwrite: bool) -> int:
    from sims.clip.comparison import shares

    rows = shares.run(config, out, workers=workers, overwrite=overwrite)
    result = shares.at_matched_id(rows, config)
    shares.write(result, config, out)
    print(f"{shares.text(rows, result, config)}\n\nTables and figure: {out}")
    return 0


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
