"""Train heads on frozen features, and compare losses and captions by their ID-OOD lines.

An arm is a loss with its captions; it is trained over a family of widths, shares of the data and times of training.
Each run gives a point: accuracy in distribution (ID) and under shift (OOD). Arms are compared at the same ID accuracy,
as the paper compares them.

    python -m sims.features --train=features.npz
    python -m sims.features --train=coco.npz --id=coco_val.npz --ood=v2=v2.npz,sketch=sketch.npz --preset=paper

A source is a file of .npz, .safetensors, .csv or .parquet with image, text and labels (an evaluation set needs no
text), and if it has them attributes, units (what captions belong to one image), prompts (text features, a row for each
class in sorted order) and classes (the order of the prompts). An evaluation set with prompts of its own may have other
classes than training. OOD accuracy is the mean over the sets of --ood; without any it is that of the ID set with all
groups at equal weight.

Arms: clip, clip_no_intra (no same-class negatives), clip_labels (a class's prompt in place of captions), siglip,
supervised (cross-entropy), sup_con and sim_clr (two views by dropout of features; a linear head on the embedding), and
in closed form linear_mmcl and whitened, whose rank is --width. They are zero-shot but for supervised, sup_con and
sim_clr. Writes results.zarr, summary.csv (a row for each run, which `python -m sims.lines` reads) and features.png.
"""

import dataclasses
import sys

from absl import flags

from sims.engine import command, devices
from sims.engine.flags import check_choice, define, integer, names, number, numbers, optional, path, run_main
from sims.features.config import ARMS, PAPER_WIDTHS, Config

_PAPER = {"arms": ("clip", "clip_labels", "supervised", "sup_con", "sim_clr"), "width": PAPER_WIDTHS, "epochs": (100,)}
_PRESETS = {"paper": _PAPER}


def sets(text: str) -> tuple[tuple[str, str], ...]:
    """`v2=a.npz,r=b.npz` as (("v2", "a.npz"), ("r", "b.npz"))."""
    parts = [part.partition("=") for part in text.split(",")]
    pairs = tuple((name.strip(), path(source)) for name, equals, source in parts if equals and name.strip())
    if len(pairs) < len(parts):
        raise ValueError("needs NAME=FILE, such as v2=v2.npz,sketch=sketch.npz")
    if len({"id", *(name for name, _ in pairs)}) <= len(pairs):
        raise ValueError("needs names that differ from each other and from id")
    return pairs


def _define_flags() -> None:
    config = Config()
    define("train", None, "training set", path)
    define("id", None, "ID set; none: --holdout of the training images, in every class and attribute", optional(path))
    define("ood", (), "OOD sets, NAME=FILE joined by commas", sets)
    define("holdout", config.holdout, "share of the images that are the ID set, without --id; in (0, 1)", number)
    text = "file: the training set's prompts, if any; means: class means of texts, where training has the classes"
    define("prompts", config.prompts, text, str)
    define("preset", None, "paper: the paper's widths, arms and 100 epochs; other flags still count", optional(str))
    define("arms", config.arms, f"of {', '.join(ARMS)}", names)
    define("width", config.width, "width of all layers, the embedding included, >= 1; rank of closed forms", numbers)
    define("percent", config.percent, "share of the training images, in percent, 1 to 100", numbers)
    define("attribute", config.attribute, "share of captions that still name the attribute, in [0, 1]", numbers)
    define("detail", config.detail, "share of captions that still name other details, in [0, 1]", numbers)
    define("epochs", config.epochs, "numbers of epochs after which heads are measured, >= 1", numbers)
    define("layers", config.layers, "layers of a head, 1 to 10; 1: linear", integer)
    define("batch_size", config.batch_size, "images of a step, >= 2", integer)
    define("learning_rate", config.learning_rate, "of AdamW, constant, > 0", number)
    define("weight_decay", config.weight_decay, "of AdamW, >= 0", number)
    define("temperature", config.temperature, "of the CLIP loss at the start, in [0.01, 1]; trained", number)
    define("theta", config.theta, "whitening of `whitened`, in [0, 1]", number)
    text = "multiple of its mean eigenvalue that `whitened` adds to a covariance before it is inverted, >= 0"
    define("shrinkage", config.shrinkage, text, number)
    text = "share of features that a view of sup_con and sim_clr lacks, above 0, below 1"
    define("dropout", config.dropout, text, number)
    flags.DEFINE_bool("bf16", config.bf16, "train in bfloat16")
    define("seeds", config.seeds, "runs of each arm and setting, >= 1", integer)
    define("seed", config.seed, "root of all randomness, in [0, 2^32)", integer)
    devices.define_flags()
    define("out", "runs/features", "folder for results and figure; another run's is refused", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    preset = {}
    if values["preset"] is not None:
        check_choice("preset", values["preset"], tuple(_PRESETS))
        preset = {k: v for k, v in _PRESETS[values["preset"]].items() if flags.FLAGS[k].using_default_value}
    values["train"] = values["train"] or ""
    config = Config(**{f.name: values[f.name] for f in dataclasses.fields(Config)} | preset)
    config.check()
    for note in config.data.notes:
        print(f"note: {note}.", file=sys.stderr)
    return command.run(config, values["out"], "sims.features.experiment")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
