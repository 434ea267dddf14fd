"""The config of a sweep over a model file, with its checks. Imports neither JAX nor plotting."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from sims.engine.flags import MAX_POINTS, UsageError, check_choice, check_range, numbers
from sims.sweep_model import paths
from sims.sweep_model.model_file import LEARNERS, OBSERVATION, PROMPTS, Spec, read

Axis = tuple[str, tuple[float, ...]]
MOST_FINE = 1001


def axis(text: str) -> Axis:
    """`PATH=0.1,0.2` or `PATH=0.1:0.9:9` as (path, values)."""
    path, sign, values = text.partition("=")
    if not sign or not path.strip():
        raise ValueError("needs PATH=NUMBERS, such as groups.2.weight=0.05:0.45:9")
    return path.strip(), numbers(values)


@dataclasses.dataclass(frozen=True)
class Config:
    """A model file, one or two axes by path, the learners, and the numbers that flags set in place of the file's.

    The second axis is `curves`, a curve for each value, or `y`, for maps. fine: points at which predictions are drawn
    along x, and along y.
    """

    model: str = ""
    x: Axis | None = None
    curves: Axis | None = None
    y: Axis | None = None
    fine: int = 61
    learners: tuple[str, ...] = ("mmcl", "whitened", "probe")
    prompts: str | None = None
    seeds: int = 20
    seed: int = 0
    parameters: tuple[tuple[str, float], ...] = ()

    @functools.cached_property
    def spec(self) -> Spec:
        """The model file, with what the flags change."""
        spec = read(self.model)
        for name, value in self.parameters:
            (spec["observation"] if name in OBSERVATION else spec)[name] = value
        return {**spec, "prompts": self.prompts or spec["prompts"]}

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes by their name in the results."""
        named = {"curve": self.curves, "y": self.y, "x": self.x}
        return {name: axis for name, axis in named.items() if axis is not None}

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the axes that determine shapes."""
        return tuple(name for name, (path, _) in self.axes.items() if path in paths.SIZES)

    def drawn(self) -> dict[str, tuple[float, ...]]:
        """Values of each axis at which predictions are drawn; those of the cells are among them."""
        return {name: axis[1] if name == "curve" else self._refined(*axis) for name, axis in self.axes.items()}

    def _refined(self, path: str, values: tuple[float, ...]) -> tuple[float, ...]:
        if path in paths.SIZES:
            return values
        step = (values[-1] - values[0]) / (self.fine - 1)
        return tuple(sorted({*values, *(values[0] + step * i for i in range(1, self.fine - 1))}))

    def count(self, **changed: tuple[float, ...]) -> int:
        """The number of cells. changed: other values of an axis."""
        return math.prod(len(changed.get(name, values)) for name, (_, values) in self.axes.items())

    def cells(self, **changed: tuple[float, ...]) -> list[Spec]:
        """The specs at all combinations of the axes' values, x fastest. changed: other values of an axis.

        Of a YAML or JSON file it is one spec, in which the numbers of the axes are arrays (cells,).
        """
        grid = np.meshgrid(*(changed.get(name, values) for name, (_, values) in self.axes.items()), indexing="ij")
        values = dict(zip([path for path, _ in self.axes.values()], map(np.ravel, grid), strict=True))
        if "groups" in self.spec:
            return [self._at(values)]
        return [self._at(dict(zip(values, map(float, at), strict=True))) for at in zip(*values.values(), strict=True)]

    def _at(self, values: dict[str, Any]) -> Spec:
        spec = self.spec
        try:
            return paths.at(spec, values)
        except UsageError as error:
            raise UsageError(f"--model={self.model}: {error}") from None

    def check(self) -> None:
        """Raise UsageError naming the flag or the entry of the file, the value and what is allowed."""
        for learner in self.learners:
            check_choice("learners", learner, LEARNERS)
        check_range("seeds", self.seeds, 2, 10_000)
        check_range("seed", self.seed, 0, 2**32 - 1)
        if self.prompts is not None:
            check_choice("prompts", self.prompts, PROMPTS)
        if not self.model:
            raise UsageError("--model must name a file, such as --model=examples/models/three_classes.yaml.")
        self._at({})
        if self.x is None:
            raise UsageError("--x must be PATH=NUMBERS, such as --x=groups.2.weight=0.05:0.45:9.")
        check_range("fine", self.fine, 2, MOST_FINE)
        if self.curves is not None and self.y is not None:
            raise UsageError("--curves and --y are both a second axis; use one of them.")
        for flag, second in (("curves", self.curves), ("y", self.y)):
            if second is not None and second[0] == self.x[0]:
                raise UsageError(f"--{flag} must be another path than --x, got {second[0]}.")
        if self.y is not None and (short := min(len(self.x[1]), len(self.y[1]))) < 2:
            raise UsageError(f"--x and --y must have at least 2 values each for a map, got {short}.")
        if self.count() > MAX_POINTS:
            raise UsageError(f"--x and the second axis must make at most {MAX_POINTS} cells, got {self.count()}.")
        self.cells()
        if "supervised" in self.learners and "groups" in self.spec:
            check_classes(max(group["class"] for group in self.spec["groups"]) + 1)

    def flat(self) -> dict[str, Any]:
        """All that decides the result, by flag name; of the file its content and its name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["parameters"], fields["prompts"]
        for name in ("y", "fine"):  # not in the folders of earlier runs
            if fields[name] == getattr(Config, name):
                del fields[name]
        spec = {k: v for k, v in self.spec.items() if k != "time" or "early_stopped" in self.learners}  # nor the time
        return {"command": "sweep_model", **fields, "model": spec, "file": pathlib.Path(self.model).stem}


def check_classes(classes: int) -> None:
    """Raise UsageError if max-margin has no theory for so many classes."""
    if classes > 2:
        raise UsageError(f"--learners: supervised has theory for 2 classes only, the model has {classes}.")
