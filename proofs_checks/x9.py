"""X9: sampling what is learnt without the ambient dimension, and without the samples.

The rule that the untruncated linear loss learns depends on the images only through their latent coordinates and a
Gaussian remainder, whose squared norm is a multiple of chi^2 with d_I - 2 degrees of freedom. Going further, given the
group of a sample (label, attribute, what is mentioned) all is Gaussian, so that group counts and two statistics of the
text scores in each group give the rule: a run with n = 10^9 samples costs what one with ten does. The Gram matrix that
a supervised learner sees is that of the latent coordinates plus a Wishart matrix.

Fails where: the embedding truncates (the law of the whole cross-covariance matters); the learner is not rotation
invariant.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import sympy

import mmcl_theory as mt
from mmcl_theory import learners, theory, zero_shot
from proofs_checks import ambient, ledger

STATEMENT = "The linear loss's rule can be drawn exactly in law at a cost free of d, and of n by sufficient statistics"

accuracy = ambient.jit(zero_shot.linear_rule_accuracy)

COLUMNS = "w, |w_perp|^2, group accuracies"


def setting(d, p=0.9, pi=(0.6, 0.7), d_text=9):
    """Model, captions, observation with much noise, so that every part of the law counts."""
    return mt.intra_class(p, 0.8, 0.3), mt.captions(*pi), ambient.noise(d, d_text, 0.6, 0.5)


def columns(model, obs, weights, norm):
    """(runs, 5): COLUMNS."""
    group = accuracy(model, weights, norm, obs.sd_image)
    return np.column_stack([weights, norm - (weights**2).sum(-1), group.aligned, group.conflicting])


def ambient_runs(seed, n, d, runs, knob=0.5, **changes):
    model, caps, obs = setting(d, **changes)
    w, norm = ambient.rules(
        jax.random.key(seed), model, caps, obs, jnp.asarray(knob), rule=ambient.linear, n=n, runs=runs
    )
    return columns(model, obs, w, norm)


@functools.partial(ambient.jit, static_argnames=("n", "runs"))
def _by_latents(key, model, caps, obs, n, weight, *, runs):
    return jax.vmap(lambda key: learners.sample_rule_latent(key, model, caps, obs, n, weight))(
        jax.random.split(key, runs)
    )


def drawn(sampler, seed, n, d, runs, knob=0.5, **changes):
    model, caps, obs = setting(d, **changes)
    w, norm = sampler(jax.random.key(seed), model, caps, obs, n, jnp.asarray(knob), runs=runs)
    return columns(model, obs, w, norm)


def sums_of_a_group(effort):
    """c_i = A t_i + B in a group: sum c_i^2 and sum c_i (t_i - mu) by its mean and scatter, four samples."""
    n, a, b, mu = 4, *sympy.symbols("A B mu")
    t = sympy.symbols(f"t:{n}")
    average = sum(t) / sympy.Integer(n)
    scatter = sum((x - average) ** 2 for x in t)
    c = [a * x + b for x in t]
    c_bar = a * average + b
    derived = sympy.Matrix([sum(x**2 for x in c), sum(x * (y - mu) for x, y in zip(c, t, strict=True))])

    def printed(cross=1):
        return sympy.Matrix([n * c_bar**2 + a**2 * scatter, n * c_bar * (average - mu) + cross * a * scatter])

    return ledger.judge(
        "sum c_i^2 = n c_bar^2 + A^2 S and sum c_i (t_i - mu) = n c_bar (t_bar - mu) + A S",
        ledger.algebra(derived),
        printed(),
        {"scatter dropped": printed(0), "A for A^2": sympy.Matrix([n * c_bar**2 + a * scatter, printed()[1]])},
    )


def without_the_dimension(effort):
    n, d, runs = 60, 8, 2000 * effort
    sampler = _by_latents
    return ledger.judge(
        f"latents and chi^2 against ambient runs, n = {n}, d_I = {d}: law of {COLUMNS}",
        ledger.same_law(ambient_runs(1, n, d, runs)),
        drawn(sampler, 2, n, d, runs),
        {
            "d_I off by 2": drawn(sampler, 2, n, d + 2, runs),
            "p off by .05": drawn(sampler, 2, n, d, runs, p=0.85),
            "pi ignored": drawn(sampler, 2, n, d, runs, pi=(1.0, 1.0)),
            "n off by 20%": drawn(sampler, 2, 48, d, runs),
        },
    )


def without_the_samples(effort):
    """Two sizes, and the largest of docs/theory.md X9 in the full profile: the largest z over them."""
    sizes, runs = ((8, 30), (60, 30), (400, 800))[: 2 if effort == 1 else 3], 1000 * effort
    sampler = ambient.drawn_rules
    measured = [ambient_runs(3, n, d, runs) for n, d in sizes]

    def prediction(**changes):
        return np.hstack([drawn(sampler, 4, n, d, runs, **changes) for n, d in sizes])

    return ledger.judge(
        f"sufficient statistics against ambient runs, (n, d_I) = {str(sizes)[1:-1]}: {COLUMNS}",
        ledger.same_law(np.hstack(measured)),
        prediction(),
        {
            "p off by .05": prediction(p=0.85),
            "pi ignored": prediction(pi=(1.0, 1.0)),
            "lambda = .3": prediction(knob=0.3),
        },
    )


def few_samples(effort):
    """n = 3, some groups empty, one class without a second sample; no intra-class contrasting and only that."""
    runs, d = 1000 * effort, 30
    sampler = ambient.drawn_rules
    cases = [(3, 0.0, 0.9, (0.6, 0.7)), (3, 0.3, 1.0, (0.0, 1.0)), (5, 1.0, 0.9, (0.5, 0.5))]
    measured = [ambient_runs(5, n, d, runs, knob, p=p, pi=pi)[:, :3] for n, knob, p, pi in cases]

    def prediction(shift=0.0, more=0):
        return np.hstack(
            [drawn(sampler, 6, n + more, d, runs, abs(knob - shift), p=p, pi=pi)[:, :3] for n, knob, p, pi in cases]
        )

    return ledger.judge(
        "n = 3, 3, 5, lambda = 0, .3, 1, empty groups: law of w, |w_perp|^2",
        ledger.same_law(np.hstack(measured)),
        prediction(),
        {"lambda off by .3": prediction(shift=0.3), "n + 1": prediction(more=1)},
    )


def a_billion_samples(effort):
    """The law of sqrt(n) (w - population) has a limit: n = 10^9, drawn, against ambient runs with n = 2000."""
    d, runs = 30, 1000 * effort

    def population(p=0.9, pi=0.6):
        return np.asarray(theory.mmcl_rule(mt.intra_class(p, 0.8, 0.3), mt.captions(pi, 0.7)))

    measured = 2000**0.5 * (ambient_runs(7, 2000, d, runs)[:, :2] - population())
    weights = drawn(ambient.drawn_rules, 8, 10**9, d, runs)[:, :2]

    def prediction(scale=1.0, center=None):
        return scale * 1e9**0.5 * (weights - (population() if center is None else center))

    return ledger.judge(
        "n = 10^9 drawn, n = 2000 in the ambient space: law of sqrt(n) (w - the population's rule)",
        ledger.same_law(measured),
        prediction(),
        {
            "spread doubled": prediction(scale=2.0),
            "p off by 1e-4": prediction(center=population(p=0.9 - 1e-4)),
            "pi off by 1e-4": prediction(center=population(pi=0.6 - 1e-4)),
        },
    )


def several_classes(effort):
    """Inter-class: argmax accuracy of learnt rules on drawn scores against ambient test images."""
    model, caps, obs = mt.inter_class(3, 0.9, 1.0, 0.5, 0.3), mt.captions(0.6), ambient.noise(12, 9, 0.7, 0.3)
    n, runs = 30, 200 * effort

    def from_images(key):
        key_d, key_train, key_test = jax.random.split(key, 3)
        d = mt.draw_dictionaries(key_d, model, obs)
        pairs = mt.sample_pairs(key_train, model, caps, obs, n, d)
        test = mt.sample_pairs(key_test, mt.shifted(model), caps, obs, 400, d)
        c = learners.cross_covariance(pairs.image, pairs.text)
        return ambient.shares(test.image @ (c @ (zero_shot.latent_prompts(model) @ d.text.T).T), test)

    def in_law(model=model, obs=obs):
        return ambient.drawn_scores(jax.random.key(9), model, caps, obs, n=n, runs=runs)

    return ledger.judge(
        "6 classes: accuracy of learnt rules from drawn scores and from ambient images (30 pairs, d_I = 12)",
        ledger.same_law(ambient.repeated(from_images, jax.random.key(8), runs)),
        in_law(),
        {
            "d_I tripled": in_law(obs=ambient.noise(36, 9, 0.7, 0.3)),
            "p = .6": in_law(mt.inter_class(3, 0.6, 1.0, 0.5, 0.3)),
        },
    )


def gram_matrix(effort):
    """Max-margin from drawn Gram matrices against max-margin of ambient images."""
    model, n, d, seeds = mt.intra_class(0.8, 0.8, 0.3), 24, 40, 400 * effort

    @functools.partial(ambient.jit, static_argnames=("d",))
    def in_law(key, model, d=d):
        obs = ambient.noise(d, 2, 0.6, 0.0)

        def run(key):
            gram, observed, label = learners.sample_gram(key, model, obs, n)
            fit = learners.max_margin_dual(gram, label)
            w, norm = learners.dual_rule(fit.dual * label, gram, observed)
            return ambient.groups(zero_shot.linear_rule_accuracy(model, w, norm, obs.sd_image))

        return jax.lax.map(run, jax.random.split(key, seeds))

    measured = ambient.max_margin(jax.random.key(10), model, ambient.noise(d, 2, 0.6, 0.0), n=n, seeds=seeds)
    key = jax.random.key(11)
    return ledger.judge(
        "max-margin accuracy from drawn Gram matrices and from ambient images (24 images, d_I = 40)",
        ledger.same_law(measured),
        in_law(key, model),
        {"d_I tenfold": in_law(key, model, d=400), "p = .7": in_law(key, mt.intra_class(0.7, 0.8, 0.3))},
    )


CHECKS = (
    sums_of_a_group,
    without_the_dimension,
    without_the_samples,
    few_samples,
    a_billion_samples,
    several_classes,
    gram_matrix,
)
