"""X4: a spurious feature too strong for intra-class contrasting.

Most of the conflicting group is wrong as soon as q mu_s^2 > mu_c^2 + pi_core s_c^2 / (2 (1-lambda)).

CounterAnimal (arXiv 2403.11497, Theorem 1) has this model too, at mu_c = 1. Its off-diagonal of the cross-covariance is
printed 2 mu_s p - 1; the population's, and that of sampled pairs, is mu_s (2p - 1).

Fails where: the loss whitens: the scale of a feature then matters much less (X5).
"""

import jax
import jax.numpy as jnp
import numpy as np
import sympy

import mmcl_theory as mt
from mmcl_theory import theory
from proofs_checks import ambient, ledger, symbolic
from proofs_checks.symbolic import lam, m_c, m_s, pi, q, s_c

STATEMENT = "Conflicting accuracy < 1/2 iff q mu_s^2 > mu_c^2 + s_c^2 (lambda = 1/2, rich captions)"
PICTURE = "phase_diagram_robustness.png"

mean_accuracy = ambient.jit(theory.mmcl_mean_accuracy)


def threshold_from_the_moments(effort):
    """w_c mu_c - w_s mu_s for C_lambda from summed draws; its root in mu_s^2."""
    moments = symbolic.intra_class()
    c = moments["zu"] + (2 * (1 - lam) - 1) * moments["between"]
    w = c * sympy.Matrix([m_c, 0])
    square = sympy.Symbol("square", positive=True)
    lead = sympy.expand((w[0] * m_c - w[1] * m_s) / m_c**2).subs(m_s, sympy.sqrt(square))
    derived = sympy.solve(lead, square)[0]
    right = (m_c**2 + pi * s_c**2 / (2 * (1 - lam))) / q
    return ledger.judge(
        "lead of the conflicting group vanishes at mu_s^2 = (mu_c^2 + pi s_c^2 / (2 (1-lambda))) / q",
        ledger.algebra(derived),
        right,
        {"lambda dropped": right.subs(lam, 0), "pi ignored": right.subs(pi, 1), "p for q": right * q / symbolic.p},
    )


def threshold_of_the_code(effort):
    points = symbolic.random_points(50)
    p, pi_core, _, mu, _, s, _ = points.T
    p = np.maximum(p, 0.55)
    weight = np.random.default_rng(1).uniform(0, 0.9, 50)
    model = mt.intra_class(p, s, 0.2, mu)
    threshold = theory.strong_spurious_threshold(model, mt.captions(pi_core), weight)

    def printed(factor=2.0, q=2 * p - 1):
        return np.sqrt((mu**2 + pi_core * s**2 / (factor * (1 - weight))) / q)

    return ledger.judge(
        "strong_spurious_threshold = its formula, 50 random points",
        ledger.close(threshold, 1e-12),
        printed(),
        {"factor 2 dropped": printed(1.0), "p for q": printed(q=p)},
    )


def learnt_rules(effort):
    """Conflicting accuracy of ambient rules at mu_s 25% below and above the threshold."""
    obs, n = ambient.noise(30, 20, 0.2, 0.2), 1000
    base = mt.intra_class(0.9, 0.5, 0.1, 1.2)
    mu = float(theory.strong_spurious_threshold(base)) * np.array([0.75, 1.25])
    samples = [
        ambient.accuracies(4, mt.intra_class(0.9, 0.5, 0.1, 1.2, x), mt.captions(), obs, n=n, runs=60 * effort)[:, 1]
        for x in mu
    ]

    def prediction(s_c=0.5, mu=mu):
        return [
            ambient.groups(mean_accuracy(mt.intra_class(0.9, s_c, 0.1, 1.2, x), mt.captions(), obs, n))[1] for x in mu
        ]

    return ledger.judge(
        "conflicting accuracy of learnt rules 25% below and above the threshold (above and below 1/2)",
        ledger.mean(np.stack(samples, -1)),
        prediction(),
        {
            "8% farther from chance": ledger.off(prediction(), 0.5),
            "sides swapped": prediction(mu=mu[::-1]),
            "s_c off by 10%": prediction(s_c=0.55),
            "chance": [0.5, 0.5],
        },
    )


def off_diagonal(effort):
    """Mean spurious weight of rules learnt from ambient pairs: C_hat is unbiased, so no limit is taken."""
    model, obs = mt.intra_class(0.9, 1.0, 0.2, 1.0, 3.0), ambient.noise(8, 6, 0.3, 0.3)
    key = jax.random.key(14)
    w, _ = ambient.rules(
        key, model, mt.captions(), obs, jnp.asarray(0.5), rule=ambient.ordinary, n=200, runs=400 * effort
    )
    return ledger.refute(
        "CounterAnimal: Cov(z_spu, u_core) is 2 mu_s p - 1, here 4.4 (holds: mu_s (2p - 1), here 2.4)",
        ledger.mean(np.asarray(w)[:, 1]),
        2 * 3.0 * 0.9 - 1,
        3.0 * (2 * 0.9 - 1),
    )


CHECKS = (threshold_from_the_moments, threshold_of_the_code, learnt_rules, off_diagonal)
