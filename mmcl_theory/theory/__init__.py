"""Predictions: the statements of the paper and beyond it as functions of the model. Nothing here uses the learners."""

from mmcl_theory.theory.budget import BalancedMention, CaptionBudget, balanced_mention, optimal_captions
from mmcl_theory.theory.design import WeightOptimum, optimal_same_class_weight, strong_spurious_threshold
from mmcl_theory.theory.dynamics import mode_strength, training_accuracy
from mmcl_theory.theory.finite_sample import mmcl_accuracy_cumulants, mmcl_mean_accuracy
from mmcl_theory.theory.info_nce import (
    BalancedCaptions,
    InfoNceOptimum,
    info_nce_balanced_captions,
    info_nce_batch_optimum,
    info_nce_optimum,
)
from mmcl_theory.theory.mixtures import probe_accuracy
from mmcl_theory.theory.mmcl import mmcl_accuracy, mmcl_rule, sharing_threshold, sharing_threshold_pairs
from mmcl_theory.theory.recovery import Recovery, recovery
from mmcl_theory.theory.ridge import RidgeOptimum, optimal_ridge, ridge_accuracy, ridge_rule
from mmcl_theory.theory.spiked import Outliers, bulk_edge, outliers
from mmcl_theory.theory.sup_con import sup_con_accuracy
from mmcl_theory.theory.supervised import max_margin_rule, shortcut_bound, supervised_accuracy, supervised_bound
from mmcl_theory.theory.whitened import balanced_pi_spu, whitened_accuracy, whitened_rule, whitening_crossovers

__all__ = [
    "BalancedCaptions",
    "BalancedMention",
    "CaptionBudget",
    "InfoNceOptimum",
    "Outliers",
    "Recovery",
    "RidgeOptimum",
    "WeightOptimum",
    "balanced_mention",
    "balanced_pi_spu",
    "bulk_edge",
    "info_nce_balanced_captions",
    "info_nce_batch_optimum",
    "info_nce_optimum",
    "max_margin_rule",
    "mmcl_accuracy",
    "mmcl_accuracy_cumulants",
    "mmcl_mean_accuracy",
    "mmcl_rule",
    "mode_strength",
    "optimal_captions",
    "optimal_ridge",
    "optimal_same_class_weight",
    "outliers",
    "probe_accuracy",
    "recovery",
    "ridge_accuracy",
    "ridge_rule",
    "sharing_threshold",
    "sharing_threshold_pairs",
    "shortcut_bound",
    "strong_spurious_threshold",
    "sup_con_accuracy",
    "supervised_accuracy",
    "supervised_bound",
    "training_accuracy",
    "whitened_accuracy",
    "whitened_rule",
    "whitening_crossovers",
]
