"""The predicted accuracy of one cell, MMCL (T2) and max-margin (X1), by SciPy's root finder and minimiser.

A diagram is a loop over this. Symbols: as in `mmcl_theory.theory.supervised`, with unit means.
"""

import math

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import ndtr


def accuracy(p_spu: float, sigma_core: float, sigma_spu: float, sigma_image: float, dim: int, n: int) -> np.ndarray:
    """(MMCL aligned, conflicting, max-margin aligned, conflicting); the last two are NaN for inseparable data."""
    q = 2 * p_spu - 1
    mmcl = _accuracy(1 + sigma_core**2, q, 0.0, sigma_core, sigma_spu)
    noise = sigma_image**2 / dim
    root = sigma_image / n**0.5

    def margin(v: np.ndarray) -> float:
        """kappa with E (kappa - N)_+^2 = sigma^2/n, N ~ N(v_c + r v_s, s^2), r = +1 with probability p_spu."""
        s = math.sqrt((v[0] * sigma_core) ** 2 + (v[1] * sigma_spu) ** 2 + noise * (1 + v[0] ** 2 + v[1] ** 2))

        def excess(kappa: float) -> float:
            total = 0.0
            for weight, mean in ((p_spu, v[0] + v[1]), (1 - p_spu, v[0] - v[1])):
                a = (kappa - mean) / s
                density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
                total += weight * s * s * ((a * a + 1) * ndtr(a) + a * density)
            return total - root**2

        mean = v[0] + q * v[1]
        high = mean + root
        low = high - 1.0
        while excess(low) > 0:
            low -= 2 * (high - low)
        return brentq(excess, low, high, xtol=1e-9)

    def loss(v: np.ndarray) -> float:
        return -margin(v) / math.sqrt(1 + v @ v)

    optimum = minimize(loss, np.array([0.5, 0.5 * q]), method="BFGS", options={"gtol": 1e-6})
    if -optimum.fun < 1e-4 * root:
        return np.array([*mmcl, np.nan, np.nan])
    core, spu = optimum.x
    return np.array([*mmcl, *_accuracy(core, spu, noise * (1 + optimum.x @ optimum.x), sigma_core, sigma_spu)])


def _accuracy(core: float, spu: float, noise: float, sigma_core: float, sigma_spu: float) -> tuple[float, float]:
    s = math.sqrt((core * sigma_core) ** 2 + (spu * sigma_spu) ** 2 + noise)
    return ndtr((core + spu) / s), ndtr((core - spu) / s)
