"""Losses of a batch of embeddings: each is one pure function returning one scalar.

Symbols, shared by every docstring below:

    n, r, c     samples in the batch, embedding size, classes
    s_ij        <image_i, text_j>, the score of image i against text j
    n_i         members of sample i's class in the batch, i included
    lambda      same_class_weight: total weight of an anchor's negatives of its own class
    w_ij        weight of negative j != i for anchor i:
                lambda / (n_i - 1) where j is of i's class, (1 - lambda) / (n - n_i) where it is not
    wbar_ij     (w_ij + w_ji) / 2

`labels` (n,) and `same_class_weight` come together or not at all; of the labels only their equality matters. Without
them w_ij = 1 / (n - 1), which K balanced classes also give at lambda = (n/K - 1) / (n - 1) (1/K as n grows). A kind of
negative that the batch lacks has no w_ij: its weight is dropped, not moved to the other kind; all stays finite.

Embeddings narrower than float32 are widened to it. Values are checked where they are concrete, shapes always.
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
    """1/(2n) sum_i sum_{j != i} w_ij [(s_ij - s_ii) + (s_ji - s_ii)], the linear MMCL loss without its regulariser.

    image, text: (n, r), n >= 2.  same_class_weight: in [0, 1].  Unbounded below; see `product_penalty`.
    Unweighted it is -tr of the unbiased cross-covariance of the two embeddings, in O(n r); weighted it costs O(n^2 r).
    An anchor whose negatives all have weight 0 contributes 0.

    Raises: ValueError for other shapes or n < 2, a weight outside its range, labels without weight or the reverse.
    Source: docs/theory.md 2 and X3 (Nakada et al. 2023; the same-class weight is this project's).
    """
    image, text = _embeddings("linear_mmcl", image, text, labels, same_class_weight)
    n = len(image)
    if labels is None:
        return -jnp.sum((image - image.mean(0, keepdims=True)) * (text - text.mean(0, keepdims=True))) / (n - 1)
    s = image @ text.T
    return jnp.sum(_pair_weights(s, labels, same_class_weight) * (s + s.T - 2 * jnp.diag(s)[:, None])) / (2 * n)


def product_penalty(w_image: Float[Array, "r d_i"], w_text: Float[Array, "r d_t"], rho: Scalar) -> Float[Array, ""]:
    """rho/2 |w_image^T w_text|_F^2, the regulariser of the linear MMCL loss.

    w_image: (r, d_i).  w_text: (r, d_t).  rho: >= 0.  Evaluated as rho/2 <w_image w_image^T, w_text w_text^T>, through
    r x r matrices only: the d_i x d_t product is never formed.

    Raises: ValueError for unequal r or rho < 0.
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
    """Mean over i of (a_i + b_i) / 2, the symmetric InfoNCE (CLIP) loss, where with tau = temperature

        a_i = -log[ exp(s_ii/tau) / (exp(s_ii/tau) + sum_{j != i} (n-1) w_ij exp(s_ij/tau)) ]    image i -> texts
        b_i = the same with s_ji for s_ij                                                       text i -> images

    image, text: (n, r), n >= 2.  temperature: > 0.  same_class_weight: in [0, 1].  Range [0, inf). Uniform w_ij change
    nothing; w_ij = 0 removes negative j, and an anchor with no negative left contributes 0 with zero gradient.
    The derivative in same_class_weight is right at 0 and 1 too, but saturates (to stay finite) where a removed negative
    outweighs all that is left by more than e^79 in float32, e^638 in float64.
    normalize: rows over their L2 norm first; a zero row stays zero and passes its gradient unscaled.

    Raises: ValueError for other shapes or n < 2, values outside their range, labels without weight or the reverse.
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
    """-1/n sum_i [log sigmoid(t s_ii + b) + sum_{j != i} (n-1) wbar_ij log sigmoid(-t s_ij - b)], t = scale, b = bias.

    image, text: (n, r), n >= 2.  scale: > 0.  bias: finite.  same_class_weight: in [0, 1].  Range [0, inf).
    normalize: rows over their L2 norm first; a zero row stays zero and passes its gradient unscaled.

    Raises: ValueError for other shapes or n < 2, values outside their range, labels without weight or the reverse.
    Source: docs/theory.md 2 (Zhai et al. 2023, arXiv 2303.15343).
    """
    _check("scale", scale, "finite and > 0", lambda v: v > 0 and math.isfinite(v))
    _check("bias", bias, "finite", math.isfinite)
    image, text = _embeddings("siglip", image, text, labels, same_class_weight, normalize)
    logits = scale * (image @ text.T) + bias
    weights = (len(image) - 1) * _pair_weights(logits, labels, same_class_weight)
    # Summing w instead of wbar would pair w_ij with s_ij alone: the loss would not be symmetric in the two modalities.
    negatives = jnp.sum((weights + weights.T) / 2 * jax.nn.log_sigmoid(-logits), axis=1)
    return -jnp.mean(jax.nn.log_sigmoid(jnp.diag(logits)) + negatives)


def spectral(
    image: Embeddings, text: Embeddings, *, labels: Labels | None = None, same_class_weight: Scalar | None = None
) -> Float[Array, ""]:
    """-2/n sum_i s_ii + 1/n sum_i sum_{j != i} wbar_ij s_ij^2, the spectral contrastive loss.

    image, text: (n, r), n >= 2.  same_class_weight: in [0, 1].  Unweighted it is unbiased for
    -2 E_pos[s] + E_indep[s^2]. An anchor whose negatives all have weight 0 keeps its positive term.

    Raises: ValueError for other shapes or n < 2, a weight outside its range, labels without weight or the reverse.
    Source: docs/theory.md 2 (HaoChen et al. 2021, arXiv 2106.04156).
    """
    image, text = _embeddings("spectral", image, text, labels, same_class_weight)
    s = image @ text.T
    weights = _pair_weights(s, labels, same_class_weight)
    return jnp.mean(jnp.sum((weights + weights.T) / 2 * s**2, axis=1) - 2 * jnp.diag(s))


def sup_con(
    embedding: Embeddings, labels: Labels, *, temperature: Scalar = 0.1, normalize: bool = True
) -> Float[Array, ""]:
    """Mean over anchors i with P(i) not empty of -1/|P(i)| sum_{p in P(i)} log[ exp(l_ip) / sum_{a != i} exp(l_ia) ],

    l_ij = <z_i, z_j> / temperature, P(i) = the other samples of i's class (L_out).

    embedding: (n, r), n >= 2.  labels: only their equality matters.  temperature: > 0.  Range [0, inf). Anchors without
    a positive contribute nothing; a batch without any positive pair gives 0 with zero gradient.
    normalize: rows over their L2 norm first; a zero row stays zero and passes its gradient unscaled.

    Raises: ValueError for other shapes or n < 2, temperature outside its range.
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
    """-1/n sum_i [mean over j != i of i's class of <z_i, z_j> - mean over k of other classes of <z_i, z_k>].

    The linear SupCon loss without its regulariser, `product_penalty(W, W, rho)` for z = W x.
    embedding: (n, r), n >= 2.  labels: only their equality matters.  Unbounded below. A mean over no sample is 0.
    Costs O(n^2 r); of sums over classes: `learners.sup_con_matrix`.

    Raises: ValueError for other shapes or n < 2.
    Source: T7 (Theorem F.1).
    """
    z, _ = _embeddings("linear_sup_con", embedding, embedding)
    _check_labels(labels, len(z))
    s = z @ z.T
    return -jnp.sum((_pair_weights(s, labels, 1.0) - _pair_weights(s, labels, 0.0)) * s) / len(z)


def cross_entropy(logits: Float[Array, "n c"], labels: Labels) -> Float[Array, ""]:
    """-1/n sum_i log softmax(logits_i)[labels_i].

    logits: (n, c), n >= 1.  labels: in 0..c-1.  Range [0, inf). Labels are checked where concrete; traced ones out of
    range are indexed as JAX does: -c..-1 count from the last class, all else gives NaN.

    Raises: ValueError for other shapes, n < 1, or labels out of range.
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
    # The maximum only matters where a kind is absent, whose row of zeros it keeps 0 / 1 instead of 0 / 0.
    same, different = (kind / jnp.maximum(kind.sum(1, keepdims=True), 1) for kind in (same, different))
    return same_class_weight * same + (1 - same_class_weight) * different


def _log_sum_exp(logits: Array, weights: Array) -> Array:
    """log sum_j weights_ij exp(logits_ij), (n,), for weights >= 0, some positive in each row.

    jax.nn.logsumexp(b=weights) has derivative 0 in a weight that is 0; here it is exp(logits_ij) / sum, capped.
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
    """Both embeddings in at least float32, rows of unit length if `normalize`; every argument checked."""
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
    # NumPy, because a comparison of two constants by jnp is traced under jit; in the precision of the computation.
    if isinstance(value, jax.core.Tracer):
        return
    with np.errstate(over="ignore", under="ignore"):
        computed = float(np.asarray(value, jax.dtypes.canonicalize_dtype(float)))
    if not is_valid(computed):
        raise ValueError(f"{name} must be {allowed}, got {value}.")
