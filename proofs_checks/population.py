"""All images of Data Model 2 without noise, and the accuracy of a classifier on them, by counting."""

import itertools

import jax.numpy as jnp
import numpy as np

from mmcl_theory import data, zero_shot


def images(m: int, alpha: float, beta: float, beta_spu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The aligned images (k, 2m), the same with the own spurious sign turned, and the class numbers of both (k,)."""
    aligned, number = [], []
    for c, label in enumerate(np.asarray(data.class_labels(2 * m))):
        pair, sign = abs(label) - 1, np.sign(label)
        for signs in itertools.product((-1, 1), repeat=2 * m - 2):
            foreign = iter(signs)
            core = [sign if j == pair else beta * next(foreign) for j in range(m)]
            spu = [alpha * sign if j == pair else alpha * beta_spu * next(foreign) for j in range(m)]
            aligned.append([*core, *spu])
            number.append(c)
    aligned, number = np.array(aligned, float), np.array(number)
    conflicting = aligned.copy()
    conflicting[np.arange(len(number)), m + number // 2] *= -1
    return aligned, conflicting, number


def class_scores(images: np.ndarray, a: float, b: float) -> np.ndarray:
    """c' (a core_k' + b spu_k') of every class, (k, 2m)."""
    m = images.shape[1] // 2
    return np.repeat(a * images[:, :m] + b * images[:, m:], 2, axis=1) * np.tile([-1, 1], m)


def share_right(scores: np.ndarray, number: np.ndarray, digits: int = 9) -> float:
    """The share of images whose own class has the highest score; scores equal to `digits` decimals tie."""
    every = jnp.ones(len(number), bool)
    return float(zero_shot.sampled_accuracy(jnp.round(jnp.asarray(scores), digits), jnp.asarray(number), every).aligned)
