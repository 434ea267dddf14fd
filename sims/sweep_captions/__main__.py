"""What captions name decides: accuracy over pi_core x pi_spu under the linear loss and under the whitened rule.

Covers both data models (T5 intra-class, T6 inter-class), under the linear loss and under the whitened rule, which
approximates InfoNCE (X10). Each accuracy is predicted by theory and measured on samples in ambient space. For each
model and loss it also finds the best captions within a budget, cost_core pi_core + cost_spu pi_spu <= budget (X8), and
prints the residual of their optimality conditions.

    python -m sims.sweep_captions --out runs/captions --pi_core=0:1:9 --pi_spu=0,0.5,1 --budget=1 --cost_spu=0.5
"""

import dataclasses

from absl import flags

from sims.engine import command, devices
from sims.engine.flags import define, integer, names, number, numbers, path, run_main
from sims.latent import parameters
from sims.latent.parameters import PARAMETERS
from sims.sweep_captions.config import PARAMETERS_OF, SCALARS_OF, Config


def _define_flags() -> None:
    config = Config()
    define("model", config.model, f"data models, of {', '.join(PARAMETERS_OF)}", names)
    for name in ("pi_core", "pi_spu"):
        define(name, getattr(config, name), f"axis (number list): {PARAMETERS[name].help}", numbers)
    define("budget", config.budget, "upper limit of cost_core pi_core + cost_spu pi_spu, >= 0", number)
    define("cost_core", config.cost_core, "cost of always naming the core detail, > 0", number)
    define("cost_spu", config.cost_spu, "cost of always naming the spurious feature, > 0", number)
    define("seeds", config.seeds, "independent runs of each cell, loss and model, >= 2", integer)
    define("seed", config.seed, "root of all randomness, in [0, 2^32)", integer)
    parameters.define_flags(SCALARS_OF)
    devices.define_flags()
    define("out", "runs/sweep_captions", "folder for results and figure; another run's is refused", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    fields = [f.name for f in dataclasses.fields(Config) if f.name != "parameters"]
    config = Config(**{name: values[name] for name in fields}, parameters=parameters.given())
    config.check()
    return command.run(config, values["out"], "sims.sweep_captions.experiment")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
