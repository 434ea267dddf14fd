"""Make captioned scenes in the layouts of COCO, for training, and of the shifted ImageNets, for evaluation.

    python -m sims.clip.make_scenes --out runs/scenes
    python -m sims.clip.make_scenes --out runs/scenes --pi_spu=0 --captions_to=runs/silent.json   # other captions alone

OUT/coco             annotations/{captions,instances}_{train2017,val2017}.json, train2017, val2017
OUT/val, balanced    the training distribution, P, and with p_spu = 1/2, P*; folders by wnid
OUT/imagenetv2-...   fresh draws of a slightly different distribution; folders by class number
OUT/sketch           outlines on white
OUT/imagenet-r       cartoons, posters and paintings on plain ground; six classes
OUT/imagenet-a       objects small and half hidden in the other class's context; six classes
OUT/objectnet-1.0    objects turned any way, off the centre, with the red border; seven classes, and two that no class
                     maps to
OUT/classes.json     wnids and names;  scenes.png: samples;  scenes.json: the settings and counts, written last
An image depends on --seed, its set, its number and the settings of images (not those of captions). The same command
continues a stopped one: it draws what is missing. A second command in the same folder waits for the first.
"""

import dataclasses
import pathlib

from absl import flags

from sims.clip.scenes.generation import make, write_captions
from sims.clip.scenes.layouts import Config
from sims.engine import processes
from sims.engine.flags import UsageError, define, integer, number, path, run_main

_NUMBERS = {
    "p_spu": "P(context = the class's home) in training, in [0, 1]",
    "pi_core": "chance that a caption names each of colour, fill, size and pose, in [0, 1]",
    "pi_spu": "chance that a caption names the context and its shade, in [0, 1]",
    "p_companion": "chance of a small object of another pair's class, in [0, 1]",
    "pi_companion": "chance that a caption names it, in [0, 1]",
}
_INTEGERS = {
    "train": "training images, in [1, 1000000]",
    "test": "images of a class in each evaluation set, in [1, 10000]",
    "side": "pixels a side, in [24, 512]",
    "captions": "captions of an image, in [1, 100]",
    "seed": "root of all randomness, in [0, 2^32)",
}


def _define_flags() -> None:
    for texts, convert in ((_NUMBERS, number), (_INTEGERS, integer)):
        for name, text in texts.items():
            define(name, getattr(Config, name), text, convert)
    define("workers", processes.cores(), "processes that draw, >= 1", integer)
    flags.DEFINE_bool("overwrite", False, "remove the scenes that --out holds, and make these")
    text = "write, here, another captions JSON for --out's scenes, with --pi_core, --pi_spu, --pi_companion, --seed"
    define("captions_to", None, f"{text} (none: the scenes' own); no image", path)
    define("out", None, "folder; another one's scenes are refused", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    if values["out"] is None:
        raise UsageError("--out is needed: the folder to make the scenes in.")
    out = pathlib.Path(values["out"])
    if values["captions_to"] is not None:
        given = {name for name in (*_NUMBERS, *_INTEGERS, "overwrite") if flags.FLAGS[name].present}
        if extra := given - {"pi_core", "pi_spu", "pi_companion", "seed"}:
            raise UsageError(f"--captions_to keeps the images: leave out --{min(extra)}.")
        to, seed = pathlib.Path(values["captions_to"]), values["seed"] if "seed" in given else None
        write_captions(out, values["pi_core"], values["pi_spu"], values["pi_companion"], to, seed)
        print(f"Captions: {to}")
        return 0
    config = Config(**{f.name: values[f.name] for f in dataclasses.fields(Config)})
    made = make(out, config, workers=values["workers"], overwrite=values["overwrite"])
    print(f"{'Made' if made else 'Nothing to do:'} {out}; samples: {out / 'scenes.png'}")
    return 0


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
