"""What stops InfoNCE from whitening: a ridge on the score matrix, weight decay on both encoders, or a short training.

Symbols: C cross-covariance, S_I and S_T covariances of images and texts with eigenvalues l_i, m_j and eigenvectors
U_i, V_j, W score matrix, tau temperature, rho strength of the penalty, kappa = rho tau^2, nu = rho tau, t time.

Every function of this module minimises InfoNCE to second order, -<W, C> + 1/2 tr(W^T S_I W S_T). This is exact for
Gaussian pairs.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar
from mmcl_theory._slopes import undefined_slope

Matrix = Float[Array, "d_i d_t"]


def ridge_optimum(
    cross_cov: Matrix, cov_image: Float[Array, "d_i d_i"], cov_text: Float[Array, "d_t d_t"], kappa: Scalar
) -> Matrix:
    """The minimiser of second-order InfoNCE with a ridge on the score matrix.

        argmin over W of -<W, C> + [tr(W^T S_I W S_T) + kappa |W|_F^2] / (2 (1 + kappa))
        = U H V^T  with  H_ij = (1 + kappa) U_i^T C V_j / (l_i m_j + kappa)

    kappa = 0 is `whitened_optimum` at theta = 1 (CCA). kappa = inf is C itself, the linear loss (PLS, `linear_optimum`
    with rho = 1).

    InfoNCE of the scores x^T W t / tau with penalty (rho/2) |W|_F^2 has the logits' matrix W / tau. In this matrix it
    is InfoNCE at temperature 1 with penalty (kappa/2) |W / tau|_F^2, kappa = rho tau^2. To second order in the scores
    its minimiser W is tau / (1 + kappa) times the matrix returned here.

    Images and texts have mean 0, so centre features that do not. With means x and t the second order would have, in
    place of S_I W S_T, the matrices

        S_I W (S_T + t t^T / 2) + x x^T W S_T / 2

    Any moments will do, such as those of image features over finitely many kinds of images. The rule of a prompt p, a
    vector of text features, is ridge_optimum(...) @ p. This is not the canonical ridge of regularised CCA, which adds a
    multiple of the identity to S_I and to S_T.

    At kappa = 0 inverses are pseudo-inverses. They give the limit of small kappa if images and texts have these
    moments, because C then vanishes on the null spaces. Derivatives hold at every kappa > 0, also where eigenvalues
    coincide. At kappa = 0 with a singular covariance they are NaN.

    Args:
        cross_cov: the cross-covariance C.
        cov_image: covariance S_I of the images, symmetric, positive semi-definite; it may be singular.
        cov_text: covariance S_T of the texts, symmetric, positive semi-definite; it may be singular.
        kappa: the ridge, a scalar in [0, inf].

    Returns:
        The score matrix W, rows are image coordinates, columns text coordinates.

    Raises:
        ValueError: for kappa out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> cross_cov = cov = jnp.diag(jnp.array([3.0, 1.0]))
        >>> for kappa in (0.0, 1.0, jnp.inf):
        ...     print([f"{entry:.3f}" for entry in jnp.diagonal(mt.learners.ridge_optimum(cross_cov, cov, cov, kappa))])
        ['0.333', '1.000']
        ['0.600', '1.000']
        ['3.000', '1.000']

    Source: X11.  Check: proofs_checks/x11.py.
    """
    share = ridge_share(_checks.real("kappa", kappa, "in [0, inf]").astype(cross_cov.dtype))
    singular = ~(_kept(jnp.linalg.eigvalsh(cov_image)).all() & _kept(jnp.linalg.eigvalsh(cov_text)).all())
    return undefined_slope(_solve(cross_cov, cov_image, cov_text, share), (share == 0) & singular)


def ridge_share(kappa: Float[Array, "..."]) -> Float[Array, "..."]:
    """kappa / (1 + kappa) in [0, 1], 1 at kappa = inf: the weight of the ridge beside that of the covariances."""
    finite = jnp.isfinite(kappa)
    inside = jnp.where(finite, kappa, 0.0)
    return jnp.where(finite, inside / (1 + inside), jnp.where(kappa > 0, 1.0, kappa))


@jax.custom_jvp
def _solve(right: Matrix, cov_image: Array, cov_text: Array, share: Array) -> Matrix:
    """W with (1 - share) S_I W S_T + share W = right; at share = 0 the solution of least norm."""
    (l, u), (m, v) = jnp.linalg.eigh(cov_image), jnp.linalg.eigh(cov_text)
    scale = (1 - share) * l[:, None] * m[None, :] + share
    solved = (share > 0) | (_kept(l)[:, None] & _kept(m)[None, :])
    inside = u.T @ right @ v
    return u @ jnp.where(solved, inside / jnp.where(solved, scale, 1.0), 0.0) @ v.T


@_solve.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    _, cov_image, cov_text, share = primals
    d_right, d_image, d_text, d_share = tangents
    w = _solve(*primals)
    moved = (1 - share) * (d_image @ w @ cov_text + cov_image @ w @ d_text) + d_share * (w - cov_image @ w @ cov_text)
    return w, _solve(d_right - moved, cov_image, cov_text, share)


def _kept(values: Float[Array, " d"]) -> Bool[Array, " d"]:
    """Whether each eigenvalue of a covariance is above 0 by more than rounding."""
    return values > values.max() * len(values) * jnp.finfo(values.dtype).eps


def gradient_flow(
    cross_cov: Matrix, cov_image: Float[Array, "d_i d_i"], cov_text: Float[Array, "d_t d_t"], time: Scalar
) -> Matrix:
    """Gradient flow in the score matrix from W(0) = 0, on second-order InfoNCE.

        dW/dt = C - S_I W S_T
        W(t) = U H V^T  with  H_ij = U_i^T C V_j (1 - exp(-l_i m_j t)) / (l_i m_j)

    The loss is -<W, C> + 1/2 tr(W^T S_I W S_T). Early W(t) is t C, the direction of the linear loss. Late it is
    `whitened_optimum`.

    Entry by entry H is that of the ridge kappa = 1/t, U_i^T C V_j / (l_i m_j + 1/t), times a number in [1, 1.2985].
    With x = l_i m_j t this number tends to 1 for x -> 0 and x -> inf. It is largest where exp(x) = 1 + x + x^2, at
    x = 1.7933.

    Flow in the encoders W_I and W_T takes another path: see `theory.mode_strength`.

    Args:
        cross_cov: the cross-covariance C.
        cov_image: covariance S_I of the images, symmetric, positive semi-definite.
        cov_text: covariance S_T of the texts, symmetric, positive semi-definite.
        time: t, a scalar, finite and >= 0: steps times learning rate, over tau^2 at temperature tau.

    Returns:
        The score matrix W(t). Its derivatives are NaN where two eigenvalues of a covariance coincide.

    Raises:
        ValueError: for time out of range.

    Example:
        Early it goes in the direction of C, the linear loss. Late it ends at the whitened optimum:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> cross_cov = cov = jnp.diag(jnp.array([3.0, 1.0]))
        >>> for time in (0.001, 100.0):
        ...     print([f"{entry:.3f}" for entry in jnp.diagonal(mt.learners.gradient_flow(cross_cov, cov, cov, time))])
        ['0.003', '0.001']
        ['0.333', '1.000']

    Source: X11 (the ratio: Ali, Kolter and Tibshirani 2019, arXiv 1810.10082).  Check: proofs_checks/x11.py.
    """
    t = _checks.real("time", time, "finite and >= 0").astype(cross_cov.dtype)
    (l, u), (m, v) = jnp.linalg.eigh(cov_image), jnp.linalg.eigh(cov_text)
    rate = l[:, None] * m[None, :]
    moving = rate != 0
    safe = jnp.where(moving, rate, 1.0)
    return u @ ((u.T @ cross_cov @ v) * jnp.where(moving, -jnp.expm1(-safe * t) / safe, t)) @ v.T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NuclearNormOptimum:
    """The minimiser that `nuclear_norm_optimum` found, and its certificate.

    Attributes:
        score: the score matrix W, rows are image coordinates, columns text coordinates.
        loss: the loss of W.
        gap: the loss minus a lower bound of every loss, from a dual point; >= 0 but for rounding.
        singular_values: those of W, descending; exactly 0 beyond its rank.

    Example:
        The penalty leaves W of rank 1, and the gap certifies it:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> optimum = mt.learners.nuclear_norm_optimum(jnp.diag(jnp.array([3.0, 1.0])), jnp.eye(2), jnp.eye(2), nu=2.0)
        >>> print([f"{value:.3f}" for value in optimum.singular_values], bool(optimum.gap < 1e-5))
        ['1.000', '0.000'] True
    """

    score: Array  # (d_i, d_t)
    loss: Array  # ()
    gap: Array  # ()
    singular_values: Array  # (min(d_i, d_t),)


def nuclear_norm_optimum(
    cross_cov: Matrix,
    cov_image: Float[Array, "d_i d_i"],
    cov_text: Float[Array, "d_t d_t"],
    nu: Scalar,
    max_steps: int = 20_000,
) -> NuclearNormOptimum:
    """The minimiser of second-order InfoNCE with a penalty on the sum of singular values, |W|_*.

        argmin over W of -<W, C> + 1/2 tr(W^T S_I W S_T) + nu |W|_*

    Weight decay on both encoders has this effect: the least (rho/2) (|W_I|_F^2 + |W_T|_F^2) over all W_I^T W_T = W is
    rho |W|_*. At temperature tau, with the scores x^T W t / tau, W / tau is the minimiser here for nu = rho tau.

    W is optimal if and only if G = C - S_I W S_T has no singular value above nu and <G, W> = nu |W|_*. nu = 0 is
    `whitened_optimum`. W = 0 if and only if nu >= s_1(C). Just below s_1(C), W has rank 1, along the first singular
    vectors of C: the linear loss at embedding size 1. There is a closed form where the singular vectors of C are
    eigenvectors of S_I and S_T, for example where both are multiples of the identity. There each singular value s_k of
    C becomes max(s_k - nu, 0) / (l_k m_k).

    Elsewhere accelerated proximal steps with restarts find W. They end when the gap is within rounding of the loss, or
    after max_steps. The gap certifies W: with G clipped to singular values <= nu, no loss is below
    -1/2 <C - G, S_I^-1 (C - G) S_T^-1>. The certificate assumes that the covariances are those of pairs with
    cross-covariance C, which then vanishes on their null spaces. For other C the gap means nothing.

    The minimiser is unique if both covariances are invertible. There are no reverse-mode derivatives, because of the
    while loop.

    Args:
        cross_cov: the cross-covariance C.
        cov_image: covariance S_I of the images, symmetric, positive semi-definite.
        cov_text: covariance S_T of the texts, symmetric, positive semi-definite.
        nu: strength of the penalty, a scalar, finite and >= 0.
        max_steps: largest number of steps, >= 1, static. About 30 sqrt(l_1 m_1 / (l_d m_d)) are needed.

    Returns:
        The minimiser and its certificate.

    Raises:
        ValueError: for nu or max_steps out of range.

    Example:
        With unit covariances it takes nu off each singular value of C, as far as 0:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> cross_cov, cov = jnp.diag(jnp.array([3.0, 1.0])), jnp.eye(2)
        >>> for nu in (0.5, 2.0):
        ...     optimum = mt.learners.nuclear_norm_optimum(cross_cov, cov, cov, nu)
        ...     print([f"{value:.3f}" for value in optimum.singular_values])
        ['2.500', '0.500']
        ['1.000', '0.000']

    Source: X11.  Check: proofs_checks/x11.py.
    """
    nu = _checks.real("nu", nu, "finite and >= 0").astype(cross_cov.dtype)
    _checks.integer("max_steps", max_steps, 1)
    (l, u), (m, v) = jnp.linalg.eigh(cov_image), jnp.linalg.eigh(cov_text)
    curvature = jnp.maximum(l, 0)[:, None] * jnp.maximum(m, 0)[None, :]
    kept = _kept(l)[:, None] & _kept(m)[None, :]
    inverse = jnp.where(kept, 1 / jnp.where(kept, curvature, 1.0), 0.0)
    c = u.T @ cross_cov @ v  # in these coordinates the smooth part of the loss is a sum over entries
    step = 1 / curvature.max()

    def certificate(h: Array, norm: Array) -> tuple[Array, Array]:
        loss = (curvature * h**2 / 2 - c * h).sum() + nu * norm
        left, values, right = jnp.linalg.svd(c - curvature * h, full_matrices=False)
        missing = c - (left * jnp.minimum(values, nu)[None, :]) @ right
        return loss, loss + (inverse * missing**2).sum() / 2

    def advance(state: tuple[Array, ...]) -> tuple[Array, ...]:
        h, ahead, momentum, *_, count = state
        left, values, right = jnp.linalg.svd(ahead + step * (c - curvature * ahead), full_matrices=False)
        values = jnp.maximum(values - step * nu, 0)
        new = (left * values[None, :]) @ right
        restart = ((ahead - new) * (new - h)).sum() > 0
        following = jnp.where(restart, 1.0, (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2)
        pushed = jnp.where(restart, 0.0, (momentum - 1) / following)
        return new, new + pushed * (new - h), following, values, *certificate(new, values.sum()), count + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        *_, loss, gap, count = state
        return (gap > 4 * jnp.finfo(c.dtype).eps * jnp.abs(loss)) & (count < max_steps)

    zero = jnp.zeros_like(c)
    start: tuple[Array, ...] = (zero, zero, jnp.ones_like(nu), jnp.zeros(min(c.shape), c.dtype))
    state = (*start, *certificate(zero, jnp.zeros_like(nu)), jnp.asarray(0))
    h, _, _, values, loss, gap, _ = jax.lax.while_loop(unfinished, advance, state)
    return NuclearNormOptimum(u @ h @ v.T, loss, gap, values)
