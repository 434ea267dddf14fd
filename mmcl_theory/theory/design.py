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
from mmcl_theory.data.protocol import exactly
from mmcl_theory.theory.mmcl import limit_accuracy, mmcl_accuracy

_GRID = 129
_SECTIONS = 60


def strong_spurious_threshold(
    model: IntraClass, caps: Captions | None = None, same_class_weight: Scalar = 0.5
) -> Float[Array, "..."]:
    """The mu_spu above which most of the conflicting group is wrong under the linear loss.

        w_core mu_core < w_spu mu_spu  iff  mu_spu^2 > (mu_core^2 + pi_core sigma_core^2 / (2 (1 - lambda))) / q

    This is for core prompts and masking "named". Core variance protects, the more the larger lambda is.

    Args:
        model: intra-class model; its mu_spu is not used.
        caps: caption policy with masking "named"; None for rich captions.
        same_class_weight: lambda in [0, 1]; 1/2 is the ordinary loss.

    Returns:
        The threshold in units of mu_spu, of the leaves' broadcast shape; inf where q <= 0 or lambda = 1.

    Raises:
        ValueError: for a weight out of range or another masking.

    Example:
        Core variance raises the threshold, if captions name it:

        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=1.0, sigma_core=1.0, sigma_spu=0.1)
        >>> rich = mt.theory.strong_spurious_threshold(model)
        >>> label_only = mt.theory.strong_spurious_threshold(model, mt.captions(pi_core=0.0))
        >>> print(f"{rich:.3f} {label_only:.3f}")
        1.414 1.000

    Source: X4, X3.  Check: proofs_checks/x4.py.
    """
    exactly(model, IntraClass)
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
    """The best same-class weight and its certificate.

    Attributes:
        same_class_weight: the best lambda, in [0, 1].
        shifted: the accuracy on P* there.
        slope: derivative of that accuracy in lambda there; 0 if lambda is interior.

    Example:
        At lambda = 1 the spurious weight is 0, and the accuracy on P* is even in it. So the slope is 0:

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> best = jax.jit(mt.theory.optimal_same_class_weight)(model)
        >>> print(float(best.same_class_weight), bool(abs(best.slope) < 1e-5))
        1.0 True
    """

    same_class_weight: Array  # ()
    shifted: Array  # ()
    slope: Array  # ()


def optimal_same_class_weight(
    model: IntraClass, caps: Captions | None = None, obs: Observation | None = None, n: Scalar | None = None
) -> WeightOptimum:
    """The same-class weight lambda in [0, 1] of best accuracy on P*.

        argmax over lambda of mmcl_accuracy(model, caps, obs, n, same_class_weight=lambda).shifted

    In the population (n = None) more intra-class contrasting is always better: lambda = 1 whenever
    pi_core sigma_core > 0. In n samples the signal shrinks faster than the rule's noise, of which a part stays, so the
    optimum may lie inside. A grid finds it, then golden section around the best grid point. `slope` certifies it:
    it is 0 inside, nonnegative at lambda = 1, and nonpositive at 0.

    Where n is too small for some weights, `mmcl_accuracy` is NaN there. These weights compete with the value of its
    formula.

    Args:
        model: intra-class model with scalar leaves (`vmap` for more).
        caps: caption policy with scalar leaves; None for rich captions.
        obs: observation with scalar leaves; None for no noise.
        n: number of samples, >= 2, real values allowed; None for the population.

    Returns:
        The optimum. If a weight wins at which `mmcl_accuracy` is NaN, the optimum is not known. All fields and their
        derivatives are then NaN.

    Raises:
        ValueError: for n < 2.

    Example:
        In the population the best loss contrasts within classes alone. It is as accurate as the core feature, Phi(1):

        >>> import jax
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> best = jax.jit(mt.theory.optimal_same_class_weight)(model)
        >>> print(f"{best.shifted:.3f} instead of {mt.theory.mmcl_accuracy(model).shifted:.3f}")
        0.841 instead of 0.817

    Source: X3.  Check: proofs_checks/x3.py.
    """

    policy = caps or captions()

    def value(weight: Array) -> Array:
        return limit_accuracy(model, policy, obs, n, weight).shifted

    inside = unit_interval_argmax(value, _GRID, _SECTIONS)
    candidates = jnp.stack([jnp.ones_like(inside), jnp.zeros_like(inside), inside])
    # The curve may be flat at an end. The margin keeps rounding from deciding against that end.
    gain = jax.vmap(value)(candidates) - 8 * jnp.finfo(inside.dtype).eps * jnp.array([0, 0, 1], inside.dtype)
    weight = candidates[jnp.argmax(gain)]
    unknown = jnp.isnan(mmcl_accuracy(model, policy, obs, n, same_class_weight=weight).shifted)
    shifted, slope = jax.value_and_grad(value)(weight)
    return jax.tree.map(functools.partial(nan_where, unknown), WeightOptimum(weight, shifted, slope))


def unit_interval_argmax(
    value: Callable[[Float[Array, ""]], Float[Array, ""]], points: int, sections: int
) -> Float[Array, ""]:
    """argmax of value over [0, 1]: the best point of an even grid, then golden section between its neighbours.

    points: size of the grid, >= 2. sections: number of steps, each of which shortens the bracket to .618 of its length.
    Both are static. The middle of the last bracket is returned, so a maximum at an end is met to half that length. Of
    several maxima, the one next to the best grid point is found.
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
