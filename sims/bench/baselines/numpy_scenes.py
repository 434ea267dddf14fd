"""Scenes of the digits' experiment in NumPy, a whole batch at a time: digits in light ink on coloured backgrounds."""

import numpy as np


def draw(
    rng: np.random.Generator,
    ink: np.ndarray,
    low: int,
    n: int,
    p_spu: float,
    hues: np.ndarray,
    shades: np.ndarray,
    noise: float,
    brightness: tuple[float, float],
) -> np.ndarray:
    """(n, h, w, 3) float32 images. ink: (m, h, w) uint8, the first `low` of class -1.  hues: (2, 3) by attribute."""
    label = rng.integers(0, 2, n)
    index = np.where(label == 1, rng.integers(low, len(ink), n), rng.integers(0, low, n))
    attribute = np.where(rng.random(n) < p_spu, label, 1 - label)
    background = hues[attribute] * rng.choice(shades, n)[:, None] + noise * rng.standard_normal((n, 3))
    background = background.astype(np.float32)[:, None, None, :]
    light = rng.uniform(*brightness, n).astype(np.float32)[:, None, None, None]
    share = (ink[index].astype(np.float32) / 255)[..., None]
    return background + share * (light - background)
