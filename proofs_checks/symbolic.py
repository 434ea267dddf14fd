"""Moments of the data models derived from their definitions in SymPy: sums over all discrete draws, Gaussian moments.

Symbols: p = p_spu, q = 2 p - 1, pi and pi_s chances that the core and the spurious detail is mentioned, m_c, m_s means,
s_c, s_s standard deviations, al = alpha, be = beta, bs = beta_spu.
"""

import itertools
from typing import Any

import numpy as np
import sympy

p, pi, pi_s, m_c, m_s, s_c, s_s, al, be, bs, lam = sympy.symbols(
    "p pi pi_s m_c m_s s_c s_s alpha beta beta_spu lambda", positive=True
)
q = 2 * p - 1
INTRA = (p, pi, pi_s, m_c, m_s, s_c, s_s)


def intra_class(masking: str = "named") -> dict[str, Any]:
    """E zz^T, E zu^T, E uu^T, E[z | y] E[u | y]^T averaged over y, and the E[z | y], of docs/theory.md 1.1 and 1.3,
    draw by draw."""
    zero = sympy.zeros(2, 2)
    zz, zu, uu, between = zero, zero, zero, zero
    class_mean = []
    for y in (-1, 1):
        z_mean, u_mean = sympy.zeros(2, 1), sympy.zeros(2, 1)
        for a, core, spu in itertools.product((-1, 1), (0, 1), (0, 1)):
            chance = (p if a == y else 1 - p) * (pi if core else 1 - pi) * (pi_s if spu else 1 - pi_s)
            mention = sympy.diag(core, spu)
            z = sympy.Matrix([m_c * y, m_s * a])  # mean given y, a
            base = {"named": sympy.Matrix([m_c * y, 0]), "mean": z, "zero": sympy.zeros(2, 1)}[masking]
            u = base + mention * (z - base)
            variance = sympy.diag(s_c**2, s_s**2)
            zz += chance / 2 * (z * z.T + variance)
            zu += chance / 2 * (z * u.T + variance * mention)
            uu += chance / 2 * (u * u.T + mention * variance * mention)
            z_mean += chance * z
            u_mean += chance * u
        between += z_mean * u_mean.T / 2
        class_mean.append(z_mean)
    moments = {"zz": zz, "zu": zu, "uu": uu, "between": between}
    return {name: matrix.applyfunc(sympy.factor) for name, matrix in moments.items()} | {"class_mean": class_mean}


def inter_class(m: int) -> dict[str, Any]:
    """E zu^T and E[z | class] E[u | class]^T averaged, (2m, 2m), and the E[z | class], of docs/theory.md 1.2 and 1.3,
    masking "named"."""
    class_mean = []
    zu, between = sympy.zeros(2 * m, 2 * m), sympy.zeros(2 * m, 2 * m)
    for k, c in itertools.product(range(m), (-1, 1)):
        z_mean, u_mean = sympy.zeros(2 * m, 1), sympy.zeros(2 * m, 1)
        for a, *signs in itertools.product((-1, 1), repeat=2 * m - 1):
            chance = (p if a == c else 1 - p) / sympy.Integer(2) ** (2 * m - 2)
            foreign = iter(signs)
            core = [c if j == k else be * next(foreign) for j in range(m)]
            spu = [al * a if j == k else al * bs * next(foreign) for j in range(m)]
            z = sympy.Matrix([*core, *spu])
            # Mentions are independent of all else and u is linear in each: their mean stands for them in E zu^T.
            u = sympy.Matrix([x if j == k else pi * x for j, x in enumerate(core)] + [pi_s * x for x in spu])
            zu += chance * z * u.T / (2 * m)
            z_mean += chance * z
            u_mean += chance * u
        between += z_mean * u_mean.T / (2 * m)
        class_mean.append(z_mean)
    moments = {"zu": zu, "between": between}
    return {name: matrix.applyfunc(sympy.factor) for name, matrix in moments.items()} | {"class_mean": class_mean}


def linear_loss(s: sympy.Matrix) -> sympy.Expr:
    """The linear MMCL loss of docs/theory.md 2, pair by pair, of the scores s (n, n), without its regulariser."""
    n = s.rows
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum(s[i, j] - s[i, i] + s[j, i] - s[i, i] for i, j in pairs) / sympy.Integer(2 * n * (n - 1))


def numbers(expression, symbols: tuple, values: np.ndarray) -> np.ndarray:
    """The expression at every row of values (k, len(symbols)): (k, *shape)."""
    function = sympy.lambdify(symbols, expression, "numpy")
    return np.array([np.asarray(function(*row), float) for row in values])


def random_points(count: int, seed: int = 0) -> np.ndarray:
    """(count, 7) values of INTRA within their ranges."""
    rng = np.random.default_rng(seed)
    low = (0.5, 0.0, 0.0, 0.5, 0.2, 0.2, 0.05)
    high = (1.0, 1.0, 1.0, 2.0, 1.5, 1.5, 1.0)
    return rng.uniform(low, high, (count, 7))
