"""Accuracy of both groups along training: the linear loss beside InfoNCE, from the same small aligned start.

Theory (X6) predicts the linear loss at all times. Its end point is `theory.mmcl_accuracy`. InfoNCE's end point is the
population optimum of the bilinear loss, `theory.info_nce_optimum`; the dotted line is its second-order approximation,
`theory.whitened_accuracy`.

Time is gradient-flow time: the sum of the learning rates of the steps taken. For scores near 0, the gradient of InfoNCE
on batches of N pairs is (N-1)/(N tau) times that of the linear loss without its regulariser. This holds for either
direction, and hence for their mean. With a_ij the softmax, dL/ds_ij = (a_ij - 1{i=j}) / (N tau) and a_ij -> 1/N, so
dL/dW = -(N-1)/(N tau) C_hat, with C_hat unbiased. InfoNCE's time is therefore (N-1)/(N tau) times the sum of its
learning rates. Both losses then start alike (X5), and diverge once scores are no longer small.

    python -m sims.dynamics --out runs/dynamics --pi_core=0.5 --pi_spu=0.5
"""

import dataclasses

from absl import flags

from sims.dynamics.config import MODEL, SIZES, Config
from sims.engine import command, devices
from sims.engine.flags import define, integer, number, path, run_main
from sims.latent.parameters import define_flag


def _define_flags() -> None:
    config = Config()
    for name in (*MODEL, *SIZES):
        define_flag(name, getattr(config, name))
    reals = {
        "temperature": "temperature tau of InfoNCE, > 0",
        "initial": "strength of every mode at initialisation, > 0",
        "end": "last time, as a sum of learning rates, > 0",
        "rate": "learning rate of both losses until time 1, then proportional to time, > 0",
        "largest_rate": "largest learning rate, > 0",
    }
    for name, text in reals.items():
        define(name, getattr(config, name), text, number)
    define("points", config.points, "number of recorded times, >= 3", integer)
    define("seeds", config.seeds, "independent runs of each loss, >= 2", integer)
    define("seed", config.seed, "root of all randomness, in [0, 2^32)", integer)
    devices.define_flags()
    define("out", "runs/dynamics", "folder for results and figure; another run's is refused", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    config = Config(**{f.name: values[f.name] for f in dataclasses.fields(Config)})
    config.check()
    return command.run(config, values["out"], "sims.dynamics.experiment")


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
