"""Why multimodal contrastive learning survives distribution shift: data models, learners, and the theory that
predicts them.

    data -> learners (under one of `losses`) -> `zero_shot` -> exact accuracy by group, beside `theory`'s prediction.

Everything is a pure function of arrays and frozen pytrees: `jax.jit`, `jax.vmap` and `jax.grad` are the caller's.
"""

from mmcl_theory import data, learners, losses, theory, zero_shot
from mmcl_theory.data import (
    captions,
    class_index,
    draw_dictionaries,
    inter_class,
    intra_class,
    is_aligned,
    moments,
    observation,
    sample_pairs,
    shifted,
)

__version__ = "0.1.0"

__all__ = [
    "captions",
    "class_index",
    "data",
    "draw_dictionaries",
    "inter_class",
    "intra_class",
    "is_aligned",
    "learners",
    "losses",
    "moments",
    "observation",
    "sample_pairs",
    "shifted",
    "theory",
    "zero_shot",
]
