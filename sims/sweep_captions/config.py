"""The config of a sweep over captions, with its checks. Imports neither JAX nor plotting, so that --help is quick."""

import dataclasses
from typing import Any

from sims.engine.flags import MAX_POINTS, UsageError, check_choice, check_positive, check_range
from sims.latent.parameters import check_dimensions, check_parameter

_SIZES = {"noise": 0.3, "pi_core": 1.0, "pi_spu": 1.0}
PARAMETERS_OF: dict[str, dict[str, float]] = {
    "intra_class": {
        "p_spu": 0.99,
        "sigma_core": 1.0,
        "sigma_spu": 0.1,
        "mu_core": 1.0,
        "mu_spu": 1.0,
        "same_class_weight": 0.5,
        "n": 10_000,
        "dim_image": 4,
        "dim_text": 4,
        **_SIZES,
    },
    "inter_class": {
        "p_spu": 1.0,
        "alpha": 1.1,
        "beta": 0.5,
        "num_pairs": 16,
        "n": 60_000,
        "dim_image": 34,
        "dim_text": 34,
        **_SIZES,
        "noise": 0.05,
    },
}
_NO_FLAGS = ("pi_core", "pi_spu", "same_class_weight")  # the axes, and what is fixed
SCALARS_OF = {model: {k: v for k, v in p.items() if k not in _NO_FLAGS} for model, p in PARAMETERS_OF.items()}


@dataclasses.dataclass(frozen=True)
class Config:
    """Two axes, one or both data models, how cells are measured, and the budget.

    parameters: (name, value) pairs in place of a model's defaults. A model ignores those that it does not have.
    """

    model: tuple[str, ...] = ("intra_class", "inter_class")
    pi_core: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    pi_spu: tuple[float, ...] = (0.0, 0.5, 1.0)
    budget: float = 1.0
    cost_core: float = 1.0
    cost_spu: float = 1.0
    seeds: int = 10
    seed: int = 0
    parameters: tuple[tuple[str, float], ...] = ()

    def of(self, model: str) -> dict[str, float]:
        """All parameters of a data model, by name."""
        own = PARAMETERS_OF[model]
        return {**own, **{name: value for name, value in self.parameters if name in own}}

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        for model in self.model:
            check_choice("model", model, PARAMETERS_OF)
        for name in ("pi_core", "pi_spu"):
            for value in getattr(self, name):
                check_parameter(name, value)
        if (cells := len(self.pi_core) * len(self.pi_spu)) > MAX_POINTS:
            raise UsageError(f"--pi_core and --pi_spu must make at most {MAX_POINTS} cells, got {cells}.")
        if len(self.pi_core) < 2:
            raise UsageError(f"--pi_core must be two or more values, got {self.pi_core}.")
        check_range("seeds", self.seeds, 2, 10_000)
        check_range("seed", self.seed, 0, 2**32 - 1)
        check_positive("cost_core", self.cost_core)
        check_positive("cost_spu", self.cost_spu)
        check_range("budget", self.budget, 0)
        for name, value in self.parameters:
            if not any(name in PARAMETERS_OF[model] for model in self.model):
                raise UsageError(f"--{name} is no parameter of {', '.join(self.model)}.")
            check_parameter(name, value)
        for model in self.model:
            p = self.of(model)
            check_dimensions(p)
            if p["n"] * (p["dim_image"] + p["dim_text"]) > 2e8:
                raise UsageError(f"--n times the dimensions must be at most 2e8, got --n={p['n']:g}.")

    def flat(self) -> dict[str, Any]:
        """All that decides the result, by flag name."""
        fields = {**dataclasses.asdict(self), "parameters": {model: self.of(model) for model in self.model}}
        return {"command": "sweep_captions", **fields}
