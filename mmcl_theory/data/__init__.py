"""The data models: images (`intra_class`, `inter_class`, `mixture`), texts (`captions`, `group_captions`), and both as
observed (`observation`)."""

from mmcl_theory.data.accuracy import AccuracyByGroup
from mmcl_theory.data.captions import Captions, Model, Moments, captions, moments
from mmcl_theory.data.group_captions import GroupCaptions, group_captions
from mmcl_theory.data.inter_class import InterClass, inter_class
from mmcl_theory.data.intra_class import IntraClass, intra_class
from mmcl_theory.data.latents import Latents, all_pairs, class_index, class_labels, is_aligned
from mmcl_theory.data.mixture import ClassMoments, Mixture, mixture
from mmcl_theory.data.observation import (
    Dictionaries,
    Observation,
    Pairs,
    draw_dictionaries,
    observation,
    sample_pairs,
    shifted,
)
from mmcl_theory.data.protocol import LatentModel

__all__ = [
    "AccuracyByGroup",
    "Captions",
    "ClassMoments",
    "Dictionaries",
    "GroupCaptions",
    "InterClass",
    "IntraClass",
    "LatentModel",
    "Latents",
    "Mixture",
    "Model",
    "Moments",
    "Observation",
    "Pairs",
    "all_pairs",
    "captions",
    "class_index",
    "class_labels",
    "draw_dictionaries",
    "group_captions",
    "inter_class",
    "intra_class",
    "is_aligned",
    "mixture",
    "moments",
    "observation",
    "sample_pairs",
    "shifted",
]
