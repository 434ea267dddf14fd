"""Image and text features of captioned images, by a CLIP or an encoder of one's own, for `sims.diagnose`.

    python -m sims.clip.embed --run=runs/clip --data=csv:table.csv --out=runs/embed
    python -m sims.clip.embed --weights=RN50.safetensors --architecture=RN50-quickgelu \\
        --vocabulary=bpe_simple_vocab_16e6.txt.gz --data=coco:/data/coco:val2017 --out=runs/embed
    python -m sims.clip.embed --encoder=my_module:encoder --data=parquet:table.parquet --out=runs/embed
    python -m sims.diagnose --data=runs/embed

data: coco:DIR[:SPLIT], tars:GLOB (img2dataset), csv:FILE, parquet:FILE, cifar10:DIR[:test]. A table has the columns
path and caption, and label and attribute if there.
encoder: MODULE:FUNCTION is called once, without arguments. It returns an object with two functions, or a pair of them:
image takes a list of arrays (h, w, 3) of uint8, text a list of captions; each returns floats, a row for each. A CLIP's
features are scaled to length 1; those of a function are kept as they are.
Written are image.npy, text.npy, labels.npy, attributes.npy, units.npy (the image of each caption), captions.csv;
prompts.npy, classes.npy and classes.json, if there are classes; features.json, a summary. A prompt is the mean over
--templates.
Rounding to float16 moves a row by less than .001 of its length; the largest share is printed. Features that float16
does not hold are refused.
The same command continues a stopped run, to the same bytes. Images that cannot be decoded are left out and counted.
"""

import pathlib

from absl import flags

from sims.clip.zero_shot import model_flags
from sims.engine import files
from sims.engine.flags import UsageError, check_choice, check_range, define, integer, optional, path, run_main

_MODEL = ("run", "weights", "architecture", "vocabulary")


def _define_flags() -> None:
    model_flags.define_model()
    define("encoder", None, "MODULE:FUNCTION, in the place of --run and --weights", optional(str))
    define("data", None, "coco:DIR[:SPLIT], tars:GLOB, csv:FILE, parquet:FILE or cifar10:DIR[:test]; needed", str)
    text = "file of class names: gives labels to images whose captions name exactly one"
    define("classes", None, text, optional(path))
    define("templates", None, "file of prompts with {} for the class; none: ten of our own", optional(path))
    define("precision", "float16", "of the features: float16 or float32", str)
    define("batch_size", 64, "images, or captions, encoded at once, >= 1", integer)
    define("threads", None, "that decode images, >= 1; none: one a core", optional(integer))
    flags.DEFINE_bool("overwrite", False, "start again, whatever --out holds")
    define("out", "runs/embed", "folder of the features; another run's is refused", path)


def _check() -> None:
    values = flags.FLAGS
    check_choice("precision", values.precision, ("float16", "float32"))
    for name in ("batch_size", "threads"):
        if values[name].value is not None:
            check_range(name, values[name].value, 1)
    given = [name for name in _MODEL if values[name].value is not None]
    if values.encoder is None and not given:
        raise UsageError("needs a model: --run=DIR, --weights=FILE or --encoder=MODULE:FUNCTION.")
    if values.encoder is not None and given:
        raise UsageError(f"--encoder is a model of its own; leave out --{given[0]}.")
    if values.encoder is None:
        model_flags.check()
    if values.data is None:
        raise UsageError("--data must name captioned images, such as csv:table.csv.")


def _main() -> None:
    _check()
    values = flags.FLAGS
    out = pathlib.Path(values.out)
    files.check_folder(out, f"--out={out}")

    from sims.clip.records import sources
    from sims.clip.records.reading import read_lines
    from sims.clip.zero_shot import features, prompts, towers

    templates = prompts.read_templates(values.templates)
    classes = read_lines(values.classes, "--classes") if values.classes else ()
    source = sources.open_source(values.data, classes=classes)
    indices = features.used(source)
    if values.encoder is not None:
        encoder = towers.of_function(values.encoder)
    else:
        encoder = towers.of_clip(*model_flags.load(), values.batch_size)
    how = {"precision": values.precision, "batch_size": values.batch_size, "threads": values.threads}
    work = features.Work(encoder, source, indices, templates, **how)
    print(features.text(features.embed(work, out, values.overwrite), out))


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
