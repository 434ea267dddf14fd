"""Image and text encoders (flax linen), each from a batch to (n, embed_dim) embeddings.

Convolutions are written as products of patches with a matrix: in a compiled loop of training steps XLA's own is 7 times
slower on a CPU (BENCHMARKS.md), and `vmap` over runs leaves them products.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sims.digits.captions import PAD

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
    """Transformer over tokens, averaged over those that are no padding."""

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
    """W x, of the pixels."""

    embed_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, image: Float[Array, "n h w c"]) -> Float[Array, "n r"]:
        return nn.Dense(self.embed_dim, dtype=self.dtype)(image.reshape(len(image), -1))


class BagEncoder(nn.Module):
    """W u, of the counts of words."""

    embed_dim: int
    vocabulary: int
    dtype: Any = None

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n r"]:
        return nn.Dense(self.embed_dim, dtype=self.dtype)(word_counts(tokens, self.vocabulary))


def word_counts(tokens: Int[Array, "n t"], vocabulary: int) -> Float[Array, "n v"]:
    """How often each word is in each caption, END and padding left out."""
    return jax.nn.one_hot(tokens, vocabulary).sum(1)[:, 2:]


def image_encoder(kind: str, embed_dim: int, side: int, dtype: Any = None) -> nn.Module:
    """The encoder named `kind` for images of this side."""
    if kind == "cnn":
        return ConvEncoder(embed_dim, dtype=dtype)
    if kind == "vit":
        return ViT(embed_dim, patch=-(-side // 7), dtype=dtype)
    return LinearEncoder(embed_dim, dtype=dtype)


def text_encoder(kind: str, embed_dim: int, vocabulary: int, dtype: Any = None) -> nn.Module:
    """The encoder named `kind` for tokens of this vocabulary."""
    encoder = TextTransformer if kind == "transformer" else BagEncoder
    return encoder(embed_dim, vocabulary, dtype=dtype)
