"""The loss of bilinear InfoNCE on any mixture: closed inner means, outer ones by quadrature or at quasi-random points.

Symbols: x = D_I^T x_I and t = D_T^T x_T images and captions on the latent coordinates, s(x, t) = x^T M t, a = M^T x or
M t; g group of weight P_g, mean m_g and covariance S_g; G groups, l latents; R the coordinates that name their own
value. The loss needs the laws of x and of t and E x t^T, but no other trace of the law of (x, t).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from mmcl_theory._orthant import triangular_root
from mmcl_theory.data import Captions, GroupCaptions, Mixture, Observation

RANDOMISATIONS = 16
LARGEST_EXPONENT = 80.0  # exp(80) is finite in float32; such points have quadrature weights far below exp(-80)

Points = tuple[Array, Array]  # points (n, l) and their weights (n,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PairLaw:
    """What the loss needs of the law of (x, t); see `GroupCaptions.states` for the states."""

    weight: Array  # (G,)
    mean: Array  # (G, l)
    covariance: Array  # (G, l, l)
    states: tuple[Array, Array, Array]  # (G, s, l) each
    image_variance: Array  # ()
    text_variance: Array  # ()
    cross_moment: Array  # (l, l)  E x t^T

    @property
    def image_covariance(self) -> Float[Array, "g l l"]:
        """S_g + s_I^2."""
        return self.covariance + self.image_variance * jnp.eye(self.mean.shape[1], dtype=self.mean.dtype)[None]


def pair_law(model: Mixture, caps: Captions | GroupCaptions, obs: Observation) -> PairLaw:
    """The law of a single mixture. Raises TypeError unless the captions are `group_captions`."""
    if not isinstance(caps, GroupCaptions):
        raise TypeError(f"caps must be group_captions for a mixture, got {type(caps).__name__}.")
    states = caps.states(model)
    u_mean, kept, _ = caps.group_moments(model)
    cross = jnp.einsum("g,gi,gj->ij", model.weight, model.mean, u_mean)
    cross = cross + jnp.einsum("g,gij,gj->ij", model.weight, model.covariance, kept)
    return PairLaw(model.weight, model.mean, model.covariance, states, obs.sd_image**2, obs.sd_text**2, cross)


def population_loss(law: PairLaw, images: Points, texts: Points, kappa: Array, m: Float[Array, " k"]) -> Array:
    """The loss L(M) of `info_nce_optimum` at m, the entries of M, with these points for the outer means."""
    score = m.reshape(law.cross_moment.shape)
    (x, x_weight), (t, t_weight) = images, texts
    both = x_weight @ _text_cumulant(law, x @ score) + t_weight @ _image_cumulant(law, t @ score.T)
    return both / 2 - jnp.vdot(score, law.cross_moment) + kappa / 2 * jnp.vdot(score, score)


def population_derivatives(
    law: PairLaw, images: Points, texts: Points, kappa: Array, m: Float[Array, " k"]
) -> tuple[Array, Array, Array]:
    """`population_loss` with its gradient and Hessian.

    With k(a) the cumulant at a = M^T x, these are the means of x_i k'_j and x_i x_k k''_jl. That takes l derivatives of
    k instead of l^2.
    """
    score = m.reshape(law.cross_moment.shape)

    def side(cumulant: Callable[[Array], Array], points: Points, score: Array) -> tuple[Array, Array, Array]:
        x, weight = points
        slope = jax.grad(lambda a: cumulant(a).sum())
        a = x @ score
        value, first = cumulant(a), slope(a)
        along = jax.vmap(lambda e: jax.jvp(slope, (a,), (jnp.broadcast_to(e[None, :], a.shape),))[1])
        second = along(jnp.eye(len(score), dtype=a.dtype))  # (l, n, l)
        squares = weight[:, None, None] * x[:, :, None] * x[:, None, :]
        return weight @ value, (weight[:, None] * x).T @ first, jnp.einsum("nik,jnl->ijkl", squares, second)

    value, gradient, hessian = side(functools.partial(_text_cumulant, law), images, score)
    other = side(functools.partial(_image_cumulant, law), texts, score.T)
    value, gradient = (value + other[0]) / 2, (gradient + other[1].T) / 2
    hessian = (hessian + other[2].transpose(1, 0, 3, 2)).reshape(m.size, m.size) / 2
    value = value - jnp.vdot(score, law.cross_moment) + kappa / 2 * jnp.vdot(score, score)
    gradient = gradient - law.cross_moment + kappa * score
    return value, gradient.ravel(), hessian + kappa * jnp.eye(m.size, dtype=m.dtype)


def _image_cumulant(law: PairLaw, a: Float[Array, "n l"]) -> Float[Array, " n"]:
    """log E exp(a . x)."""
    exponent = jnp.einsum("ni,gij,nj->ng", a, law.image_covariance, a) / 2 + a @ law.mean.T
    occurs = jnp.broadcast_to(law.weight > 0, exponent.shape)
    top, terms = _scaled(exponent, occurs)
    return jnp.log(terms @ law.weight) + top


def _text_cumulant(law: PairLaw, a: Float[Array, "n l"]) -> Float[Array, " n"]:
    """log E exp(a . t).

        E exp(a . t) = exp(s_T^2 |a|^2 / 2) sum_g P_g sum_R prod_{j in R} p_gj prod_{j not in R} f_gj
                       exp(a_R . m_g + a_R^T (S_g + blur^2) a_R / 2)

    p_gj is the probability of state 1. f_gj, the sum over the other states, is a mixture in one dimension.
    """
    l = a.shape[1]
    probability, mean, variance = law.states
    rest = np.delete(np.arange(probability.shape[1]), 1)
    at = a[:, None, None, :]
    exponent = at * mean[None, :, rest] + at**2 * variance[None, :, rest] / 2  # (n, G, s - 1, l)
    exponent = jnp.moveaxis(exponent, 2, -1)
    share = jnp.moveaxis(probability[:, rest], 1, -1)[None]
    level, terms = _scaled(exponent, jnp.broadcast_to(share > 0, exponent.shape))
    other = (terms * share).sum(-1)  # f_gj exp(-level), (n, G, l)
    right = jnp.asarray(list(itertools.product([False, True], repeat=l)))  # (2^l, l)
    own = at[:, 0] * right[None].astype(a.dtype)  # (n, 2^l, l)
    blurred = law.covariance + variance[:, 1, :, None] * jnp.eye(l, dtype=a.dtype)[None]
    exponent = jnp.einsum("nri,gij,nrj->ngr", own, blurred, own) / 2 + jnp.einsum("nri,gi->ngr", own, law.mean)
    exponent = exponent + jnp.einsum("ngj,rj->ngr", level, (~right).astype(a.dtype))
    factor = jnp.where(right[None, None], probability[:, 1][None, :, None, :], other[:, :, None, :])
    share = law.weight[None, :, None] * functools.reduce(jnp.multiply, [factor[..., j] for j in range(l)])
    top, terms = _scaled(*(x.reshape(len(a), -1) for x in (exponent, share > 0)))
    return jnp.log((terms * share.reshape(len(a), -1)).sum(-1)) + top + law.text_variance * (a**2).sum(-1) / 2


def _scaled(exponent: Float[Array, "*n k"], occurs: Array) -> tuple[Float[Array, "*n"], Float[Array, "*n k"]]:
    """The largest exponent of those that occur (of all if none does), and exp(exponent - largest).

    A term of probability 0 still adds a derivative, so it must be there, but may not overflow.
    """
    exponents = jax.lax.stop_gradient(exponent)
    top = jnp.where(occurs.any(-1), jnp.where(occurs, exponents, -jnp.inf).max(-1), exponents.max(-1))
    return top, jnp.exp(jnp.minimum(exponent - top[..., None], LARGEST_EXPONENT))


def quadrature(law: PairLaw, nodes: int) -> tuple[Points, Points, Array]:
    """Gauss-Hermite points for images and for texts, and whether a covariance is singular."""
    l = law.mean.shape[1]
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = jnp.asarray(np.stack(np.meshgrid(*[points] * l, indexing="ij"), -1).reshape(-1, l), law.mean.dtype)
    weight = jnp.asarray(functools.reduce(np.multiply.outer, [weights / weights.sum()] * l).ravel(), law.mean.dtype)

    def of(probability: Array, mean: Array, covariance: Array) -> tuple[Points, Array]:
        at = mean[:, None, :] + jnp.einsum("cij,nj->cni", jax.vmap(triangular_root)(covariance), grid)
        singular = (jnp.linalg.eigvalsh(jax.lax.stop_gradient(covariance))[:, 0] <= 0).any()
        return (at.reshape(-1, l), (probability[:, None] * weight[None, :]).ravel()), singular

    # Every combination of the coordinates' states is a case, in which the text is Gaussian.
    patterns = np.array(list(itertools.product(range(law.states[0].shape[1]), repeat=l)))
    probability, mean, variance = (x[:, patterns, np.arange(l)[None, :]] for x in law.states)  # (G, s^l, l)
    right = jnp.asarray(patterns == 1, law.mean.dtype)
    covariance = law.covariance[:, None] * (right[:, :, None] * right[:, None, :])[None]
    covariance = covariance + (variance + law.text_variance)[..., None] * jnp.eye(l, dtype=mean.dtype)[None, None]
    share = law.weight[:, None] * functools.reduce(jnp.multiply, [probability[..., j] for j in range(l)])
    texts, text_singular = of(share.ravel(), mean.reshape(-1, l), covariance.reshape(-1, l, l))
    images, image_singular = of(law.weight, law.mean, law.image_covariance)
    return images, texts, image_singular | text_singular


def quasi_random(law: PairLaw, uniform: Float[Array, "n k"]) -> tuple[Points, Points]:
    """Points for images and for texts from n points of the unit cube of dimension 3l, in each group."""
    n, l, kind = len(uniform), law.mean.shape[1], jnp.finfo(law.mean.dtype)
    uniform = jnp.clip(uniform.astype(law.mean.dtype), kind.tiny, 1 - kind.eps)
    groups = np.arange(len(law.mean))[:, None, None]
    z, more = (ndtri(u) for u in (uniform[:, :l], uniform[:, 2 * l :]))

    def latents(covariance: Array) -> Array:
        return law.mean[:, None, :] + jnp.einsum("gij,nj->gni", jax.vmap(triangular_root)(covariance), z)

    probability, mean, variance = law.states
    edges = jnp.cumsum(probability, 1)
    edges = edges / edges[:, -1:]
    state = (uniform[None, :, None, l : 2 * l] >= edges[:, None, :-1]).sum(2)  # (G, n, l)
    at = (groups, state, np.arange(l)[None, None, :])
    text = jnp.where(state == 1, latents(law.covariance), mean[at])
    text = text + jnp.sqrt(variance[at] + law.text_variance) * more[None]
    weight = jnp.repeat(law.weight / n, n)
    return (latents(law.image_covariance).reshape(-1, l), weight), (text.reshape(-1, l), weight)


@functools.cache
def shifted_points(points: int, latents: int) -> np.ndarray:
    """(RANDOMISATIONS, points, 3l) points of the unit cube: Sobol's, shifted independently, folded by the baker's map.

    Each set is uniform in distribution, so that the means over sets have no bias.
    """
    from scipy.stats import qmc  # takes long to import

    shift = np.random.default_rng(0).uniform(size=(RANDOMISATIONS, 1, 3 * latents))
    return 1 - np.abs(2 * ((qmc.Sobol(3 * latents, scramble=False).random(points)[None] + shift) % 1) - 1)
