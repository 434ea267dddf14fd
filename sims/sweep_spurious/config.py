"""The config of a sweep over p_spu, with its checks. Imports neither JAX nor plotting, so that --help is quick."""

import dataclasses
import math
from typing import Any

from sims.engine import processes
from sims.engine.flags import UsageError, check_choice, check_positive, check_range
from sims.latent.parameters import PARAMETERS, check_parameter
from sims.latent.settings import AXES, LEARNERS, SAMPLERS, Setting

_COPIES = 8  # of all results in memory: measured, without failures, means, errors


@dataclasses.dataclass(frozen=True)
class Config:
    """A sweep: five axes, the setting, the learners and the number of seeds.

    learners: of `LEARNERS`.
    seeds: independent runs per cell.
    seed: root of all randomness.
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
        """Memory for the accuracies of all runs, with working copies."""
        return 8 * 2 * _COPIES * self.runs * len(self.learners)

    def flat(self) -> dict[str, Any]:
        """All that decides the result, by flag name."""
        fields = dataclasses.asdict(self)
        setting = fields.pop("setting")
        return {"command": "sweep_spurious", **fields, **setting}

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        setting = self.setting
        for learner in self.learners:
            check_choice("learners", learner, LEARNERS)
        for name, values in {**self.axes, "learners": self.learners}.items():
            if not values or len(set(values)) < len(values):
                raise UsageError(f"--{name} must be one or more values that differ from each other, got {values}.")
        check_choice("sampler", setting.sampler, ("auto", *SAMPLERS))
        for learner in self.learners:
            if setting.sampler_of(learner) not in setting.samplers(learner):
                known = ", ".join(setting.samplers(learner))
                raise UsageError(f"--sampler={setting.sampler} does not draw {learner} here, which has {known}.")
        for name, values in self.axes.items():
            for value in values:
                check_parameter(name, value)
        for name, value in dataclasses.asdict(setting).items():
            if name in PARAMETERS and value is not None:
                check_parameter(name, value)
        check_range("seeds", self.seeds, 1, 10**12)
        check_range("seed", self.seed, 0, 2**32 - 1)
        for name in ("n", "dim_image", "dim_text"):
            check_range(name, getattr(setting, name), 2, 10**12)
        check_range("gradient_steps", setting.gradient_steps, 1, 2**31 - 1)
        check_positive("temperature", setting.temperature)
        if setting.batch_size is not None:
            check_range("batch_size", setting.batch_size, 2, setting.n, " (--n)")
        if setting.embed_dim is not None:
            smaller = min(setting.dim_image, setting.dim_text)
            check_range("embed_dim", setting.embed_dim, 1, smaller, " (the smaller of --dim_image and --dim_text)")
        self._check_memory()
        for name, values in self.axes.items():
            if list(values) != sorted(values):
                raise UsageError(f"--{name} must increase, got {values}.")

    def _check_memory(self) -> None:
        setting = self.setting
        memory = processes.memory()
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
