"""The one table of all parameters of the theory's models and of their samples.

Flags, help texts, checks and the axes of figures read it. Imports neither JAX nor plotting.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

from absl import flags

from sims.engine.flags import UsageError, define, integer, number

flags.disclaim_key_flags()  # absl then lists a flag in the --help of the module that called `define_flag`

_PROBABILITY, _POSITIVE, _NONNEGATIVE, _BELOW_ONE = "in [0, 1]", "> 0", ">= 0", "in [0, 1)"
_ALLOWED: dict[str, Callable[[float], bool]] = {
    _PROBABILITY: lambda v: 0 <= v <= 1,
    _BELOW_ONE: lambda v: 0 <= v < 1,
    _POSITIVE: lambda v: v > 0,
    _NONNEGATIVE: lambda v: v >= 0,
    ">= 1": lambda v: v >= 1,
    ">= 2": lambda v: v >= 2,
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of the table.

    allowed: a key of `_ALLOWED`.
    meaning: for help texts.
    label: of an axis of a figure, with symbol and unit.
    whole: whether it is a whole number.
    note: names of some values, for help texts.
    """

    allowed: str
    meaning: str
    label: str = ""
    whole: bool = False
    note: str = ""

    @property
    def symbol(self) -> str:
        """The symbol in the label, as LaTeX."""
        return re.findall(r"\$[^$]*\$", self.label)[0]

    @property
    def help(self) -> str:
        return f"{self.meaning}, {self.allowed}" + (f"; {self.note}" if self.note else "")


PARAMETERS = {
    "p_spu": Parameter(
        _PROBABILITY,
        "spurious correlation in training, the probability P(attribute = label)",
        r"spurious correlation $p_{\mathrm{spu}}$ in training (probability)",
    ),
    "sigma_core": Parameter(
        _NONNEGATIVE,
        "standard deviation of the core feature, in latent units",
        r"spread of the core feature $\sigma_{\mathrm{core}}$ (latent units)",
    ),
    "sigma_spu": Parameter(
        _NONNEGATIVE,
        "standard deviation of the spurious feature, in latent units",
        r"spread of the spurious feature $\sigma_{\mathrm{spu}}$ (latent units)",
    ),
    "mu_core": Parameter(
        _POSITIVE,
        "mean of the core feature times the label, in latent units",
        r"mean of the core feature $\mu_{\mathrm{core}}$ (latent units)",
    ),
    "mu_spu": Parameter(
        _NONNEGATIVE,
        "mean of the spurious feature times the attribute, in latent units",
        r"mean of the spurious feature $\mu_{\mathrm{spu}}$ (latent units)",
    ),
    "pi_core": Parameter(
        _PROBABILITY,
        "chance that a caption names the core detail",
        r"captions name the core detail, $\pi_{\mathrm{core}}$ (probability)",
        note="0: label-only captions, 1: rich captions",
    ),
    "pi_spu": Parameter(
        _PROBABILITY,
        "chance that a caption names the spurious feature",
        r"captions name the spurious feature, $\pi_{\mathrm{spu}}$ (probability)",
    ),
    "same_class_weight": Parameter(
        _PROBABILITY,
        "total weight of an anchor's same-class negatives",
        r"same-class weight $\lambda$ (share of negatives' weight)",
        note="0.5: the ordinary loss",
    ),
    "theta": Parameter(
        _PROBABILITY,
        "whitening, 0 (linear loss) to 1 (InfoNCE to second order)",
        r"whitening $\theta$ (0: linear loss, 1: InfoNCE to second order)",
    ),
    "noise": Parameter(
        _NONNEGATIVE,
        "noise standard deviation per coordinate of images and of captions, s_I = s_T",
        r"modality noise $s_I = s_T$ (sd per coordinate, latent units)",
    ),
    "sigma_image": Parameter(
        _NONNEGATIVE,
        "noise norm of an image, E|noise|^2 = sigma_image^2",
        r"image noise norm $\sigma_{\xi,I}$ (latent units)",
    ),
    "sigma_text": Parameter(
        _NONNEGATIVE, "noise norm of a caption", r"caption noise norm $\sigma_{\xi,T}$ (latent units)"
    ),
    "alpha": Parameter(
        _POSITIVE,
        "strength of the spurious feature beside the core feature's 1 (inter-class model)",
        r"strength of the spurious feature $\alpha$ (latent units)",
    ),
    "beta": Parameter(
        _BELOW_ONE,
        "share of its strength that a detail has in images of other classes (inter-class model)",
        r"share of a detail in other classes' images $\beta$",
    ),
    "num_pairs": Parameter(">= 1", "pairs of classes of the inter-class model", r"pairs of classes $m$", whole=True),
    "signal": Parameter(_POSITIVE, "k, root of the signal's shared variance", r"signal $k$ (latent units)"),
    "noise_x": Parameter(
        _NONNEGATIVE,
        "variance of the signal coordinate's own noise in the first modality",
        r"signal's own noise $g_x$ (variance)",
    ),
    "noise_y": Parameter(
        _NONNEGATIVE,
        "variance of the signal coordinate's own noise in the second modality",
        r"signal's own noise $g_y$ (variance)",
    ),
    "nuisance_correlation": Parameter(
        _BELOW_ONE, "correlation of the nuisance coordinate between the modalities", r"nuisance correlation $\eta / h$"
    ),
    "nuisance_variance": Parameter(
        _POSITIVE, "variance of the nuisance coordinate in both modalities", r"nuisance variance $h = h_x = h_y$"
    ),
    "n": Parameter(">= 2", "training samples of a run", r"training samples $n$", whole=True),
    "dim_image": Parameter(">= 2", "dimension of an image", whole=True),
    "dim_text": Parameter(">= 2", "dimension of a caption", whole=True),
    "batch_size": Parameter(">= 2", "samples in a step of InfoNCE", whole=True),
    "steps": Parameter(">= 1", "steps of InfoNCE training", whole=True),
}
INTEGERS = tuple(name for name, parameter in PARAMETERS.items() if parameter.whole)


def check_parameter(name: str, value: float) -> None:
    """Raise UsageError if the parameter cannot have this value."""
    allowed = PARAMETERS[name].allowed
    if not math.isfinite(value):
        raise UsageError(f"--{name} must be finite and {allowed}, got {value:g}.")
    if not _ALLOWED[allowed](value):
        raise UsageError(f"--{name} must be {allowed}, got {value:g}.")


def check_dimensions(parameters: Mapping[str, float]) -> None:
    """Raise UsageError if a dimension is smaller than the number of latents."""
    latents = 2 * parameters.get("num_pairs", 1)
    for name in ("dim_image", "dim_text"):
        if name in parameters and parameters[name] < latents:
            got = f"{parameters[name]:g}"
            raise UsageError(f"--{name} must be >= {latents:g} (the number of latents), got {got}.")


def define_flag(name: str, default: float | None, note: str = "") -> None:
    """Define the flag of a parameter. note: follows its help text."""
    define(name, default, PARAMETERS[name].help + note, integer if name in INTEGERS else number)


def define_flags(defaults: Mapping[str, Mapping[str, float]]) -> None:
    """Define the flags of parameters whose defaults depend on a choice. defaults: by choice, then by parameter."""
    for name in PARAMETERS:
        if own := [f"{choice}: {values[name]:g}" for choice, values in defaults.items() if name in values]:
            define_flag(name, None, f". Defaults: {'; '.join(own)}")


def given() -> tuple[tuple[str, float], ...]:
    """(name, value) of the parameters that the command line sets; one that is an axis has a tuple, and is left out."""
    values = flags.FLAGS.flag_values_dict()
    return tuple((name, float(values[name])) for name in PARAMETERS if isinstance(values.get(name), (int, float)))
