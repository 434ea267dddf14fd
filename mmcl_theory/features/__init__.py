"""A user's own features: how learners classify their groups, and what would change it."""

from mmcl_theory.features.diagnosis import KNOBS, Advice, Diagnosis, Estimate, Learner, Outcome, diagnose, feature_rules
from mmcl_theory.features.moments import GroupSums, Policy, group_sums, policy_moments

__all__ = [
    "KNOBS",
    "Advice",
    "Diagnosis",
    "Estimate",
    "GroupSums",
    "Learner",
    "Outcome",
    "Policy",
    "diagnose",
    "feature_rules",
    "group_sums",
    "policy_moments",
]
