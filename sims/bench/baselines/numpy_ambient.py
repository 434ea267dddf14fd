"""One run of the closed-form MMCL learner in ambient space, in NumPy: draw the pairs, learn, evaluate exactly.

A sweep is a loop over this. Symbols: y label, a attribute, z latents, x images, t text scores, c coefficients, w rule.
"""

import numpy as np
from scipy.special import ndtr


def accuracy(
    rng: np.random.Generator,
    p_spu: float,
    sigma_core: float,
    sigma_spu: float,
    pi_core: float,
    n: int,
    dim_image: int,
    dim_text: int,
    sigma_image: float,
    sigma_text: float,
) -> np.ndarray:
    """(aligned, conflicting) accuracy of w = C_hat p, the linear loss's rule, with unit means and pi_spu = 1."""
    image_dictionary = np.linalg.qr(rng.standard_normal((dim_image, 2)))[0].astype(np.float32)
    text_dictionary = np.linalg.qr(rng.standard_normal((dim_text, 2)))[0].astype(np.float32)
    y = rng.choice((-1.0, 1.0), n)
    a = np.where(rng.random(n) < p_spu, y, -y)
    spread = np.array([sigma_core, sigma_spu])
    z = (np.stack([y, a], 1) + spread * rng.standard_normal((n, 2))).astype(np.float32)
    code = z.copy()
    unnamed = rng.random(n) >= pi_core
    code[unnamed, 0] = y[unnamed]

    image = sigma_image / dim_image**0.5 * rng.standard_normal((n, dim_image), np.float32)
    image += z @ image_dictionary.T
    text = sigma_text / dim_text**0.5 * rng.standard_normal((n, dim_text), np.float32)
    text += code @ text_dictionary.T
    t = text @ text_dictionary[:, 0]
    w = (t - t.mean()) / (n - 1) @ image

    core, spu = image_dictionary.T @ w
    variance = (core * sigma_core) ** 2 + (spu * sigma_spu) ** 2 + sigma_image**2 / dim_image * (w @ w)
    return ndtr(np.array([core + spu, core - spu]) / variance**0.5)
