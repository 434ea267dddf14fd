"""Scenes: a digit in light ink on a coloured background, drawn on the device from a key.

The label is the digit's kind. The core detail is which digit it is, and its style; it varies much within a class.
The attribute is the background's hue. It has three shades and a little noise, so it varies little for its strength.
At full contrast it is a far stronger feature than the digit: too strong for contrasting to protect from it under the
linear loss (X4). A smaller `hue_contrast` brings the two hues together.
With `core_accuracy` below 1, labels are noisy: w.p. 1 - core_accuracy the label is the class that the digit does not
belong to. The colour agrees with this label w.p. p_spu, captions name it and a digit of its class, and every accuracy
is judged by it, in training and in tests. So the digit predicts the label with accuracy core_accuracy, which bounds the
accuracy on P*. Hiding digits would be another control. But a hidden digit shows that it is hidden: a classifier could
rely on the colour there alone, at no cost elsewhere. Noise leaves no trace in an image, so that all digits predict the
label equally well.
With `p_companion`, a scene may also hold a small second digit of either kind. It says nothing about the label: it is a
detail that other classes share (T4, T6).

Symbols: n scenes, h side of the digit in pixels, w width of the scene (h, or 3h/2 with a companion).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmcl_theory._checks import Scalar
from sims.digits.images import Items

SHADES = (0.6, 0.8, 1.0)  # dark, medium, light: factors of the hue
# (attribute -1, attribute +1): blue and orange, which colour-blind readers can distinguish.
HUES = ((0.15, 0.35, 0.75), (0.75, 0.35, 0.10))
HUE_NOISE = 0.02  # sd of a background's colour, per channel
INK = (0.85, 1.0)  # range of the ink's brightness
Colours = tuple[tuple[tuple[float, ...], ...], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """A batch of n scenes.

    Attributes:
      image: (n, h, w, 3), in [0, 1] except for the background's noise.
      label, attribute: (n,) of -1, +1.
      item: (n,) the digit that the image shows, 0..9.
      style: (n, 3) of 0, 1: slanted, thick, large.
      shade: (n,) of 0, 1, 2.
      companion: (n,) the small digit, 0..9, or -1 in a scene without one; None if no scene can have one.
      named: (n,) the digit that captions name; None: the one that the image shows.
    """

    image: Array
    label: Array
    attribute: Array
    item: Array
    style: Array
    shade: Array
    companion: Array | None
    named: Array | None = None

    @property
    def named_item(self) -> Array:
        """(n,) the digit that captions name."""
        return self.item if self.named is None else self.named


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Everything that makes up n scenes, except the pixels.

    Attributes:
      index: (n,) into the items.
      attribute: (n,) of -1, +1.
      shade: (n,) of 0, 1, 2.
      background: (n, 3), its colour.
      ink: (n,), its brightness.
      second, present, top: (n,) index of the small digit, whether the scene has it, and whether it is at the top; None
        without a strip.
      label: (n,) of -1, +1; None: the kinds of the digits.
      named: (n,) the digit that captions name; None: the one that the image shows.
    """

    index: Array
    attribute: Array
    shade: Array
    background: Array
    ink: Array
    second: Array | None
    present: Array | None
    top: Array | None
    label: Array | None = None
    named: Array | None = None


def draw(
    key: Key[Array, ""],
    items: Items,
    n: int,
    p_spu: Scalar | Float[Array, " n"],
    hue_contrast: Scalar = 1.0,
    p_companion: Scalar | None = None,
    colours: Colours | None = None,
    core_accuracy: float = 1.0,
) -> Scenes:
    """n scenes with fair labels, in which attribute = label w.p. p_spu.

    Args:
      p_spu: in [0, 1], one for all scenes or one each. 1/2 gives the shifted distribution; 1 or 0 gives one group.
      hue_contrast: in [0, 1], factor of the two hues' distance from their mean.
      p_companion: probability of a small digit, any of the items, at the top or the bottom of a strip at the right.
        None: no strip.
      colours: (attribute, shade, channel) in 0..255. They replace the two hues, without noise and under white ink.
      core_accuracy: in (1/2, 1], P(label = the digit's kind).

    Every image of a kind is equally likely.
    """
    return render(items, lay_out(key, items, n, p_spu, hue_contrast, p_companion, colours, core_accuracy=core_accuracy))


def lay_out(
    key: Key[Array, ""],
    items: Items,
    n: int,
    p_spu: Scalar | Float[Array, " n"],
    hue_contrast: Scalar = 1.0,
    p_companion: Scalar | None = None,
    colours: Colours | None = None,
    once: bool = False,
    core_accuracy: float = 1.0,
) -> Layout:
    """The layout of n scenes, with the arguments of `draw`.

    once: use no item twice and take the labels of the drawn items; otherwise labels are fair.
    Raises: ValueError with `once`, for more scenes than items.
    """
    keys = dict(zip(("label", "item", "attribute", "shade", "noise", "ink", "other", "place", "present"),
                    jax.random.split(key, 9), strict=True))  # fmt: skip
    count = len(items.item)
    if once:
        if n > count:
            raise ValueError(f"n must be at most the number of items, {count}, got {n}.")
        index = jax.random.permutation(keys["item"], count)[:n]
        label = jnp.where(index >= items.low, 1, -1)
    else:
        label = jnp.where(jax.random.bernoulli(keys["label"], 0.5, (n,)), 1, -1)
        index = _index(keys["item"], items, label)
    noisy = {}
    if core_accuracy < 1:
        key_right, key_named = jax.random.split(jax.random.fold_in(key, 0))
        right = jax.random.bernoulli(key_right, core_accuracy, (n,))
        label = jnp.where(right, label, -label)
        other = _index(key_named, items, label)
        noisy = {"label": label, "named": jnp.asarray(items.item)[jnp.where(right, index, other)]}
    attribute = jnp.where(jax.random.uniform(keys["attribute"], (n,)) < p_spu, label, -label)
    shade = jax.random.randint(keys["shade"], (n,), 0, len(SHADES))
    if colours is None:
        hues = jnp.asarray(HUES)
        hues = hues.mean(0, keepdims=True) + hue_contrast * (hues - hues.mean(0, keepdims=True))
        hue = hues[(attribute + 1) // 2]
        background = hue * jnp.asarray(SHADES)[shade][:, None] + HUE_NOISE * jax.random.normal(keys["noise"], (n, 3))
        ink = jax.random.uniform(keys["ink"], (n,), minval=INK[0], maxval=INK[1])
    else:
        ink = jnp.ones(n)
        background = jnp.asarray(colours, ink.dtype)[(attribute + 1) // 2, shade] / 255
    strip = (None, None, None)
    if p_companion is not None:
        strip = (
            jax.random.randint(keys["other"], (n,), 0, count),
            jax.random.uniform(keys["present"], (n,)) < p_companion,
            jax.random.bernoulli(keys["place"], 0.5, (n,)),
        )
    return Layout(index, attribute, shade, background, ink, *strip, **noisy)


def render(items: Items, layout: Layout) -> Scenes:
    """The scenes of a layout."""
    items = jax.tree.map(jnp.asarray, items)
    cover = items.ink[layout.index]
    if layout.second is not None:
        small = jnp.where(layout.present[:, None, None], items.small[layout.second], 0)
        cover = _beside(cover, small, layout.top)
    return dataclasses.replace(contents(items, layout), image=_blend(cover, layout.ink, layout.background))


def contents(items: Items, layout: Layout) -> Scenes:
    """The scenes of a layout with None for images: all that captions describe."""
    items = jax.tree.map(jnp.asarray, items)
    index, small_digit = layout.index, None
    if layout.second is not None:
        small_digit = jnp.where(layout.present, items.item[layout.second], -1)
    label = jnp.where(index >= items.low, 1, -1) if layout.label is None else layout.label
    details = items.item[index], items.style[index], layout.shade, small_digit
    return Scenes(None, label, layout.attribute, *details, layout.named)


def _index(key: Key[Array, ""], items: Items, label: Int[Array, " n"]) -> Int[Array, " n"]:
    """Index of a random image of each label's kind."""
    start = jnp.where(label > 0, items.low, 0)
    stop = jnp.where(label > 0, len(items.item), items.low)
    return jax.random.randint(key, label.shape, start, stop)


def _beside(cover: Array, small: Array, top: Array) -> Array:
    """The digit, and the small one at the top or the bottom of a strip at its right."""
    empty = jnp.zeros_like(small)
    strip = jnp.where(top[:, None, None], jnp.concatenate([small, empty], 1), jnp.concatenate([empty, small], 1))
    return jnp.concatenate([cover, strip], 2)


def _blend(
    cover: Int[Array, "n h w"], ink: Float[Array, " n"], background: Float[Array, "n 3"]
) -> Float[Array, "n h w 3"]:
    """Ink over background, by the share of each pixel that is ink."""
    share = (cover.astype(ink.dtype) / 255)[..., None]
    below = background[:, None, None, :]
    return below + share * (ink[:, None, None, None] - below)
