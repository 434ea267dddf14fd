"""The config of the training dynamics, with its checks. Imports neither JAX nor plotting, so that --help is quick."""

import dataclasses
from typing import Any

from sims.engine.flags import UsageError, check_positive, check_range
from sims.latent.parameters import check_parameter

MODEL = ("p_spu", "sigma_core", "sigma_spu", "mu_core", "mu_spu", "pi_core", "pi_spu", "noise")
SIZES = ("n", "dim_image", "dim_text", "batch_size")


@dataclasses.dataclass(frozen=True)
class Config:
    """One model, one initialisation, two losses.

    temperature: of InfoNCE.
    initial: strength of every mode at initialisation.
    end: last time.
    points: number of recorded times, evenly spaced in log time from `end`/1000.
    rate: learning rate until time 1, then proportional to time, at most `largest_rate`.
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
        for name in (*MODEL, *SIZES):
            check_parameter(name, getattr(self, name))
        check_range("seeds", self.seeds, 2)
        check_range("points", self.points, 3)
        check_range("seed", self.seed, 0, 2**32 - 1)
        for name in ("temperature", "initial", "end", "rate", "largest_rate"):
            check_positive(name, getattr(self, name))
        check_range("batch_size", self.batch_size, 2, self.n, " (--n)")
        if self.rate > self.largest_rate:
            raise UsageError(f"--rate must be <= {self.largest_rate:g} (--largest_rate), got {self.rate:g}.")
        if (steps := self.end / self.rate) > 1e9:
            raise UsageError(f"--end and --rate must make at most 1e9 steps, got {steps:.0g}.")

    def flat(self) -> dict[str, Any]:
        """All that decides the result, by flag name."""
        return {"command": "dynamics", **dataclasses.asdict(self)}
