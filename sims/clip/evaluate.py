"""Measure a trained model's zero-shot accuracy on ImageNet val and its shifted sets, and its effective robustness.

    python -m sims.clip.evaluate --run=runs/clip                                    # on the generated scenes
    python -m sims.clip.evaluate --run=runs/cc3m --root=/data/sets --classes=imagenet_class_index.json --strict
    python -m sims.clip.evaluate --run=runs/cifar --data=cifar10:DIR:test           # other data than ImageNet's
    python -m sims.clip.evaluate --weights=RN50.safetensors --architecture=RN50-quickgelu \\
        --vocabulary=bpe_simple_vocab_16e6.txt.gz --root=/data/sets \\
        --classes=names.txt --wnids=imagenet_class_index.json

ROOT holds val, imagenetv2-matched-frequency[-format-val], sketch, imagenet-r, imagenet-a, objectnet-1.0. The folders
that exist are scored. Images are turned upright as their EXIF says; transparent parts are laid over white. The worst
class is chosen after the counts are known, so its interval holds for all classes at once (Bonferroni). Classes of one
name share their prompts (CLIP's list has missile and sunglasses twice). Top-1 takes the first of them as the
prediction, as published accuracies do. For the worst class either is right; top-1 with either is printed too.
Effective robustness rho is the accuracy minus what a line of standard models predicts from val over the same classes.
Marks:
  extrapolated   val is outside 55-90% (standard lines) or 5-40% (weak models'), or the fitted models' own range
  other classes  the line is a published one, of ImageNet's classes, but this list does not have 1000
  chance         the 99.5% interval of the accuracy, or of val's, contains chance
  0 or all       no image or every image is right, here or on val: fits and figures move the count by half an image
  unreadable     images that could not be read are left out: damaged, of more than 67 million pixels, 65,535 pixels a
                 side, 256 MiB, or (JPEG) 2^31 pixels times scans
A set's row is added to the table as soon as the set is scored; earlier rows stay. Of several rows for one run and set,
the last is drawn. An interrupted evaluation keeps its rows, but the same command scores all sets again. To score the
rest only, name them, with val, as --sets.
"""

import pathlib
import sys

from absl import flags

from sims.clip.config import SCENES
from sims.clip.zero_shot import model_flags
from sims.engine import files
from sims.engine.flags import Terminated, UsageError, check_choice, check_range, define, integer, names, path, run_main

_LINES = ("auto", "standard", "weak", "fit")


def _define_flags() -> None:
    model_flags.define_model()
    define("data", None, "in the place of --root: labelled data as train's --data, such as cifar10:DIR:test", str)
    define("root", SCENES, "folder of the evaluation sets' folders", path)
    define("sets", None, "of val, balanced, v2, sketch, r, a, objectnet; none: all that are there", names)
    text = 'class list, {"0": [wnid, name], ...}, or `wnid name` a line, or names with --wnids; none: ROOT/classes.json'
    define("classes", None, text, path)
    define("wnids", None, "wnids of --classes' names in their order, or imagenet_class_index.json", path)
    define("class_map", None, "coco, or a CSV of category and wnid: the sets are scored by its categories", path)
    text = "file of prompts with {} for the class, one a line or a JSON list; none: ten of our own"
    define("templates", None, text, path)
    define("table", None, "JSON lines that results are added to; none: OUT/results.jsonl", path)
    define("models", None, "table of other models, such as another --table or a .csv: drawn, and what fit fits", path)
    define("line", "auto", f"rho's in the print and figure, of {', '.join(_LINES)}; auto: weak below 40% on val", str)
    define("transform", "logit", "of the axes and lines: logit or probit", str)
    define("batch_size", 64, "images encoded at once, >= 1", integer)
    define("threads", None, "that decode images, >= 1; none: one a core", integer)
    define("cache", "runs/text_weights", "folder that keeps the classes' text weights", path)
    flags.DEFINE_bool("strict", False, "refuse a set that is not whole, in place of a warning")
    define("out", "runs/evaluate", "folder for the figure", path)


def _check() -> None:
    model_flags.check()
    values = flags.FLAGS
    check_choice("line", values.line, _LINES)
    check_choice("transform", values.transform, ("logit", "probit"))
    if values.line == "weak" and values.transform == "probit":
        raise UsageError("--line=weak has no probit line; use --transform=logit.")
    if values.line == "fit" and values.models is None:
        raise UsageError("--line=fit needs --models, the table of the models that it is fitted to.")
    if values.table is not None and values.table.lower().endswith(".csv"):
        raise UsageError(f"--table={values.table} would be written as JSON lines; name it .jsonl.")
    for name in ("batch_size", "threads"):
        if values[name].value is not None:
            check_range(name, values[name].value, 1)
    if values.data is not None:
        for name in ("root", "sets", "classes", "wnids", "class_map"):
            if values[name].present:
                raise UsageError(f"--data has its own images and classes; leave out --{name}.")
    elif not pathlib.Path(values.root).is_dir():
        mend = "python -m sims.clip.make_scenes makes the default" if values.root == SCENES else "give the sets' folder"
        raise UsageError(f"--root={values.root} is not there; {mend}.")


def _main() -> int | None:
    _check()
    from sims.clip.records import class_maps
    from sims.clip.records.classes import read_classes
    from sims.clip.zero_shot import evaluation, prompts, report, sets, table

    values = flags.FLAGS
    root, out = pathlib.Path(values.root), pathlib.Path(values.out)
    into = pathlib.Path(values.table) if values.table else out / "results.jsonl"
    files.check_folder(out, f"--out={out}")
    files.check_folder(into.resolve().parent, f"--table={into}")
    if values.data is not None:
        evaluation_sets, classes = sets.of_source(values.data)
    else:
        classes = read_classes(root, values.classes, values.wnids)
        evaluation_sets = sets.open_sets(root, values.sets, classes)
        missing = sets.absent(root, classes) if values.sets is None else ()
        evaluation.warn([f"--root={root} lacks {', '.join(missing)}" if missing else None], values.strict)
    templates = prompts.read_templates(values.templates)
    if values.models is not None and not pathlib.Path(values.models).is_file():
        raise UsageError(f"--models={values.models} is not there.")
    models = table.read(pathlib.Path(values.models), "--models") if values.models else []
    table.read(into, "--table")
    evaluation.warn([one.shortfall() for one in evaluation_sets.values()], values.strict)
    if values.class_map is not None:
        evaluation_sets, classes = sets.mapped(evaluation_sets, classes, class_maps.read_map(values.class_map))
    how = evaluation.How(values.batch_size, values.threads, pathlib.Path(values.cache), values.strict)
    choice = evaluation.Choice(values.line, values.transform)
    alike = [evaluation.of_shift(models, evaluation.key("", one, classes)) for one in evaluation_sets.values()]
    if values.line == "fit" and not any(evaluation.fit(others, "logit") for others in alike):
        raise UsageError(
            f"--line=fit: --models={values.models} has no set here with two models or more of different id_accuracy."
        )
    run, encoder = model_flags.load()
    rows = []
    try:
        for row in evaluation.evaluate(run, encoder, evaluation_sets, classes, templates, models, how, choice):
            table.append(into, [row])
            rows.append(row)
    except KeyboardInterrupt as error:
        kept = f"the rows of {', '.join(row['set'] for row in rows)} are in {into}" if rows else "no set was scored"
        print(f"error: interrupted; {kept}, and the same command scores all sets again.", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    print(report.text(rows, choice))
    drawn = report.draw(rows, [*models, *table.read(into, "--table")], models, choice, out)
    print(f"\nAdded to {into}" + (f"; figure: {drawn}" if drawn else "; no figure: it needs val and a shifted set"))
    return None


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
