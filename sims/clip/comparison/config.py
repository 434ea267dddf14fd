"""The settings of a comparison, and their checks.

Imports neither JAX nor grain, so that --help and refusals are quick.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from sims.clip.config import ARMS, SCENES
from sims.clip.config import Config as Training
from sims.engine.flags import UsageError

STUDIES = ("arms", "captions")
_MAX_RUNS, _MAX_STAGES = 10_000, 100
SHIFTS = ("v2", "sketch", "r", "a", "objectnet")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a comparison.

    Attributes:
      root: scenes of make_scenes.
      arms: of the study `arms`, trained on the scenes' own captions.
      pi_grid: of the captions' map.
      stages: shares of the training after which to measure; the last is 1.
      steps: of each run.
    """

    study: tuple[str, ...] = STUDIES
    root: str = SCENES
    arms: tuple[str, ...] = (
        "clip", "clip_no_intra", "clip_labels", "siglip", "supervised", "sup_con",
    )  # fmt: skip
    pi_grid: tuple[float, ...] = (0.0, 0.5, 1.0)
    stages: tuple[float, ...] = (0.5, 1.0)
    architecture: str = "RN-tiny"
    image_size: int | None = None
    context_length: int = 24
    steps: int = 240
    batch_size: int = 128
    learning_rate: float = 3e-3
    seeds: int = 3
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        for name, allowed in (("study", STUDIES), ("arms", tuple(ARMS))):
            for value in getattr(self, name):
                if value not in allowed:
                    raise UsageError(f"--{name} must be of {', '.join(allowed)}, got {value!r}.")
        for value in self.pi_grid:
            if not 0 <= value <= 1:
                raise UsageError(f"--pi_grid must be in [0, 1], got {value:g}.")
        for name in ("pi_grid", "stages"):
            if len({f"{value:g}" for value in getattr(self, name)}) < len(getattr(self, name)):
                raise UsageError(f"--{name} must have values that differ in six digits, by which runs are named.")
        if len(self.stages) > _MAX_STAGES:
            raise UsageError(f"--stages must be at most {_MAX_STAGES}, got {len(self.stages)}.")
        if not 0 < self.stages[0] <= self.stages[-1] == 1:
            raise UsageError(f"--stages must be in (0, 1] and end with 1, got {self.stages}.")
        if not 2 <= self.seeds <= 1000:
            raise UsageError(f"--seeds must be in [2, 1000], got {self.seeds}.")
        policies = len(self.pi_grid) ** 2 if "captions" in self.study else 0
        count = self.seeds * (policies + len(self.arms) * ("arms" in self.study))
        if count > _MAX_RUNS:
            raise UsageError(
                f"--pi_grid of {len(self.pi_grid)} values and --seeds={self.seeds} make {count} runs; at most"
                f" {_MAX_RUNS} are allowed."
            )
        for run in self.runs():
            self.training(run, pathlib.Path()).check()

    def runs(self) -> list["Run"]:
        """Every run once, ordered by seed, so that a comparison which is cut short has whole seeds."""
        found = []
        for seed in range(self.seeds):
            if "arms" in self.study:
                found += [Run(arm, None, None, seed) for arm in self.arms]
            if "captions" in self.study:
                found += [Run("clip", core, spu, seed) for core in self.pi_grid for spu in self.pi_grid]
        return found

    def steps_of(self, run: "Run") -> list[int]:
        """The steps after which to measure a run; in the study `captions`, the last alone."""
        shares = self.stages if run.pi_core is None else self.stages[-1:]
        return [max(1, round(share * self.steps)) for share in shares]

    def training(self, run: "Run", out: pathlib.Path) -> Training:
        """The settings of a run's training."""
        return Training(
            data=f"coco:{self.root}/coco",
            captions=None if run.pi_core is None else str(out / "captions" / run.captions),
            arm=run.arm, architecture=self.architecture, image_size=self.image_size,
            context_length=self.context_length, vocabulary=str(out / "tokenizer.json"), batch_size=self.batch_size,
            steps=self.steps, learning_rate=self.learning_rate, warm_up=max(1, self.steps // 10),
            seed=self.seed + run.seed,
        )  # fmt: skip

    def flat(self, scene: Any) -> Mapping[str, Any]:
        """The settings that decide the results.  scene: the scenes' own settings."""
        return {"command": "clip.compare", **dataclasses.asdict(self), "scenes": dataclasses.asdict(scene)}


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    pi_core, pi_spu: chances that captions name core details and context; None: the scenes' own captions.
    """

    arm: str
    pi_core: float | None
    pi_spu: float | None
    seed: int

    @property
    def name(self) -> str:
        policy = "" if self.pi_core is None else f"_core{self.pi_core:g}_spu{self.pi_spu:g}"
        return f"{self.arm}{policy}_{self.seed}"

    @property
    def captions(self) -> str:
        return f"core{self.pi_core:g}_spu{self.pi_spu:g}.json"
