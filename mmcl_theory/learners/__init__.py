"""The learners: closed-form minimisers, encoders trained by gradient descent, supervised rules, samplers of rules."""

from mmcl_theory.learners.closed_form import (
    cross_covariance,
    linear_optimum,
    sup_con_matrix,
    sup_con_optimum,
    truncate,
    whitened_optimum,
)
from mmcl_theory.learners.gradient import Encoders, init_encoders, train_encoders, train_linear_mmcl
from mmcl_theory.learners.ridge import NuclearNormOptimum, gradient_flow, nuclear_norm_optimum, ridge_optimum
from mmcl_theory.learners.samplers import (
    Rules,
    dual_rule,
    sample_gram,
    sample_rule_latent,
    sample_rule_statistics,
    sample_rules,
    sample_scores,
)
from mmcl_theory.learners.supervised import MaxMargin, least_squares, logistic_dual, max_margin, max_margin_dual

__all__ = [
    "Encoders",
    "MaxMargin",
    "NuclearNormOptimum",
    "Rules",
    "cross_covariance",
    "dual_rule",
    "gradient_flow",
    "init_encoders",
    "least_squares",
    "linear_optimum",
    "logistic_dual",
    "max_margin",
    "max_margin_dual",
    "nuclear_norm_optimum",
    "ridge_optimum",
    "sample_gram",
    "sample_rule_latent",
    "sample_rule_statistics",
    "sample_rules",
    "sample_scores",
    "sup_con_matrix",
    "sup_con_optimum",
    "train_encoders",
    "train_linear_mmcl",
    "truncate",
    "whitened_optimum",
]
