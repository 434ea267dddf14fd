"""Design of the loss and of captions: where a spurious feature wins, and how much intra-class contrasting is best.

Symbols: b = 2 (1 - lambda), lambda same-class weight, q = 2 p_spu - 1, m_c, m_s feature means, s_c, s_s their spreads.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import nan_where
from mmcl_theory.data import Captions, IntraClass, Observation, captions
from mmcl_theory.theory.mmcl import limit_accuracy, mmcl_accuracy

_GRID = 129
_SECTIONS = 60


def strong_spurious_threshold(
    model: IntraClass, caps: Captions | None = None, same_class_weight: Scalar = 0.5
) -> Float[Array, "..."]:
    """mu_spu above which most of the conflicting group is wrong under the linear loss (core prompt, masking "named").

    w_core mu_core < w_spu mu_spu iff mu_spu^2 > (mu_core^2 + pi_core sigma_core^2 / (2 (1 - lambda))) / q: core
    variance protects, the more the larger lambda; inf where q <= 0 or lambda = 1. The model's mu_spu is not used.

    same_class_weight: lambda in [0, 1]; 1/2 is the ordinary loss.  Leaves broadcast.
    Raises: ValueError for a weight out of range or another masking.
    Source: X4, X3.  Check: proofs_checks/x4.py.
    """
    caps = caps or captions()
    if caps.masking != "named":
        raise ValueError(f'masking must be "named", got {caps.masking!r}.')
    weight = _checks.real("same_class_weight", same_class_weight, "in [0, 1]")
    q, b, protection = jnp.broadcast_arrays(2 * model.p_spu - 1, 2 * (1 - weight), caps.pi_core * model.sigma_core**2)
    reachable = (q > 0) & (b > 0)
    q, b = jnp.where(reachable, q, 1.0), jnp.where(reachable, b, 1.0)
    return jnp.where(reachable, jnp.sqrt((model.mu_core**2 + protection / b) / q), jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WeightOptimum:
    """The best same-class weight, the accuracy on P* there, and its derivative there (0 if interior)."""

    same_class_weight: Array  # ()
    shifted: Array  # ()
    slope: Array  # ()


def optimal_same_class_weight(
    model: IntraClass, caps: Captions | None = None, obs: Observation | None = None, n: Scalar | None = None
) -> WeightOptimum:
    """argmax over lambda in [0, 1] of acc_P*, `mmcl_accuracy(model, caps, obs, n, same_class_weight=lambda).shifted`.

    In the population (n = None) more intra-class contrasting is always better, lambda = 1, whenever pi_core sigma_core
    > 0; in n samples the signal shrinks with the noise of the rule and the optimum may lie inside. Found on a grid,
    then by golden section around its best point; `slope` certifies it: 0 inside, >= 0 at lambda = 1, <= 0 at 0.

    Weights at which `mmcl_accuracy` is NaN, n being too small, compete with the value of its formula. If one of them
    wins, the optimum is not known, and all is NaN, derivatives too.

    Leaves must be scalars: `vmap` for more.  Raises: ValueError for n < 2.
    Source: X3.  Check: proofs_checks/x3.py.
    """

    policy = caps or captions()

    def value(weight: Array) -> Array:
        return limit_accuracy(model, policy, obs, n, weight).shifted

    inside = unit_interval_argmax(value, _GRID, _SECTIONS)
    candidates = jnp.stack([jnp.ones_like(inside), jnp.zeros_like(inside), inside])
    # The curve may be flat at an end; rounding does not decide against that end.
    gain = jax.vmap(value)(candidates) - 8 * jnp.finfo(inside.dtype).eps * jnp.array([0, 0, 1], inside.dtype)
    weight = candidates[jnp.argmax(gain)]
    unknown = jnp.isnan(mmcl_accuracy(model, policy, obs, n, same_class_weight=weight).shifted)
    shifted, slope = jax.value_and_grad(value)(weight)
    return jax.tree.map(functools.partial(nan_where, unknown), WeightOptimum(weight, shifted, slope))


def unit_interval_argmax(
    value: Callable[[Float[Array, ""]], Float[Array, ""]], points: int, sections: int
) -> Float[Array, ""]:
    """argmax of value over [0, 1]: the best of an even grid, then golden section between its neighbours.

    points: of the grid, >= 2.  sections: each shortens the bracket to .618 of its length. Both static. The middle of
    the last bracket is returned, so that a maximum at an end is met to half that length. Of several maxima that of the
    best grid point is found.
    """
    grid = jnp.linspace(0.0, 1.0, points)
    best = jnp.argmax(jax.vmap(value)(grid))
    low, high = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, points - 1)]
    inverse_golden = (5**0.5 - 1) / 2

    def section(bracket: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bracket
        left, right = high - inverse_golden * (high - low), low + inverse_golden * (high - low)
        rises = value(left) < value(right)
        return (jnp.where(rises, left, low), jnp.where(rises, high, right)), None

    (low, high), _ = jax.lax.scan(section, (low, high), None, sections)
    return (low + high) / 2
