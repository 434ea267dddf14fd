"""Captions as vectors, as in the paper (App. G.1): [a, b, 0, ..., 0] + N(0, I/2000) in R^200.

a encodes the digit d. b encodes the colour: its six values stand for dark, medium, light blue, light, medium, dark red,
in this order.

    a = d - 4.5         w.p. pi_core,   else the mean of the class's digits, -2.5 or 2.5
    b = -2.5, ..., 2.5  w.p. pi_spu,    else the mean of the attribute's colours, -1.5 or 1.5 (masking "mean"), or 0
                                        ("named": the class is named, the colour is not; Definition 5.3)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mmcl_theory._checks import Scalar
from mmcl_theory.data import Captions
from sims.digits.config import ITEMS
from sims.digits.scenes import SHADES, Scenes

DIM = 200
NOISE = 2000**-0.5  # sd of each entry
_MEAN_ITEM = (ITEMS - 1) / 2
_ITEM_VALUES = np.arange(ITEMS) - _MEAN_ITEM
_MEAN_COLOUR = len(SHADES) / 2


def write(key: Key[Array, ""], kinds: tuple[int, ...], scenes: Scenes, caps: Captions) -> Float[Array, "n dim"]:
    """A caption vector for each scene. kinds: -1 or +1 for each item.  caps: its masking must be "mean" or "named"."""
    n = len(scenes.label)
    core, spurious, noise = jax.random.split(key, 3)
    low, high = class_values(kinds)
    item = scenes.named_item - _MEAN_ITEM
    a = jnp.where(jax.random.uniform(core, (n,)) < caps.pi_core, item, jnp.where(scenes.label > 0, high, low))
    colour = scenes.attribute * (len(SHADES) - 0.5 - scenes.shade)
    unnamed = scenes.attribute * _MEAN_COLOUR if caps.masking == "mean" else 0.0
    b = jnp.where(jax.random.uniform(spurious, (n,)) < caps.pi_spu, colour, unnamed)
    return NOISE * jax.random.normal(noise, (n, DIM)) + _padded(jnp.stack([a, b], 1))


def class_values(kinds: tuple[int, ...]) -> tuple[float, float]:
    """Mean value of the items of kind -1 and of kind +1."""
    low, high = (float(_ITEM_VALUES[np.array(kinds) == kind].mean()) for kind in (-1, 1))
    return low, high


def class_prompts(kinds: tuple[int, ...]) -> np.ndarray:
    """(2, dim): D_T E_P*[z | y], the class's mean digit and no colour."""
    return np.pad(np.array(class_values(kinds))[:, None], ((0, 0), (0, DIM - 1)))


def item_prompts() -> np.ndarray:
    """(10, dim): each digit and no colour."""
    return np.pad(_ITEM_VALUES[:, None], ((0, 0), (0, DIM - 1)))


def regression_prompts(kinds: tuple[int, ...], caps: Captions, p_spu: Scalar) -> Float[Array, "2 dim"]:
    """The class prompts a (1, Cov(a, b) / Var(a), 0, ...), a the class's mean digit.

    Their difference is a multiple of S_T (1, 0, ...), S_T the covariance of captions. It turns the whitened rule
    S_I^-1 C S_T^-1 p into S_I^-1 Cov(x, a), least squares of the digit's value on the image, which has nothing to
    over-correct. The class prompts over-correct where a and b are correlated.

    Args:
      kinds: -1 or +1 for each item; items are equally frequent.
      caps: captions; masking "mean" or "named".
      p_spu: P(attribute = label), in [0, 1].

    Source: X12.  Check: tests/digits/test_paper.py.
    """
    kind, sign = np.array(kinds), np.array([-1, 1])
    means = np.array(class_values(kinds))
    share = (kind[:, None] == sign).mean(0)
    centred = means - share @ means
    within = np.mean((_ITEM_VALUES - means[(kind + 1) // 2]) ** 2)
    variance = share @ centred**2 + caps.pi_core * within + NOISE**2
    colour = _MEAN_COLOUR * (1.0 if caps.masking == "mean" else caps.pi_spu)  # E[b] of attribute +1
    covariance = (share * centred) @ sign * (2 * p_spu - 1) * colour
    return _padded(jnp.asarray(means)[:, None] * jnp.stack([1.0, covariance / variance])[None, :])


def _padded(code: Array) -> Array:
    return jnp.pad(code, ((0, 0), (0, DIM - code.shape[1])))
