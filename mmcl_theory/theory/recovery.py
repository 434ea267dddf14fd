"""When do alignment, prediction and the linear contrastive loss find the signal, and when something else? (X7)

Symbols: signal coordinates i with S_xx = k_i^2 + gx_i, S_yy = k_i^2 + gy_i, S_xy = k_i^2; nuisance coordinates j with
S_xx = hx_j, S_yy = hy_j, S_xy = eta_j; a method ranks coordinates by a score and keeps as many as there are signals.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Recovery:
    """Least score of a signal over the largest score of a nuisance, by method; above 1 the method recovers the signal.

    A ratio is inf where no nuisance is shared between the modalities.

    Attributes:
        align: CCA, k^2 / sqrt((k^2 + gx)(k^2 + gy)) against eta / sqrt(hx hy).
        predict: regression of y on x at limited rank, k^2 / sqrt(k^2 + gx) against eta / sqrt(hx).
        contrast: linear MMCL (PLS), k^2 against eta.

    Example:
        The nuisance shares more variance, 1.5, than the signal, 1. But its correlation is smaller, 1.5 / 2 against 1.
        So alignment alone recovers the signal:

        >>> import mmcl_theory as mt
        >>> result = mt.theory.recovery(signal=1.0, gx=0.0, gy=0.0, eta=1.5, hx=2.0, hy=2.0)
        >>> print(bool(result.align > 1), bool(result.predict > 1), bool(result.contrast > 1), int(result.regime))
        True False False 2
    """

    align: Array  # (...)  CCA: k^2 / sqrt((k^2 + gx)(k^2 + gy)) against eta / sqrt(hx hy)
    predict: Array  # (...)  regression of y on x at limited rank: k^2 / sqrt(k^2 + gx) against eta / sqrt(hx)
    contrast: Array  # (...)  linear MMCL (PLS): k^2 against eta

    @property
    def regime(self) -> Array:
        """Integer 2 [align recovers] + [predict recovers]: 0 neither, 1 predict only, 2 align only, 3 both."""
        return 2 * (self.align > 1) + (self.predict > 1)


def recovery(signal: Scalar, gx: Scalar, gy: Scalar, eta: Scalar, hx: Scalar, hy: Scalar) -> Recovery:
    """The three criteria of X7 as ratios: min of the score over signals, over max of the score over nuisances.

    A scalar is one coordinate. Leading axes broadcast.

    Args:
        signal: k of each signal coordinate, (..., i), finite and > 0.
        gx: own variance of x in each signal coordinate, (..., i), finite and >= 0.
        gy: own variance of y in each signal coordinate, (..., i), finite and >= 0.
        eta: shared variance of each nuisance coordinate, (..., j), finite, >= 0 and <= sqrt(hx hy), as in a covariance.
        hx: variance of x in each nuisance coordinate, (..., j), finite and > 0.
        hy: variance of y in each nuisance coordinate, (..., j), finite and > 0.

    Returns:
        The three ratios, of the leading axes' broadcast shape.

    Raises:
        ValueError: for k, hx or hy not > 0, gx, gy or eta < 0, or eta > sqrt(hx hy).

    Example:
        Here y has much noise of its own, so prediction recovers the signal and alignment does not:

        >>> import mmcl_theory as mt
        >>> result = mt.theory.recovery(signal=1.0, gx=0.0, gy=3.0, eta=0.8, hx=1.0, hy=2.0)
        >>> print(f"{result.align:.3f} {result.predict:.3f} {result.contrast:.3f}", int(result.regime))
        0.884 1.250 1.250 1

    Source: X7 (Kamai et al. 2026, arXiv 2606.11190; the contrastive criterion is this project's).
    Check: proofs_checks/x7.py.
    """
    k, h_x, h_y = (_checks.real(n, v, "finite and > 0") for n, v in (("signal", signal), ("hx", hx), ("hy", hy)))
    g_x, g_y, e = (_checks.real(n, v, "finite and >= 0") for n, v in (("gx", gx), ("gy", gy), ("eta", eta)))
    if not any(isinstance(x, jax.core.Tracer) for x in (h_x, h_y, e)) and bool(_exceeds(e, h_x, h_y).any()):
        raise ValueError("eta must be <= sqrt(hx hy), got a larger one.")
    k, g_x, g_y = (jnp.atleast_1d(x) for x in jnp.broadcast_arrays(k, g_x, g_y))
    e, h_x, h_y = (jnp.atleast_1d(x) for x in jnp.broadcast_arrays(e, h_x, h_y))
    power = k**2

    def ratio(of_signal: Array, of_nuisance: Array) -> Float[Array, "..."]:
        least, most = of_signal.min(-1), of_nuisance.max(-1)
        return jnp.where(most > 0, least / jnp.where(most > 0, most, 1.0), jnp.inf)

    return Recovery(
        align=ratio(power / jnp.sqrt((power + g_x) * (power + g_y)), e / jnp.sqrt(h_x * h_y)),
        predict=ratio(power / jnp.sqrt(power + g_x), e / jnp.sqrt(h_x)),
        contrast=ratio(power, e),
    )


def _exceeds(eta: Array, hx: Array, hy: Array) -> Bool[Array, "..."]:
    return eta**2 > hx * hy * (1 + 16 * jnp.finfo(eta.dtype).eps)
