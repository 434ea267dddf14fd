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
    """Least score of a signal over the largest score of a nuisance, by method; above 1 the signal is recovered.

    inf where no nuisance is shared between the modalities.
    """

    align: Array  # (...)  CCA: k^2 / sqrt((k^2 + gx)(k^2 + gy)) against eta / sqrt(hx hy)
    predict: Array  # (...)  regression of y on x at limited rank: k^2 / sqrt(k^2 + gx) against eta / sqrt(hx)
    contrast: Array  # (...)  linear MMCL (PLS): k^2 against eta

    @property
    def regime(self) -> Array:
        """Integer 2 [align recovers] + [predict recovers]: 0 neither, 1 predict only, 2 align only, 3 both."""
        return 2 * (self.align > 1) + (self.predict > 1)


def recovery(signal: Scalar, gx: Scalar, gy: Scalar, eta: Scalar, hx: Scalar, hy: Scalar) -> Recovery:
    """The three criteria of X7 as ratios, min over signals over max over nuisances.

    signal: k, gx, gy: own noise of each signal coordinate, (..., i).  eta, hx, hy: shared and own variance of each
    nuisance coordinate, (..., j), with eta <= sqrt(hx hy) for a covariance. A scalar is one coordinate; leading axes
    broadcast.
    Raises: ValueError for k or hx, hy not > 0, gx, gy or eta < 0, or eta > sqrt(hx hy).
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
