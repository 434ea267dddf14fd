"""What a sweep is asked to do, checked. Imports neither JAX nor plotting, so that --help and refusals are quick."""

import dataclasses
import math
import os
from typing import Any

import numpy as np

from sims.engine.flags import UsageError
from sims.latent.settings import AXES, LEARNERS, SAMPLERS, Setting

_COPIES = 8  # of the results of all runs in memory: measured, cleaned, means, errors


@dataclasses.dataclass(frozen=True)
class Config:
    """A sweep: its axes, its setting, how many seeds of which learners.

    The axes are tuples of numbers. seeds: independent runs a cell.  seed: root of all randomness.  learners: of
    `LEARNERS`.
    """

    p_spu: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
    sigma_core: tuple[float, ...] = (1.0,)
    sigma_spu: tuple[float, ...] = (0.1,)
    pi_core: tuple[float, ...] = (1.0,)
    same_class_weight: tuple[float, ...] = (0.5,)
    setting: Setting = dataclasses.field(default_factory=Setting)
    learners: tuple[str, ...] = LEARNERS
    seeds: int = 20
    seed: int = 0

    @property
    def axes(self) -> dict[str, tuple[float, ...]]:
        """The swept axes by name, in the order of the stored variables."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def runs(self) -> int:
        """Runs of each learner: cells times seeds."""
        return math.prod(len(values) for values in self.axes.values()) * self.seeds

    @property
    def result_bytes(self) -> int:
        """Memory that the accuracies of all runs take with their working copies."""
        return 8 * 2 * _COPIES * self.runs * len(self.learners)

    def flat(self) -> dict[str, Any]:
        """All fields and the setting's, by flag name."""
        fields = dataclasses.asdict(self)
        setting = fields.pop("setting")
        return {"command": "sweep_spurious", **fields, **setting}

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        setting = self.setting
        for learner in self.learners:
            if learner not in LEARNERS:
                raise UsageError(f"--learners must be of {', '.join(LEARNERS)}, got {learner!r}.")
        for name, values in {**self.axes, "learners": self.learners}.items():
            if not values or len(set(values)) < len(values):
                raise UsageError(f"--{name} must be one or more values that differ from each other, got {values}.")
        if setting.sampler not in ("auto", *SAMPLERS):
            raise UsageError(f"--sampler must be of auto, {', '.join(SAMPLERS)}, got {setting.sampler!r}.")
        for learner in self.learners:
            if setting.sampler_of(learner) not in setting.samplers(learner):
                known = ", ".join(setting.samplers(learner))
                raise UsageError(f"--sampler={setting.sampler} does not draw {learner} here, which has {known}.")
        for name, least in (("seeds", 1), ("seed", 0)):
            _at_least(name, getattr(self, name), least)
        for name, least in (("n", 2), ("gradient_steps", 1)):
            _at_least(name, getattr(setting, name), least)
        for name in ("dim_image", "dim_text"):
            _at_least(name, getattr(setting, name), 2)
        _at_most("seed", self.seed, 2**32 - 1)
        _at_most("seeds", self.seeds, 10**12)
        for name in ("n", "dim_image", "dim_text"):
            _at_most(name, getattr(setting, name), 10**12)
        _at_most("gradient_steps", setting.gradient_steps, 2**31 - 1)
        if not setting.temperature > 0:
            raise UsageError(f"--temperature must be > 0, got {setting.temperature:g}.")
        for weight in self.same_class_weight:
            if not 0 <= weight <= 1:
                raise UsageError(f"--same_class_weight must be in [0, 1], got {weight:g}.")
        smaller = min(setting.dim_image, setting.dim_text)
        for name, least, most, why in (
            ("batch_size", 2, setting.n, " (--n)"),
            ("embed_dim", 1, smaller, " (the smaller of --dim_image and --dim_text)"),
        ):
            value = getattr(setting, name)
            if value is not None:
                _at_least(name, value, least)
                _at_most(name, value, most, why)
        self._check_memory()
        self._check_model()
        for name, values in self.axes.items():
            if list(values) != sorted(values):
                raise UsageError(f"--{name} must increase, got {values}.")

    def _check_memory(self) -> None:
        setting = self.setting
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.result_bytes > memory:
            raise UsageError(
                f"--seeds={self.seeds} and the axes make {self.runs} runs of each learner, whose results need about"
                f" {self.result_bytes / 2**30:.0f} GiB, this machine has {memory / 2**30:.0f}."
            )
        for learner in self.learners:
            needed = setting.least_bytes(learner)
            if needed > memory:
                raise UsageError(
                    f"--n={setting.n} --dim_image={setting.dim_image} --dim_text={setting.dim_text} need more than"
                    f" {needed / 2**30:.0f} GiB for a run of {learner}, this machine has {memory / 2**30:.0f}."
                )

    def _check_model(self) -> None:
        """The library's constructors judge the parameters; their argument names are the flags' names."""
        import mmcl_theory as mt

        s = self.setting
        axes = {name: np.asarray(values) for name, values in self.axes.items()}
        try:
            mt.intra_class(0.5, axes["sigma_core"], 1.0, s.mu_core, s.mu_spu)
            mt.intra_class(axes["p_spu"], 1.0, 1.0)
            mt.intra_class(0.5, 1.0, axes["sigma_spu"])
            mt.captions(axes["pi_core"], s.pi_spu)
            mt.observation(s.dim_image, s.dim_text, s.sigma_image, s.sigma_text)
        except ValueError as error:
            raise UsageError(f"--{error}") from None


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"--{name} must be >= {least}, got {value}.")


def _at_most(name: str, value: int, most: int, why: str = "") -> None:
    if value > most:
        raise UsageError(f"--{name} must be <= {most}{why}, got {value}.")
