"""CLIP's two towers (flax linen): ResNet with attention pooling or vision transformer, and a causal text transformer.

They compute what open_clip's CLIP and OpenAI's compute, and hold the same parameters in flax's layout (`weights`).

Shapes: n images or captions, h w pixels, t tokens, f features, r embedding. Parameters are float32; `dtype` is the type
of activations and products. Normalisations and softmax compute in float32, and outputs are float32.

Differences from PyTorch: in training, BatchNorm normalises by the whole batch, even if it is sharded over devices.
PyTorch's data parallelism takes each device's part. BatchNorm's running variance averages biased estimates, PyTorch's
averages unbiased ones. The factor is (m-1)/m for m = n h w values a channel: it affects evaluation only, and only if m
is small.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sims.engine.flags import UsageError

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


@dataclasses.dataclass(frozen=True)
class ResNetShape:
    """layers: blocks of each stage.  width: features after the stem; the stages put out 4, 8, 16 ... times as many."""

    layers: tuple[int, ...]
    width: int
    heads: int


@dataclasses.dataclass(frozen=True)
class ViTShape:
    """layers: blocks.  patch: side of a patch, in pixels."""

    layers: int
    width: int
    patch: int
    head_width: int = 64


@dataclasses.dataclass(frozen=True)
class TextShape:
    """The vocabulary costs vocabulary_size x width parameters: 25 million of the published models' 63."""

    context_length: int = 77
    vocabulary_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A pair of towers.  image_size: side in pixels.  quick_gelu: x sigmoid(1.702 x) in place of GELU (transformers).

    Raises UsageError for sizes that do not fit each other.
    """

    name: str
    embed_dim: int
    vision: ResNetShape | ViTShape
    image_size: int
    text: TextShape
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        v, t = self.vision, self.text
        resnet = isinstance(v, ResNetShape)
        step = 2 ** (len(v.layers) + 1) if resnet else v.patch
        if self.image_size < step or self.image_size % step:
            self._refuse(f"image_size {self.image_size}", f"a multiple of {step}")
        width, heads = (features_out(v), v.heads) if resnet else (v.width, v.head_width)
        for side, wide, parts in (("image", width, heads), ("text", t.width, t.heads)):
            if parts < 1 or wide % parts:
                self._refuse(f"{side} width {wide}", f"a multiple of {parts}, for its attention heads")

    def _refuse(self, what: str, allowed: str) -> None:
        raise UsageError(f"architecture {self.name}: {what} must be {allowed}.")


def features_out(shape: ResNetShape) -> int:
    """Features of the last stage."""
    return shape.width * 2 ** (len(shape.layers) + 1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (n, t, f) to (n, t, f)."""

    heads: int
    causal: bool
    quick_gelu: bool
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n t f"]) -> Float[Array, "n t f"]:
        width = x.shape[-1]
        std = width**-0.5
        out = std * (2 * self.depth) ** -0.5  # the stream is a sum of 2 depth outputs; this keeps its size
        y = _layer_norm("ln_1", self.dtype)(x)
        y = _dense(3 * width, "attn_in_proj", self.dtype, std)(y)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1) for part in jnp.split(y, 3, -1))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal).reshape(x.shape)
        x = x + _dense(width, "attn_out_proj", self.dtype, out)(y)
        y = _layer_norm("ln_2", self.dtype)(x)
        y = _activation(self.quick_gelu)(_dense(4 * width, "mlp_c_fc", self.dtype, std * 0.5**0.5)(y))
        return x + _dense(width, "mlp_c_proj", self.dtype, out)(y)


class Transformer(nn.Module):
    """A stack of blocks."""

    layers: int
    heads: int
    causal: bool
    quick_gelu: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n t f"]) -> Float[Array, "n t f"]:
        for i in range(self.layers):
            x = Block(self.heads, self.causal, self.quick_gelu, self.layers, self.dtype, name=f"resblocks_{i}")(x)
        return x


class VisionTransformer(nn.Module):
    """A class token before the patches; its last state, normalised, is projected."""

    shape: ViTShape
    embed_dim: int
    quick_gelu: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "n h w 3"], train: bool = False) -> Float[Array, "n r"]:
        s, (n, h, w, c) = self.shape, image.shape
        std = _normal(s.width**-0.5)
        # Patches that do not overlap make the convolution one product.
        x = image.astype(self.dtype).reshape(n, h // s.patch, s.patch, w // s.patch, s.patch, c).swapaxes(2, 3)
        x = x.reshape(n, -1, s.patch**2 * c)
        x = _dense(s.width, "conv1", self.dtype, (s.patch**2 * c) ** -0.5, use_bias=False)(x)
        first = self.param("class_embedding", std, (s.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (n, 1, s.width)), x], 1)
        x = x + self.param("positional_embedding", std, x.shape[1:]).astype(self.dtype)[None]
        x = _layer_norm("ln_pre", self.dtype)(x)
        heads = s.width // s.head_width
        x = Transformer(s.layers, heads, False, self.quick_gelu, self.dtype, name="transformer")(x)
        x = _layer_norm("ln_post", self.dtype)(x[:, 0])
        return (x @ self.param("proj", std, (s.width, self.embed_dim)).astype(self.dtype)).astype(jnp.float32)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut, both halved by averaging where stride is 2."""

    features: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n h w f"], train: bool) -> Float[Array, "n h2 w2 g"]:
        wide, shrink = 4 * self.features, _halve if self.stride == 2 else lambda y: y
        y = nn.relu(_batch_norm("bn1", self.dtype, train)(_conv(self.features, 1, "conv1", self.dtype)(x)))
        y = nn.relu(_batch_norm("bn2", self.dtype, train)(_conv(self.features, 3, "conv2", self.dtype)(y)))
        y = _conv(wide, 1, "conv3", self.dtype)(shrink(y))
        y = _batch_norm("bn3", self.dtype, train, nn.initializers.zeros)(y)  # a new block starts as its shortcut
        if self.stride == 2 or x.shape[-1] != wide:
            x = _conv(wide, 1, "downsample_0", self.dtype)(shrink(x))
            x = _batch_norm("downsample_1", self.dtype, train)(x)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """Attention over places, (n, h, w, f) to (n, r).

    The query is the mean over places; keys and values are that mean and all places.
    """

    heads: int
    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n h w f"]) -> Float[Array, "n r"]:
        n, h, w, width = x.shape
        x = x.reshape(n, h * w, width)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], 1)
        std = width**-0.5
        place = self.param("positional_embedding", _normal(std), x.shape[1:])
        x = x + place.astype(self.dtype)[None]
        asked = {"q_proj": x[:, :1], "k_proj": x, "v_proj": x}
        q, k, v = (
            _dense(width, name, self.dtype, std)(y).reshape(n, y.shape[1], self.heads, -1) for name, y in asked.items()
        )
        y = jax.nn.dot_product_attention(q, k, v).reshape(n, width)
        return _dense(self.embed_dim, "c_proj", self.dtype, std)(y)


class ModifiedResNet(nn.Module):
    """A stem of three convolutions (a quarter of the side), stages of bottlenecks, and an attention pool.

    Each stage but the first halves the side.
    """

    shape: ResNetShape
    embed_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "n h w 3"], train: bool = False) -> Float[Array, "n r"]:
        width, x = self.shape.width, image.astype(self.dtype)
        for i, (features, stride) in enumerate(((width // 2, 2), (width // 2, 1), (width, 1)), 1):
            x = _conv(features, 3, f"conv{i}", self.dtype, stride)(x)
            x = nn.relu(_batch_norm(f"bn{i}", self.dtype, train)(x))
        x = _halve(x)
        for stage, blocks in enumerate(self.shape.layers):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = Bottleneck(width * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{i}")(x, train)
        return AttentionPool(self.shape.heads, self.embed_dim, self.dtype, name="attnpool")(x).astype(jnp.float32)


class TextTransformer(nn.Module):
    """A causal transformer. The state at the largest id, the end token, is projected; later tokens have no effect."""

    shape: TextShape
    embed_dim: int
    quick_gelu: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n r"]:
        s = self.shape
        if tokens.shape[1] > s.context_length:
            raise ValueError(f"tokens must have at most {s.context_length} columns, got {tokens.shape[1]}.")
        table = self.param("token_embedding", _normal(0.02), (s.vocabulary_size, s.width))
        place = self.param("positional_embedding", _normal(0.01), (s.context_length, s.width))
        # Looked up in float32, so that the gradients of a frequent word add up in float32. An unknown id gives NaN.
        x = jnp.take(table, tokens, axis=0) + place[None, : tokens.shape[1]]
        x = Transformer(s.layers, s.heads, True, self.quick_gelu, self.dtype, name="transformer")(x.astype(self.dtype))
        x = jnp.take_along_axis(x, tokens.argmax(-1)[:, None, None], 1)[:, 0]
        x = _layer_norm("ln_final", self.dtype)(x)
        projection = self.param("text_projection", _normal(s.width**-0.5), (s.width, self.embed_dim))
        return (x @ projection.astype(self.dtype)).astype(jnp.float32)


def image_tower(arch: Architecture, dtype: Any = jnp.float32, name: str | None = None) -> nn.Module:
    """The image tower alone: apply(variables, image, train) -> (n, embed_dim)."""
    if isinstance(arch.vision, ResNetShape):
        return ModifiedResNet(arch.vision, arch.embed_dim, dtype, name=name)
    return VisionTransformer(arch.vision, arch.embed_dim, arch.quick_gelu, dtype, name=name)


class CLIP(nn.Module):
    """Both towers and the logarithm of the logit scale. Embeddings are float32 and not normalised.

    image: (n, size, size, 3) normalised pixels.
    tokens: (n, t) ids, t <= context_length, the end token the largest.
    train: BatchNorm takes the batch's statistics and updates the collection "batch_stats" (a ResNet's only).
    """

    arch: Architecture
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.visual = image_tower(self.arch, self.dtype)
        self.text = TextTransformer(self.arch.text, self.arch.embed_dim, self.arch.quick_gelu, self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(INITIAL_LOGIT_SCALE, jnp.float32), ())

    def encode_image(self, image: Float[Array, "n h w 3"], train: bool = False) -> Float[Array, "n r"]:
        """Embeddings of images."""
        return self.visual(image, train)

    def encode_text(self, tokens: Int[Array, "n t"]) -> Float[Array, "n r"]:
        """Embeddings of captions."""
        return self.text(tokens)

    def __call__(
        self, image: Float[Array, "n h w 3"], tokens: Int[Array, "n t"], train: bool = False
    ) -> tuple[Float[Array, "n r"], Float[Array, "n r"], Float[Array, ""]]:
        """(image embeddings, text embeddings, log of the logit scale)."""
        return self.encode_image(image, train), self.encode_text(tokens), self.logit_scale


@functools.lru_cache(maxsize=16)  # the published ones take a second to trace
def variable_shapes(arch: Architecture) -> dict:
    """The variables of CLIP(arch) as shapes, nothing allocated."""
    image = jax.ShapeDtypeStruct((1, arch.image_size, arch.image_size, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, arch.text.context_length), jnp.int32)
    return jax.eval_shape(CLIP(arch).init, jax.random.key(0), image, tokens)


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _halve(x: Float[Array, "n h w f"]) -> Float[Array, "n h2 w2 f"]:
    """Means of 2 x 2 places. In this form the gradient is a copy; that of a pooling is slow on a CPU."""
    n, h, w, f = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, f).mean((2, 4))


def _activation(quick_gelu: bool) -> Callable[[Array], Array]:
    if quick_gelu:
        return lambda x: x * nn.sigmoid(1.702 * x)
    return lambda x: nn.gelu(x, approximate=False)


def _normal(std: float) -> Callable[..., Array]:
    return nn.initializers.normal(std, jnp.float32)


def _dense(features: int, name: str, dtype: Any, std: float, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias, dtype, kernel_init=_normal(std), name=name)


def _conv(features: int, side: int, name: str, dtype: Any, stride: int = 1) -> nn.Module:
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    if side == 1:  # a matrix product: on a CPU its kernel gradient is 2 to 7 times as fast as XLA's
        return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)
    # Explicit padding: at stride 2, flax's SAME pads another side than PyTorch does.
    pad = side // 2
    return nn.Conv(features, (side, side), stride, pad, use_bias=False, dtype=dtype, kernel_init=init, name=name)


def _layer_norm(name: str, dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, dtype, name=name)


def _batch_norm(name: str, dtype: Any, train: bool, scale_init: Any = nn.initializers.ones) -> nn.BatchNorm:
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=scale_init, name=name)


_RN50, _TEXT = ResNetShape((3, 4, 6, 3), 64, 32), TextShape()
_SMALL_TEXT = TextShape(context_length=32, vocabulary_size=4096, width=64, heads=2, layers=2)

# The published ones have open_clip's names. OpenAI's own weights, and most that were trained on CC12M or YFCC, need the
# -quickgelu ones. The small ones train on 1,000 images of 32 pixels a second on two cores, captions included.
ARCHITECTURES = {
    arch.name: arch
    for quick, ending in ((False, ""), (True, "-quickgelu"))
    for arch in (
        Architecture(f"RN50{ending}", 1024, _RN50, 224, _TEXT, quick),
        Architecture(f"ViT-B-32{ending}", 512, ViTShape(12, 768, 32), 224, _TEXT, quick),
        Architecture(f"ViT-B-16{ending}", 512, ViTShape(12, 768, 16), 224, _TEXT, quick),
    )
} | {
    arch.name: arch
    for arch in (
        Architecture("RN-tiny", 64, ResNetShape((1, 1, 1), 16, 4), 32, _SMALL_TEXT),
        Architecture("ViT-tiny", 64, ViTShape(3, 64, 8, head_width=32), 32, _SMALL_TEXT),
    )
}
