"""A user's own features: how learners classify their groups, and what would change it."""

from mmcl_theory.features.closed_form import KNOBS, Learner, Training, feature_rules
from mmcl_theory.features.diagnosis import diagnose
from mmcl_theory.features.moments import GroupSums, Policy, group_sums, policy_moments
from mmcl_theory.features.results import Advice, Component, Diagnosis, Estimate, Outcome, Purchase, verdict

__all__ = [
    "KNOBS",
    "Advice",
    "Component",
    "Diagnosis",
    "Estimate",
    "GroupSums",
    "Learner",
    "Outcome",
    "Policy",
    "Purchase",
    "Training",
    "diagnose",
    "feature_rules",
    "group_sums",
    "policy_moments",
    "verdict",
]
