"""The config of a phase diagram, with its checks. Imports neither JAX nor plotting, so that --help is quick."""

import dataclasses
from typing import Any

from sims.engine import processes
from sims.engine.flags import MAX_POINTS, UsageError, check_choice, check_range, count, number
from sims.latent.parameters import INTEGERS, PARAMETERS, check_dimensions, check_parameter

ROW_SIZES = ("n", "num_pairs")  # whole numbers that may be the y axis: each row is compiled separately
VALUES = ("shifted", "aligned", "conflicting", "worst", "train", "gap")


@dataclasses.dataclass(frozen=True)
class Axis:
    """count values of a parameter from start to stop, both included, evenly spaced (log: in the logarithm)."""

    name: str
    start: float
    stop: float
    count: int
    log: bool = False

    @property
    def values(self) -> tuple[float, ...]:
        share = [i / (self.count - 1) for i in range(self.count)]
        if self.log:
            points = [self.start * (self.stop / self.start) ** s for s in share]
        else:
            points = [self.start + (self.stop - self.start) * s for s in share]
        points[-1] = self.stop
        return tuple(sorted({float(round(v)) for v in points})) if self.name in INTEGERS else tuple(points)

    def __str__(self) -> str:
        return f"{self.name}:{self.start:g}:{self.stop:g}:{self.count}" + (":log" if self.log else "")


def axis(text: str) -> Axis:
    """`NAME:start:stop:count` or `NAME:start:stop:count:log`."""
    name, *rest = text.split(":")
    log = rest[3:] == ["log"]
    if name not in PARAMETERS or len(rest) != 3 + log:
        raise ValueError("needs NAME:start:stop:count or NAME:start:stop:count:log, such as p_spu:0.5:1:101")
    start, stop = number(rest[0]), number(rest[1])
    points = count(rest[2], 3, 1001)
    if not start < stop or (log and start <= 0):
        raise ValueError("needs start < stop" + (", and start > 0 on a log axis" if log else ""))
    return Axis(name, start, stop, points, log)


@dataclasses.dataclass(frozen=True)
class Defaults:
    """A diagram's defaults; it has no panels or parameters but these."""

    x: Axis
    y: Axis
    value: str
    panels: tuple[str, ...]
    seeds: int
    parameters: dict[str, float]
    cells: int = 5


_INTRA = {"p_spu": 0.95, "sigma_core": 1.0, "sigma_spu": 0.3, "mu_core": 1.0, "mu_spu": 1.0}
_CAPTIONS = {"pi_core": 1.0, "pi_spu": 1.0}
DIAGRAMS = {
    "robustness": Defaults(
        Axis("p_spu", 0.5, 1.0, 101),
        Axis("sigma_core", 0.1, 3.0, 101),
        "shifted",
        ("mmcl", "supervised"),
        10,
        {
            **_INTRA,
            **_CAPTIONS,
            "same_class_weight": 0.5,
            "sigma_image": 3.0,
            "sigma_text": 1.0,
            "n": 300,
            "dim_image": 100,
            "dim_text": 10,
        },
        cells=4,
    ),
    "same_class_weight": Defaults(
        Axis("same_class_weight", 0.0, 1.0, 101),
        Axis("n", 30, 3000, 81, log=True),
        "shifted",
        ("mmcl",),
        32,
        {
            **_INTRA,
            **_CAPTIONS,
            "p_spu": 0.99,
            "sigma_core": 0.5,
            "sigma_spu": 0.1,
            "same_class_weight": 0.5,
            "noise": 0.3,
            "n": 200,
            "dim_image": 2000,
            "dim_text": 10,
        },
    ),
    "whitening": Defaults(
        Axis("theta", 0.0, 1.0, 101),
        Axis("noise", 0.1, 2.5, 97),
        "shifted",
        ("whitened",),
        32,
        {**_INTRA, **_CAPTIONS, "theta": 1.0, "noise": 1.0, "n": 8000, "dim_image": 4, "dim_text": 4},
    ),
    "caption_policy": Defaults(
        Axis("pi_spu", 0.0, 1.0, 101),
        Axis("pi_core", 0.0, 1.0, 101),
        "gap",
        ("whitened", "info_nce"),
        6,
        {
            **_INTRA,
            **_CAPTIONS,
            "p_spu": 0.99,
            "sigma_spu": 0.1,
            "noise": 0.3,
            "n": 2000,
            "dim_image": 4,
            "dim_text": 4,
            "batch_size": 128,
            "steps": 400,
        },
        cells=3,
    ),
    "align_predict": Defaults(
        Axis("nuisance_correlation", 0.0, 0.99, 199),
        Axis("nuisance_variance", 0.2, 20.0, 161, log=True),
        "regime",
        ("regimes", "align", "predict", "contrast"),
        100,
        {
            "signal": 1.0,
            "noise_x": 0.5,
            "noise_y": 1.0,
            "nuisance_correlation": 0.5,
            "nuisance_variance": 1.0,
            "n": 200,
        },
    ),
    "sharing": Defaults(
        Axis("beta", 0.0, 0.9, 91),
        Axis("pi_core", 0.0, 1.0, 81),
        "conflicting",
        ("mmcl", "supervised"),
        8,
        {
            "p_spu": 1.0,
            "alpha": 1.1,
            "beta": 0.5,
            "pi_core": 1.0,
            "pi_spu": 1.0,
            "num_pairs": 20,
            "noise": 0.05,
            "n": 120_000,
            "dim_image": 42,
            "dim_text": 42,
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A phase diagram: two axes, a value, panels, how the cells are measured. None: the diagram's default.

    learners: names of the panels.
    cells: measured cells along each axis; 0 measures none.
    seeds: runs of each cell.
    seed: root of all randomness.
    parameters: (name, value) pairs in place of the diagram's defaults.
    """

    diagram: str
    x: Axis | None = None
    y: Axis | None = None
    value: str | None = None
    learners: tuple[str, ...] | None = None
    cells: int | None = None
    seeds: int | None = None
    seed: int = 0
    parameters: tuple[tuple[str, float], ...] = ()

    def checked(self) -> "Resolved":
        """The same with all defaults filled in. Raises: UsageError naming the flag, the value and what is allowed."""
        check_choice("diagram", self.diagram, DIAGRAMS)
        default = DIAGRAMS[self.diagram]
        x, y = self.x or default.x, self.y or default.y
        value = default.value if self.value is None else self.value
        allowed = (default.value,) if default.value == "regime" else VALUES
        check_choice("value", value, allowed, f" in {self.diagram}")
        panels = self.learners or default.panels
        for name in panels:
            check_choice("learners", name, default.panels, f" in {self.diagram}")
        given = dict(self.parameters)
        for name in given:
            if name not in default.parameters:
                known = ", ".join(default.parameters)
                raise UsageError(f"--{name} is no parameter of {self.diagram}; it has {known}.")
            if name in (x.name, y.name):
                raise UsageError(f"--{name} is an axis of the diagram; give --{name} a value or an axis, not both.")
        parameters = {**default.parameters, **given}
        for flag, ax, sizes in (("x", x, ()), ("y", y, ROW_SIZES)):
            usable = [p for p in default.parameters if p not in INTEGERS or p in sizes]
            if ax.name not in usable:
                raise UsageError(f"--{flag} must be over one of {', '.join(usable)} in {self.diagram}, got {ax.name}.")
            if len(ax.values) < 3:
                raise UsageError(f"--{flag} must have 3 or more different values, got {ax}.")
        if x.name == y.name:
            raise UsageError(f"--x and --y must be over different parameters, got {x.name} twice.")
        for name, values in {**{k: (v,) for k, v in parameters.items()}, x.name: x.values, y.name: y.values}.items():
            for v in values:
                check_parameter(name, v)
        seeds = default.seeds if self.seeds is None else self.seeds
        cells = default.cells if self.cells is None else self.cells
        check_range("cells", cells, 0, min(len(x.values), len(y.values)))
        check_range("seeds", seeds, 2, 10_000)
        check_range("seed", self.seed, 0, 2**32 - 1)
        resolved = Resolved(self.diagram, x, y, value, panels, cells, seeds, self.seed, parameters)
        resolved.check()
        return resolved

    check = checked


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A `Config` with every default filled in."""

    diagram: str
    x: Axis
    y: Axis
    value: str
    panels: tuple[str, ...]
    cells: int
    seeds: int
    seed: int
    parameters: dict[str, float]

    def flat(self) -> dict[str, Any]:
        """All that decides the result, by flag name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        parameters = fields.pop("parameters")
        return {"command": "phase_diagram", **fields, "x": str(self.x), "y": str(self.y), **parameters}

    @classmethod
    def of_flat(cls, flat: dict[str, Any]) -> "Resolved":
        """The inverse of `flat`."""
        rest = {k: v for k, v in flat.items() if k not in ("command", "x64")}
        fields = {f.name: rest.pop(f.name) for f in dataclasses.fields(cls) if f.name != "parameters"}
        fields |= {"x": axis(fields["x"]), "y": axis(fields["y"]), "panels": tuple(fields["panels"])}
        return cls(**fields, parameters=rest)

    def check(self) -> None:
        """Refuse fewer dimensions than latents, batches larger than n, and more data than memory holds."""
        p = {**self.parameters, **{ax.name: ax.values[-1] for ax in (self.x, self.y)}}
        check_dimensions(p)
        fewest = min((ax.values[0] for ax in (self.x, self.y) if ax.name == "n"), default=p["n"])
        if "batch_size" in p and p["batch_size"] > fewest:
            raise UsageError(f"--batch_size must be <= {fewest:g} (--n), got {p['batch_size']:g}.")
        if len(self.x.values) * len(self.y.values) > 10 * MAX_POINTS:
            raise UsageError(f"--x and --y must make at most {10 * MAX_POINTS} points, got {self.x} and {self.y}.")
        wide = p["n"] * (p.get("dim_image", 2) + p.get("dim_text", 2))
        gram = p["n"] ** 2 if "supervised" in self.panels and self.diagram == "robustness" else 0
        needed = 4 * 4 * (wide + gram)
        memory = processes.memory()
        if self.cells and needed > memory:
            raise UsageError(
                f"--n={p['n']:g} at these dimensions needs about {needed / 2**30:.0f} GiB to measure, this machine has"
                f" {memory / 2**30:.0f}; --cells=0 measures nothing."
            )
