"""How the linear MMCL loss learns: the strength of each mode, and accuracy, as functions of training time.

Symbols: C = Cov(z, u) = sum_k s_k u_k v_k^T, W = W_I^T W_T = sum_k om_k u_k v_k^T, rho regularisation, t time of
gradient flow (steps times learning rate), om_0 initial strength, p prompt.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import undefined_slope
from mmcl_theory.data import AccuracyByGroup, Captions, GroupCaptions, IntraClass, Model, Observation
from mmcl_theory.data.batches import over_batches
from mmcl_theory.data.captions import is_pair_model, second_moments
from mmcl_theory.data.protocol import exactly, prompts_of
from mmcl_theory.theory import mixtures
from mmcl_theory.theory.mmcl import pair_prompt
from mmcl_theory.zero_shot import PROMPTS, GroupAccuracy, linear_rule_accuracy

_SMALL = 1e-4  # for smaller |x| the series of (exp x - 1)/x has an error of x^3/24 < 1e-13


def mode_strength(
    time: Scalar, singular_value: Scalar, rho: Scalar = 1.0, initial: Scalar = 1e-3
) -> Float[Array, "..."]:
    """The strength om(t) of a mode under gradient flow: the solution of om' = 2 om (s - rho om), om(0) = om_0.

        om(t) = (s/rho) / (1 + ((s/rho)/om_0 - 1) exp(-2 s t))

    The flow is that of -<W_I^T W_T, C> + (rho/2) |W_I^T W_T|_F^2. It starts from balanced encoders aligned with the
    singular vectors of C, W_I W_I^T = W_T W_T^T. Modes grow independently, the strong ones first: the mode of s takes a
    time of about log(s/(rho om_0)) / (2 s). At s = 0 the strength decays as om_0 / (1 + 2 rho om_0 t).

    Args:
        time: t, finite and >= 0; steps times learning rate.
        singular_value: s, finite and >= 0.
        rho: strength of the regulariser, finite and > 0.
        initial: om_0, finite and > 0.

    Returns:
        om(t), of the arguments' broadcast shape.

    Raises:
        ValueError: for values out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> strength = mt.theory.mode_strength(time=jnp.array([0.0, 2.0, 10.0]), singular_value=2.0, initial=0.01)
        >>> print([f"{value:.3f}" for value in strength])
        ['0.010', '1.875', '2.000']

    Source: X6 (as in Saxe et al. 2014, arXiv 1312.6120).  Check: proofs_checks/x6.py.
    """
    t = _checks.real("time", time, "finite and >= 0")
    s = _checks.real("singular_value", singular_value, "finite and >= 0")
    rho_array, start = _checks.real("rho", rho, "finite and > 0"), _checks.real("initial", initial, "finite and > 0")
    t, s, rho_array, start = jnp.broadcast_arrays(t, s, rho_array, start)
    # om = om_0 / (exp(-2 s t) + rho om_0 (1 - exp(-2 s t)) / s), regular at s = 0.
    x = -2 * s * t
    small = jnp.abs(x) < _SMALL
    ratio = jnp.where(small, 1 + x / 2 + x**2 / 6, jnp.expm1(x) / jnp.where(small, 1.0, x))
    return start / (jnp.exp(x) + rho_array * start * 2 * t * ratio)


def training_accuracy(
    model: Model,
    caps: Captions | GroupCaptions | None = None,
    obs: Observation | None = None,
    *,
    time: Scalar,
    rho: Scalar = 1.0,
    initial: Scalar = 1e-3,
    prompts: mixtures.Prompts = "core",
) -> GroupAccuracy | AccuracyByGroup:
    """Accuracy, by group, after time t of gradient flow on the population's linear loss from small aligned encoders.

        w(t) = sum_k om_k(t) u_k (v_k . p),  om_k by `mode_strength`

    t = 0 gives om_0 times the projection of p on the modes. t -> inf gives `mmcl_accuracy`(model, caps, obs). A mixture
    has such a rule for each class, with the class's prompt p, and the accuracy is that of their argmax.

    This is the limit of many samples. The error of n samples in a mode that has grown is of order om/sqrt(n), and hides
    modes that are weaker than this: early in training n must be large.

    Args:
        model: intra-class model, or mixture; all leaves and times broadcast.
        caps: caption policy, `group_captions` of a mixture; None for rich captions.
        obs: observation; None for no noise.
        time: t, finite and >= 0; steps times learning rate.
        rho: strength of the regulariser, finite and > 0.
        initial: om_0, finite and > 0.
        prompts: "core" or "train_mean", see `latent_prompts`; of a mixture also the latent codes, (..., K, l).

    Returns:
        The accuracies, of the broadcast shape. Where C is singular, the null directions that start with strength om_0
        are those of the singular value decomposition. Of a mixture, derivatives are NaN there and where two singular
        values coincide.

    Raises:
        ValueError: for values out of range.
        TypeError: for a model that does not say what is needed of its law, see `LatentModel`, and for the inter-class
            model.

    Example:
        It ends at the accuracy of the minimiser:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> model = mt.intra_class(p_spu=0.95, sigma_core=1.0, sigma_spu=0.1)
        >>> accuracy = jax.jit(mt.theory.training_accuracy)(model, time=jnp.array([0.0, 2.0, 50.0]))
        >>> print([f"{value:.3f}" for value in accuracy.shifted], f"{mt.theory.mmcl_accuracy(model).shifted:.3f}")
        ['0.841', '0.801', '0.817'] 0.817

    Source: X6.  Check: proofs_checks/x6.py.
    """
    strengths = [_checks.real("time", time, "finite and >= 0")]
    strengths += [_checks.real(name, x, "finite and > 0") for name, x in (("rho", rho), ("initial", initial))]
    zu = second_moments(model, caps)[1]
    if not is_pair_model(model):
        prompt = prompts_of(model, prompts)
        rules = over_batches(_trained_rules, (zu, 2), (prompt, 2), *((x, 0) for x in strengths))
        return mixtures.accuracy_in_the_span(model, rules, obs)
    exactly(model, IntraClass)
    prompt = pair_prompt(model, _checks.choice("prompts", prompts, PROMPTS))
    arrays = [x.astype(zu.dtype) for x in strengths]
    batch = jnp.broadcast_shapes(zu.shape[:-2], prompt.shape[:-1], *(x.shape for x in arrays))
    zu = jnp.broadcast_to(zu, (*batch, 2, 2))
    prompt = jnp.broadcast_to(prompt, (*batch, 2))
    at = [jnp.broadcast_to(x, batch) for x in arrays]
    weights = jnp.vectorize(_trained_rule, signature="(l,l),(l),(),(),()->(l)")(zu, prompt, *at)
    return linear_rule_accuracy(model, weights, (weights**2).sum(-1), 0.0 if obs is None else obs.sd_image)


def _trained_rule(
    zu: Float[Array, "2 2"], prompt: Float[Array, "2"], time: Array, rho: Array, initial: Array
) -> Float[Array, "2"]:
    """sum_k om(s_k) u_k (v_k . p), differentiable where the singular values coincide.

    Singular vectors have no derivatives there, but the sum has. Around s, to second order in the difference of the
    values, it is (om(s)/s + om'(s))/2 C p + sign(det C) (om(s)/s - om'(s))/2 cof(C) p.
    """
    size = jnp.sqrt((zu**2).sum() / 2)
    determinant = jnp.linalg.det(zu)
    # The difference of the singular values is sqrt(|C|^2 - 2 |det C|).
    close = (size > 0) & (size**2 - jnp.abs(determinant) <= jnp.finfo(zu.dtype).eps * size**2)
    distinct = jnp.where(close, jnp.diag(jnp.asarray([2.0, 1.0], zu.dtype)), zu)
    u, s, vt = jnp.linalg.svd(distinct)
    far = u @ (mode_strength(time, s, rho, initial) * (vt @ prompt))

    size = jnp.where(close, size, 1.0)
    strength, slope = jax.jvp(lambda s: mode_strength(time, s, rho, initial), (size,), (jnp.ones_like(size),))
    even, odd = (strength / size + slope) / 2, (strength / size - slope) / 2
    cofactor = jnp.array([[zu[1, 1], -zu[1, 0]], [-zu[0, 1], zu[0, 0]]])
    near = (even * zu + jnp.sign(determinant) * odd * cofactor) @ prompt
    return jnp.where(close, near, far)


def _trained_rules(
    cross: Float[Array, "l m"], prompt: Float[Array, "c m"], time: Array, rho: Array, initial: Array
) -> Float[Array, "c l"]:
    """P W^T with W = sum_k om_k u_k v_k^T."""
    left, values, right = jnp.linalg.svd(cross)
    least = 16 * len(cross) * jnp.finfo(cross.dtype).eps * values[0]
    unclear = (values[:-1] - values[1:] <= least).any() | (values[-1] <= least)
    strength = mode_strength(time, values, rho, initial)
    return undefined_slope(prompt @ (right.T * strength[None, :]) @ left.T, unclear)
