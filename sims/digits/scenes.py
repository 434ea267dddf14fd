"""Scenes: a digit in light ink on a coloured background, drawn on the device from a key.

The label is the digit's kind; which digit it is, and its style, is the core detail, of high variance within a class.
The attribute is the background's hue: three shades of it, and a little noise, so that it varies little for how strong
it is. At full contrast it is a far stronger feature than the digit, beyond what contrasting protects from under the
linear loss (X4); `hue_contrast` brings the two hues together. With `p_companion`, a scene may hold a small second digit
of either kind, which says nothing of the label: a detail that other classes share (T4, T6).

Symbols: n scenes, h side of the digit in pixels, w width of the scene (h, or 3h/2 with a companion).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mmcl_theory._checks import Scalar
from sims.digits.images import Items

SHADES = (0.6, 0.8, 1.0)  # dark, medium, light: factors of the hue
# (attribute -1, attribute +1): blue and orange, which the colour-blind tell apart.
HUES = ((0.15, 0.35, 0.75), (0.75, 0.35, 0.10))
HUE_NOISE = 0.02  # sd of a background's colour, per channel
INK = (0.85, 1.0)  # range of the ink's brightness


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """image: (n, h, w, 3), in [0, 1] but for the background's noise.  label, attribute: (n,) of -1, +1.

    item: (n,) the digit, 0..9.  style: (n, 3) of 0, 1: slanted, thick, large.  shade: (n,) of 0, 1, 2.  companion: (n,)
    the small digit, 0..9, and -1 where there is none; None where there never is.
    """

    image: Array
    label: Array
    attribute: Array
    item: Array
    style: Array
    shade: Array
    companion: Array | None


def draw(
    key: Key[Array, ""],
    items: Items,
    n: int,
    p_spu: Scalar | Float[Array, " n"],
    hue_contrast: Scalar = 1.0,
    p_companion: Scalar | None = None,
) -> Scenes:
    """n scenes with fair labels; attribute = label w.p. p_spu (1/2: the shifted distribution; 1, 0: one group).

    p_spu: in [0, 1], one for all or one each.  hue_contrast: in [0, 1], of the two hues' distance from their mean.
    p_companion: chance of a small digit, of all items, at the top or the bottom of a strip at the right; None: no
    strip.  Every image of a kind is equally likely.
    """
    keys = dict(zip(("label", "item", "attribute", "shade", "noise", "ink", "other", "place", "present"),
                    jax.random.split(key, 9), strict=True))  # fmt: skip
    items = jax.tree.map(jnp.asarray, items)
    label = jnp.where(jax.random.bernoulli(keys["label"], 0.5, (n,)), 1, -1)
    index = _index(keys["item"], items, label)
    attribute = jnp.where(jax.random.uniform(keys["attribute"], (n,)) < p_spu, label, -label)
    shade = jax.random.randint(keys["shade"], (n,), 0, len(SHADES))
    hues = jnp.asarray(HUES)
    hues = hues.mean(0, keepdims=True) + hue_contrast * (hues - hues.mean(0, keepdims=True))
    hue = hues[(attribute + 1) // 2]
    background = hue * jnp.asarray(SHADES)[shade][:, None] + HUE_NOISE * jax.random.normal(keys["noise"], (n, 3))
    ink = jax.random.uniform(keys["ink"], (n,), minval=INK[0], maxval=INK[1])
    cover, small_digit = items.ink[index], None
    if p_companion is not None:
        second = jax.random.randint(keys["other"], (n,), 0, len(items.item))
        present = jax.random.uniform(keys["present"], (n,)) < p_companion
        small = jnp.where(present[:, None, None], items.small[second], 0)
        cover = _beside(cover, small, jax.random.bernoulli(keys["place"], 0.5, (n,)))
        small_digit = jnp.where(present, items.item[second], -1)
    return Scenes(
        _blend(cover, ink, background), label, attribute, items.item[index], items.style[index], shade, small_digit
    )


def _index(key: Key[Array, ""], items: Items, label: Int[Array, " n"]) -> Int[Array, " n"]:
    """An image of each label's kind."""
    start = jnp.where(label > 0, items.low, 0)
    stop = jnp.where(label > 0, len(items.item), items.low)
    return jax.random.randint(key, label.shape, start, stop)


def _beside(cover: Array, small: Array, top: Array) -> Array:
    """The digit with the small one in a strip at its right, above or below."""
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
