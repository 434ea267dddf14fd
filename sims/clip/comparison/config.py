"""The settings of a comparison, and their checks.

Imports neither JAX nor grain, so that --help and refusals are quick.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from sims.clip.config import ARMS, SCENES
from sims.clip.config import PRESETS as RECIPES
from sims.clip.config import Config as Training
from sims.engine.flags import UsageError, check_choice

STUDIES = ("arms", "captions")
_MAX_RUNS, _MAX_STAGES = 10_000, 100
SHIFTS = ("v2", "sketch", "r", "a", "objectnet")
SIX = ("val", *SHIFTS)  # the paper's OOD sets
NAMES = "names"  # the class map of the data's own class names
_KINDS = {"paper_coco": ("coco:DIR",), "paper_cc": ("tars:GLOB", "csv:FILE", "parquet:FILE")}
_SMALL = Training(context_length=24, batch_size=128, epochs=3.0, learning_rate=3e-3, warm_up=10)
_VALIDATION = 0.3  # share of each class's records, where the data has no validation part of its own


def _check_names(name: str, values: tuple[float, ...]) -> None:
    if len({f"{value:g}" for value in values}) < len(values):
        raise UsageError(f"--{name} must have values that differ in six digits, by which runs are named.")


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
    arms: tuple[str, ...] = ("clip", "clip_no_intra", "clip_labels", "siglip", "supervised", "sup_con")
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
                check_choice(name, value, allowed)
        for value in self.pi_grid:
            if not 0 <= value <= 1:
                raise UsageError(f"--pi_grid must be in [0, 1], got {value:g}.")
        for name in ("pi_grid", "stages"):
            _check_names(name, getattr(self, name))
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
        every = []
        for seed in range(self.seeds):
            if "arms" in self.study:
                every += [Run(arm, None, None, seed) for arm in self.arms]
            if "captions" in self.study:
                every += [Run("clip", core, spu, seed) for core in self.pi_grid for spu in self.pi_grid]
        return every

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


@dataclasses.dataclass(frozen=True)
class Shares:
    """The settings of the study `shares`.

    Attributes:
      preset: of PRESETS, from which the settings come.
      training: the recipe of all runs; the study sets its arm, percent, seed, vocabulary and validation.
      root: folder of the six evaluation sets, as for evaluate.
      classes: their class list; None: ROOT/classes.json.
      class_map: by which they are scored: coco, a CSV file, or NAMES; None: by their own classes.
      templates: file of prompts; None: on scenes those of the other studies, else evaluate's.
      percent: of the training records, in percent.
      at: ID accuracies in percent at which the arms are compared; None: the middle of those that two arms reach.
      seeds: runs of each arm and share.
    """

    preset: str = "scenes"
    training: Training = _SMALL
    root: str = SCENES
    classes: str | None = None
    class_map: str | None = None
    templates: str | None = None
    arms: tuple[str, ...] = ("clip", "clip_no_intra")
    percent: tuple[float, ...] = (25.0, 50.0, 75.0, 100.0)
    at: tuple[float, ...] | None = None
    seeds: int = 3

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        data = self.training.data
        if kinds := _KINDS.get(self.preset):
            if data.partition(":")[0] not in [kind.partition(":")[0] for kind in kinds]:
                given = f", got {data!r}" if data else ""
                raise UsageError(f"--preset={self.preset} needs --data={' or '.join(kinds)}{given}.")
            if not self.root:
                raise UsageError(f"--preset={self.preset} needs --root, the folder of the evaluation sets.")
        if data.startswith("coco:") and "/" not in data.rpartition(":")[2] and data.count(":") > 1:
            raise UsageError(f"--data must be coco:DIR, as ID accuracy is that on its val2017, got {data!r}.")
        for arm in self.arms:
            check_choice("arms", arm, ARMS)
        _check_names("percent", self.percent)
        for value in self.at or ():
            if not 0 < value < 100:
                raise UsageError(f"--at must be inside (0, 100), in percent, got {value:g}.")
        if not 1 <= self.seeds <= 1000:
            raise UsageError(f"--seeds must be in [1, 1000], got {self.seeds}.")
        count = self.seeds * len(self.arms) * len(self.percent)
        if count > _MAX_RUNS:
            raise UsageError(f"--seeds={self.seeds}, --arms and --percent make {count} runs; at most {_MAX_RUNS} do.")
        for run in self.runs():
            self.of_run(run, None).check()

    @property
    def data(self) -> str:
        """The training data."""
        return f"coco:{self.root}/coco" if self.on_scenes else self.training.data

    @property
    def on_scenes(self) -> bool:
        """Whether the data are generated scenes."""
        return self.training.data == "scenes"

    @property
    def panel(self) -> str:
        """The data's name in the figure; those of the paper's as in its points."""
        return {"paper_coco": "coco", "paper_cc": "cc"}.get(self.preset, self.training.data)

    @property
    def validation(self) -> float:
        """Share of the data that is kept from all runs to measure ID accuracy; 0: COCO has val2017."""
        return 0.0 if self.data.startswith("coco:") else _VALIDATION

    def runs(self) -> list["Share"]:
        """Every run, ordered by seed, so that a study which is cut short has whole seeds."""
        return [Share(arm, p, seed) for seed in range(self.seeds) for p in self.percent for arm in self.arms]

    def of_run(self, run: "Share", vocabulary: str | None) -> Training:
        """The settings of a run's training."""
        return dataclasses.replace(
            self.training, data=self.data, arm=run.arm, percent=run.percent, validation=self.validation,
            vocabulary=vocabulary, seed=self.training.seed + run.seed,
        )  # fmt: skip

    def flat(self, scene: Any = None) -> Mapping[str, Any]:
        """The settings that decide the results.  scene: the scenes' own settings, if these are the data."""
        of_scenes = {} if scene is None else {"scenes": dataclasses.asdict(scene)}
        settings = {k: v for k, v in dataclasses.asdict(self).items() if k != "training"}
        recipe = {**dataclasses.asdict(self.training), "labels": self.training.classes}  # `classes` are the sets'
        return {"command": "clip.compare", "study": ["shares"], **recipe, **settings, **of_scenes}


@dataclasses.dataclass(frozen=True)
class Share:
    """A training run of the study `shares`, on this percentage of the training records."""

    arm: str
    percent: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.percent:g}_{self.seed}"


_PAPER = Shares(training=dataclasses.replace(RECIPES["coco_rn50"], data=""), root="", at=(20.0,), seeds=1)
PRESETS = {
    "scenes": Shares(),
    "paper_coco": dataclasses.replace(_PAPER, preset="paper_coco", class_map="coco"),
    "paper_cc": dataclasses.replace(_PAPER, preset="paper_cc", class_map=NAMES),
}
