"""Losses of a batch of embeddings: each is one pure function returning one scalar.

Symbols, shared by every docstring below:

    n, r, c     samples in the batch, embedding size, classes
    s_ij        <image_i, text_j>, the score of image i against text j
    n_i         members of sample i's class in the batch, i included
    lambda      same_class_weight: total weight of an anchor's negatives of its own class
    w_ij        weight of negative j != i for anchor i:
                lambda / (n_i - 1) where j is of i's class, (1 - lambda) / (n - n_i) where it is not
    wbar_ij     (w_ij + w_ji) / 2

`labels` and `same_class_weight` are given together or not at all. Only the equality of labels matters. Without them
w_ij = 1 / (n - 1). K balanced classes give the same weights at lambda = (n/K - 1) / (n - 1), which tends to 1/K as n
grows. A kind of negative that the batch lacks has no w_ij: its weight is dropped, not moved to the other kind, and
every loss stays finite.

Embeddings narrower than float32 are widened to it. Values are checked where they are concrete, shapes always.

Example:
    Two orthogonal pairs, each image equal to its text:

    >>> import jax.numpy as jnp
    >>> import mmcl_theory as mt
    >>> image = text = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{mt.losses.linear_mmcl(image, text):.3f} {mt.losses.info_nce(image, text):.3f}")
    -1.000 0.313
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

Embeddings = Float[Array, "n r"]
Labels = Integer[Array, "n"]
Scalar = float | int | Float[Array, ""]


def linear_mmcl(
    image: Embeddings, text: Embeddings, *, labels: Labels | None = None, same_class_weight: Scalar | None = None
) -> Float[Array, ""]:
    """The linear MMCL loss without its regulariser, a scalar.

        1/(2n) sum_i sum_{j != i} w_ij [(s_ij - s_ii) + (s_ji - s_ii)]

    Without weights it is -tr of the unbiased cross-covariance of the two embeddings, at cost O(n r). With weights the
    cost is O(n^2 r). An anchor whose negatives all have weight 0 contributes 0. The loss is unbounded below: see
    `product_penalty`.

    Args:
        image: image embeddings, rows are n >= 2 samples, columns embedding coordinates.
        text: text embeddings of the same shape; row i belongs to image i.
        labels: class of each sample, integers; None for the ordinary loss.
        same_class_weight: lambda in [0, 1], with `labels`.

    Returns:
        The loss, any real number.

    Raises:
        ValueError: for other shapes or n < 2, a weight out of range, labels without weight or the reverse.

    Example:
        Two orthogonal pairs, matched and mismatched:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> print(f"{mt.losses.linear_mmcl(x, x):.3f} {mt.losses.linear_mmcl(x, x[::-1]):.3f}")
        -1.000 1.000

    Source: docs/theory.md 2 and X3 (Nakada et al. 2023; the same-class weight is this project's).
    """
    image, text = _embeddings("linear_mmcl", image, text, labels, same_class_weight)
    n = len(image)
    if labels is None:
        return -jnp.sum((image - image.mean(0, keepdims=True)) * (text - text.mean(0, keepdims=True))) / (n - 1)
    s = image @ text.T
    return jnp.sum(_pair_weights(s, labels, same_class_weight) * (s + s.T - 2 * jnp.diag(s)[:, None])) / (2 * n)


def product_penalty(w_image: Float[Array, "r d_i"], w_text: Float[Array, "r d_t"], rho: Scalar) -> Float[Array, ""]:
    """The regulariser of the linear MMCL loss, rho/2 |w_image^T w_text|_F^2.

    It is evaluated as rho/2 <w_image w_image^T, w_text w_text^T>, through r x r matrices only. The d_i x d_t product is
    never formed.

    Args:
        w_image: image encoder, rows are embedding coordinates, columns image coordinates.
        w_text: text encoder, rows are embedding coordinates, columns text coordinates.
        rho: strength, finite and >= 0.

    Returns:
        The penalty, >= 0.

    Raises:
        ValueError: for unequal embedding sizes r, or rho < 0 or not finite.

    Example:
        |W_I^T W_T|_F^2 is 8 here:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> print(f"{mt.losses.product_penalty(2 * x, x, rho=1.0):.3f}")
        4.000

    Source: docs/theory.md 2, T1 (Nakada et al. 2023).
    """
    if w_image.ndim != 2 or w_text.ndim != 2 or w_image.shape[0] != w_text.shape[0]:
        raise ValueError(f"w_image and w_text must be (r, d_i) and (r, d_t), got {w_image.shape} and {w_text.shape}.")
    _check("rho", rho, "finite and >= 0", lambda v: v >= 0 and math.isfinite(v))
    return rho / 2 * jnp.sum((w_image @ w_image.T) * (w_text @ w_text.T))


def info_nce(
    image: Embeddings,
    text: Embeddings,
    *,
    temperature: Scalar = 1.0,
    normalize: bool = False,
    labels: Labels | None = None,
    same_class_weight: Scalar | None = None,
) -> Float[Array, ""]:
    """The symmetric InfoNCE (CLIP) loss: the mean over i of (a_i + b_i) / 2, where with tau = temperature

        a_i = -log[ exp(s_ii/tau) / (exp(s_ii/tau) + sum_{j != i} (n-1) w_ij exp(s_ij/tau)) ]    image i -> texts
        b_i = the same with s_ji for s_ij                                                       text i -> images

    Uniform w_ij change nothing. w_ij = 0 removes negative j. An anchor with no negative left contributes 0 with zero
    gradient.

    The derivative in same_class_weight is right at 0 and 1 too. It saturates, to stay finite, where a removed negative
    outweighs all that is left by more than e^79 in float32 or e^638 in float64.

    Args:
        image: image embeddings, rows are n >= 2 samples, columns embedding coordinates.
        text: text embeddings of the same shape; row i belongs to image i.
        temperature: tau, finite and > 0.
        normalize: whether to divide rows by their L2 norm first. A zero row stays zero and passes its gradient
            unscaled.
        labels: class of each sample, integers; None for the ordinary loss.
        same_class_weight: lambda in [0, 1], with `labels`.

    Returns:
        The loss in nats, in [0, inf).

    Raises:
        ValueError: for other shapes or n < 2, values out of range, labels without weight or the reverse.

    Example:
        Two orthogonal pairs: log(1 + e^-1), and log(1 + e^-2) at half the temperature:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> print(f"{mt.losses.info_nce(x, x):.3f} {mt.losses.info_nce(x, x, temperature=0.5):.3f}")
        0.313 0.127

    Source: docs/theory.md 2 (van den Oord et al. 2018, arXiv 1807.03748; Radford et al. 2021, arXiv 2103.00020).
    """
    _check("temperature", temperature, "finite and > 0", lambda v: v > 0 and math.isfinite(v))
    image, text = _embeddings("info_nce", image, text, labels, same_class_weight, normalize)
    n = len(image)
    logits = image @ text.T / temperature
    weights = (n - 1) * _pair_weights(logits, labels, same_class_weight) + jnp.eye(n, dtype=logits.dtype)
    both = _log_sum_exp(logits, weights) + _log_sum_exp(logits.T, weights)
    return jnp.mean(both / 2 - jnp.diag(logits))


def siglip(
    image: Embeddings,
    text: Embeddings,
    *,
    scale: Scalar = 10.0,
    bias: Scalar = -10.0,
    normalize: bool = True,
    labels: Labels | None = None,
    same_class_weight: Scalar | None = None,
) -> Float[Array, ""]:
    """The sigmoid (SigLIP) loss, where with t = scale and b = bias

        -1/n sum_i [log sigmoid(t s_ii + b) + sum_{j != i} (n-1) wbar_ij log sigmoid(-t s_ij - b)]

    Args:
        image: image embeddings, rows are n >= 2 samples, columns embedding coordinates.
        text: text embeddings of the same shape; row i belongs to image i.
        scale: t, finite and > 0.
        bias: b, finite.
        normalize: whether to divide rows by their L2 norm first. A zero row stays zero and passes its gradient
            unscaled.
        labels: class of each sample, integers; None for the ordinary loss.
        same_class_weight: lambda in [0, 1], with `labels`.

    Returns:
        The loss in nats, in [0, inf).

    Raises:
        ValueError: for other shapes or n < 2, values out of range, labels without weight or the reverse.

    Example:
        Two orthogonal pairs: log(1 + e^-1) for the positive, log 2 for the negative of each:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> print(f"{mt.losses.siglip(x, x, scale=1.0, bias=0.0):.3f}")
        1.006

    Source: docs/theory.md 2 (Zhai et al. 2023, arXiv 2303.15343).
    """
    _check("scale", scale, "finite and > 0", lambda v: v > 0 and math.isfinite(v))
    _check("bias", bias, "finite", math.isfinite)
    image, text = _embeddings("siglip", image, text, labels, same_class_weight, normalize)
    logits = scale * (image @ text.T) + bias
    weights = (len(image) - 1) * _pair_weights(logits, labels, same_class_weight)
    # With w instead of wbar, w_ij would weigh s_ij alone, and the loss would not be symmetric in the two modalities.
    negatives = jnp.sum((weights + weights.T) / 2 * jax.nn.log_sigmoid(-logits), axis=1)
    return -jnp.mean(jax.nn.log_sigmoid(jnp.diag(logits)) + negatives)


def spectral(
    image: Embeddings, text: Embeddings, *, labels: Labels | None = None, same_class_weight: Scalar | None = None
) -> Float[Array, ""]:
    """The spectral contrastive loss, a scalar.

        -2/n sum_i s_ii + 1/n sum_i sum_{j != i} wbar_ij s_ij^2

    Without weights it is unbiased for -2 E_pos[s] + E_indep[s^2]. An anchor whose negatives all have weight 0 keeps its
    positive term.

    Args:
        image: image embeddings, rows are n >= 2 samples, columns embedding coordinates.
        text: text embeddings of the same shape; row i belongs to image i.
        labels: class of each sample, integers; None for the ordinary loss.
        same_class_weight: lambda in [0, 1], with `labels`.

    Returns:
        The loss, any real number.

    Raises:
        ValueError: for other shapes or n < 2, a weight out of range, labels without weight or the reverse.

    Example:
        Two orthogonal pairs, matched and mismatched:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> print(f"{mt.losses.spectral(x, x):.3f} {mt.losses.spectral(x, x[::-1]):.3f}")
        -2.000 1.000

    Source: docs/theory.md 2 (HaoChen et al. 2021, arXiv 2106.04156).
    """
    image, text = _embeddings("spectral", image, text, labels, same_class_weight)
    s = image @ text.T
    weights = _pair_weights(s, labels, same_class_weight)
    return jnp.mean(jnp.sum((weights + weights.T) / 2 * s**2, axis=1) - 2 * jnp.diag(s))


def sup_con(
    embedding: Embeddings, labels: Labels, *, temperature: Scalar = 0.1, normalize: bool = True
) -> Float[Array, ""]:
    """The supervised contrastive (SupCon) loss L_out: the mean over anchors i with P(i) not empty of

        -1/|P(i)| sum_{p in P(i)} log[ exp(l_ip) / sum_{a != i} exp(l_ia) ],   l_ij = <z_i, z_j> / temperature

    P(i) is the set of other samples of i's class. Anchors without a positive contribute nothing. A batch without any
    positive pair gives 0 with zero gradient.

    Args:
        embedding: embeddings z, rows are n >= 2 samples, columns embedding coordinates.
        labels: class of each sample, integers; only their equality matters.
        temperature: finite and > 0.
        normalize: whether to divide rows by their L2 norm first. A zero row stays zero and passes its gradient
            unscaled.

    Returns:
        The loss in nats, in [0, inf).

    Raises:
        ValueError: for other shapes or n < 2, or a temperature out of range.

    Example:
        Two samples of each class, alike within it: log(1 + 2 e^-1) at temperature 1:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> print(f"{mt.losses.sup_con(x, jnp.array([0, 0, 1, 1]), temperature=1.0):.3f}")
        0.551

    Source: docs/theory.md 2 (Khosla et al. 2020, arXiv 2004.11362).
    """
    _check("temperature", temperature, "finite and > 0", lambda v: v > 0 and math.isfinite(v))
    z, _ = _embeddings("sup_con", embedding, embedding, normalize=normalize)
    _check_labels(labels, len(z))
    other = ~jnp.eye(len(z), dtype=bool)
    positive = (labels[:, None] == labels[None, :]) & other
    logits = z @ z.T / temperature
    log_prob = logits - jax.nn.logsumexp(logits, axis=1, where=other, keepdims=True)
    count = positive.sum(1)
    per_anchor = -jnp.sum(log_prob, axis=1, where=positive) / jnp.maximum(count, 1)
    return per_anchor.sum() / jnp.maximum((count > 0).sum(), 1)


def linear_sup_con(embedding: Embeddings, labels: Labels) -> Float[Array, ""]:
    """The linear SupCon loss without its regulariser, a scalar.

        -1/n sum_i [mean over j != i of i's class of <z_i, z_j> - mean over k of other classes of <z_i, z_k>]

    The regulariser is `product_penalty(W, W, rho)` for z = W x. The loss is unbounded below. A mean over no sample is
    0. The cost is O(n^2 r); `learners.sup_con_matrix` needs sums over classes only.

    Args:
        embedding: embeddings z, rows are n >= 2 samples, columns embedding coordinates.
        labels: class of each sample, integers; only their equality matters.

    Returns:
        The loss, any real number.

    Raises:
        ValueError: for other shapes or n < 2.

    Example:
        Two samples of each class, alike within it: positives score 1, negatives 0:

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> print(f"{mt.losses.linear_sup_con(x, jnp.array([0, 0, 1, 1])):.3f}")
        -1.000

    Source: T7 (Theorem F.1).
    """
    z, _ = _embeddings("linear_sup_con", embedding, embedding)
    _check_labels(labels, len(z))
    s = z @ z.T
    return -jnp.sum((_pair_weights(s, labels, 1.0) - _pair_weights(s, labels, 0.0)) * s) / len(z)


def cross_entropy(logits: Float[Array, "n c"], labels: Labels) -> Float[Array, ""]:
    """The cross-entropy of softmax probabilities, -1/n sum_i log softmax(logits_i)[labels_i].

    Args:
        logits: rows are n >= 1 samples, columns c >= 1 classes.
        labels: class of each sample, in 0..c-1. Concrete labels are checked. Traced labels out of range are indexed as
            JAX does: -c..-1 count from the last class, all others give NaN.

    Returns:
        The loss in nats, in [0, inf).

    Raises:
        ValueError: for other shapes, n < 1, or labels out of range.

    Example:
        log(1 + e^-2):

        >>> import jax.numpy as jnp
        >>> import mmcl_theory as mt
        >>> print(f"{mt.losses.cross_entropy(jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([0, 1])):.3f}")
        0.127

    Source: docs/theory.md 2, SL.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (n, c) with n, c >= 1, got shape {logits.shape}.")
    n, c = logits.shape
    _check_labels(labels, n)
    if not isinstance(labels, jax.core.Tracer):
        low, high = np.asarray(labels).min(), np.asarray(labels).max()
        if low < 0 or high >= c:
            raise ValueError(f"labels must be in 0..{c - 1}, got {low if low < 0 else high}.")
    return optax.softmax_cross_entropy_with_integer_labels(_widen(logits), labels).mean()


def _pair_weights(scores: Array, labels: Array | None, same_class_weight: Scalar | None) -> Array:
    """w (n, n) of the module's symbol table, 0 on the diagonal, in the precision of `scores`."""
    n, dtype = len(scores), scores.dtype
    other = ~jnp.eye(n, dtype=bool)
    if labels is None or same_class_weight is None:
        return other.astype(dtype) / (n - 1)
    same_class = labels[:, None] == labels[None, :]
    same, different = (same_class & other).astype(dtype), (~same_class).astype(dtype)
    # The maximum matters only where a kind is absent: its row of zeros becomes 0 / 1 instead of 0 / 0.
    same, different = (kind / jnp.maximum(kind.sum(1, keepdims=True), 1) for kind in (same, different))
    return same_class_weight * same + (1 - same_class_weight) * different


def _log_sum_exp(logits: Array, weights: Array) -> Array:
    """log sum_j weights_ij exp(logits_ij), (n,), for weights >= 0, some positive in each row.

    `jax.nn.logsumexp(b=weights)` has derivative 0 in a weight that is 0. Here it is exp(logits_ij) / sum, capped.
    """
    shift = jax.lax.stop_gradient(jnp.max(logits, axis=1, where=weights > 0, initial=-jnp.inf, keepdims=True))
    cap = 0.9 * math.log(jnp.finfo(logits.dtype).max)
    return jnp.log(jnp.sum(weights * jnp.exp(jnp.minimum(logits - shift, cap)), axis=1)) + shift[:, 0]


def _embeddings(
    loss: str,
    image: Array,
    text: Array,
    labels: Array | None = None,
    same_class_weight: Scalar | None = None,
    normalize: bool = False,
) -> tuple[Array, Array]:
    """Both embeddings in at least float32, with rows of unit length if `normalize`. Every argument is checked."""
    if image.shape != text.shape:
        raise ValueError(f"image and text must have the same shape, got {image.shape} and {text.shape}.")
    if image.ndim != 2:
        raise ValueError(f"{loss} needs embeddings of shape (n, r), got {image.shape}.")
    if len(image) < 2:
        raise ValueError(f"{loss} needs at least 2 samples, got {len(image)}.")
    if (labels is None) != (same_class_weight is None):
        missing = "labels" if labels is None else "same_class_weight"
        raise ValueError(f"labels and same_class_weight must be given together, got {missing}=None.")
    if labels is not None and same_class_weight is not None:
        _check_labels(labels, len(image))
        _check("same_class_weight", same_class_weight, "in [0, 1]", lambda v: 0 <= v <= 1)
    image, text = _widen(image), _widen(text)
    return (_unit_rows(image), _unit_rows(text)) if normalize else (image, text)


def _unit_rows(x: Array) -> Array:
    """Rows over their L2 norm; zero rows unchanged. Dividing by the largest entry first keeps the squares in range."""
    largest = jax.lax.stop_gradient(jnp.abs(x).max(1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(x**2, axis=1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1))


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_labels(labels: Array, n: int) -> None:
    if labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), got {labels.shape}.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}.")


def _check(name: str, value: Scalar, allowed: str, is_valid: Callable[[float], bool]) -> None:
    """Raise ValueError unless `value` is a scalar and, where concrete, valid."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}.")
    # NumPy, because jnp would trace a comparison of two constants under jit. Compare in the computation's precision.
    if isinstance(value, jax.core.Tracer):
        return
    with np.errstate(over="ignore", under="ignore"):
        computed = float(np.asarray(value, jax.dtypes.canonicalize_dtype(float)))
    if not is_valid(computed):
        raise ValueError(f"{name} must be {allowed}, got {value}.")
