"""From the parameters of one point, by name, to the model, the captions and the observation."""

from collections.abc import Mapping
from typing import Any

import mmcl_theory as mt
from sims.latent.parameters import INTEGERS

Params = Mapping[str, Any]  # of one point: scalars; int if shapes depend on them


def point(parameters: Mapping[str, float], **at: Any) -> dict[str, Any]:
    """The parameters, updated by those of `at`; int if shapes depend on them."""
    return {**{k: int(v) if k in INTEGERS else v for k, v in parameters.items()}, **at}


def model_of(p: Params) -> mt.data.IntraClass:
    return mt.intra_class(p["p_spu"], p["sigma_core"], p["sigma_spu"], p["mu_core"], p["mu_spu"])


def classes_of(p: Params) -> mt.data.InterClass:
    return mt.inter_class(int(p["num_pairs"]), p["p_spu"], p["alpha"], p["beta"])


def captions_of(p: Params) -> mt.data.Captions:
    return mt.captions(p["pi_core"], p["pi_spu"])


def noise_norms(p: Params) -> tuple[Any, Any]:
    """Noise norms sigma_image, sigma_text; computed from `noise`, per coordinate, if that is given."""
    if "noise" in p:
        return p["noise"] * p["dim_image"] ** 0.5, p["noise"] * p["dim_text"] ** 0.5
    return p["sigma_image"], p["sigma_text"]


def observation_of(p: Params) -> mt.data.Observation:
    return mt.observation(int(p["dim_image"]), int(p["dim_text"]), *noise_norms(p))


def intra_class(p: Params) -> tuple[mt.data.IntraClass, mt.data.Captions, mt.data.Observation]:
    return model_of(p), captions_of(p), observation_of(p)


def inter_class(p: Params) -> tuple[mt.data.InterClass, mt.data.Captions, mt.data.Observation]:
    return classes_of(p), captions_of(p), observation_of(p)
