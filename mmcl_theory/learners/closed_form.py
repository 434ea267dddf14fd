"""Closed-form minimisers: of the linear MMCL loss at any rank, of the whitened family from it to CCA, of linear SupCon.

Symbols: x image and t text samples, C cross-covariance, W = W_I^T W_T, rho regularisation, lambda same-class weight,
d_i and d_t input dimensions, n samples, K classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmcl_theory import _checks
from mmcl_theory._checks import Scalar


def cross_covariance(
    image: Float[Array, "n d_i"],
    text: Float[Array, "n d_t"],
    class_number: Int[Array, " n"] | None = None,
    same_class_weight: Scalar | None = None,
    num_classes: int = 2,
) -> Float[Array, "d_i d_t"]:
    """The matrix C_hat of the linear MMCL loss: -<W, C_hat> = linear_mmcl(x W_I^T, t W_T^T).

    Without a weight it is the unbiased centred sample cross-covariance, sum_i (x_i - x_bar)(t_i - t_bar)^T / (n - 1).
    With same-class weight lambda, n_y samples of class y with sums X_y, T_y, and X, T the sums of all samples:

        C_hat = lambda sum_y (n_y / n) Cov_y
              + (1 - lambda) (1/n) [sum_i x_i t_i^T - 1/2 sum_y (X_y (T - T_y)^T + (X - X_y) T_y^T) / (n - n_y)]

    Here Cov_y is the unbiased covariance within class y. A kind of negative that a sample does not have contributes
    nothing; so a class of one sample has no Cov_y. The cost is O(n d_i d_t).

    Args:
        image: image samples x, one a row.
        text: text samples t, one a row.
        class_number: class of each sample in 0..num_classes-1 (`class_index`); needed with same_class_weight.
        same_class_weight: lambda in [0, 1]; None for the ordinary loss.
        num_classes: number of classes K, static.

    Returns:
        C_hat, rows are image coordinates, columns text coordinates.

    Raises:
        ValueError: for n < 2, unequal numbers of samples, a weight out of range or without class numbers, or (where
            they are concrete) class numbers out of range.

    Example:
        The linear loss of any encoders is -<W, C_hat>, here with W = I:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> image = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
        >>> text = jnp.array([[1.0, 1.0], [0.0, 3.0], [2.0, 0.0]])
        >>> cross_cov = mt.learners.cross_covariance(image, text)
        >>> print(f"{-jnp.trace(cross_cov):.3f} {mt.losses.linear_mmcl(image, text):.3f}")
        -2.500 -2.500

    Source: T1, X3.
    """
    n = _checks.integer("n", image.shape[0], 2)
    if text.shape[0] != n:
        raise ValueError(f"image and text must have the same number of samples, got {n} and {text.shape[0]}.")
    if same_class_weight is None:
        return (image - image.mean(0, keepdims=True)).T @ text / (n - 1)
    if class_number is None:
        raise ValueError("class_number must be given with same_class_weight, got None.")
    member = _members(class_number, num_classes, image.dtype)
    slope, between = contrast_weights(member.sum(0), same_class_weight)
    image_sum, text_sum = member.T @ image, member.T @ text  # (K, d)
    return image.T @ ((member @ slope)[:, None] * text) + image_sum.T @ between @ text_sum


def contrast_weights(
    size: Float[Array, " c"], same_class_weight: Scalar | None
) -> tuple[Float[Array, " c"], Float[Array, "c c"]]:
    """Weights (slope, between) that write C_hat of `cross_covariance` in sums over classes.

    With X_y, T_y the sums over class y:

        C_hat = sum_i slope_{y_i} x_i t_i^T + sum_{y, y'} between_{y y'} X_y T_y'^T

    size: number of samples n_y of each class, whole numbers >= 0 of any magnitude. same_class_weight: lambda in [0, 1];
    None for the ordinary loss. Raises ValueError for a weight out of range.

    Source: T1, X3.
    """
    n = size.sum()
    if same_class_weight is None:
        slope = 1 / (n - 1)
        return jnp.full_like(size, slope), jnp.full((len(size), len(size)), -slope / n)
    weight = _checks.real("same_class_weight", same_class_weight, "in [0, 1]").astype(size.dtype)
    others = n - size
    within = jnp.where(size > 1, weight * size / jnp.maximum(size - 1, 1), 0.0) / n
    across = jnp.where(others > 0, (1 - weight) / jnp.maximum(others, 1), 0.0) / n
    symmetric = (across[:, None] + across[None, :]) / 2
    between = -jnp.diag(within / jnp.maximum(size, 1)) - symmetric * (1 - jnp.eye(len(size), dtype=size.dtype))
    return within + across * others, between


def _members(class_number: Int[Array, " n"], num_classes: int, dtype: jnp.dtype) -> Float[Array, "n c"]:
    """1 where sample i is of class y, else 0. Raises ValueError for a concrete class number out of range."""
    if not isinstance(class_number, jax.core.Tracer):
        number = np.asarray(class_number)  # NumPy, because jnp would trace class numbers under jit
        outside = number[(number < 0) | (number >= num_classes)]
        if outside.size:
            raise ValueError(f"class_number must be in 0..{num_classes - 1}, got {outside[0]}.")
    return jax.nn.one_hot(class_number, num_classes, dtype=dtype)


def linear_optimum(
    cross_cov: Float[Array, "d_i d_t"], rho: Scalar = 1.0, rank: int | None = None
) -> Float[Array, "d_i d_t"]:
    """The minimiser of the linear MMCL loss over matrices of limited rank: SVD_rank(C) / rho.

        argmin over rank(W) <= rank of -<W, C> + (rho/2) |W|_F^2

    It is unique if and only if the singular values of C at rank and rank + 1 differ, or both are 0.

    Args:
        cross_cov: the cross-covariance C, any real matrix.
        rho: strength of the regulariser, finite and > 0.
        rank: embedding size, 1..min(d_i, d_t), static; None for no limit.

    Returns:
        The score matrix W, rows are image coordinates, columns text coordinates.

    Raises:
        ValueError: for rho <= 0 or a rank out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> optimum = mt.learners.linear_optimum(jnp.array([[3.0, 0.0], [0.0, 1.0]]), rho=2.0, rank=1)
        >>> print(optimum.tolist())
        [[1.5, 0.0], [0.0, 0.0]]

    Source: T1 (Nakada et al. 2023).  Check: proofs_checks/t1.py.
    """
    rho = _checks.real("rho", rho, "finite and > 0").astype(cross_cov.dtype)
    return truncate(cross_cov, rank) / rho


def whitened_optimum(
    cross_cov: Float[Array, "d_i d_t"],
    cov_image: Float[Array, "d_i d_i"],
    cov_text: Float[Array, "d_t d_t"],
    theta: Scalar,
    rank: int | None = None,
) -> Float[Array, "d_i d_t"]:
    """The minimiser of the whitened family, which leads from the linear loss (theta = 0) to CCA (theta = 1).

        argmin over rank(W) <= rank of -<W, C> + 1/2 tr(W^T S_I^theta W S_T^theta)
        = S_I^(-theta/2) SVD_rank(S_I^(-theta/2) C S_T^(-theta/2)) S_T^(-theta/2)

    theta = 0 is the linear loss (PLS, rho = 1). theta = 1 is what InfoNCE does to second order (CCA). Powers of
    singular covariances are pseudo-inverses: W vanishes on their null spaces. Other minimisers may exist if a
    covariance is singular, or if SVD_rank cuts between equal singular values.

    Args:
        cross_cov: the cross-covariance C.
        cov_image: covariance S_I of the images, symmetric, positive semi-definite.
        cov_text: covariance S_T of the texts, symmetric, positive semi-definite.
        theta: degree of whitening, in [0, 1].
        rank: embedding size, 1..min(d_i, d_t), static; None for no limit.

    Returns:
        The score matrix W, rows are image coordinates, columns text coordinates.

    Raises:
        ValueError: for theta or rank out of range.

    Example:
        From the linear loss to CCA, the order of two features is reversed:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> cross_cov = cov = jnp.diag(jnp.array([3.0, 1.0]))
        >>> for theta in (0.0, 0.5, 1.0):
        ...     optimum = mt.learners.whitened_optimum(cross_cov, cov, cov, theta)
        ...     print([f"{entry:.3f}" for entry in jnp.diagonal(optimum)])
        ['3.000', '1.000']
        ['1.000', '1.000']
        ['0.333', '1.000']

    Source: X5.  Check: proofs_checks/x5.py.
    """
    theta = _checks.real("theta", theta, "in [0, 1]").astype(cross_cov.dtype)
    left, right = _inverse_power(cov_image, theta / 2), _inverse_power(cov_text, theta / 2)
    return left @ truncate(left @ cross_cov @ right, rank) @ right


def sup_con_matrix(
    image: Float[Array, "n d"], class_number: Int[Array, " n"], num_classes: int = 2
) -> Float[Array, "d d"]:
    """The symmetric matrix M_hat of the linear SupCon loss: -<W^T W, M_hat> = linear_sup_con(x W^T, labels).

    With n_y samples of class y whose sum is X_y, and X the sum of all samples:

        M_hat = (1/n) sum_y [(X_y X_y^T - sum_(i in y) x_i x_i^T) / (n_y - 1) - sym(X_y (X - X_y)^T) / (n - n_y)]

    A mean over no sample is 0. The cost is O(n d^2).

    Args:
        image: image samples x, one a row.
        class_number: class of each sample in 0..num_classes-1 (`class_index`).
        num_classes: number of classes K, static.

    Returns:
        M_hat.

    Raises:
        ValueError: for n < 2, unequal numbers of samples, or (where they are concrete) class numbers out of range.

    Example:
        The linear SupCon loss of any encoder is -<W^T W, M_hat>, here with W = I:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x, number = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 2.0], [1.0, 1.0]]), jnp.array([0, 0, 1, 1])
        >>> print(f"{-jnp.trace(mt.learners.sup_con_matrix(x, number)):.3f} {mt.losses.linear_sup_con(x, number):.3f}")
        -0.500 -0.500

    Source: T7 (Theorem F.1).  Check: proofs_checks/t7.py.
    """
    n = _checks.integer("n", image.shape[0], 2)
    if class_number.shape != (n,):
        raise ValueError(f"class_number must have shape ({n},), got {class_number.shape}.")
    member = _members(class_number, num_classes, image.dtype)
    size, sums = member.sum(0), member.T @ image
    same = jnp.where(size > 1, 1 / jnp.maximum(size - 1, 1), 0.0)
    other = jnp.where(size < n, 1 / jnp.maximum(n - size, 1), 0.0)
    across = (sums * other[:, None]).T @ (sums.sum(0, keepdims=True) - sums)
    within = (sums * same[:, None]).T @ sums - (image * (member @ same)[:, None]).T @ image
    matrix = (within - across) / n
    return (matrix + matrix.T) / 2


def sup_con_optimum(matrix: Float[Array, "d d"], rho: Scalar = 1.0, rank: int | None = None) -> Float[Array, "r d"]:
    """The encoder W that minimises the linear SupCon loss.

        argmin over W (r, d) of -<W^T W, M> + (rho/2) |W^T W|_F^2

    Its rows are sqrt(l_k / rho) v_k for the r largest eigenvalues l_k of M with eigenvectors v_k. Rows of eigenvalues
    that are not positive are 0. W is unique up to a rotation of the embedding if and only if the eigenvalues at r and
    r + 1 differ, or the latter is not positive.

    Args:
        matrix: M, symmetric.
        rho: strength of the regulariser, finite and > 0.
        rank: embedding size r, 1..d, static; None for d.

    Returns:
        W, rows are embedding coordinates, columns image coordinates.

    Raises:
        ValueError: for rho <= 0 or a rank out of range.

    Example:
        W^T W is the positive part of M, over rho:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> w = mt.learners.sup_con_optimum(jnp.diag(jnp.array([3.0, -1.0])), rho=2.0)
        >>> print([f"{entry:.3f}" for entry in jnp.diagonal(w.T @ w)])
        ['1.500', '0.000']

    Source: T7 (Theorem F.1).  Check: proofs_checks/t7.py.
    """
    rho = _checks.real("rho", rho, "finite and > 0").astype(matrix.dtype)
    d = matrix.shape[0]
    rank = d if rank is None else _checks.integer("rank", rank, 1)
    if rank > d:
        raise ValueError(f"rank must be an integer in 1..{d}, got {rank}.")
    values, vectors = jnp.linalg.eigh(matrix)
    kept = jnp.maximum(values[::-1][:rank], 0)
    return jnp.sqrt(kept / rho)[:, None] * vectors[:, ::-1].T[:rank]


def truncate(matrix: Float[Array, "d_i d_t"], rank: int | None) -> Float[Array, "d_i d_t"]:
    """SVD_rank, the closest matrix of rank <= `rank` in Frobenius norm.

    It is unique if and only if the singular values at rank and rank + 1 differ, or both are 0.

    Args:
        matrix: any real matrix.
        rank: largest rank, 1..min(d_i, d_t), static; None or the full rank returns the matrix as it is.

    Returns:
        The truncated matrix.

    Raises:
        ValueError: for a rank out of range.

    Example:
        The singular values are 3 and 1. The second is the distance to the best matrix of rank 1:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> matrix = jnp.array([[2.0, 1.0], [1.0, 2.0]])
        >>> print(f"{jnp.linalg.norm(matrix - mt.learners.truncate(matrix, rank=1)):.3f}")
        1.000
    """
    if rank is None:
        return matrix
    full = min(matrix.shape)
    if _checks.integer("rank", rank, 1) > full:
        raise ValueError(f"rank must be an integer in 1..{full}, got {rank}.")
    if rank == full:
        return matrix
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[None, :rank]) @ vt[:rank]


def _inverse_power(cov: Float[Array, "d d"], power: Array) -> Float[Array, "d d"]:
    """cov^(-power) on the range of cov and 0 on its null space; the identity at power 0."""
    values, vectors = jnp.linalg.eigh(cov)
    kept = values > values.max() * cov.shape[0] * jnp.finfo(cov.dtype).eps
    scale = jnp.where(kept, jnp.where(kept, values, 1.0) ** -power, jnp.where(power == 0, 1.0, 0.0))
    return (vectors * scale[None, :]) @ vectors.T
