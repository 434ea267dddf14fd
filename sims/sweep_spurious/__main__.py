"""Accuracy under shift as the spurious correlation of the training data grows: MMCL against supervised learning.

Every cell of a grid over p_spu (and over core and spurious variance, caption detail and same-class weight) is predicted
by theory and measured by learners trained on samples in ambient space; both are printed, judged, stored and drawn. A
number list is 0.5,0.9 or start:stop:count. An interrupted run goes on where it stopped when the command is repeated.

    python -m sims.sweep_spurious --out runs/my_sweep --p_spu=0.5:1:11 --pi_core=0,1 --learners=mmcl,supervised
"""

import dataclasses
import pathlib

from absl import flags

from sims.engine import devices
from sims.engine.flags import define, integer, names, number, numbers, optional, path, run_main
from sims.latent.settings import LEARNERS, Setting
from sims.sweep_spurious.config import Config

DEFAULT_OUT = "runs/sweep_spurious"


def _define_flags() -> None:
    config = Config()
    setting = config.setting
    axes = {
        "p_spu": "spurious correlation in training, P(attribute = label), probability in [0, 1]",
        "sigma_core": "standard deviation of the core feature around its mean, in latent units, >= 0",
        "sigma_spu": "standard deviation of the spurious feature around its mean, in latent units, >= 0",
        "pi_core": "chance that a caption names the core detail, in [0, 1]; 0: label-only captions, 1: rich captions",
        "same_class_weight": "total weight of an anchor's same-class negatives, in [0, 1]; 0.5: the ordinary loss",
    }
    for name, text in axes.items():
        define(name, getattr(config, name), f"axis (number list): {text}", numbers)
    define("learners", config.learners, f"learners, of {', '.join(LEARNERS)}", names)
    define(
        "seeds",
        config.seeds,
        "independent runs of each cell and learner, >= 1; 2 or more give standard errors",
        integer,
    )
    define("seed", config.seed, "root of all randomness, in [0, 2^32)", integer)
    sizes = {
        "n": "training samples of a run, >= 2",
        "dim_image": "dimension of an image, >= 2",
        "dim_text": "dimension of a caption, >= 2",
        "gradient_steps": "steps of the gradient-trained learners, >= 1",
    }
    for name, text in sizes.items():
        define(name, getattr(setting, name), text, integer)
    optional_sizes = {
        "batch_size": "samples in a step of info_nce, in [2, n]; none: 128, or n if fewer; the other learners take all",
        "embed_dim": "embedding size of the mmcl learners, in [1, min(dim_image, dim_text)]; none: no limit",
    }
    for name, text in optional_sizes.items():
        define(name, getattr(setting, name), text, optional(integer))
    reals = {
        "sigma_image": "noise norm of an image, E|noise|^2 = sigma_image^2, >= 0",
        "sigma_text": "noise norm of a caption, >= 0",
        "mu_core": "mean of the core feature times the label, in latent units, > 0",
        "mu_spu": "mean of the spurious feature times the attribute, in latent units, >= 0",
        "pi_spu": "chance that a caption names the spurious feature, in [0, 1]",
        "temperature": "temperature of info_nce, > 0",
    }
    for name, text in reals.items():
        define(name, getattr(setting, name), text, number)
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
    out = pathlib.Path(values["out"])
    config.check()
    from sims.sweep_spurious import experiment  # JAX, xarray and matplotlib load only once the arguments are good

    dataset = experiment.run(config, out, devices.start())
    if dataset is None:
        return 0
    from sims.engine import runs
    from sims.latent import summary

    print(f"Samplers: {dataset.attrs['samplers']}")
    print(summary.text(summary.columns(dataset)))
    print(f"\nFigure: {out / 'sweep_spurious.png'}\nTable: {out / 'summary.csv'}\nData: {out / 'results.zarr'}")
    return runs.closing(out, dataset)


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
