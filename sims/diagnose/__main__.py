"""Which learners fail on which groups of one's own features, and which captions or samples would help.

The features are image and text embeddings of pairs, with a class and an attribute (the background, say) for each.
Linear MMCL, the whitened and the ridge rule (InfoNCE to second order), and least-squares SL are fitted in closed form
and scored on held-out folds. So are the heads that --heads names, trained by the losses of `sims.features`. Beside each
accuracy stands what Gaussian scores would give: where both agree, the theory of mixtures holds for these features. Then
every knob of the closed forms is turned: how often captions name the attribute or other details, more weight on small
groups, same-class weight, whitening, ridge, shrinkage.

    python -m sims.diagnose --data=features.npz
    python -m sims.diagnose --image=image.npy --text=text.npy --labels=table.csv:class --attributes=table.csv:place

A source is FILE or FILE:NAME, of .npy, .npz, .safetensors, .csv or .parquet. --data is the file, or the folder of .npy
files, of all that no other flag gives, under the names image, text, labels, attributes, and prompts and units if it has
them. `sims.clip.embed` makes such a folder.
Writes report.html, accuracies.csv, advice.csv, diagnosis.json and the figure diagnose.png.
"""

import functools
import pathlib
import sys
import warnings
from typing import Any

from absl import flags

from sims.engine.flags import (
    UsageError,
    check_choice,
    check_positive,
    check_range,
    define,
    integer,
    names,
    number,
    optional,
    path,
    run_main,
)
from sims.features.config import ARMS, CLOSED, Config

KINDS = ("mmcl", "whitened", "ridge", "supervised")  # of mmcl_theory.features, which would load JAX for --help
NEEDED = ("image", "text", "labels", "attributes")
HEADS = tuple(arm for arm in ARMS if arm not in CLOSED)
_HEAD = ("head_width", "head_layers", "head_epochs")
_MORE = ("prompts", "units")
_COSTS = ("attribute_cost", "detail_cost")
_SETTINGS = ("same_class_weight", "theta", "kappa", "rank", "shrinkage")


def _define_flags() -> None:
    define("data", None, "file, or folder of .npy files, of all that the flags below do not give", optional(path))
    define("image", None, "image features, a row for each pair", optional(path))
    define("text", None, "text features of the captions, a row for each pair", optional(path))
    define("labels", None, "class of each pair: whole numbers or words", optional(path))
    define("attributes", None, "attribute of each pair: whole numbers or words", optional(path))
    text = "text features of a prompt for each class, in sorted order; none: class means"
    define("prompts", None, text, optional(path))
    define("learners", KINDS, f"of {', '.join(KINDS)}", names)
    define("same_class_weight", None, "of mmcl, in [0, 1]; none: the ordinary loss", optional(number))
    define("theta", 1.0, "whitening of `whitened`, in [0, 1]", number)
    text = "ridge of `ridge`, >= 0, in units of the mean product of an image and a text eigenvalue"
    define("kappa", 1.0, text, number)
    define("rank", None, "embedding size of mmcl and whitened, >= 1; none: no limit", optional(integer))
    text = "multiple of its mean eigenvalue that is added to a covariance before it is inverted"
    define("shrinkage", 0.01, text, number)
    define("heads", (), f"heads to train and score too, of {', '.join(HEADS)}", names)
    define("head_width", 64, "width of their layers, >= 1", integer)
    define("head_layers", 3, "layers of a head, 1 to 10; 1: linear", integer)
    text = "passes over the training folds, >= 1; batches have 256 images, or an eighth of them if that is less"
    define("head_epochs", 30, text, integer)
    text = "what pairs belong together, such as the image of several captions; none: equal images"
    define("units", None, text, optional(path))
    text = "weights of the groups under the shift, classes slowest; none: equal"
    define("shifted_weight", None, text, optional(weights))
    define("components", 256, "principal components that wider features are reduced to, >= 1", integer)
    define("folds", 10, "folds, 2 to 100", integer)
    define("seed", 0, "of the division into folds and of the heads, in [0, 2^32)", integer)
    text = "share of what captions cost now, above 0 and below 1: finds the best captions within it; none: no search"
    define("budget", None, text, optional(number))
    define("attribute_cost", 1.0, "cost of all mentions of the attribute, > 0", number)
    define("detail_cost", 1.0, "cost of all other details that captions tell, > 0", number)
    flags.DEFINE_bool("advice", True, "turn the knobs; this takes most of the time")
    define("out", "runs/diagnose", "folder for the report, the tables and the figure", path)


def weights(text: str) -> tuple[float, ...]:
    """`0.1,0.4,0.4,0.1`: numbers in any order."""
    return tuple(number(part) for part in text.split(","))


def load(values: dict[str, Any]) -> dict[str, Any]:
    """The arrays that the flags name. Raises: UsageError."""
    from sims.engine import reading

    arrays = {}
    for flag in (*NEEDED, *_MORE):
        source = values[flag] or values["data"]
        if source is None and flag in NEEDED:
            raise UsageError(f"--{flag} must name a file, or --data one that has {', '.join(NEEDED)}.")
        if values[flag] or flag in NEEDED or (source is not None and reading.holds(source, flag)):
            arrays[flag] = reading.read(flag if values[flag] else "data", source, flag)
    return arrays


def _main() -> None:
    values = flags.FLAGS.flag_values_dict()
    for learner in values["learners"]:
        check_choice("learners", learner, KINDS)
    check_range("theta", values["theta"], 0, 1)
    check_range("kappa", values["kappa"], 0)
    check_range("shrinkage", values["shrinkage"], 0)
    for name, *limits in (("same_class_weight", 0, 1), ("rank", 1)):
        if values[name] is not None:
            check_range(name, values[name], *limits)
    for head in values["heads"]:
        check_choice("heads", head, HEADS)
    for name, most in zip(_HEAD, (1 << 16, 10, 10**6), strict=True):
        check_range(name, values[name], 1, most)
    check_range("folds", values["folds"], 2, 100)
    check_range("components", values["components"], 1)
    check_range("seed", values["seed"], 0, 2**32 - 1)
    if values["budget"] is not None and not 0 < values["budget"] < 1:
        raise UsageError(f"--budget must be above 0 and below 1, got {values['budget']:g}.")
    for name in _COSTS:
        check_positive(name, values[name])
    arrays = load(values)
    out = pathlib.Path(values["out"])

    from sims.engine import files

    files.check_folder(out, f"--out={out}")

    import mmcl_theory as mt
    from sims.diagnose import heads, report

    width, layers, epochs = (values[name] for name in _HEAD)
    trained = Config(width=(width,), layers=layers, epochs=(epochs,), seed=values["seed"])
    settings = {name: values[name] for name in _SETTINGS}
    learners: dict[str, Any] = {kind: mt.features.Learner(kind, **settings) for kind in values["learners"]}
    learners |= {f"{arm} head": functools.partial(heads.fit, arm, trained) for arm in values["heads"]}
    knobs = mt.features.KNOBS if values["advice"] else {}
    sizes = {name: values[name] for name in ("folds", "components", "seed")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            diagnosis = mt.diagnose(
                **arrays, learners=learners, shifted_weight=values["shifted_weight"], knobs=knobs, **sizes,
                budget=values["budget"], cost=tuple(values[name] for name in _COSTS),
            )  # fmt: skip
        except ValueError as error:
            raise UsageError(str(error)) from None
    notes = [str(w.message) for w in caught]
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    named = ("data", *NEEDED, *_MORE, "learners", *_SETTINGS, "heads", *_HEAD, "shifted_weight", "budget", *_COSTS)
    given = {name: values[name] for name in (*named, "advice", *sizes)}
    out.mkdir(parents=True, exist_ok=True)
    report.write(diagnosis, given, notes, out)
    print(f"{report.text(diagnosis)}\n\nReport: {out / 'report.html'}")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
