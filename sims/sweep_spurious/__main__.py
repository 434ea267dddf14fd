"""Accuracy under shift as the spurious correlation of the training data grows: MMCL against supervised learning.

The grid is over p_spu, and also over core and spurious variance, caption detail and same-class weight. In each cell
theory predicts the accuracy, and learners trained on samples measure it; both are compared, printed, stored and drawn.
A number list is 0.5,0.9 or start:stop:count. If a run is interrupted, the same command resumes it.

    python -m sims.sweep_spurious --out runs/my_sweep --p_spu=0.5:1:11 --pi_core=0,1 --learners=mmcl,supervised
"""

import dataclasses

from absl import flags

from sims.engine import command, devices
from sims.engine.flags import define, integer, names, number, numbers, optional, path, run_main
from sims.latent.parameters import PARAMETERS, define_flag
from sims.latent.settings import AXES, LEARNERS, Setting
from sims.sweep_spurious.config import Config

DEFAULT_OUT = "runs/sweep_spurious"


def _define_flags() -> None:
    config = Config()
    setting = config.setting
    for name in AXES:
        define(name, getattr(config, name), f"axis (number list): {PARAMETERS[name].help}", numbers)
    define("learners", config.learners, f"learners, of {', '.join(LEARNERS)}", names)
    define(
        "seeds",
        config.seeds,
        "independent runs of each cell and learner, >= 1; standard errors need 2 or more",
        integer,
    )
    define("seed", config.seed, "root of all randomness, in [0, 2^32)", integer)
    define("gradient_steps", setting.gradient_steps, "steps of the gradient-trained learners, >= 1", integer)
    optional_sizes = {
        "batch_size": "samples in a step of info_nce, in [2, n]; none: 128, or n if smaller; others use all",
        "embed_dim": "embedding size of the mmcl learners, in [1, min(dim_image, dim_text)]; none: no limit",
    }
    for name, text in optional_sizes.items():
        define(name, getattr(setting, name), text, optional(integer))
    for name in ("n", "dim_image", "dim_text", "sigma_image", "sigma_text", "mu_core", "mu_spu", "pi_spu"):
        define_flag(name, getattr(setting, name))
    define("temperature", setting.temperature, "temperature of info_nce, > 0", number)
    text = (
        "how runs are drawn: auto, the cheapest that each learner has, or one of statistics (cost grows neither with n"
    )
    text += (
        " nor with the dimensions; mmcl), latent (without the ambient dimension; mmcl, supervised), ambient; one law"
    )
    define("sampler", setting.sampler, text, str)
    devices.define_flags()
    define(
        "out", DEFAULT_OUT, "folder for results.zarr, summary.csv, config.json, figure; another run's is refused", path
    )


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    setting = Setting(**{f.name: values[f.name] for f in dataclasses.fields(Setting)})
    fields = [f.name for f in dataclasses.fields(Config) if f.name != "setting"]
    config = Config(setting=setting, **{name: values[name] for name in fields})
    config.check()
    return command.run(config, values["out"], "sims.sweep_spurious.experiment")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
