"""X1: the accuracy of max-margin supervised learning.

In the limit n, d -> inf at fixed n/d the hard-margin rule solves a convex problem in two unknowns, by the convex
Gaussian min-max theorem. Its accuracy in each group follows; where the problem has no solution, samples are almost
surely not separable.

Fails where: samples are not separable (the prediction is NaN); at small n: the error is of order 1/n. The shorter
form in docs/theory.md leaves out the noise on the two signal coordinates, a difference of that order too (T = 40.2
against 40.4).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.optimize
import sympy
from scipy.stats import norm

import mmcl_theory as mt
from mmcl_theory import theory
from proofs_checks import ambient, ledger

STATEMENT = "Max-margin SL at n/d fixed minimises |v|^2 + T(v): its accuracy is a curve, not a bound"
PICTURE = "phase_diagram_robustness.png"

curve = ambient.jit(theory.supervised_accuracy)
rule = ambient.jit(theory.max_margin_rule)


def hinge(m, s, sign=1.0, squared=True):
    """H(m, s) as printed; other arguments give wrong forms of it."""
    a = (1 - m) / s
    return ((1 - m) ** 2 + squared * s**2) * norm.cdf(a) + sign * (1 - m) * s * norm.pdf(a)


def hinge_moment(effort):
    """H(m, s) = E max(0, 1 - N(m, s^2))^2 by quadrature, against the printed closed form."""
    m, s = (x.ravel() for x in np.meshgrid([-1.0, 0.3, 1.0, 2.5], [0.2, 1.0, 3.0], indexing="ij"))
    measured = [
        scipy.integrate.quad(lambda g, m=m, s=s: (1 - m - s * g) ** 2 * norm.pdf(g), -40, (1 - m) / s, epsabs=1e-13)[0]
        for m, s in zip(m, s, strict=True)
    ]

    return ledger.judge(
        "H(m,s) = ((1-m)^2+s^2) Phi((1-m)/s) + (1-m) s phi((1-m)/s), 12 points by quadrature",
        ledger.close(measured, 1e-9),
        hinge(m, s),
        {"sign of phi": hinge(m, s, sign=-1.0), "s^2 dropped": hinge(m, s, squared=False)},
    )


def hinge_derivatives(effort):
    """dH/dm = -2 E(1-N)_+ and dH/ds = 2 s Phi: what the Newton steps use."""
    m = sympy.Symbol("m", real=True)
    s = sympy.Symbol("s", positive=True)
    a = (1 - m) / s
    phi = sympy.exp(-(a**2) / 2) / sympy.sqrt(2 * sympy.pi)
    cdf = (1 + sympy.erf(a / sympy.sqrt(2))) / 2
    h = ((1 - m) ** 2 + s**2) * cdf + (1 - m) * s * phi
    derived = sympy.Matrix([sympy.diff(h, m), sympy.diff(h, s)])
    right = sympy.Matrix([-2 * ((1 - m) * cdf + s * phi), 2 * s * cdf])
    return ledger.judge(
        "dH/dm = -2 ((1-m) Phi + s phi), dH/ds = 2 s Phi",
        ledger.algebra(derived),
        right,
        {"sign": -right, "phi dropped": sympy.Matrix([-2 * (1 - m) * cdf, 2 * s * cdf])},
    )


def slack(x, p, s_c, s_s, mu_c, mu_s, n, d, sigma, signal_noise=True):
    """sqrt(T) - sqrt((n / sigma^2) sum_r P(r) H) at x = (v_c, v_s, sqrt(T)): concave in x, >= 0 where x is feasible.

    signal_noise: the noise on the two signal coordinates, |v|^2 beside T, which the printed formula leaves out.
    """
    v_c, v_s, root = x
    size = x @ x if signal_noise else root**2
    s = np.sqrt((v_c * s_c) ** 2 + (v_s * s_s) ** 2 + sigma**2 * size / d)
    loss = p * hinge(v_c * mu_c + v_s * mu_s, s) + (1 - p) * hinge(v_c * mu_c - v_s * mu_s, s)
    return root - np.sqrt(n * loss) / sigma


def program_optimum(start, *parameters) -> np.ndarray:
    """(v_c, v_s, sqrt(T)) of X1's program by SLSQP, in units of their size at a feasible start with v = `start`.

    parameters: those of `slack`.  Raises: RuntimeError where none is feasible.
    """
    x = np.array([*start, 1.0])
    while slack(x, *parameters) < 0:
        x[2] *= 1.5
        if x[2] >= 1e6:
            raise RuntimeError("not separable")
    size = np.array([1.0, 1.0, x[2]])
    solution = scipy.optimize.minimize(
        lambda y: (y * size) @ (y * size) / size[2] ** 2,
        x / size,
        constraints={"type": "ineq", "fun": lambda y: slack(y * size, *parameters) / size[2]},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-15},
    )
    return solution.x * size


def printed_program(signal_noise: bool) -> np.ndarray:
    """(v_c, v_s, T) at the first example of docs/theory.md X1."""
    v_c, v_s, root = program_optimum((0.5, 0.5), 0.95, 1.0, 0.1, 1.0, 1.0, 1000, 2000, 2.0, signal_noise)
    return np.array([v_c, v_s, root**2])


def optimum_by_another_solver(effort):
    def prediction(p=0.95, n=1000, d=2000):
        v, t = rule(mt.intra_class(p, 1.0, 0.1), mt.observation(d, 2, 2.0, 0.0), float(n))
        return [*np.asarray(v), float(t)]

    wrong = {
        "p off by .03": prediction(p=0.92),
        "n off by 1%": prediction(n=990),
        "2d for d": prediction(d=4000),
        "noise on the signal coordinates left out": printed_program(signal_noise=False),
    }
    return ledger.judge(
        "(v_c, v_s, T) of the program with noise on all coordinates, as SLSQP finds it",
        ledger.close(printed_program(signal_noise=True), 1e-5),
        prediction(),
        wrong,
    )


def values_of_the_text(effort):
    """The shorter form of X1 has T = 40.2; with noise on all coordinates it is 40.4. Both tend to the limit."""
    ours = curve(mt.intra_class(0.9, 1.0, 0.2), mt.observation(4000, 2, 1.0, 0.0), 1000.0).conflicting
    v_c, v_s, t = printed_program(signal_noise=False)
    return ledger.judge(
        "v = (.552, .934), T = 40.2 of the shorter form; conflicting .447 at the second example of docs/theory.md X1",
        ledger.close([v_c, v_s, t / 100, ours], 5e-4),
        [0.552, 0.934, 0.402, 0.447],
        {"measured for predicted": [0.526, 0.938, 0.417, 0.439]},
    )


SIZES = (40, 80, 160)
POINT = (0.95, 1.0, 0.1)  # p, s_c, s_s of X1's first example; n/d and n/sigma^2 are kept at every n


def noise_at(n: float):
    return mt.observation(2 * round(n), 2, 2 * (n / 1000) ** 0.5, 0.0)


@functools.cache
def sampled(effort):
    """Accuracies (runs, 2) of max-margin rules of sampled images at each of SIZES."""
    samples = []
    for n in SIZES:
        single = ambient.single(mt.intra_class(*POINT), noise_at(n))
        seeds = 80_000 // n * min(effort, 4)
        x = np.asarray(ambient.max_margin(jax.random.key(n), *single, n=n, seeds=seeds))
        samples.append(x[np.isfinite(x).all(-1)])
    return samples


def sampled_images(effort):
    """The limit: intercept of a fit with n^-1, which the curve, the same at every n, is to meet in both groups.

    The next order is not in the fit. A third term, n^-2, moves the intercepts by .0008 +- .0012 (aligned) and by
    -.015 +- .017 (conflicting), so that none was seen; .002 is allowed.
    """
    average, error = ledger.means(sampled(effort))
    intercept, se = np.transpose([ledger.intercept(SIZES, average[:, k], error[:, k], (-1.0,)) for k in (0, 1)])

    def prediction(p=POINT[0], s_c=POINT[1]):
        return ambient.groups(curve(mt.intra_class(p, s_c, POINT[2]), noise_at(1000), 1000.0))

    return ledger.judge(
        "max-margin rules of 40 to 160 images at n/d = 1/2, (p,s_c,s_s) = (.95,1,.1), extrapolated, up to .002",
        ledger.estimate(intercept, se, bias=2e-3),
        prediction(),
        {
            "p off by .03": prediction(p=0.92),
            "s_c off by 8%": prediction(s_c=1.08),
            "groups swapped": prediction()[::-1],
        },
    )


def gap_to_the_curve(effort):
    """Aligned group at fixed n/d and n/sigma^2: the gap to the limit, against n."""
    average, error = ledger.means([x[:, 0] for x in sampled(effort)])
    limit = float(curve(mt.intra_class(*POINT), noise_at(1000), 1000.0).aligned)
    return ledger.judge(
        "aligned group: gap between samples and the limit at n/d = 1/2 shrinks as n^-1 (exponent)",
        ledger.rate(SIZES, average - limit, error),
        -1.0,
        {"n^-1/4": -0.25, "n^-2": -2.0},
    )


def separability(effort):
    """Where no T is finite: samples are separable with probability 0 or 1 on the two sides of the threshold."""
    n = 80 if effort == 1 else 240
    obs = mt.observation(n // 4, 2, 0.5 * (n // 4) ** 0.5, 0.0)

    def share(s_c):
        accuracies = ambient.max_margin(jax.random.key(7), mt.intra_class(0.8, s_c, 1.0), obs, n=n, seeds=16)
        return float(np.isfinite(np.asarray(accuracies)[:, 0]).mean())

    def exists(s_c):
        return float(jnp.isfinite(curve(mt.intra_class(0.8, s_c, 1.0), obs, float(n)).aligned))

    spreads = [0.1, 0.3, 2.0, 4.0]
    return ledger.judge(
        f"share of samples that are separable at s_c = .1, .3, 2, 4 against whether X1 has a solution (n = {n})",
        ledger.close([share(s) for s in spreads], 0.1),
        [exists(s) for s in spreads],
        {"always": [1.0] * 4, "never": [0.0] * 4},
    )


CHECKS = (
    hinge_moment,
    hinge_derivatives,
    optimum_by_another_solver,
    sampled_images,
    values_of_the_text,
    gap_to_the_curve,
    separability,
)
