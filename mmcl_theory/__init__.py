"""Why does multimodal contrastive learning survive distribution shift? Data models, learners, and their theory.

    data -> learners (under one of `losses`) -> `zero_shot` -> exact accuracy by group, beside `theory`'s prediction.

Every function is pure: it takes and returns arrays and frozen pytrees. `jax.jit`, `jax.vmap` and `jax.grad` belong to
the caller.

Example:
    The accuracy on the shifted distribution, with captions that name every core detail, and with the class alone:

    >>> import mmcl_theory as mt
    >>> model = mt.intra_class(p_spu=0.99, sigma_core=1.0, sigma_spu=0.1)
    >>> rich, label_only = mt.captions(pi_core=1.0), mt.captions(pi_core=0.0)
    >>> print(f"{mt.theory.mmcl_accuracy(model, rich).shifted:.3f}")
    0.813
    >>> print(f"{mt.theory.mmcl_accuracy(model, label_only).shifted:.3f}")
    0.742
"""

from mmcl_theory import data, features, learners, losses, theory, zero_shot
from mmcl_theory.data import (
    captions,
    class_index,
    draw_dictionaries,
    group_captions,
    inter_class,
    intra_class,
    is_aligned,
    mixture,
    moments,
    observation,
    sample_pairs,
    shifted,
)
from mmcl_theory.features import diagnose

__version__ = "0.1.0"

__all__ = [
    "captions",
    "class_index",
    "data",
    "diagnose",
    "draw_dictionaries",
    "features",
    "group_captions",
    "inter_class",
    "intra_class",
    "is_aligned",
    "learners",
    "losses",
    "mixture",
    "moments",
    "observation",
    "sample_pairs",
    "shifted",
    "theory",
    "zero_shot",
]
