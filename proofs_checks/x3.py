"""X3: how much intra-class contrasting.

Giving an anchor's negatives of its own class the total weight lambda changes the cross-covariance to S_W + (1-lambda)
K/(K-1) S_B: more intra-class contrasting weakens the class means, and with them the spurious one. In the population
lambda = 1 is best; in n samples the signal shrinks while the noise does not, and the best lambda is smaller.

Fails where: pi_core s_c = 0 (nothing is left at lambda = 1); at very small n, where the 1/n terms count.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from scipy.stats import norm

import mmcl_theory as mt
from mmcl_theory import losses, theory
from proofs_checks import ambient, ledger

STATEMENT = (
    "Same-class weight lambda: C_lambda = S_W + (1-lambda) K/(K-1) S_B; at finite n the best lambda may be interior"
)
PICTURE = "phase_diagram_same_class_weight.png"

accuracy = ambient.jit(theory.mmcl_accuracy)
mean_accuracy = ambient.jit(theory.mmcl_mean_accuracy)
optimum = ambient.jit(theory.optimal_same_class_weight)


def loss_by_classes(effort):
    """Population loss as a sum over classes: negatives within and across K = 2, 3 balanced classes, in SymPy.

    With E[x | y], E[t | y] = m_y, n_y, within-class covariance S (scalars: one image and one text dimension, W = 1),
    an anchor of class y with a negative of class y' contributes E[x t'] - E[x t] = m_y n_y' - (S + m_y n_y).
    """
    lam, s = sympy.symbols("lambda S")
    derived, right, wrong = [], [], []
    for k in (2, 3):
        m, n = sympy.symbols(f"m:{k}"), sympy.symbols(f"n:{k}")
        loss = 0
        for y, other in itertools.product(range(k), repeat=2):
            weight = lam if y == other else (1 - lam) / (k - 1)
            loss += weight * (m[y] * n[other] + m[other] * n[y] - 2 * (s + m[y] * n[y])) / (2 * sympy.Integer(k))
        mean_m, mean_n = sum(m) / k, sum(n) / k
        between = sum((a - mean_m) * (b - mean_n) for a, b in zip(m, n, strict=True)) / k
        derived.append(loss)
        right.append(-(s + (1 - lam) * k / sympy.Integer(k - 1) * between))
        wrong.append(-(s + (1 - lam) * between))
    return ledger.judge(
        "linear loss with same-class weight = -<W, S_W + (1-lambda) K/(K-1) S_B>, K = 2, 3",
        ledger.algebra(sympy.Matrix(derived)),
        sympy.Matrix(right),
        {"K/(K-1) dropped": sympy.Matrix(wrong), "lambda for 1 - lambda": sympy.Matrix(right).subs(lam, 1 - lam)},
    )


def neutral_weight(effort):
    """lambda = 1/K is the ordinary loss, both models, both prompts."""
    rules, right, wrong = [], [], []
    for model in (mt.intra_class(0.9, 0.8, 0.3, 1.1, 0.7), mt.inter_class(4, 0.9, 1.0, 0.4, 0.3)):
        for prompts in ("core", "train_mean"):
            caps, k = mt.captions(0.3, 0.6), model.num_classes
            rules.append(theory.mmcl_rule(model, caps, same_class_weight=1 / k, prompts=prompts))
            right.append(theory.mmcl_rule(model, caps, prompts=prompts))
            wrong.append(theory.mmcl_rule(model, caps, same_class_weight=1 / (k + 1), prompts=prompts))
    return ledger.judge(
        "lambda = 1/K changes nothing, both data models and prompts",
        ledger.close(rules, 1e-12),
        right,
        {"1/(K+1)": wrong},
    )


def several_classes(effort):
    """(A, B) of C_lambda p with K = 6 classes, from ambient pairs."""
    model, caps, obs = mt.inter_class(3, 0.9, 1.0, 0.4, 0.3), mt.captions(0.5, 0.7), ambient.noise(9, 8, 0.2, 0.2)
    weight = 0.4
    samples = ambient.own_weights(jax.random.key(0), model, caps, obs, weight, n=90, runs=600 * effort)

    def prediction(weight=weight, caps=caps):
        return theory.mmcl_rule(model, caps, same_class_weight=weight)

    return ledger.judge(
        "(A, B) learnt at lambda = .4 from 90 ambient pairs of 6 classes, mean over samples",
        ledger.mean(samples),
        prediction(),
        {
            "K = 2: K/(K-1) = 2": prediction(1 - (1 - weight) * 2 * 5 / 6),
            "K/(K-1) dropped": prediction(1 - (1 - weight) * 5 / 6),
            "lambda ignored": prediction(1 / 6),
            "pi ignored": prediction(caps=mt.captions(1.0, 0.7)),
        },
    )


def values_and_limit(effort):
    model = mt.intra_class(0.99, 1.0, 0.1)
    ours = accuracy(model, same_class_weight=np.array([0.0, 0.5, 1.0])).shifted
    return ledger.judge(
        "acc_P* at lambda = 0, 1/2, 1 for (p,s_c,s_s) = (.99,1,.1): .793, .813, Phi(mu_c/s_c)",
        ledger.close([*ours, ours[2]], 5e-4),
        [0.793, 0.813, 0.841, norm.cdf(1)],
        {"lambda for 1 - lambda": [0.841, 0.813, 0.793, norm.cdf(1)]},
    )


def learnt_rules(effort):
    """X3's finite-sample example at three weights, ambient."""
    model, obs, n = mt.intra_class(0.99, 0.5, 0.1), ambient.noise(2000, 2, 0.3, 0.3), 200
    weights = (0.0, 0.5, 1.0)
    samples = [ambient.accuracies(3, model, mt.captions(), obs, x, n=n, runs=24 * effort) for x in weights]

    def prediction(p=0.99, weights=weights, n=n):
        model = mt.intra_class(p, 0.5, 0.1)
        if n is None:
            return [ambient.groups(accuracy(model, None, obs, same_class_weight=x)) for x in weights]
        return [ambient.groups(mean_accuracy(model, mt.captions(), obs, n, x)) for x in weights]

    return ledger.judge(
        "accuracy of rules learnt at lambda = 0, 1/2, 1 from 200 pairs in 2000 dimensions",
        ledger.mean(np.stack(samples, 1)),
        prediction(),
        {
            "8% farther from chance": ledger.off(prediction(), 0.5),
            "n dropped": prediction(n=None),
            "lambda for 1 - lambda": prediction(weights=weights[::-1]),
            "lambda ignored": prediction(weights=(0.5,) * 3),
            "p off by .1": prediction(p=0.89),
        },
    )


def gap_of_the_weighted_rule(effort):
    """lambda = .8: mean accuracy over samples minus that of C_lambda, at fixed dimensions, against n."""
    model, obs, sizes = mt.intra_class(0.99, 0.5, 0.1), ambient.noise(60, 10, 0.5, 0.5), (200, 400, 800, 1600)
    runs = 4000 * effort
    samples = [ambient.drawn_accuracies(n, model, mt.captions(), obs, 0.8, n=n, runs=runs)[:, 0] for n in sizes]

    def limit(weight=0.8):
        return float(accuracy(model, None, obs, same_class_weight=weight).aligned)

    return ledger.judge(
        "aligned group at lambda = .8: gap between samples of n and C_lambda's rule shrinks as n^-1 (exponent)",
        ledger.approach(sizes, samples),
        (-1.0, limit()),
        {"n^-1/2": (-0.5, limit()), "n^-2": (-2.0, limit()), "lambda ignored": (-1.0, limit(0.5))},
    )


def interior_optimum(effort):
    """The best lambda at finite n, against a grid; in the population it is 1."""
    model, obs = mt.intra_class(0.99, 0.5, 0.1), ambient.noise(2000, 2, 0.3, 0.3)
    grid = np.linspace(0, 1, 4001)
    value = np.asarray(accuracy(model, None, obs, 200.0, same_class_weight=grid).shifted)
    optimal = optimum(model, None, obs, 200.0)
    best = grid[value.argmax()]
    return ledger.judge(
        f"best lambda at n = 200 is inside, {best:.3f}; the best of 4001 grid points",
        ledger.close([best, value.max()], 1e-3),
        [optimal.same_class_weight, optimal.shifted],
        {
            "the population's, 1": [1.0, optimum(model, None).shifted],
            "n doubled": [optimum(model, None, obs, 400.0).same_class_weight, optimal.shifted],
        },
    )


def gain_of_the_optimum(effort):
    """Same samples: accuracy at the predicted best lambda minus that at lambda = 1."""
    model, obs, n = mt.intra_class(0.99, 0.5, 0.1), ambient.noise(2000, 2, 0.3, 0.3), 200
    best = float(optimum(model, None, obs, float(n)).same_class_weight)
    how = {"n": n, "runs": 1500 * effort}
    samples = [ambient.drawn_accuracies(1, model, mt.captions(), obs, x, **how).mean(-1) for x in (best, 1.0)]

    def prediction(n=n):
        if n is None:
            at = [accuracy(model, None, obs, same_class_weight=x).shifted for x in (best, 1.0)]
        else:
            at = [mean_accuracy(model, mt.captions(), obs, n, x).shifted for x in (best, 1.0)]
        return float(at[0] - at[1])

    return ledger.judge(
        "gain in acc_P* of the best lambda over lambda = 1, measured on the same samples, drawn in law",
        ledger.mean(samples[0] - samples[1]),
        prediction(),
        {"no gain": 0.0, "8% more": ledger.off(prediction()), "the population's loss": prediction(n=None)},
    )


def weights_in_info_nce(effort):
    """InfoNCE with log-weights: its gradient at W = 0 is the weighted linear loss's."""
    rng = np.random.default_rng(0)
    x, t, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 3)), jnp.asarray(rng.integers(0, 2, 12))
    weight = 0.3

    def gradient(loss, weight=weight):
        return ambient.jit(jax.grad(lambda w: loss(x @ w, jnp.asarray(t), labels=y, same_class_weight=weight)))(
            jnp.zeros((3, 3))
        )

    linear = gradient(losses.linear_mmcl)
    share = jnp.asarray(11 / 12)  # the positive is in the denominator: n - 1 of n terms are negatives
    return ledger.judge(
        "gradient at W = 0: InfoNCE with weighted negatives = (n-1)/n times the weighted linear loss",
        ledger.close(gradient(losses.info_nce), 1e-12),
        linear * share,
        {"(n-1)/n dropped": linear, "lambda = .5": gradient(losses.linear_mmcl, 0.5) * share},
    )


CHECKS = (
    loss_by_classes,
    neutral_weight,
    several_classes,
    values_and_limit,
    learnt_rules,
    gap_of_the_weighted_rule,
    interior_optimum,
    gain_of_the_optimum,
    weights_in_info_nce,
)
