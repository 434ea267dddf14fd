"""X7: when alignment, prediction and the linear contrastive loss recover the signal.

Each method ranks coordinates by a score: CCA by k^2/sqrt((k^2+gx)(k^2+gy)), prediction of y from x by
k^2/sqrt(k^2+gx), the linear contrastive loss by k^2 alone, nuisances by the same with eta, hx, hy. It recovers the
signal where the least signal score beats the largest nuisance score.

Fails where: scores tie; samples are few (the criteria are the population's).
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import sympy

from mmcl_theory import theory
from proofs_checks import ambient, ledger

STATEMENT = "CCA, prediction and linear MMCL rank coordinates by k^2/sqrt((k^2+gx)(k^2+gy)), k^2/sqrt(k^2+gx), k^2"
PICTURE = "phase_diagram_align_predict.png"

METHODS = ("align", "predict", "contrast")


def singular_values(effort):
    """One signal, one nuisance: singular values of the whitened matrices, squared to avoid roots."""
    k, gx, gy, eta, hx, hy = sympy.symbols("k g_x g_y eta h_x h_y", positive=True)
    s_xx, s_yy, s_xy = sympy.diag(k**2 + gx, hx), sympy.diag(k**2 + gy, hy), sympy.diag(k**2, eta)
    squares = [s_xx.inv() * s_xy * s_yy.inv() * s_xy.T, s_xx.inv() * s_xy * s_xy.T, s_xy * s_xy.T]
    derived = sympy.Matrix([[m[0, 0], m[1, 1]] for m in squares])
    right = sympy.Matrix(
        [
            [k**4 / ((k**2 + gx) * (k**2 + gy)), eta**2 / (hx * hy)],
            [k**4 / (k**2 + gx), eta**2 / hx],
            [k**4, eta**2],
        ]
    )
    swapped = right.subs({gx: gy, gy: gx, hx: hy, hy: hx}, simultaneous=True)
    return ledger.judge(
        "squared singular values of S_xx^-1/2 S_xy S_yy^-1/2, S_xx^-1/2 S_xy and S_xy are the printed scores",
        ledger.algebra(derived),
        right,
        {"x and y swapped": swapped, "g dropped": right.subs({gx: 0, gy: 0})},
    )


def cases(count, seed=0):
    """k, gx, gy of two signals and eta, hx, hy of three nuisances, at random."""
    rng = np.random.default_rng(seed)
    k, gx, gy = rng.uniform(0.3, 1.5, (count, 2)), rng.uniform(0, 2, (count, 2)), rng.uniform(0, 2, (count, 2))
    hx, hy = rng.uniform(0.2, 3, (count, 3)), rng.uniform(0.2, 3, (count, 3))
    return k, gx, gy, rng.uniform(0, 1, (count, 3)) * np.sqrt(hx * hy), hx, hy


def recovered_by_decompositions(k, gx, gy, eta, hx, hy) -> list[bool]:
    """Does the leading image subspace of each method hold the two signals, which are rotated among the nuisances?"""
    rotate_x, rotate_y = (np.linalg.qr(np.random.default_rng(i).normal(size=(5, 5)))[0] for i in (0, 1))
    s_xx = rotate_x @ np.diag(np.r_[k**2 + gx, hx]) @ rotate_x.T
    s_yy = rotate_y @ np.diag(np.r_[k**2 + gy, hy]) @ rotate_y.T
    s_xy = rotate_x @ np.diag(np.r_[k**2, eta]) @ rotate_y.T
    root_x, root_y = (np.linalg.inv(scipy.linalg.sqrtm(s)) for s in (s_xx, s_yy))
    recovered = []
    for matrix, back in ((root_x @ s_xy @ root_y, root_x), (root_x @ s_xy, root_x), (s_xy, np.eye(5))):
        basis = np.linalg.qr(back @ np.linalg.svd(matrix)[0][:, :2])[0]
        recovered.append(np.linalg.svd(rotate_x[:, :2].T @ basis, compute_uv=False).min() > 0.5)
    return recovered


def found_by_decompositions(effort):
    arguments = cases(200 * effort)
    rows = [recovered_by_decompositions(*case) for case in zip(*arguments, strict=True)]

    def prediction(*arguments):
        ratios = theory.recovery(*arguments)
        return np.stack([np.asarray(getattr(ratios, m)) > 1 for m in METHODS], -1)

    k, gx, gy, eta, hx, hy = arguments
    return ledger.judge(
        "which of CCA, reduced-rank regression and PLS recovers both signals, 200 random covariances",
        ledger.close(np.array(rows, float), 0.1),
        prediction(*arguments),
        {
            "x and y swapped": prediction(k, gy, gx, eta, hy, hx),
            "g dropped": prediction(k, 0 * gx, 0 * gy, eta, hx, hy),
            "eta off by 10%": prediction(k, gx, gy, 0.9 * eta, hx, hy),
            "methods swapped": prediction(*arguments)[:, ::-1],
        },
    )


def sampled_pairs(effort):
    """One signal and one nuisance, n = 200,000 Gaussian samples, 15% on either side of each criterion."""
    n, runs = 200_000, 4 * effort

    @ambient.jit
    def recovered(key, k, gx, gy, eta, hx, hy):
        def run(key):
            parts = ((k**2 + gx, hx), (k**2 + gy, hy), (k**2, eta))
            s_xx, s_yy, s_xy = (jnp.diag(jnp.array(part)) for part in parts)
            root = jnp.linalg.cholesky(jnp.block([[s_xx, s_xy], [s_xy, s_yy]]))
            draws = jax.random.normal(key, (n, 4)) @ root.T
            x, y = draws[:, :2], draws[:, 2:]
            c_xx, c_yy, c_xy = x.T @ x / n, y.T @ y / n, x.T @ y / n
            squares = (
                jnp.linalg.solve(c_xx, c_xy) @ jnp.linalg.solve(c_yy, c_xy.T),
                jnp.linalg.solve(c_xx, c_xy @ c_xy.T),
                c_xy @ c_xy.T,
            )

            def leads(m):
                values, vectors = jnp.linalg.eig(m)
                top = vectors[:, jnp.argmax(values.real)].real
                return jnp.abs(top[0]) > jnp.abs(top[1])

            return jnp.stack([leads(m) for m in squares])

        return jax.lax.map(run, jax.random.split(key, runs)).mean(0)

    base = {"gx": 0.8, "gy": 0.4, "hx": 0.9, "hy": 2.0}
    critical = [(1.8 / (1.8 * 1.4)) ** 0.5, (0.9 / 1.8) ** 0.5, 1.0]  # CCA, prediction, linear MMCL
    etas = [c * f for c in critical for f in (0.85, 1.15)]
    measured = [recovered(jax.random.key(i), 1.0, eta=eta, **base) for i, eta in enumerate(etas)]

    def prediction(**changes):
        ratios = [theory.recovery(1.0, eta=eta, **(base | changes)) for eta in etas]
        return [[float(getattr(r, m) > 1) for m in METHODS] for r in ratios]

    return ledger.judge(
        "share of samples of 200,000 in which each method's leading direction is the signal, 6 settings",
        ledger.close(np.array(measured), 0.05),
        prediction(),
        {"g dropped": prediction(gx=0.0, gy=0.0), "hx doubled": prediction(hx=1.8)},
    )


CHECKS = (singular_values, found_by_decompositions, sampled_pairs)
