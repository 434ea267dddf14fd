"""What linear supervised contrastive learning sees, and how accurate a linear head on it is (Appendix F of the paper).

Symbols: m_y = E_P[z | y] class means, K classes, S_B = (1/K) sum_y m_y m_y^T, G = W^T W the Gram matrix of the encoder,
w the rule on the latents, q = 2 p_spu - 1.
"""

import jax.numpy as jnp

from mmcl_theory.data import Model, Observation
from mmcl_theory.theory.mmcl import pair_prompt
from mmcl_theory.zero_shot import GroupAccuracy, linear_rule_accuracy


def sup_con_accuracy(model: Model, obs: Observation | None = None) -> GroupAccuracy:
    """Accuracy, by group, of a trained linear head on the population minimiser of the linear SupCon loss.

    The loss (`losses.linear_sup_con`) is -<G, M> + (rho/2) |G|_F^2 with M = K/(K-1) S_B. The spread within classes is
    not in it, so that G = M / rho sees the class means alone. G is of rank 1 in the intra-class model and of rank m in
    the inter-class model; the embedding must have that rank.

    Any head that is trained without a preference between the classes (logistic, least squares) then weighs each class
    by its own mean. So the rule is w = (mu_c, q mu_s), and (A, B) = (1, q alpha) for the inter-class model.

    Intra-class, with mu_core = mu_spu = 1 and without noise:

        acc_+ = Phi(2 p_spu / R),   acc_- = Phi(2 (1 - p_spu) / R),   R^2 = s_c^2 + q^2 s_s^2

    The paper's Theorem F.1 states acc_- = o(1) for p_spu -> 1, where its own matrix gives 1/2: it is refuted.

    Inter-class at p_spu = 1 with alpha > 1, the conflicting group is all wrong (Theorem F.2). With beta_spu = beta and
    m >= 2 the rule is that of max-margin supervised learning. p_spu = 1/2 leaves the spurious feature unused.

    Args:
        model: data model; its leaves broadcast with those of obs.
        obs: observation; None for no noise.

    Returns:
        The accuracies, of the broadcast shape.

    Example:
        >>> import mmcl_theory as mt
        >>> accuracy = mt.theory.sup_con_accuracy(mt.intra_class(p_spu=1.0, sigma_core=1.0, sigma_spu=0.0))
        >>> print(f"{accuracy.shifted:.3f} on P*, {accuracy.conflicting:.3f} in the conflicting group")
        0.739 on P*, 0.500 in the conflicting group

    Source: T7 (Theorems F.1, F.2).  Check: proofs_checks/t7.py.
    """
    weights = pair_prompt(model, "train_mean")
    sd_image = jnp.zeros(()) if obs is None else obs.sd_image
    return linear_rule_accuracy(model, weights, (weights**2).sum(-1), sd_image)
