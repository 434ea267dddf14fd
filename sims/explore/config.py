"""The sliders with all their values, and the point at which the page starts. Imports neither JAX nor Bokeh."""

import dataclasses
import math
from collections.abc import Mapping

from sims.engine.flags import UsageError, check_choice, check_range
from sims.latent.parameters import PARAMETERS, check_parameter

MASKINGS = ("named", "mean", "zero")
INITIAL = 1e-3  # strength of every mode at the start of training


@dataclasses.dataclass(frozen=True)
class Dial:
    """A slider. It stands only at its values, so that every number shown is computed where it is shown.

    values: all of them, ascending.
    start: where the slider stands at first.
    title: above the slider.
    grid: its values in an exported file; () if it is fixed there.
    """

    values: tuple[float, ...]
    start: float
    title: str
    grid: tuple[float, ...] = ()

    @property
    def allowed(self) -> str:
        """The values, for a message."""
        step = self.values[1] - self.values[0]
        if all(math.isclose(b - a, step) for a, b in zip(self.values, self.values[1:], strict=False)):
            return f"from {self.values[0]:g} to {self.values[-1]:g} in steps of {step:g}"
        return f"one of {', '.join(map(shown, self.values))}"


def _steps(start: float, stop: float, count: int) -> tuple[float, ...]:
    """count evenly spaced values; each is the float nearest to what is shown of it."""
    return tuple(round(start + (stop - start) * i / (count - 1), 10) for i in range(count))


def _one_two_five(first: int, last: int) -> tuple[float, ...]:
    """1, 2 and 5 times the powers of 10 from 10^first on, and 10^last."""
    return (*(float(f"{digit}e{k}") for k in range(first, last) for digit in (1, 2, 5)), float(f"1e{last}"))


def _per_decade(first: int, last: int) -> tuple[float, ...]:
    """Ten values for each decade from 10^first to 10^last, to three digits."""
    return tuple(float(f"{10 ** (first + i / 10):.3g}") for i in range(10 * (last - first) + 1))


_DIMENSIONS = tuple(10.0**k for k in range(1, 6))
_FIFTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# The names are those of `PARAMETERS`, but for the last two.
DIALS = {
    "p_spu": Dial(
        _steps(0.5, 1, 51),
        0.95,
        "p_spu: attribute agrees with class",
        (*_steps(0.5, 0.9, 9), 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0),
    ),
    "sigma_core": Dial(_steps(0, 2, 41), 1.0, "sigma_core: spread of the core feature"),
    "sigma_spu": Dial(_steps(0, 2, 41), 0.1, "sigma_spu: spread of the spurious feature", (0.0, 0.1, 0.3, 0.5, 1.0)),
    "mu_core": Dial(_steps(0.1, 2, 39), 1.0, "mu_core: mean of the core feature"),
    "mu_spu": Dial(_steps(0, 3, 31), 1.0, "mu_spu: mean of the spurious feature", (0.5, 1.0, 1.5, 2.0, 3.0)),
    "pi_core": Dial(_steps(0, 1, 21), 1.0, "pi_core: captions name the core detail", _FIFTHS),
    "pi_spu": Dial(_steps(0, 1, 21), 1.0, "pi_spu: captions name the spurious feature", _FIFTHS),
    "same_class_weight": Dial(_steps(0, 1, 21), 0.5, "same_class_weight: 0.5 is the ordinary loss", _FIFTHS),
    "sigma_image": Dial(_steps(0, 5, 51), 2.0, "sigma_image: norm of the image noise"),
    "sigma_text": Dial(_steps(0, 5, 51), 1.0, "sigma_text: norm of the caption noise"),
    "n": Dial(_one_two_five(1, 6), 500.0, "n: training samples", (50.0, 500.0, 5e3, 1e5)),
    "dim_image": Dial(_DIMENSIONS, 1000.0, "dim_image: dimension of an image"),
    "dim_text": Dial(_DIMENSIONS, 10.0, "dim_text: dimension of a caption"),
    "theta": Dial(_steps(0, 1, 21), 1.0, "theta: whitening; 0: linear loss", _FIFTHS),
    "kappa": Dial(
        (0.0, *_one_two_five(-2, 2), math.inf),
        1.0,
        "kappa: ridge of InfoNCE; ∞: linear loss",
        (0.0, 0.1, 0.5, 1.0, 2.0, 10.0, math.inf),
    ),
    "time": Dial(_per_decade(-1, 2), 1.0, "time: steps times learning rate", _per_decade(-1, 2)),
}
NAMES = tuple(DIALS)
AXES = tuple(name for name in NAMES if name != "time")  # of the phase diagram


def shown(value: float) -> str:
    """How a slider shows a value."""
    return "∞" if math.isinf(value) else f"{value:g}" if value < 1e5 else f"{value:.0f}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the page starts.

    values: of the dials, by name; those left out stand at their `start`.
    masking: what stands for an unmentioned detail.
    port: of the server; 0: a free one.
    """

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    masking: str = "named"
    port: int = 0

    @property
    def at(self) -> dict[str, float]:
        """The value of every dial."""
        return {name: float(self.values.get(name, dial.start)) for name, dial in DIALS.items()}

    @property
    def grid(self) -> dict[str, tuple[float, ...]]:
        """The values of an exported file's sliders: those of the dials, the nearest to the start moved there."""
        values = {}
        for name, dial in DIALS.items():
            if dial.grid:
                start = self.at[name]
                nearest = min(dial.grid, key=lambda value: _distance(dial.values, value, start))
                values[name] = tuple(sorted({start, *dial.grid} - ({nearest} - {start})))
        return values

    def check(self) -> None:
        """Raise UsageError naming the flag, the value and what is allowed."""
        for name, value in self.at.items():
            if name in PARAMETERS and math.isfinite(value):
                check_parameter(name, value)
            if value not in DIALS[name].values:
                raise UsageError(f"--{name} must be a value of its slider, {DIALS[name].allowed}, got {value:g}.")
        check_choice("masking", self.masking, MASKINGS)
        check_range("port", self.port, 0, 65535)


def _distance(values: tuple[float, ...], a: float, b: float) -> int:
    """Number of steps of the slider from a to b."""
    return abs(values.index(a) - values.index(b))
