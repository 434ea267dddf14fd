"""How the linear MMCL loss learns: the strength of each mode, and accuracy, as functions of training time.

Symbols: C = Cov(z, u) = sum_k s_k u_k v_k^T, W = W_I^T W_T = sum_k om_k u_k v_k^T, rho regularisation, t time of
gradient flow (steps times learning rate), om_0 initial strength, p prompt.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory.data import Captions, IntraClass, Observation, captions, moments
from mmcl_theory.theory.mmcl import pair_prompt
from mmcl_theory.zero_shot import GroupAccuracy, linear_rule_accuracy


def mode_strength(
    time: Scalar, singular_value: Scalar, rho: Scalar = 1.0, initial: Scalar = 1e-3
) -> Float[Array, "..."]:
    """om(t) = (s/rho) / (1 + ((s/rho)/om_0 - 1) exp(-2 s t)), the solution of om' = 2 om (s - rho om), om(0) = om_0.

    Gradient flow of -<W_I^T W_T, C> + (rho/2) |W_I^T W_T|_F^2 from balanced encoders aligned with the singular vectors
    of C (W_I W_I^T = W_T W_T^T): modes grow apart from each other, the mode of s within about
    log(s/(rho om_0)) / (2 s), the strong ones first. At s = 0 it decays as om_0 / (1 + 2 rho om_0 t).

    time: t >= 0.  singular_value: s >= 0.  rho, initial: > 0.  They broadcast.
    Raises: ValueError for values out of range.
    Source: X6 (as in Saxe et al. 2014, arXiv 1312.6120).  Check: proofs_checks/x6.py.
    """
    t = _checks.real("time", time, "finite and >= 0")
    s = _checks.real("singular_value", singular_value, "finite and >= 0")
    rho_array, start = _checks.real("rho", rho, "finite and > 0"), _checks.real("initial", initial, "finite and > 0")
    t, s, rho_array, start = jnp.broadcast_arrays(t, s, rho_array, start)
    # om = om_0 / (exp(-2 s t) + rho om_0 (1 - exp(-2 s t)) / s), regular at s = 0.
    positive = s > 0
    grown = jnp.where(positive, -jnp.expm1(-2 * s * t) / jnp.where(positive, s, 1.0), 2 * t)
    return start / (jnp.exp(-2 * s * t) + rho_array * start * grown)


def training_accuracy(
    model: IntraClass,
    caps: Captions | None = None,
    obs: Observation | None = None,
    *,
    time: Scalar,
    rho: Scalar = 1.0,
    initial: Scalar = 1e-3,
    prompts: str = "core",
) -> GroupAccuracy:
    """Accuracy, by group, after time t of gradient flow on the population's linear loss from small aligned encoders.

    w(t) = sum_k om_k(t) u_k (v_k . p), om_k by `mode_strength`; t = 0 is om_0 times the projection of p on the modes,
    t -> inf is `mmcl_accuracy`(model, caps, obs).

    Leaves of model, caps, obs, and time, rho, initial broadcast.
    Raises: ValueError for values out of range.
    Source: X6.  Check: proofs_checks/x6.py.
    """
    zu = moments(model, caps or captions()).zu
    prompt = pair_prompt(model, prompts)
    arrays = [jnp.asarray(x, zu.dtype) for x in (time, rho, initial)]
    batch = jnp.broadcast_shapes(zu.shape[:-2], prompt.shape[:-1], *(x.shape for x in arrays))
    u, s, vt = jnp.linalg.svd(jnp.broadcast_to(zu, (*batch, 2, 2)))
    at = [jnp.broadcast_to(x, batch)[..., None] for x in arrays]
    strength = mode_strength(at[0], s, at[1], at[2])
    seen = (vt @ jnp.broadcast_to(prompt, (*batch, 2))[..., None])[..., 0]
    weights = (u * (strength * seen)[..., None, :]).sum(-1)
    return linear_rule_accuracy(model, weights, (weights**2).sum(-1), 0.0 if obs is None else obs.sd_image)
