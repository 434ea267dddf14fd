"""The data models: images (`intra_class`, `inter_class`), texts (`captions`), and both as observed (`observation`)."""

from mmcl_theory.data.captions import Captions, Model, Moments, captions, moments
from mmcl_theory.data.inter_class import InterClass, inter_class
from mmcl_theory.data.intra_class import IntraClass, intra_class
from mmcl_theory.data.latents import Latents, all_pairs, class_index, class_labels, is_aligned
from mmcl_theory.data.observation import (
    Dictionaries,
    Observation,
    Pairs,
    draw_dictionaries,
    observation,
    sample_pairs,
    shifted,
)

__all__ = [
    "Captions",
    "Dictionaries",
    "InterClass",
    "IntraClass",
    "Latents",
    "Model",
    "Moments",
    "Observation",
    "Pairs",
    "all_pairs",
    "captions",
    "class_index",
    "class_labels",
    "draw_dictionaries",
    "inter_class",
    "intra_class",
    "is_aligned",
    "moments",
    "observation",
    "sample_pairs",
    "shifted",
]
