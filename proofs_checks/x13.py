"""X13: any mixture of Gaussian groups, and captions that may err.

Classes of any number and weight, groups of any latent mean and covariance, captions by group and coordinate that leave
out, blur or mistake what they name: the rule of every loss follows from moments by class, and its accuracy in a group
is the probability that K - 1 Gaussian score differences are positive. The paper's first model is the case of four
groups. A linear probe on the learnt encoder, unlike the zero-shot rule, takes the shortcut whatever the captions say.

Fails where: n is small (corrections of order 1/n); SL of more than two classes (no formula here).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import mmcl_theory as mt
from mmcl_theory import learners, losses, theory
from proofs_checks import ambient, ledger

STATEMENT = "Any mixture of Gaussian groups: every loss's rule from class moments, accuracies as orthant probabilities"
PICTURE = "model_three_classes.png"
CAPTION = """
Three classes, two of which share a background. Lines are predictions from moments by class. Points are rules in closed
form from 1,000 pairs, means over 20 runs with 95% intervals. A probe on the encoder of the linear loss takes the
shortcut however often captions name the background: it has .67 on P*, and the zero-shot rule of that loss .77. These
captions make no errors; [captions with errors](../models.md#captions-with-errors) has a figure of those that do.
"""

accuracy = ambient.jit(theory.mmcl_accuracy, static_argnames=("embed_dim",))
whitened = ambient.jit(theory.whitened_accuracy)
ridge = ambient.jit(theory.ridge_accuracy)
supervised = ambient.jit(theory.supervised_accuracy)
optimum = ambient.jit(theory.info_nce_optimum, static_argnames=("nodes", "points"))
probe = ambient.jit(theory.probe_accuracy, static_argnames=("embed_dim",))


def three_classes() -> mt.data.Mixture:
    """Three unequal classes with a shared background, four correlated latents, covariances by group."""
    rng = np.random.default_rng(0)
    weight = np.array([0.38, 0.02, 0.25, 0.05, 0.06, 0.24])
    classes = [0, 0, 1, 1, 2, 2]
    core = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])[classes]
    background = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    mean = np.column_stack([core, background, 0.4 * background + 0.3 * core[:, 0]])
    root = 0.45 * rng.normal(size=(6, 4, 4)) / 2
    covariance = root @ root.mT + np.diag([0.5, 0.4, 0.03, 0.1])
    return mt.mixture(weight, mean, covariance, classes)


def two_classes() -> mt.data.Mixture:
    """Two unequal classes, p_spu .95 and .7 by class, four correlated latents, of greater spread in one class."""
    rng = np.random.default_rng(1)
    weight = np.array([0.7 * 0.95, 0.7 * 0.05, 0.3 * 0.3, 0.3 * 0.7])
    mean = np.array([[-1.0, -1.0, -0.3, 0.2], [-1.0, 1.0, 0.3, 0.2], [1.0, -1.0, -0.2, -0.1], [1.0, 1.0, 0.4, -0.1]])
    root = 0.4 * rng.normal(size=(4, 4, 4)) / 2
    covariance = root @ root.mT + np.diag([0.6, 0.05, 0.2, 0.3])
    covariance[:2] *= 3
    return mt.mixture(weight, mean, covariance, [0, 0, 1, 1])


def two_latents() -> mt.data.Mixture:
    """The two classes in their first two latents."""
    whole = two_classes()
    return mt.mixture(whole.weight, whole.mean[:, :2], whole.covariance[:, :2, :2], whole.classes)


def poor_captions(model: mt.data.Mixture, **change) -> mt.data.GroupCaptions:
    """Captions that leave out, blur and mistake details, at rates that differ by coordinate, with some replaced."""
    faults = {"mention": [0.9, 0.7, 0.6, 0.4], "wrong": [0.1, 0.4, 0.25, 0.0], "blur": [0.0, 0.3, 0.2, 0.5]}
    return mt.group_captions(model, **(faults | change))


def growing(n: int):
    """Noise in dimensions that grow with n."""
    return ambient.noise(n // 2, n // 4, 0.8, 0.6)


def few_dimensions(n: int):
    """Noise in the same dimensions at every n."""
    return ambient.noise(8, 6, 0.4, 0.3)


def equal_weights(model: mt.data.Mixture) -> mt.data.Mixture:
    """The same groups with the weights of P*, in training too."""
    return model.shifted()


def pair_formulas(effort):
    """T2, T5, X2, X3, X5, X11 and X1 of the intra-class model, by its four groups."""
    model, obs = mt.intra_class(0.95, 0.8, 0.3, 1.1, 0.7), ambient.noise(300, 240, 0.5, 0.6)
    caps = mt.captions(0.6, 0.8)

    def numbers(model, caps):
        results = [
            accuracy(model, caps),
            accuracy(model, caps, obs, 600.0),
            accuracy(model, caps, obs, 600.0, embed_dim=2),
            accuracy(model, caps, obs, 600.0, same_class_weight=0.8),
            whitened(model, caps, obs, 0.6),
            whitened(model, caps, obs),
            ridge(model, caps, obs, 0.7),
            supervised(model, ambient.noise(2000, 2, 0.05, 0.1), 1000.0),
        ]
        if isinstance(model, mt.data.IntraClass):
            return np.array([[x.aligned, x.conflicting, x.conflicting, x.aligned] for x in results])
        return np.array([x.by_group for x in results])

    def by_groups(model, caps):
        return numbers(model.as_mixture(), caps.as_group_captions(model))

    right = by_groups(model, caps)
    return ledger.judge(
        "four groups give the intra-class numbers of T2, T5, X1, X2, X3, X5, X11",
        ledger.close(numbers(model, caps), 1e-10),
        right,
        {
            "groups swapped": right[:, [1, 0, 3, 2]],
            "p off by 1e-6": by_groups(mt.intra_class(0.950001, 0.8, 0.3, 1.1, 0.7), caps),
            "what is not mentioned is 0": by_groups(model, mt.captions(0.6, 0.8, "zero")),
        },
    )


def moments_of_captions(effort):
    """Second moments of z and u in each class, from samples, captions with all their faults."""
    model = three_classes()
    caps, n = poor_captions(model), 2000 * effort

    def run(key):
        key_z, key_u = jax.random.split(key)
        latents = model.sample(key_z, n)
        code = caps.sample(key_u, model, latents)
        member = jax.nn.one_hot(mt.class_index(latents.label), 3, dtype=float) / n
        pairs = ((latents.z, code), (code, code), (latents.z, latents.z))
        second = [jnp.einsum("nk,ni,nj->kij", member, a, b).ravel() for a, b in pairs]
        return jnp.concatenate([(member.T @ code).ravel(), *second])

    def prediction(caps):
        mom = model.class_moments(caps)
        weight = np.asarray(mom.weight)[:, None, None]

        def second(covariance, a, b):
            return weight * (np.asarray(covariance) + np.asarray(a)[:, :, None] * np.asarray(b)[:, None, :])

        parts = (
            weight[:, 0] * mom.u_mean,
            second(mom.zu, mom.z_mean, mom.u_mean),
            second(mom.uu, mom.u_mean, mom.u_mean),
            second(mom.zz, mom.z_mean, mom.z_mean),
        )
        return np.concatenate([np.ravel(x) for x in parts])

    return ledger.judge(
        "E[u; y], E[z u^T; y], E[u u^T; y], E[z z^T; y] of three classes, captions that leave out, blur and mistake",
        ledger.mean(ambient.repeated(run, jax.random.key(0), 200)),
        prediction(caps),
        {
            "errors ignored": prediction(poor_captions(model, wrong=0.0)),
            "blur ignored": prediction(poor_captions(model, blur=0.0)),
            "mentions off by .03": prediction(poor_captions(model, mention=[0.87, 0.73, 0.57, 0.43])),
            "unmentioned is the group's mean": prediction(poor_captions(model, base="mean")),
        },
    )


def counted_accuracies(effort):
    """The orthant probabilities of random rules with noise, K = 2, 3 and 5, against images counted."""
    claims, right, in_the_span, alone = [], [], [], []
    for k in (2, 3, 5):
        rng = np.random.default_rng(k)
        mean, root = rng.normal(size=(k, 3)) / 2, rng.normal(size=(k, 3, 3)) / 2
        model = mt.mixture(np.full(k, 1 / k), mean, root @ root.mT, range(k))
        rules, rest = mean + 0.3 * rng.normal(size=(k, 3)), rng.normal(size=(k, 4))
        gram, sd, n = rules @ rules.T + rest @ rest.T, 0.5, 40000 * effort

        @ambient.jit
        def right_answers(key, model=model, rules=rules, rest=rest, sd=sd, n=n):
            key_z, key_x = jax.random.split(key)
            latents = model.sample(key_z, n)
            weights = jnp.concatenate([jnp.asarray(rules), jnp.asarray(rest)], 1)
            image = jnp.pad(latents.z, ((0, 0), (0, 4))) + sd * jax.random.normal(key_x, (n, 7))
            return (image @ weights.T).argmax(1) == mt.class_index(latents.label), latents.attribute

        hits, group = (np.asarray(x) for x in right_answers(jax.random.key(k)))
        size = min((group == g).sum() for g in range(k))
        claims += [hits[group == g][:size].astype(float) for g in range(k)]
        right += list(np.asarray(model.rule_accuracy(rules, gram, sd).by_group))
        alone += list(np.asarray(model.rule_accuracy(rules, np.diag(np.diag(gram)), sd).by_group))
        in_the_span += list(np.asarray(model.rule_accuracy(rules, rules @ rules.T, sd).by_group))
    size = min(len(x) for x in claims)
    return ledger.judge(
        "accuracy of random rules by group, K = 2, 3, 5: orthant probabilities against images counted",
        ledger.mean(np.stack([x[:size] for x in claims], 1)),
        right,
        {"noise of the scores independent": alone, "noise beyond the latents ignored": in_the_span},
    )


@functools.partial(ambient.jit, static_argnames=("rule", "n", "runs"))
def learnt(key, model, caps, obs, knob, *, rule, n: int, runs: int):
    """(runs, G): accuracies by group of the K rules that `rule` learns from n pairs in the ambient space."""

    def run(key):
        d, pairs = ambient.fresh_pairs(key, model, caps, obs, n)
        rules, offsets = rule(pairs, model.prompts("core") @ d.text.T, knob)
        return model.rule_accuracy(rules @ d.image, rules @ rules.T, obs.sd_image, offsets).by_group

    return jax.lax.map(run, jax.random.split(key, runs), batch_size=4)


def linear(pairs, prompts, weight):
    """The rules of the linear loss with a same-class weight; NaN for the ordinary loss."""
    number, text = mt.class_index(pairs.label), pairs.text @ prompts.T
    ordinary = learners.cross_covariance(pairs.image, text)
    weighted = learners.cross_covariance(pairs.image, text, number, jnp.nan_to_num(weight), len(prompts))
    return jnp.where(jnp.isnan(weight), ordinary, weighted).T, None


def truncated(rank):
    """The rules of the linear loss at a rank."""

    def rule(pairs, prompts, knob):
        cross = learners.cross_covariance(pairs.image, pairs.text)
        return prompts @ learners.linear_optimum(cross, 1.0, rank).T, None

    return rule


def whitening(pairs, prompts, theta):
    """The rules of the whitened family, from sample covariances."""
    return prompts @ learners.whitened_optimum(*ambient.sample_covariances(pairs), theta).T, None


def with_ridge(pairs, prompts, kappa):
    """The rules of the whitened loss with a ridge, from sample covariances."""
    return prompts @ learners.ridge_optimum(*ambient.sample_covariances(pairs), kappa).T, None


def probing(rank):
    """A least-squares probe with intercept on the image encoder of the linear loss, class indicators as targets."""

    def rule(pairs, prompts, knob):
        cross = learners.cross_covariance(pairs.image, pairs.text)
        encoder = jnp.linalg.svd(cross)[0][:, :rank]
        features = jnp.pad(pairs.image @ encoder, ((0, 0), (1, 0)), constant_values=1.0)
        target = jax.nn.one_hot(mt.class_index(pairs.label), len(prompts), dtype=features.dtype)
        fit = jnp.linalg.solve(features.T @ features, features.T @ target)
        return fit[1:].T @ encoder.T, fit[0]

    return rule


def extrapolated(seed, model, caps, noise, knob, *, rule, n, runs):
    """2 a(2n) - a(n), without the error of order 1/n, of accuracies a by group; noise(n) the observation."""
    small = learnt(jax.random.key(seed), model, caps, noise(n), knob, rule=rule, n=n, runs=runs)
    large = learnt(jax.random.key(seed + 1), model, caps, noise(2 * n), knob, rule=rule, n=2 * n, runs=runs)
    return 2 * np.asarray(large) - np.asarray(small)


def learnt_rules(effort):
    """Three unequal classes, captions with errors, the linear loss at three same-class weights, d_I = n/2."""
    model = three_classes()
    caps, n = poor_captions(model), 300
    weights = (np.nan, 0.2, 0.9)

    samples = [
        extrapolated(3 * i, model, caps, growing, jnp.asarray(w), rule=linear, n=n, runs=150 * effort)
        for i, w in enumerate(weights)
    ]

    def prediction(model=model, caps=caps, weights=weights, n=float(n)):
        given = [None if np.isnan(w) else w for w in weights]
        obs, prompts = growing(300), three_classes().prompts("core")
        return [accuracy(model, caps, obs, n, same_class_weight=w, prompts=prompts).by_group for w in given]

    return ledger.judge(
        "accuracy by group of rules learnt from ambient pairs, three unequal classes, lambda ordinary, .2 and .9",
        ledger.mean(np.stack(samples, 1), bias=3e-3),
        prediction(),
        {
            "n dropped": prediction(n=None),
            "classes of equal weight": prediction(equal_weights(model)),
            "errors of captions ignored": prediction(caps=poor_captions(model, wrong=0.0, blur=0.0)),
            "lambda ignored": prediction(weights=(np.nan,) * 3),
            "lambda = .2 and .9 swapped": prediction(weights=(np.nan, 0.9, 0.2)),
        },
    )


def learnt_truncated_rules(effort):
    """Rank 2 and 3 of four latents: the outliers of a general cross-covariance."""
    model = three_classes()
    caps, n = poor_captions(model), 300

    samples = [
        extrapolated(20 + 3 * r, model, caps, growing, 0.0, rule=truncated(r), n=n, runs=100 * effort) for r in (2, 3)
    ]

    def prediction(ranks=(2, 3), n=float(n), model=model):
        prompts = three_classes().prompts("core")
        return [accuracy(model, caps, growing(300), n, embed_dim=r, prompts=prompts).by_group for r in ranks]

    return ledger.judge(
        "accuracy by group at embedding size 2 and 3 of four latents, ambient pairs, d_I = n/2",
        ledger.mean(np.stack(samples, 1), bias=5e-3),
        prediction(),
        {
            "n dropped": prediction(n=None),
            "not truncated": prediction(ranks=(None, None)),
            "ranks swapped": prediction(ranks=(3, 2)),
            "classes of equal weight": prediction(model=equal_weights(model)),
        },
    )


def whitened_rules(effort):
    """theta = .5 and 1, kappa = .3, from sample covariances in few dimensions."""
    model = three_classes()
    caps, n = poor_captions(model), 500

    cases = ((whitening, 0.5), (whitening, 1.0), (with_ridge, 0.3))
    samples = [
        extrapolated(40 + 3 * i, model, caps, few_dimensions, knob, rule=rule, n=n, runs=300 * effort)
        for i, (rule, knob) in enumerate(cases)
    ]

    def prediction(model=model, caps=caps, thetas=(0.5, 1.0), kappa=0.3, s=(0.4, 0.3)):
        prompts, obs = three_classes().prompts("core"), ambient.noise(8, 6, *s)
        results = [whitened(model, caps, obs, theta, prompts=prompts) for theta in thetas]
        return [x.by_group for x in (*results, ridge(model, caps, obs, kappa, prompts=prompts))]

    return ledger.judge(
        "accuracy by group of the whitened (theta = .5, 1) and ridge (kappa = .3) rules from sample covariances",
        ledger.mean(np.stack(samples, 1), bias=2e-3),
        prediction(),
        {
            "thetas swapped": prediction(thetas=(1.0, 0.5)),
            "kappa 3 times as large": prediction(kappa=0.9),
            "noise ignored": prediction(s=(0.0, 0.0)),
            "classes of equal weight": prediction(equal_weights(model)),
            "errors of captions ignored": prediction(caps=poor_captions(model, wrong=0.0, blur=0.0)),
        },
    )


def zero_shot_and_probes(effort):
    """Encoders of the linear loss at r = 2 and 4: what a probe of the same encoder gives."""
    model = three_classes()
    caps, n = poor_captions(model), 500
    obs = few_dimensions(n)
    samples = [
        extrapolated(60 + 3 * r, model, caps, few_dimensions, 0.0, rule=probing(r), n=n, runs=300 * effort)
        for r in (2, 4)
    ]

    def prediction(model=model, ranks=(2, 4)):
        return [probe(model, caps, obs, embed_dim=r).by_group for r in ranks]

    return ledger.judge(
        "accuracy by group of least-squares probes on the linear loss's encoder, r = 2 and 4",
        ledger.mean(np.stack(samples, 1), bias=2e-3),
        prediction(),
        {
            "that of the zero-shot rule": [accuracy(model, caps, obs, embed_dim=r).by_group for r in (2, None)],
            "classes of equal weight": prediction(equal_weights(model)),
            "r = 2 and 4 swapped": prediction(ranks=(4, 2)),
        },
    )


def probes_see_no_captions(effort):
    """With every direction of the latents in the embedding, the probe is least squares on the images."""
    model, obs = two_classes(), ambient.noise(8, 6, 0.4, 0.3)
    whole = mt.group_captions(model)
    probes = [
        probe(model, caps, obs, embed_dim=4, theta=theta).by_group
        for caps in (whole, poor_captions(model))
        for theta in (0.0, 1.0)
    ]

    def least_squares(model):
        mom = model.class_moments(whole)
        weight, mean = np.asarray(mom.weight), np.asarray(mom.z_mean)
        centred = mean - weight @ mean
        total = np.einsum("k,kij->ij", weight, mom.zz) + np.einsum("k,ki,kj->ij", weight, centred, centred)
        rules = weight[:, None] * centred @ np.linalg.inv(total + 0.4**2 * np.eye(4))
        offsets = weight - rules @ (weight @ mean)
        return [two_classes().rule_accuracy(rules, rules @ rules.T, 0.4, offsets).by_group] * 4

    return ledger.judge(
        "a probe at full rank does not depend on captions or theta: it is least squares on the images",
        ledger.close(probes, 1e-10),
        least_squares(model),
        {
            "zero-shot": [accuracy(model, caps, obs).by_group for caps in (whole, poor_captions(model))] * 2,
            "classes of equal weight": least_squares(equal_weights(model)),
        },
    )


def max_margin(effort):
    """X1 for two unequal classes with four correlated latents, ambient, exact duals."""
    model, n = two_classes(), 100

    @functools.partial(ambient.jit_long, static_argnames=("n", "runs"))
    def run(key, *, n, runs):
        obs = mt.observation(2 * n, 4, 2.0, 0.1)

        def one(key):
            d, pairs = ambient.fresh_pairs(key, model, mt.group_captions(model), obs, n)
            fit = learners.max_margin_dual(pairs.image @ pairs.image.T, pairs.label)
            w = (fit.dual * pairs.label) @ pairs.image
            latent = w @ d.image
            gram = (w @ w) * jnp.array([[1.0, -1.0], [-1.0, 1.0]])
            by_group = model.rule_accuracy(jnp.stack([-latent, latent]), gram, obs.sd_image).by_group
            return jnp.where(fit.separable & (fit.gap < 1e-3), by_group, jnp.nan)

        return jax.lax.map(one, jax.random.split(key, runs))

    runs = 300 * effort
    small, large = (np.asarray(run(jax.random.key(i), n=k, runs=runs)) for i, k in enumerate((n, 2 * n)))
    samples = 2 * large - small

    def prediction(model=model):
        small, large = (supervised(model, mt.observation(2 * k, 4, 2.0, 0.1), float(k)) for k in (n, 2 * n))
        return 2 * large.by_group - small.by_group

    return ledger.judge(
        "accuracy by group of max-margin SL, two unequal classes, four correlated latents, d = 2n",
        ledger.mean(samples, bias=5e-3),
        prediction(),
        {
            "classes of equal weight": prediction(equal_weights(model)),
            "p_spu of the larger class off by .1": prediction(
                mt.mixture([0.595, 0.105, 0.09, 0.21], model.mean, model.covariance, model.classes)
            ),
            "one covariance for all groups": prediction(
                mt.mixture(
                    model.weight,
                    model.mean,
                    np.einsum("g,gij->ij", model.weight, model.covariance),
                    model.classes,
                )
            ),
        },
    )


def balanced_mentions(effort):
    """The rate at which captions name the shortcut so that both groups of class 1 fare alike: rules learnt there."""
    model, noise = two_classes(), ambient.noise(8, 6, 0.3, 0.3)
    where, groups, n = [-1, 0, -1, -1], (2, 3), 500

    caps = mt.group_captions(model, mention=[0.6, 1.0, 0.6, 0.4], wrong=[0.1, 0.0, 0.25, 0.0])

    def root(model=model):
        def accuracy(pi):
            return theory.whitened_accuracy(model, caps.with_mentions(pi, where), noise)

        return theory.balanced_mention(accuracy, groups).pi

    def compare(pi):
        at = caps.with_mentions(pi, where)
        by_group = extrapolated(90, model, at, lambda _: noise, 1.0, rule=whitening, n=n, runs=200 * effort)
        return ledger.mean(by_group[:, groups[0]] - by_group[:, groups[1]], bias=3e-3)(0.0)

    pair = mt.intra_class(0.7, 0.6**0.5, 0.05**0.5)  # of class 1
    return ledger.judge(
        "gap of two groups of whitened rules from sample covariances, where captions name the shortcut at the balance",
        compare,
        root(),
        {
            "the intra-class formula": theory.balanced_pi_spu(pair, mt.captions(0.6), noise),
            "classes of equal weight": root(equal_weights(model)),
            "always named": 1.0,
        },
    )


def best_worst_group(effort):
    """The shortcut named at a rate for each group of class 1, within a budget: against a grid of both rates."""
    model, noise = two_classes(), ambient.noise(8, 6, 0.3, 0.3)
    caps = mt.group_captions(model, mention=[0.6, 0.4, 0.6, 0.4], wrong=[0.1, 0.0, 0.25, 0.0])
    where = -np.ones((4, 4), int)
    where[2, 1], where[3, 1] = 0, 1
    cost, budget = np.array([1.0, 2.0]), 0.4

    def by_group(pi):
        return theory.whitened_accuracy(model, caps.with_mentions(pi, where), noise).by_group

    points = np.linspace(0, 1, 201)
    pi = np.stack(np.meshgrid(points, points, indexing="ij"), -1).reshape(-1, 2)
    at = np.asarray(jax.jit(jax.vmap(lambda pi: by_group(pi).min()))(jnp.asarray(pi)))
    best = theory.optimal_captions(by_group, cost, budget, starts=4)
    return ledger.judge(
        "accuracy in the worst group of the best rates of two groups within a budget: best of 201 x 201",
        ledger.close([at[pi @ cost <= budget + 1e-12].max(), 0.0], 5e-4),
        [best.value, best.kkt_residual],
        {
            "an even split": [by_group(jnp.full(2, budget / cost.sum())).min(), 0.0],
            "budget ignored": [at.max(), 0.0],
        },
    )


def info_nce(effort):
    """The optimum of bilinear InfoNCE: one Newton step on sampled batches, of 2N less of N, must not leave it."""
    model = two_latents()
    caps, obs = mt.group_captions(model, [0.8, 0.5], blur=[0.0, 0.3]), ambient.noise(2, 2, 0.5, 0.4)

    def prediction(model=model, caps=caps):
        return np.asarray(optimum(model, caps, obs, nodes=20).score)

    at = jnp.asarray(prediction())

    @functools.partial(ambient.jit_long, static_argnames=("size", "batches"))
    def derivatives(key, *, size, batches):
        def batch(key):
            key_z, key_u, key_x, key_t = jax.random.split(key, 4)
            latents = model.sample(key_z, size)
            text = caps.sample(key_u, model, latents) + obs.sd_text * jax.random.normal(key_t, (size, 2))
            image = latents.z + obs.sd_image * jax.random.normal(key_x, (size, 2))

            def loss(m):
                return losses.info_nce(image @ m.reshape(2, 2), text)

            return jax.grad(loss)(at.ravel()), jax.hessian(loss)(at.ravel())

        return jax.lax.map(batch, jax.random.split(key, batches), batch_size=8)

    small, large = (derivatives(jax.random.key(size), size=size, batches=2000 * effort) for size in (64, 128))
    gradient, hessian = (2 * np.asarray(b) - np.asarray(a) for a, b in zip(small, large, strict=True))
    steps = np.linalg.solve(hessian.mean(0), gradient.T).T
    return ledger.judge(
        "M of bilinear InfoNCE, two unequal classes, by a Newton step on sampled batches, the 1/N bias extrapolated",
        ledger.mean(np.asarray(at).ravel() - steps, bias=3e-3),
        at,
        {
            "whitened": theory.whitened_rule(model, caps, obs, prompts=np.eye(2)).T,
            "classes of equal weight": prediction(equal_weights(model)),
            "blur of captions ignored": prediction(caps=mt.group_captions(model, [0.8, 0.5])),
            "mentions swapped": prediction(caps=mt.group_captions(model, [0.5, 0.8], blur=[0.0, 0.3])),
        },
    )


def info_nce_with_errors(effort):
    """Quasi-random points against quadrature, two latents, captions that err and blur: a t-test of 16 replicates."""
    model = two_latents()
    faults = {"mention": [0.8, 0.5], "wrong": [0.1, 0.4], "blur": [0.0, 0.3]}
    obs = ambient.noise(2, 2, 0.5, 0.4)

    def drawn(model=model, **change):
        return optimum(model, mt.group_captions(model, **{**faults, **change}), obs, points=256 * effort).replicates

    exact = optimum(model, mt.group_captions(model, **faults), obs, nodes=16)
    return ledger.judge(
        "M of bilinear InfoNCE, captions with errors: quasi-random points, to their standard error, and quadrature",
        lambda replicates: ledger.mean(replicates)(exact.score),
        drawn(),
        {
            "errors ignored": drawn(wrong=0.0),
            "blur ignored": drawn(blur=0.0),
            "classes of equal weight": drawn(model=equal_weights(model)),
        },
    )


def trained_info_nce(effort):
    """Critics trained by Adam on ambient pairs, four latents, captions with errors; batches of 48, 96 extrapolated."""
    model, obs = two_classes(), ambient.noise(6, 5, 0.5, 0.4)
    caps = poor_captions(model)

    @functools.partial(ambient.jit_long, static_argnames=("size", "seeds"))
    def trained(key, *, size, seeds):
        def one(key):
            key_d, key_steps = jax.random.split(key)
            d = mt.draw_dictionaries(key_d, model, obs)

            def draw(key):
                pairs = mt.sample_pairs(key, model, caps, obs, size, d)
                return pairs.image, pairs.text

            return d.image.T @ ambient.trained_critic(key_steps, draw, jnp.zeros((6, 5)), 800) @ d.text

        return jax.lax.map(one, jax.random.split(key, seeds), batch_size=8)

    small, large = (np.asarray(trained(jax.random.key(n), size=n, seeds=32 * effort)) for n in (48, 96))

    def prediction(model=model, caps=caps):
        return optimum(model, caps, obs, points=64).score

    return ledger.judge(
        "M of critics trained by InfoNCE on ambient pairs, four latents, captions with errors, 1/N extrapolated",
        ledger.mean(2 * large - small, bias=0.01),
        prediction(),
        {
            "errors ignored": prediction(caps=poor_captions(model, wrong=0.0)),
            "classes of equal weight": prediction(equal_weights(model)),
        },
    )


def drawn_rules(effort):
    """`sample_rules` of a mixture against rules from ambient pairs: latent parts and Gram matrix."""
    model = three_classes()
    caps, obs, n, runs = poor_captions(model), ambient.noise(12, 9, 0.6, 0.5), 20, 2000 * effort

    def columns(latent, gram):
        return jnp.concatenate([latent[:, 0], latent[1], gram[jnp.triu_indices(3)]])

    def from_pairs(key):
        d, pairs = ambient.fresh_pairs(key, model, caps, obs, n)
        rules, _ = linear(pairs, model.prompts("core") @ d.text.T, jnp.asarray(0.7))
        return columns(rules @ d.image, rules @ rules.T)

    @functools.partial(ambient.jit, static_argnames=("n",))
    def drawn(key, n=n, caps=caps, sd=obs.sigma_image):
        other = mt.observation(12, 9, sd, obs.sigma_text)

        def run(key):
            rules = learners.sample_rules(key, model, caps, other, n, 0.7)
            return columns(rules.latent, rules.gram)

        return jax.lax.map(run, jax.random.split(key, runs), batch_size=8)

    keys = jax.random.split(jax.random.key(1), 4)
    return ledger.judge(
        "three rules and their Gram matrix drawn without the ambient space have the law of those from pairs",
        ledger.same_law(ambient.repeated(from_pairs, jax.random.key(0), runs, batch_size=8)),
        drawn(keys[0]),
        {
            "n off by a third": drawn(keys[1], n=14),
            "captions without errors": drawn(keys[2], caps=poor_captions(model, wrong=0.0, blur=0.0)),
            "noise off by a quarter": drawn(keys[3], sd=1.25 * obs.sigma_image),
        },
    )


def drawn_statistics(effort):
    """`sample_rule_statistics` of a mixture against `sample_rules`, which draws every sample: two classes, errors."""
    model = two_latents()
    faults = {"mention": [0.9, 0.7], "wrong": [0.2, 0.4], "blur": [0.0, 0.3]}
    right = mt.group_captions(model, **faults)
    obs, n, runs = ambient.noise(12, 9, 0.6, 0.5), 20, 1000 * effort

    def drawn(key, model=model, caps=right, n=n, sampler=learners.sample_rule_statistics):
        def run(key):
            rules = sampler(key, model, caps, obs, n, 0.7)
            return jnp.concatenate([rules.latent.ravel(), rules.gram[jnp.triu_indices(2)]])

        return jax.lax.map(run, jax.random.split(key, runs), batch_size=100)

    every = ambient.jit(functools.partial(drawn, sampler=learners.sample_rules))
    drawn = ambient.jit(drawn)
    keys = jax.random.split(jax.random.key(1), 5)
    return ledger.judge(
        "rules and Gram matrix of 20 pairs, captions with errors: from sufficient statistics and from all samples",
        ledger.same_law(every(keys[0])),
        drawn(keys[1], n=n),
        {
            "6 pairs": drawn(keys[2], n=6),
            "captions without errors": drawn(keys[3], caps=mt.group_captions(model, **{**faults, "wrong": 0.0})),
            "classes of equal weight": drawn(keys[4], model=equal_weights(model)),
        },
    )


CHECKS = (
    pair_formulas,
    moments_of_captions,
    counted_accuracies,
    learnt_rules,
    learnt_truncated_rules,
    whitened_rules,
    zero_shot_and_probes,
    probes_see_no_captions,
    max_margin,
    balanced_mentions,
    best_worst_group,
    info_nce,
    info_nce_with_errors,
    trained_info_nce,
    drawn_rules,
    drawn_statistics,
)
