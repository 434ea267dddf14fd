"""T4: inter-class feature sharing.

A detail that is typical of one class occurs, weakly, in the images of the others. Captions that name it there teach its
direction: the rule's core weight is A = 1 + (m-1) pi_core beta^2 against B = q for the spurious one, so enough classes
outweigh any spurious correlation. Max-margin supervised learning weighs its own pair of features alone, in the ratio
(1-beta) : (1-alpha), whatever m.

Fails where: beta = 0 (nothing is shared); captions do not name the details of other classes (T6); beta is near 1 (then
the own detail does not stand out). The supervised limit is noiseless, at p_spu = 1.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import sympy

import mmcl_theory as mt
from mmcl_theory import data, learners, theory, zero_shot
from proofs_checks import ambient, ledger, symbolic
from proofs_checks.symbolic import al, be, p, pi, pi_s, q

STATEMENT = (
    "A detail annotated in one class teaches the others: A = 1 + (m-1) pi beta^2 against B = q; SL does not share"
)
PICTURE = "phase_diagram_sharing.png"

accuracy = ambient.jit(theory.mmcl_accuracy)


def moments_from_the_definition(effort):
    """Cov(z, u) of three pairs, by summing over classes, attributes and signs."""
    m = 3
    derived = symbolic.inter_class(m)["zu"]

    def printed(shared=m - 1, q=q):
        eye = sympy.eye(m) / m
        core, spu = 1 + shared * pi * be**2, pi_s * (1 + shared * al**2)
        return sympy.Matrix(sympy.BlockMatrix([[core * eye, pi_s * q * eye], [q * eye, spu * eye]]))

    return ledger.judge(
        "Cov(z,u) of three pairs of classes = (1/m) [[1+(m-1) pi beta^2, pi_s q], [q, pi_s (1+(m-1) alpha^2)]]",
        ledger.algebra(derived),
        printed(),
        {"m for m - 1": printed(m), "p for q": printed(q=p), "nothing shared": printed(0)},
    )


def rule_of_the_code(effort):
    rng = np.random.default_rng(0)
    points = rng.uniform(size=(20, 5))  # p, alpha, beta, pi, pi_s
    caps = mt.captions(points[:, 3], points[:, 4])
    found = theory.mmcl_rule(mt.inter_class(7, points[:, 0], points[:, 1], points[:, 2]), caps)

    def printed(m=7, q=2 * points[:, 0] - 1):
        return np.stack([1 + (m - 1) * points[:, 3] * points[:, 2] ** 2, q], -1)

    return ledger.judge(
        "mmcl_rule(inter_class(m=7)) = (1 + 6 pi beta^2, q), 20 random points",
        ledger.close(found, 1e-12),
        printed(),
        {"m for m - 1": printed(8), "p for q": printed(q=points[:, 0])},
    )


def learnt_weights(effort):
    """(A, B) of rules learnt from ambient pairs, averaged over classes: C_hat is unbiased, so no limit is taken."""
    m, n, runs = 4, 60, 1000 * effort
    model, caps, obs = mt.inter_class(m, 0.9, 0.3, 0.5), mt.captions(0.6, 0.4), ambient.noise(12, 10, 0.3, 0.3)

    @ambient.jit
    def weights(key):
        def run(key):
            key_d, key_pairs = jax.random.split(key)
            d = mt.draw_dictionaries(key_d, model, obs)
            pairs = mt.sample_pairs(key_pairs, model, caps, obs, n, d)
            c = d.image.T @ learners.cross_covariance(pairs.image, pairs.text) @ d.text
            return jnp.stack([jnp.trace(c[:m, :m]), jnp.trace(c[m:, :m])])

        return jax.lax.map(run, jax.random.split(key, runs), batch_size=8)

    def prediction(model=model, caps=caps):
        return theory.mmcl_rule(model, caps)

    return ledger.judge(
        "(A, B) learnt from 60 ambient pairs of 8 classes, mean over samples",
        ledger.mean(weights(jax.random.key(0))),
        prediction(),
        {
            "p off by .03": prediction(mt.inter_class(m, 0.87, 0.3, 0.5)),
            "pi ignored": prediction(caps=mt.captions(1.0, 0.4)),
            "m for m - 1": prediction(mt.inter_class(m + 1, 0.9, 0.3, 0.5)),
        },
    )


def sampled_accuracy(effort):
    """argmax over 8 classes of the noisy population rule on sampled images, against the quadrature."""
    m, n = 4, 100_000 * effort
    model, obs = mt.inter_class(m, 0.7, 0.3, 0.5), ambient.noise(12, 10, 0.3, 0.3)
    a, b = 2.0, 0.7

    @ambient.jit
    def hits(key):
        key_d, key_pairs = jax.random.split(key)
        d = mt.draw_dictionaries(key_d, model, obs)
        pairs = mt.sample_pairs(key_pairs, model, mt.captions(), obs, n, d)
        prompts = zero_shot.latent_prompts(model)
        latent = a * prompts + b * jnp.roll(prompts, m, axis=1)
        best = (pairs.image @ d.image @ latent.T).argmax(-1)
        return best == mt.class_index(pairs.label), mt.is_aligned(pairs.label, pairs.attribute)

    samples = ambient.by_group(*hits(jax.random.key(1)))

    def prediction(sd=0.3, m=m, alpha=0.3):
        w = jnp.array([a, b])
        return ambient.groups(zero_shot.linear_rule_accuracy(mt.inter_class(m, 0.7, alpha, 0.5), w, w @ w, sd))

    return ledger.judge(
        "inter-class accuracy formula: share of test images right among 8 classes, ambient space",
        ledger.mean(samples),
        prediction(),
        {
            "noise dropped": prediction(sd=0.0),
            "m - 1 for m": prediction(m=m - 1),
            "alpha dropped": prediction(alpha=0.0),
            "groups swapped": prediction()[::-1],
        },
    )


def one_pair(effort):
    """Two classes, nothing to share: rules learnt from 1000 ambient pairs and from their halves, whose 1/n term
    cancels; what is left is of order n^-2."""
    n, runs = 1000, 200 * effort
    obs = ambient.noise(6, 5, 0.3, 0.3)

    @ambient.jit
    def measured(key, model):
        def run(key):
            key_d, key_train, key_test = jax.random.split(key, 3)
            d = mt.draw_dictionaries(key_d, model, obs)
            pairs = mt.sample_pairs(key_train, model, mt.captions(0.8), obs, n, d)
            test = mt.sample_pairs(key_test, mt.shifted(model), mt.captions(), obs, 2 * n, d)
            prompts = d.text @ zero_shot.latent_prompts(model).T
            aligned = mt.is_aligned(test.label, test.attribute)

            def share(part):
                scores = test.image @ (learners.cross_covariance(pairs.image[part], pairs.text[part]) @ prompts)
                found = zero_shot.sampled_accuracy(scores, mt.class_index(test.label), aligned)
                return jnp.stack([found.aligned, found.conflicting])

            first, second = (share(part) for part in (slice(n // 2), slice(n // 2, n)))
            return 2 * share(slice(n)) - (first + second) / 2

        return jax.lax.map(run, jax.random.split(key, runs))

    samples = np.asarray(measured(jax.random.key(2), mt.inter_class(1, 0.9, 0.3, 0.5)))[:, 1]

    def prediction(p=0.9, m=1):
        return accuracy(mt.inter_class(m, p, 0.3, 0.5), mt.captions(0.8), obs).conflicting

    return ledger.judge(
        "one pair of classes: conflicting accuracy of rules learnt from 1000 ambient pairs, on sampled images",
        ledger.mean(samples),
        prediction(),
        {
            "8% farther from chance": ledger.off(prediction(), 0.5),
            "p off by .03": prediction(p=0.87),
            "two pairs": prediction(m=2),
        },
    )


def gap_of_the_rule(effort):
    """Rules learnt from n pairs of 6 classes, scores of test images drawn in law: gap to the population's accuracy."""
    sizes, caps, obs = (50, 100, 200), mt.captions(), ambient.noise(12, 10, 0.3, 0.3)
    model, runs = mt.inter_class(3, 0.9, 0.3, 0.5), 500 * effort
    samples = [ambient.drawn_scores(jax.random.key(n), model, caps, obs, n=n, runs=runs)[:, 0] for n in sizes]

    def limit(beta=0.5):
        return float(accuracy(mt.inter_class(3, 0.9, 0.3, beta), None, obs).aligned)

    return ledger.judge(
        "aligned group, 6 classes: gap between samples of n and the population shrinks as n^-1 (exponent)",
        ledger.approach(sizes, samples),
        (-1.0, limit()),
        {"n^-1/2": (-0.5, limit()), "n^-2": (-2.0, limit()), "beta = .6": (-1.0, limit(0.6))},
    )


def when_the_conflicting_group_is_right(effort):
    """p = 1, no noise: own score A - B against the best competitor A beta + B alpha, on both sides of the threshold."""
    m, alpha = 40, 0.2
    beta = scipy.optimize.brentq(lambda b: (1 + (m - 1) * b**2) * (1 - b) - (1 + alpha), 0.01, 0.4)
    sides = mt.inter_class(m, 1.0, alpha, np.array([beta - 1e-6, beta + 1e-6]))
    found = accuracy(sides).conflicting
    return ledger.judge(
        "conflicting group turns from (nearly) all wrong to all right where A (1-beta) = B (1+alpha), m = 40",
        ledger.close(np.asarray(found), 1e-9),
        [2.0 ** -(m - 1), 1.0],
        {"turns elsewhere": [1.0, 1.0], "alpha ignored": [0.0, 0.0]},
    )


def max_margin_by_hand(effort):
    """min u^2 + v^2 with u (1-beta) + v (1-alpha) = 1, then own score minus the best competitor at conflict."""
    u, v, mult = sympy.symbols("u v mu")
    lagrangian = u**2 + v**2 - mult * (u * (1 - be) + v * (1 - al) - 1)
    found = sympy.solve([sympy.diff(lagrangian, x) for x in (u, v, mult)], (u, v, mult), dict=True)[0]
    lead = sympy.simplify((found[u] - found[v] - found[u] * be - found[v] * al) * ((1 - be) ** 2 + (1 - al) ** 2))
    derived = sympy.Matrix([found[u] * (1 - al) - found[v] * (1 - be), lead])
    right = sympy.Matrix([0, (1 - be) ** 2 - (1 - al**2)])
    return ledger.judge(
        "SL: u : v = (1-beta) : (1-alpha), and the conflicting lead has the sign of (1-beta)^2 - (1-alpha^2)",
        ledger.algebra(derived),
        right,
        {"(1-alpha)^2": sympy.Matrix([0, (1 - be) ** 2 - (1 - al) ** 2]), "sign": -right},
    )


def crammer_singer(m: int, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, class numbers of the whole population at p_spu = 1, and its hard-margin weights (2m, 2m).

    Hard margin by nonnegative least squares: with v = A^T a and a >= 0 the minimiser of |v|^2 + (1 - sum a)^2,
    v / (1 - sum a) has least norm among all with A w >= 1. Nothing is assumed of the solution's form.
    """
    images, number, rows = [], [], []
    for c, label in enumerate(np.asarray(data.class_labels(2 * m))):
        own = [abs(label) - 1, m + abs(label) - 1]
        for signs in itertools.product((-1, 1), repeat=2 * m - 2):
            z = np.zeros(2 * m)
            z[[j for j in range(2 * m) if j not in own]] = np.array(signs) * np.repeat([beta, alpha], m - 1)
            z[own] = np.sign(label)
            images.append(z)
            number.append(c)
            for other in set(range(2 * m)) - {c}:
                row = np.zeros((2 * m, 2 * m))
                row[c], row[other] = z, -z
                rows.append(row.ravel())
    constraint = np.array(rows)
    system = np.vstack([constraint.T, np.ones(len(constraint))])
    dual, _ = scipy.optimize.nnls(system, np.append(np.zeros(4 * m * m), 1.0))
    w = constraint.T @ dual / (1 - dual.sum())
    if not (constraint @ w >= 1 - 1e-9).all():
        raise RuntimeError("the hard-margin problem was not solved")
    return np.array(images), np.array(number), w.reshape(2 * m, 2 * m)


def max_margin_of_the_population(effort):
    """Weights u, v of the own pair, and accuracy on the conflicting population (attribute flipped), by counting."""
    alpha, beta, m = 0.55, 0.35, 3
    images, number, w = crammer_singer(m, alpha, beta)
    w = w - w.mean(0)
    label = np.asarray(data.class_labels(2 * m))
    pair = np.abs(label) - 1
    u = (np.sign(label) * w[np.arange(2 * m), pair]).mean()
    v = (np.sign(label) * w[np.arange(2 * m), m + pair]).mean()
    flipped = images.copy()
    flipped[np.arange(len(images)), m + pair[number]] *= -1
    scores = np.round(flipped @ w.T, 9)
    best = scores == scores.max(1, keepdims=True)
    conflicting = (best[np.arange(len(number)), number] / best.sum(1)).mean()

    def prediction(alpha, beta):
        model = mt.inter_class(m, 1.0, alpha, beta)
        return [(1 - beta) / (1 - alpha), theory.supervised_accuracy(model).conflicting]

    return ledger.judge(
        "hard margin over the whole population of 6 classes (NNLS): u/v and conflicting accuracy",
        ledger.close([u / v, conflicting], 1e-6),
        prediction(alpha, beta),
        {"alpha and beta swapped": prediction(beta, alpha), "beta = alpha": prediction(alpha, alpha)},
    )


def max_margin_of_one_pair(effort):
    """No other class to stand out of: u = v, and a conflicting image scores 0 in both classes."""
    images, number, w = crammer_singer(1, 0.55, 0.35)
    scores = np.round((images * [1, -1]) @ w.T, 9)
    best = scores == scores.max(1, keepdims=True)
    conflicting = (best[np.arange(2), number] / best.sum(1)).mean()
    w = w - w.mean(0)
    found = theory.supervised_accuracy(mt.inter_class(1, 1.0, 0.55, 0.35)).conflicting
    return ledger.judge(
        "hard margin over the whole population of one pair (NNLS): u/v = 1, conflicting accuracy 1/2, a tie",
        ledger.close([w[1, 0] / w[1, 1], conflicting], 1e-6),
        [1.0, found],
        {"(1-beta)/(1-alpha)": [0.65 / 0.45, 1.0], "(1-alpha)/(1-beta)": [0.45 / 0.65, 0.0]},
    )


CHECKS = (
    moments_from_the_definition,
    rule_of_the_code,
    learnt_weights,
    sampled_accuracy,
    one_pair,
    gap_of_the_rule,
    when_the_conflicting_group_is_right,
    max_margin_by_hand,
    max_margin_of_the_population,
    max_margin_of_one_pair,
)
