"""The parameters of the theory's models and of how they are sampled: what each means, and which values it may have."""

from collections.abc import Callable

from sims.engine.flags import UsageError

_PROBABILITY, _POSITIVE, _NONNEGATIVE, _BELOW_ONE = "in [0, 1]", "> 0", ">= 0", "in [0, 1)"
_ALLOWED: dict[str, Callable[[float], bool]] = {
    _PROBABILITY: lambda v: 0 <= v <= 1,
    _BELOW_ONE: lambda v: 0 <= v < 1,
    _POSITIVE: lambda v: v > 0,
    _NONNEGATIVE: lambda v: v >= 0,
    ">= 1": lambda v: v >= 1,
    ">= 2": lambda v: v >= 2,
}
# name: (allowed, meaning). Whole numbers are those of INTEGERS.
PARAMETERS = {
    "p_spu": (_PROBABILITY, "spurious correlation in training, P(attribute = label), probability"),
    "sigma_core": (_NONNEGATIVE, "standard deviation of the core feature, in latent units"),
    "sigma_spu": (_NONNEGATIVE, "standard deviation of the spurious feature, in latent units"),
    "mu_core": (_POSITIVE, "mean of the core feature times the label, in latent units"),
    "mu_spu": (_NONNEGATIVE, "mean of the spurious feature times the attribute, in latent units"),
    "pi_core": (_PROBABILITY, "chance that a caption names the core detail"),
    "pi_spu": (_PROBABILITY, "chance that a caption names the spurious feature"),
    "same_class_weight": (_PROBABILITY, "total weight of an anchor's same-class negatives; 0.5 is the ordinary loss"),
    "theta": (_PROBABILITY, "whitening, 0 (linear loss) to 1 (InfoNCE to second order)"),
    "noise": (_NONNEGATIVE, "noise standard deviation per coordinate of images and of captions, s_I = s_T"),
    "sigma_image": (_NONNEGATIVE, "noise norm of an image, E|noise|^2 = sigma_image^2"),
    "sigma_text": (_NONNEGATIVE, "noise norm of a caption"),
    "alpha": (_POSITIVE, "strength of the spurious feature beside the core feature's 1 (inter-class model)"),
    "beta": (_BELOW_ONE, "share of its strength that a detail has in images of other classes (inter-class model)"),
    "num_pairs": (">= 1", "pairs of classes of the inter-class model"),
    "signal": (_POSITIVE, "k, root of the signal's shared variance"),
    "noise_x": (_NONNEGATIVE, "variance of the signal coordinate's own noise in the first modality"),
    "noise_y": (_NONNEGATIVE, "variance of the signal coordinate's own noise in the second modality"),
    "nuisance_correlation": (_BELOW_ONE, "correlation of the nuisance coordinate between the modalities"),
    "nuisance_variance": (_POSITIVE, "variance of the nuisance coordinate in both modalities"),
    "n": (">= 2", "training samples of a run"),
    "dim_image": (">= 2", "dimension of an image"),
    "dim_text": (">= 2", "dimension of a caption"),
    "batch_size": (">= 2", "samples in a step of InfoNCE"),
    "steps": (">= 1", "steps of InfoNCE training"),
}

INTEGERS = ("n", "dim_image", "dim_text", "num_pairs", "batch_size", "steps")


def check_parameter(name: str, value: float) -> None:
    """Raise UsageError if the parameter cannot have this value."""
    if not _ALLOWED[PARAMETERS[name][0]](value):
        raise UsageError(f"--{name} must be {PARAMETERS[name][0]}, got {value:g}.")
