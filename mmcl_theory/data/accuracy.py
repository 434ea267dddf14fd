"""Accuracies by group of any number of groups."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmcl_theory import _checks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AccuracyByGroup:
    """Accuracy in each group of a mixture, in [0, 1].

    Attributes:
        by_group: the accuracies, (..., G).
        weight: P_g, the groups' weights in training, (..., G).
        shifted_weight: P*_g, their weights under the shift, (..., G).
        error: numerical error of each accuracy, (..., G): 0 up to two classes, the last change of the quadrature at
            three, the standard error of the quasi-Monte Carlo sum at more.

    Example:
        A rule that is learnt on P is worse on P*:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1).as_mixture()
        >>> accuracy = mt.theory.mmcl_accuracy(model)
        >>> print(f"{accuracy.train:.3f} on P, {accuracy.shifted:.3f} on P*, {accuracy.worst:.3f} at worst")
        0.915 on P, 0.817 on P*, 0.709 at worst
    """

    by_group: Array  # (..., G)
    weight: Array  # (..., G)
    shifted_weight: Array  # (..., G)
    error: Array  # (..., G)

    def at(self, weights: _checks.Scalar | Sequence[float]) -> Array:
        """Accuracy on a distribution with the same groups and other weights, sum_g weights_g acc_g.

        Args:
            weights: one weight a group, (..., G), nonnegative, of sum 1.

        Returns:
            The accuracy, of the broadcast shape (...).

        Raises:
            ValueError: for weights that are negative, do not sum to 1, or are not one a group.

        Example:
            >>> import mmcl_theory as mt
            >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1).as_mixture()
            >>> accuracy = mt.theory.mmcl_accuracy(model)
            >>> print(f"{accuracy.at([0.0, 0.5, 0.5, 0.0]):.3f} where all conflict, {accuracy.worst:.3f} at worst")
            0.709 where all conflict, 0.709 at worst
        """
        return _weighted(_checks.distribution("weights", weights, self.by_group.shape[-1]), self.by_group)

    @property
    def train(self) -> Array:
        """Accuracy in distribution, at the weights of training."""
        return _weighted(self.weight, self.by_group)

    @property
    def shifted(self) -> Array:
        """Accuracy on P*."""
        return _weighted(self.shifted_weight, self.by_group)

    @property
    def worst(self) -> Array:
        """The smallest accuracy of a group that occurs in training or under the shift."""
        weight, shifted, accuracy = jnp.broadcast_arrays(self.weight, self.shifted_weight, self.by_group)
        return jnp.where((weight > 0) | (shifted > 0), accuracy, jnp.inf).min(-1)


def _weighted(weights: Array, values: Array) -> Array:
    weights, values = jnp.broadcast_arrays(weights, values)
    return jnp.where(weights > 0, weights * values, 0.0).sum(-1)  # a NaN in a group that does not occur does not count
