"""Train CLIP and other methods on real digits on coloured backgrounds with captions: the semi-synthetic experiment.

The class is a group of digits. The digit and its style are the core detail; the background's colour is the spurious
feature. Every cell is compared with two theories, the linear loss's and the whitened one, from measured moments.

    python -m sims.digits --preset=smoke
    python -m sims.digits --preset=small --data=idx:DIR --out runs/mnist      # DIR: the four files of MNIST
    python -m sims.digits --preset=small --study=captions --pi_grid=0:1:9 --p_spu=0.99
    python -m sims.digits --preset=paper --data=idx:DIR    # the paper's experiment; hours on CPUs

studies:
  arms         every method once
  captions     what captions name: pi_core x pi_spu
  correlation  p_spu
  contrasting  the weight of same-class negatives
  strength     the distance between the two hues
  temperature  fixed temperatures, along training
  sharing      a small second digit: present or not, named or not
  paper        the arms of the paper's Figures 2 and 5
  balanced     the paper's digits: captions that always name the digit, over temperatures; see --predict
A study's results go to OUT/STUDY; `python -m sims.show OUT/STUDY` prints and draws them again.
"""

import dataclasses
import pathlib

from absl import flags

from sims.digits.config import BALANCED, GRIDS, IMAGE_ENCODERS, PAPER, PRESETS, STUDIES, TEXT_ENCODERS, Config
from sims.engine import devices
from sims.engine.flags import UsageError, define, integer, names, number, numbers, optional, path, run_main

_NUMBERS = {
    "p_spu": "P(colour = the class's) in training, in [0, 1]",
    "core_accuracy": "share of scenes, in (1/2, 1], whose label is the digit's; below 1 labels and captions are noisy",
    "hue_contrast": "distance of the two hues, share of blue to orange, in [0, 1]; small: a weak spurious feature",
    "pi_core": "chance that a caption names each core detail (digit, slant, stroke, size), in [0, 1]",
    "pi_spu": "chance that a caption names the background, in [0, 1]",
    "p_companion": "chance that a scene has a small second digit (study sharing), in [0, 1]",
    "pi_companion": "chance that a caption names the small second digit (study sharing), in [0, 1]",
    "same_class_weight": "weight of an anchor's same-class negatives, in [0, 1]; 0.5 is about the ordinary loss",
    "temperature": "temperature of CLIP's loss at the start (study temperature: all along), > 0",
    "learning_rate": "of Adam after a warm-up over a twentieth of the steps, of SGD throughout; in (0, 1]",
    "momentum": "of SGD, in [0, 1)",
    "weight_decay": "added to the gradient, times the weights, in [0, 1)",
    "init_scale": "factor of all weights at the start, in (0, 100]",
}
_CHOICES = {
    "colours": "backgrounds: hues (blue, orange, with noise); paper (its six); or a file of six lines `red, green,"
    " blue` in 0..255: dark, medium, light of class -1, then light, medium, dark of class +1",
    "captions": "words, or vectors as in the paper",
    "masking": "what stands for an unmentioned detail: named (nothing, but the class) or mean (the hue too is named)",
    "pixels": "range that images are scaled to: 0:1 or -1:1",
    "optimizer": "adam or sgd",
}
_SWITCHES = {
    "normalize": "embeddings of unit length in the loss",
    "learn_temperature": "train the temperature, as CLIP does (study temperature: never)",
    "bf16": "networks in bfloat16",
}
_GRIDS = {name: [axis for axis, grid in GRIDS.items() if grid == name] for name in GRIDS.values()}
_INTEGERS = {
    "embed_dim": "dimensions of the embedding, >= 2",
    "batch_size": "pairs in a step, >= 2",
    "test": "test scenes of each group, >= 2; with --train_size the same images in both, each once",
    "seeds": "runs of every cell, >= 2",
    "seed": "root of all randomness, in [0, 2^32)",
}


def _define_flags() -> None:
    define("preset", "small", f"defaults of all that follows: {', '.join(PRESETS)}", str)
    text = "; ".join(f"{name}: {{}}" for name in PRESETS)

    def preset(name: str) -> str:
        return "Presets: " + text.format(*(_shown(getattr(config, name)) for config in PRESETS.values()))

    define("study", None, f"which, of {', '.join((*STUDIES, PAPER, BALANCED))}. {preset('study')}", names)
    define(
        "arms", None, f"of each study's arms those named. Presets: all; smoke: {_shown(PRESETS['smoke'].arms)}", names
    )
    define("data", "builtin", "builtin: scikit-learn's digits; idx:DIR: MNIST's four IDX files, plain or .gz", str)
    text_of = "pixels averaged into one, each way, a divisor of half the side; by itself: what leaves 12 or more a side"
    define("pool", None, f"{text_of}. {preset('pool')}", integer)
    define("groups", None, f"digits of class -1 and of class +1. {preset('groups')}", str)
    for name, text_of in _NUMBERS.items():
        define(name, None, f"{text_of}. {preset(name)}", number)
    for name, text_of in _CHOICES.items():
        define(name, None, f"{text_of}. {preset(name)}", str)
    for name, axes in _GRIDS.items():
        define(name, None, f"number list: {', '.join(axes)} where a study sweeps it. {preset(name)}", numbers)
    define("steps", None, f"number list: steps after which to measure. {preset('steps')}", numbers)
    for name, text_of in _INTEGERS.items():
        define(name, None, f"{text_of}. {preset(name)}", integer)
    define("image_encoder", None, f"of {', '.join(IMAGE_ENCODERS)}. {preset('image_encoder')}", str)
    define("text_encoder", None, f"of {', '.join(TEXT_ENCODERS)}. {preset('text_encoder')}", str)
    text_of = "scenes of a training set drawn once; none: fresh ones in every step"
    define("train_size", None, f"{text_of}. {preset('train_size')}", optional(integer))
    text_of = "number list: passes over the training set after which to measure, instead of --steps"
    define("epochs", None, f"{text_of}. {preset('epochs')}", optional(numbers))
    for name, text_of in _SWITCHES.items():
        flags.DEFINE_bool(name, None, f"{text_of}. {preset(name)}")
    text_of = "print a table of the runs of study paper in this folder and below: what temperature, pixels, colours and"
    define("sensitivity", None, f"{text_of} init_scale move; train nothing", optional(path))
    text_of = "print what the theory predicts of captions and ridge at the paper's digits, and train nothing"
    flags.DEFINE_bool("predict", False, text_of)
    flags.DEFINE_bool("keep_checkpoints", False, "keep the trained networks, in OUT/STUDY/checkpoints")
    devices.define_flags()
    define("out", "runs/digits", "folder for the studies' folders; another run's are refused", path)


def _shown(value: object) -> str:
    return (
        ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        if isinstance(value, tuple)
        else f"{value}"
    )


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    if values["preset"] not in PRESETS:
        raise UsageError(f"--preset must be of {', '.join(PRESETS)}, got {values['preset']!r}.")
    given = {f.name: values[f.name] for f in dataclasses.fields(Config) if flags.FLAGS[f.name].present}
    if "steps" in given and "epochs" not in given:
        given["epochs"] = None
    config = dataclasses.replace(PRESETS[values["preset"]], **given)
    config.check()
    if values["sensitivity"]:
        from sims.digits import sensitivity

        print(sensitivity.text(pathlib.Path(values["sensitivity"])))
        return 0
    options = dataclasses.replace(devices.start(), keep_checkpoints=values["keep_checkpoints"])
    from sims.digits import studies
    from sims.engine import runs

    if values["predict"]:
        print(studies.predictions(config))
        return 0
    out = pathlib.Path(values["out"])
    code = 0
    for study, dataset in studies.run(config, out, options).items():
        print(f"{study}: {studies.text(dataset)}\n\nFigures and table: {out / study}\n")
        code |= runs.closing(out / study, dataset)
    return code


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
