"""Image and text encoders (flax linen), each from a batch to (n, embed_dim) embeddings.

Convolutions are written as matrix products with patches. In a compiled loop of training steps on a CPU, XLA's own
convolution is 7 times slower (BENCHMARKS.md). Under `vmap` over runs, they stay matrix products.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sims.digits.captions import PAD

LENET_FEATURES = 84
_HEADS = 2


class Conv(nn.Module):
    """3 x 3 convolution with stride 2 and zero padding: (n, h, w, c) to (n, ceil(h/2), ceil(w/2), features)."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 features"]:
        h, w = (-(-side // 2) for side in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [x[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] for i in range(3) for j in range(3)]
        return nn.Dense(self.features, dtype=self.dtype)(jnp.concatenate(patches, -1))


class ConvEncoder(nn.Module):
    """Two convolutions and two dense layers."""

    embed_dim: int
    features: tuple[int, ...] = (16, 32)
    hidden: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n r"]:
        x = image
        for features in self.features:
            x = nn.relu(Conv(features, self.dtype)(x))
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(len(x), -1)))
        return nn.Dense(self.embed_dim, dtype=self.dtype)(x)


class LeNet(nn.Module):
    """LeNet-5: 5 x 5 convolutions to 6 and 16 maps, each with ReLU and 2 x 2 max-pooling, then layers of 120 and 84.

    Weights and biases start uniform in +-1/sqrt(inputs), PyTorch's default. Images have sides of 16 + 4k pixels. With
    embed_dim None the output is the 84 features of the last hidden layer. Computed with the batch as the last axis.
    """

    embed_dim: int | None
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n r"]:
        x = jnp.moveaxis(image, 0, -1).transpose(2, 0, 1, 3)
        for features in (6, 16):
            kernel = self.param(f"kernel_{features}", uniform(25 * len(x)), (5, 5, len(x), features))
            bias = self.param(f"bias_{features}", uniform(25 * len(x)), (features,))
            x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
            x = nn.relu(pooled_convolution(x, kernel) + bias[:, None, None, None])
        x = x.reshape(-1, x.shape[-1]).T
        for features in (120, LENET_FEATURES):
            x = nn.relu(_dense(features, x.shape[-1], self.dtype)(x))
        return x if self.embed_dim is None else _dense(self.embed_dim, x.shape[-1], self.dtype)(x)


class VectorEncoder(nn.Module):
    """W u + b for caption vectors u, initialised as LeNet's layers are."""

    embed_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, text: Float[Array, "n d"]) -> Float[Array, "n r"]:
        return _dense(self.embed_dim, text.shape[-1], self.dtype)(text)


def uniform(inputs: int) -> Any:
    """PyTorch's default: uniform in +-1/sqrt(inputs)."""

    def init(key: Any, shape: Any, dtype: Any = float) -> Array:
        return jax.random.uniform(key, shape, dtype, -(inputs**-0.5), inputs**-0.5)

    return init


def _dense(features: int, inputs: int, dtype: Any) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=uniform(inputs), bias_init=uniform(inputs))


def pooled_convolution(x: Float[Array, "c h w n"], kernel: Float[Array, "5 5 c o"]) -> Float[Array, "o h2 w2 n"]:
    """2 x 2 max-pooling of a 5 x 5 convolution without padding; h, w even, h2 = (h - 4)/2.

    The four outputs that are pooled into one depend on 6 x 6 pixels. One product of such patches with the kernel at its
    four places gives all four, so the pooling needs no strides. This takes 2.8 times less memory than the patches of a
    convolution.
    """
    c, h, w, n = x.shape
    o = kernel.shape[-1]
    kernel = jnp.transpose(kernel, (3, 0, 1, 2))
    places = [jnp.pad(kernel, ((0, 0), (a, 1 - a), (b, 1 - b), (0, 0))) for a in (0, 1) for b in (0, 1)]
    outputs = jnp.stack(places).reshape(4 * o, 36 * c) @ _patches(x).reshape(36 * c, -1)
    return _largest(outputs.reshape(4, o, (h - 4) // 2, (w - 4) // 2, n))


@jax.custom_vjp
def _patches(x: Float[Array, "c h w n"]) -> Float[Array, "36 c h2 w2 n"]:
    """All 6 x 6 patches at stride 2, cut from phases of the image so that copies are contiguous."""
    c, h, w, n = x.shape
    high, wide = (h - 4) // 2, (w - 4) // 2
    phase = jax.lax.optimization_barrier(x.reshape(c, h // 2, 2, w // 2, 2, n).transpose(2, 4, 0, 1, 3, 5))
    rows = jax.lax.optimization_barrier(jnp.stack([phase[:, :, :, :, j : j + wide] for j in range(3)], 1))
    return jnp.stack([rows[:, :, :, :, i : i + high] for i in range(3)]).reshape(36, c, high, wide, n)


def _patches_back(shape: tuple[int, ...], cotangent: Array) -> tuple[Array]:
    """Gradient of `_patches` as sums of contiguous blocks; XLA's own transpose of the stacks is 10 times slower."""
    c, h, w, n = shape
    high, wide = (h - 4) // 2, (w - 4) // 2
    blocks = cotangent.reshape(3, 2, 3, 2, c, high, wide, n)
    none = ((0, 0),) * 3
    parts = [jnp.pad(blocks[i, :, j], (*none, (i, 2 - i), (j, 2 - j), (0, 0))) for i in range(3) for j in range(3)]
    phase = jax.lax.optimization_barrier(sum(parts))
    return (phase.transpose(2, 3, 0, 4, 1, 5).reshape(shape),)


_patches.defvjp(lambda x: (_patches(x), x.shape), _patches_back)


@jax.custom_vjp
def _largest(x: Float[Array, "4 ..."]) -> Float[Array, "..."]:
    """max over the first axis. Equal maxima share the gradient: on a plain background all four are equal."""
    return jnp.maximum(jnp.maximum(x[0], x[1]), jnp.maximum(x[2], x[3]))


def _largest_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    largest = _largest(x)
    return largest, (x, largest)


def _largest_back(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    largest = kept[0] == kept[1][None]
    return (jnp.where(largest, (cotangent / sum(largest[i].astype(cotangent.dtype) for i in range(4)))[None], 0),)


_largest.defvjp(_largest_forward, _largest_back)


class Block(nn.Module):
    """Pre-norm transformer block; positions where `real` is false are not attended to."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "n t f"], real: Array | None = None) -> Float[Array, "n t f"]:
        width = x.shape[-1]
        mask = None if real is None else real[:, None, None, :]
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(_HEADS, dtype=self.dtype)(y, y, mask=mask)
        y = nn.relu(nn.Dense(2 * width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x)))
        return x + nn.Dense(width, dtype=self.dtype)(y)


class ViT(nn.Module):
    """Vision transformer on square patches, embeddings averaged over patches."""

    embed_dim: int
    patch: int
    width: int = 32
    depth: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n r"]:
        p = self.patch
        high, wide = (-(-side // p) for side in image.shape[1:3])
        below, right = high * p - image.shape[1], wide * p - image.shape[2]
        x = jnp.pad(image, ((0, 0), (0, below), (0, right), (0, 0)))
        x = x.reshape(len(x), high, p, wide, p, -1).swapaxes(2, 3).reshape(len(x), high * wide, -1)
        x = nn.Dense(self.width, dtype=self.dtype)(x)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        for _ in range(self.depth):
            x = Block(self.dtype)(x)
        return nn.Dense(self.embed_dim, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x).mean(1))


class TextTransformer(nn.Module):
    """Transformer over tokens, averaged over those that are not padding."""

    embed_dim: int
    vocabulary: int
    width: int = 32
    depth: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n r"]:
        real = tokens != PAD
        x = nn.Embed(self.vocabulary, self.width, dtype=self.dtype)(tokens)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
        for _ in range(self.depth):
            x = Block(self.dtype)(x, real)
        x = nn.LayerNorm(dtype=self.dtype)(x) * real[..., None]
        return nn.Dense(self.embed_dim, dtype=self.dtype)(x.sum(1) / real.sum(1, keepdims=True))


class LinearEncoder(nn.Module):
    """W x + b for the pixels x."""

    embed_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n r"]:
        return nn.Dense(self.embed_dim, dtype=self.dtype)(image.reshape(len(image), -1))


class BagEncoder(nn.Module):
    """W u + b for the word counts u."""

    embed_dim: int
    vocabulary: int
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n r"]:
        return nn.Dense(self.embed_dim, dtype=self.dtype)(word_counts(tokens, self.vocabulary))


def word_counts(tokens: Int[Array, "n t"], vocabulary: int) -> Float[Array, "n v"]:
    """How often each word occurs in each caption, without END and padding."""
    return jax.nn.one_hot(tokens, vocabulary).sum(1)[:, 2:]


def image_encoder(kind: str, embed_dim: int | None, side: int, dtype: Any = None) -> nn.Module:
    """The encoder named `kind` for images of this side. embed_dim None, for lenet only: its features."""
    if kind == "lenet":
        return LeNet(embed_dim, dtype=dtype)
    if kind == "cnn":
        return ConvEncoder(embed_dim, dtype=dtype)
    if kind == "vit":
        return ViT(embed_dim, patch=-(-side // 7), dtype=dtype)
    return LinearEncoder(embed_dim, dtype=dtype)


def text_encoder(kind: str, embed_dim: int, vocabulary: int, dtype: Any = None) -> nn.Module:
    """The encoder named `kind` for tokens of this vocabulary."""
    if kind == "linear":
        return VectorEncoder(embed_dim, dtype=dtype)
    encoder = TextTransformer if kind == "transformer" else BagEncoder
    return encoder(embed_dim, vocabulary, dtype=dtype)
