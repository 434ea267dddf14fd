"""Accuracy of any mixture model along one or two numbers of its file, predicted and measured, group by group.

The model is a file: its groups, captions, prompts, noise and sample size (--model=FILE.yaml or .json), or a Python
function (--model=FILE.py) `model(**parameters)` that returns (mt.Mixture, mt.GroupCaptions or None). docs/models.md
shows five.

Axes are numbers of the file by path. G, K and J are numbers from 0, or names that the file gives; G may be * for all.

    groups.G.weight  classes.K.weight           also .shifted_weight
    groups.G.mean.J  groups.G.variance.J  groups.G.covariance.J.J  groups.G.captions.mention.J
    captions.mention.J                          also base, wrong and blur; without J all coordinates
    observation.sigma_image  n  same_class_weight  embed_dim  theta  kappa  time

A group's weight changes at the weight of its class: the other groups of the class take up the change in proportion. If
it is alone in its class, all other groups do. classes.K.weight keeps the proportions within every class and between the
others. Of a Python file the paths are its parameters, and those of the last line. With --y two numbers span a map;
--fine=1001 predicts a million cells of it.

Learners: mmcl (linear loss; n samples, same_class_weight, embed_dim), early_stopped (the ordinary linear loss at full
rank, after this time of gradient flow from small aligned encoders), whitened (theta), ridge (kappa), supervised
(max-margin, two classes), probe (least squares on the linear loss's image encoder; embed_dim). The predictions for
early_stopped, whitened, ridge and probe are of the population; that for supervised is the limit of many samples and
dimensions.

    python -m sims.sweep_model --model=examples/models/three_classes.yaml --x=captions.mention.background=0:1:6
    python -m sims.sweep_model --model=examples/models/label_shift.yaml --x=classes.1.weight=0.05:0.95:4 \\
        --y=captions.mention.hospital=0:1:4
"""

import dataclasses

from absl import flags

from sims.engine import command, devices
from sims.engine.flags import define, integer, names, number, optional, path, run_main
from sims.latent.parameters import define_flag
from sims.sweep_model.config import MOST_FINE, Config, axis
from sims.sweep_model.model_file import LEARNERS, OBSERVATION, PROMPTS, SETTINGS

_TEXTS = {
    "same_class_weight": "same-class weight of the linear loss, in [0, 1]; none: the ordinary loss",
    "embed_dim": "embedding size of mmcl and of probe's encoder, 1 to the number of latents; none: no limit",
    "theta": "whitening of `whitened`, in [0, 1]. Default: 1",
    "kappa": "ridge of `ridge`, >= 0. Default: 1",
    "time": "training time of `early_stopped`, steps times learning rate, in [0, 100]. Default: 5",
}
_FLAGS = (*OBSERVATION, *SETTINGS)


def _define_flags() -> None:
    config = Config()
    define("model", None, "model file: .yaml, .json or .py", path)
    define("x", None, "horizontal axis, PATH=NUMBERS, such as groups.2.weight=0.05:0.45:9", axis)
    define("curves", None, "second axis, a curve for each value", optional(axis))
    define("y", None, "second axis of a map: prediction as colour, the measured cells as dots", optional(axis))
    define("fine", config.fine, f"points of a drawn line, and of each side of a map, 2 to {MOST_FINE}", integer)
    define("learners", config.learners, f"of {', '.join(LEARNERS)}", names)
    define("prompts", None, f"of {', '.join(PROMPTS)}, in place of the file's", optional(str))
    for name in _FLAGS:
        if name in _TEXTS:
            define(name, None, _TEXTS[name], optional(integer if name == "embed_dim" else number))
        else:
            define_flag(name, None, ", in place of the file's")
    define("seeds", config.seeds, "independent runs of each cell and learner, >= 2", integer)
    define("seed", config.seed, "root of all randomness, in [0, 2^32)", integer)
    devices.define_flags()
    define("out", "runs/sweep_model", "folder for results and figure; another run's is refused", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    fields = [f.name for f in dataclasses.fields(Config) if f.name != "parameters"]
    given = tuple((name, float(values[name])) for name in _FLAGS if values[name] is not None)
    config = Config(**{**{name: values[name] for name in fields}, "model": values["model"] or ""}, parameters=given)
    config.check()
    return command.run(config, values["out"], "sims.sweep_model.experiment")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
