"""Accuracy of both groups along training: the linear loss beside InfoNCE, from the same small aligned start.

Theory (X6) predicts the linear loss at all times; the two losses' end points are `theory.mmcl_accuracy` and the
population optimum of bilinear InfoNCE, `theory.info_nce_optimum` (dotted: its second order, `whitened_accuracy`).

Time is gradient-flow time, the sum of the learning rates of the steps taken. At scores near 0 the gradient of InfoNCE
on batches of N pairs is (N-1)/(N tau) times that of the linear loss without its regulariser, for either direction and
hence for their mean: with a_ij the softmax, dL/ds_ij = (a_ij - 1{i=j}) / (N tau) and a_ij -> 1/N, so that
dL/dW = -(N-1)/(N tau) C_hat, C_hat unbiased. InfoNCE's time is therefore shown as (N-1)/(N tau) times the sum of its
learning rates: both losses then start alike (X5), and part where scores are no longer small.

    python -m sims.dynamics --out runs/dynamics --pi_core=0.5 --pi_spu=0.5
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from sims import devices
from sims.flags import DEFAULTS, Options, UsageError, define, integer, number, path, run_main
from sims.parameters import PARAMETERS, check_parameter

if TYPE_CHECKING:
    import xarray as xr

_MODEL = ("p_spu", "sigma_core", "sigma_spu", "mu_core", "mu_spu", "pi_core", "pi_spu", "noise")
_SIZES = ("n", "dim_image", "dim_text", "batch_size")


@dataclasses.dataclass(frozen=True)
class Config:
    """One model, one start, two losses.

    initial: strength of every mode at the start.  temperature: of InfoNCE.  end: last time shown.  points: recorded
    times, even in the logarithm from `end`/1000.  rate: learning rate up to time 1, then in proportion to time, at most
    `largest_rate`.
    """

    p_spu: float = 0.95
    sigma_core: float = 1.0
    sigma_spu: float = 0.3
    mu_core: float = 1.0
    mu_spu: float = 1.0
    pi_core: float = 1.0
    pi_spu: float = 1.0
    noise: float = 0.3
    n: int = 4000
    dim_image: int = 8
    dim_text: int = 6
    batch_size: int = 256
    temperature: float = 1.0
    initial: float = 1e-3
    end: float = 30.0
    points: int = 50
    rate: float = 4e-3
    largest_rate: float = 0.03
    seeds: int = 8
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        for name in (*_MODEL, *_SIZES):
            check_parameter(name, getattr(self, name))
        for name, least in (("dim_image", 2), ("dim_text", 2), ("seeds", 2), ("points", 3), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} must be >= {least}, got {getattr(self, name)}.")
        if self.seed >= 2**32:
            raise UsageError(f"--seed must be <= 4294967295, got {self.seed}.")
        for name in ("temperature", "initial", "end", "rate", "largest_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name} must be > 0, got {getattr(self, name):g}.")
        if self.batch_size > self.n:
            raise UsageError(f"--batch_size must be <= {self.n} (--n), got {self.batch_size}.")
        if self.rate > self.largest_rate:
            raise UsageError(f"--rate must be <= {self.largest_rate:g} (--largest_rate), got {self.rate:g}.")
        if (steps := self.end / self.rate) > 1e9:
            raise UsageError(f"--end and --rate must make at most 1e9 steps, got {steps:.0g}.")

    def flat(self) -> dict[str, Any]:
        """By flag name."""
        return {"command": "dynamics", **dataclasses.asdict(self)}


def run(config: Config, out: pathlib.Path, options: Options = DEFAULTS) -> "xr.Dataset | None":
    """Train, predict, and write results, table and figure into `out`; returns the dataset.

    Raises: UsageError for a bad config, or a folder of another run; then nothing is written.
    """
    config.check()
    from sims import trajectories  # JAX, xarray and matplotlib load only once the arguments are good

    return trajectories.run(config, out, options)


def _define_flags() -> None:
    config = Config()
    for name in _MODEL:
        define(name, getattr(config, name), f"{PARAMETERS[name][1]}, {PARAMETERS[name][0]}", number)
    for name in _SIZES:
        define(name, getattr(config, name), f"{PARAMETERS[name][1]}, {PARAMETERS[name][0]}", integer)
    reals = {
        "temperature": "temperature tau of InfoNCE, > 0",
        "initial": "strength of every mode at the start, > 0",
        "end": "last time, in sums of learning rates, > 0",
        "rate": "learning rate of both losses up to time 1, then in proportion to time, > 0",
        "largest_rate": "largest learning rate, > 0",
    }
    for name, text in reals.items():
        define(name, getattr(config, name), text, number)
    define("points", config.points, "recorded times, >= 3", integer)
    define("seeds", config.seeds, "independent runs of each loss, >= 2", integer)
    define("seed", config.seed, "root of all randomness, in [0, 2^32)", integer)
    devices.define_flags()
    define("out", "runs/dynamics", "folder for results and figure; another run's is refused", path)


def _main() -> int:
    values = flags.FLAGS.flag_values_dict()
    config = Config(**{f.name: values[f.name] for f in dataclasses.fields(Config)})
    out = pathlib.Path(values["out"])
    dataset = run(config, out, devices.start())
    if dataset is None:
        return 0
    from sims import results, trajectories

    print(trajectories.text(dataset))
    print(f"\nFigure: {out / 'dynamics.png'}\nTable: {out / 'summary.csv'}")
    return results.closing(out, dataset)


if __name__ == "__main__":
    run_main(__doc__, _define_flags, _main)
