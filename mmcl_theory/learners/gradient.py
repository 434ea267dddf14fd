"""Linear encoders trained by gradient descent: any optax optimiser, any loss, full batch or minibatches.

Symbols: W_I (r, d_i) and W_T (r, d_t) encoders, W = W_I^T W_T, n samples, r embedding dimension.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from mmcl_theory import _checks, losses
from mmcl_theory._checks import Scalar

# (image embedding (n, r), text embedding (n, r), labels (n,)) -> scalar
EmbeddingLoss = Callable[[Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Encoders:
    """Linear encoders g_I(x) = W_I x and g_T(x) = W_T x.

    Attributes:
        image: W_I, rows are embedding coordinates, columns image coordinates.
        text: W_T, rows are embedding coordinates, columns text coordinates.

    Example:
        At embedding size 1 the score matrix has rank 1:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> encoders = mt.learners.Encoders(image=jnp.array([[1.0, 2.0]]), text=jnp.array([[3.0, 0.0]]))
        >>> print(encoders.product.tolist())
        [[3.0, 0.0], [6.0, 0.0]]
    """

    image: Array  # (r, d_i)
    text: Array  # (r, d_t)

    @property
    def product(self) -> Array:
        """The score matrix W = W_I^T W_T, (d_i, d_t): the score of a pair is x_I^T W x_T."""
        return self.image.T @ self.text


def init_encoders(
    key: Key[Array, ""],
    dim_image: int,
    dim_text: int,
    embed_dim: int,
    scale: Scalar,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Encoders:
    """Random encoders with independent N(0, scale^2 / max(r, d)) entries, so that singular values are about `scale`.

    Args:
        key: random key.
        dim_image: image dimension d_i >= 1, static.
        dim_text: text dimension d_t >= 1, static.
        embed_dim: embedding size r >= 1, static.
        scale: size of the singular values, finite and > 0; zero is a saddle point of every bilinear loss.
        dtype: type of the entries.

    Returns:
        The encoders, of shapes (r, d_i) and (r, d_t).

    Raises:
        ValueError: for a size below 1 or scale <= 0.

    Example:
        Both singular values are near the scale:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> start = mt.learners.init_encoders(jax.random.key(0), dim_image=400, dim_text=300, embed_dim=2, scale=0.1)
        >>> print([f"{value:.1f}" for value in jnp.linalg.svd(start.image, compute_uv=False)])
        ['0.1', '0.1']
    """
    for name, size in (("dim_image", dim_image), ("dim_text", dim_text), ("embed_dim", embed_dim)):
        _checks.integer(name, size, 1)
    scale = _checks.real("scale", scale, "finite and > 0").astype(dtype)

    def draw(key: Array, dim: int) -> Float[Array, "r d"]:
        return scale / max(embed_dim, dim) ** 0.5 * jax.random.normal(key, (embed_dim, dim), dtype)

    key_image, key_text = jax.random.split(key)
    return Encoders(draw(key_image, dim_image), draw(key_text, dim_text))


def train_encoders(
    key: Key[Array, ""],
    encoders: Encoders,
    image: Float[Array, "n d_i"],
    text: Float[Array, "n d_t"],
    labels: Int[Array, " n"],
    loss: EmbeddingLoss,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int | None = None,
    rho: Scalar = 0.0,
) -> tuple[Encoders, Float[Array, " steps"]]:
    """Gradient descent on loss(x W_I^T, t W_T^T, labels) + (rho/2) |W_I^T W_T|_F^2.

    Args:
        key: random key, for the minibatches.
        encoders: where training starts.
        image: image samples x, one a row.
        text: text samples t, one a row.
        labels: label of each sample, passed to the loss.
        loss: from image embeddings (n, r), text embeddings (n, r) and labels (n,) to a scalar, such as
            `lambda i, t, y: losses.info_nce(i, t, temperature=0.1)`.
        optimizer: any optax optimiser.
        steps: number of updates, >= 1, static.
        batch_size: samples per step, drawn without replacement, 2..n, static. None takes all n samples and uses no
            randomness.
        rho: strength of the product penalty, >= 0. The linear loss is unbounded below without it.

    Returns:
        The trained encoders, and the loss with penalty before each step.

    Raises:
        ValueError: for steps < 1, a batch size or rho out of range, or unequal numbers of samples.

    Example:
        The linear loss leads to its closed form, C_hat / rho:

        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import mmcl_theory as mt
        >>> x, y = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), jnp.array([1, -1, 1, -1])
        >>> start = mt.learners.Encoders(image=0.1 * jnp.eye(2), text=0.1 * jnp.eye(2))
        >>> trained, loss = mt.learners.train_encoders(
        ...     jax.random.key(0), start, x, x, y, lambda image, text, y: mt.losses.linear_mmcl(image, text),
        ...     optimizer=optax.sgd(0.1), steps=200, rho=2.0
        ... )
        >>> optimum = mt.learners.linear_optimum(mt.learners.cross_covariance(x, x), rho=2.0)
        >>> print(bool(jnp.allclose(trained.product, optimum, atol=1e-3)))
        True

    Source: docs/theory.md 2.
    """
    n = image.shape[0]
    if not n == text.shape[0] == labels.shape[0]:
        raise ValueError(
            f"image, text and labels must have the same number of samples, got {n}, {text.shape[0]}, {labels.shape[0]}."
        )
    if batch_size is not None and _checks.integer("batch_size", batch_size, 2) > n:
        raise ValueError(f"batch_size must be an integer in 2..{n}, got {batch_size}.")
    rho = _checks.real("rho", rho, "finite and >= 0").astype(image.dtype)

    def objective(params: Encoders, key: Array) -> Array:
        x, t, y = image, text, labels
        if batch_size is not None:
            # The rows of the largest of n random numbers; jax.random.choice sorts all n, several times. A tie at the
            # last place, w.p. n / 2^23, takes the earlier row.
            _, rows = jax.lax.top_k(jax.random.uniform(key, (n,), jnp.float32), batch_size)
            x, t, y = image[rows], text[rows], labels[rows]
        value = loss(x @ params.image.T, t @ params.text.T, y)
        return value + losses.product_penalty(params.image, params.text, rho)

    return _descend(objective, encoders, key, optimizer, steps)


def train_linear_mmcl(
    encoders: Encoders,
    cross_cov: Float[Array, "d_i d_t"],
    *,
    rho: Scalar = 1.0,
    optimizer: optax.GradientTransformation,
    steps: int,
    in_span: bool = False,
) -> tuple[Encoders, Float[Array, " steps"]]:
    """`train_encoders` for the full-batch linear MMCL loss, step for step, at a cost that does not depend on n.

    The loss sees the batch only through C_hat (`cross_covariance`): -<W_I^T W_T, C_hat> + (rho/2) |W_I^T W_T|_F^2. Its
    minimum is at T1's SVD_r(C_hat) / rho.

    With in_span the cost does not depend on d_i either. W_I = U [W_I(0); C_hat^T] holds throughout, so U, (r, r + d_t),
    is updated with the coefficients of W_I's gradient. The path is the same if the optimiser is linear in the gradient:
    SGD, with momentum or a schedule, but not Adam.

    Args:
        encoders: where training starts.
        cross_cov: C_hat.
        rho: strength of the regulariser, finite and > 0.
        optimizer: any optax optimiser; linear in the gradient with in_span.
        steps: number of updates, >= 1, static.
        in_span: whether to train the coordinates U instead of W_I, static.

    Returns:
        The trained encoders, and the loss before each step.

    Raises:
        ValueError: for rho <= 0 or steps < 1.

    Example:
        Trained encoders reach the closed form C_hat / rho, here diag(1.5, 0.5):

        >>> import jax.numpy as jnp
        >>> import optax
        >>> import mmcl_theory as mt
        >>> start = mt.learners.Encoders(image=0.1 * jnp.eye(2), text=0.1 * jnp.eye(2))
        >>> trained, loss = mt.learners.train_linear_mmcl(
        ...     start, jnp.diag(jnp.array([3.0, 1.0])), rho=2.0, optimizer=optax.sgd(0.1), steps=200
        ... )
        >>> print([[f"{entry:.3f}" for entry in row] for row in trained.product], f"{loss[-1]:.3f}")
        [['1.500', '0.000'], ['0.000', '0.500']] -2.500

    Source: T1.
    """
    rho = _checks.real("rho", rho, "finite and > 0").astype(cross_cov.dtype)
    if in_span:
        return _descend_in_span(encoders, cross_cov, rho, optimizer, steps)

    def objective(params: Encoders, key: Array) -> Array:
        data_term = -jnp.vdot(params.image @ cross_cov, params.text)
        return data_term + losses.product_penalty(params.image, params.text, rho)

    return _descend(objective, encoders, jax.random.key(0), optimizer, steps)


def _descend(
    objective: Callable[[PyTree, Array], Array],
    params: PyTree,
    key: Array,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[PyTree, Array]:
    """`steps` updates of params along the gradient of objective(params, key of the step)."""
    _checks.integer("steps", steps, 1)

    def step(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(objective)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
    return params, values


def _descend_in_span(
    encoders: Encoders,
    cross_cov: Float[Array, "d_i d_t"],
    rho: Array,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[Encoders, Array]:
    """`train_linear_mmcl` in the coordinates U of W_I = U basis; it needs only the Gram matrix of the basis."""
    _checks.integer("steps", steps, 1)
    r = encoders.image.shape[0]
    basis = jnp.concatenate([encoders.image, cross_cov.T])
    gram = basis @ basis.T

    def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], Array]:
        (u, text), state = carry
        inner = u @ gram
        data, image_gram, text_gram = inner[:, r:], inner @ u.T, text @ text.T  # W_I C, W_I W_I^T, W_T W_T^T
        value = rho / 2 * jnp.vdot(image_gram, text_gram) - jnp.vdot(data, text)
        gradient = (rho * text_gram @ u).at[:, r:].add(-text), rho * image_gram @ text - data
        updates, state = optimizer.update(gradient, state, (u, text))
        return (optax.apply_updates((u, text), updates), state), value

    params = jnp.eye(r, len(basis), dtype=basis.dtype), encoders.text
    ((u, text), _), values = jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)
    return Encoders(u @ basis, text), values
