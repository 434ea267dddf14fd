"""X14: features of one's own, diagnosed from moments by group.

Any image and text features with classes and attributes: closed-form learners see no more of a training set than the
moments of its groups, so what a caption policy or more samples of a group would do is computed from moments of the
features as they are. Held-out accuracies meet the theory of the mixture that the features come from, and a verdict of
the advice has the sign of the true effect.

Fails where: groups are so small that means of groups are noise, or scores are far from Gaussian (measured, and shown).
"""

import functools

import jax
import numpy as np
import scipy.stats

import mmcl_theory as mt
from mmcl_theory import learners, theory
from mmcl_theory.features import Learner, Policy, group_sums, policy_moments
from proofs_checks import ambient, ledger

STATEMENT = "Own features: policies act on moments by group; held-out accuracies and signs of the advice are right"
PICTURE = "diagnose.png"
CAPTION = """
An example, on 1,797 images of real handwriting. Above, points are held-out accuracies with 95% intervals, and black
ticks what Gaussian scores would give. Below, what changes of captions, weights and learners would do, computed from
moments by group. The true effect of these changes is not known here. That the signs are right is checked on mixtures,
in the ledger's rows.
"""

CLASSES = np.array([0, 0, 1, 1])
ATTRIBUTES = np.array([0, 1, 0, 1])
OBS = mt.observation(6, 5, 0.6, 0.6)
SHRINKAGE = 0.01
# Changes of the training set or of a learner, and the learners that have them.
CHANGES = (
    ("attribute", 0.0, ("mmcl", "whitened")),
    ("detail", 0.0, ("mmcl", "whitened")),
    ("minority", 4.0, ("mmcl", "whitened")),
    ("same_class_weight", 1.0, ("mmcl",)),
    ("theta", 0.0, ("whitened",)),
)


def a_model(seed: int):
    """A mixture of two classes and two attributes with random means, covariances and weights, and its captions."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.75, 0.95)
    weight = np.array([p, 1 - p, 1 - p, p]) / 2
    mean = np.column_stack(
        [2.0 * CLASSES - 1, (2.0 * ATTRIBUTES - 1) * rng.uniform(0.5, 1.5), rng.normal(size=4) * 0.2]
    )
    root = 0.3 * rng.normal(size=(4, 3, 3)) / 3**0.5
    covariance = root @ root.mT + np.diag(rng.uniform(0.05, 1.0, 3))
    model = mt.mixture(weight, mean, covariance, CLASSES)
    return model, mt.group_captions(model, mention=rng.uniform(0.3, 1.0, 3), base="mean")


@functools.partial(jax.jit, static_argnames=("n",))
def pairs(key, model, caps, n):
    """(image, text, group, image dictionary, prompts) of n pairs."""
    d, drawn = ambient.fresh_pairs(key, model, caps, OBS, n)
    core = np.eye(2)[CLASSES].T / 2 @ model.mean
    return drawn.image, drawn.text, drawn.attribute, d.image, core @ d.text.T


def masked(text, group, policy, rng):
    """The texts of captions that leave out the attribute and other details at the policy's rates."""
    means = np.stack([text[group == g].mean(0) for g in range(4)])
    by_class = np.stack([text[CLASSES[group] == y].mean(0) for y in (0, 1)])[CLASSES[group]]
    names, tells = (rng.uniform(size=(len(group), 1)) < rate for rate in (policy.attribute, policy.detail))
    return by_class + names * (means[group] - by_class) + tells * (text - means[group])


def masked_captions(effort):
    """Moments by class of captions that are masked one by one, with the images, at 60 random masks."""
    model, caps = a_model(0)
    image, text, group = (np.asarray(x, float) for x in pairs(jax.random.key(0), model, caps, n=2000)[:3])
    group, rng, policy = group.astype(int), np.random.default_rng(0), Policy(attribute=0.6, detail=0.3)
    label = CLASSES[group]

    def moments(t):
        parts = []
        for y in (0, 1):
            x, u = image[label == y], t[label == y]
            parts += [u.mean(0), (x.T @ u / len(x)).ravel(), (u.T @ u / len(u)).ravel()]
        return np.concatenate(parts)

    samples = np.stack([moments(masked(text, group, policy, rng)) for _ in range(60 * effort)])
    sums = group_sums(image, text, group, 4)

    def predicted(policy):
        mom = jax.tree.map(np.asarray, policy_moments(sums, CLASSES, policy))
        parts = []
        for y in (0, 1):
            x, u = mom.z_mean[y] + sums.image_origin, mom.u_mean[y] + sums.text_origin
            parts += [u, (mom.zu[y] + np.outer(x, u)).ravel(), (mom.uu[y] + np.outer(u, u)).ravel()]
        return np.concatenate(parts)

    wrong = {
        "attribute .65": predicted(Policy(attribute=0.65, detail=0.3)),
        "detail .35": predicted(Policy(attribute=0.6, detail=0.35)),
        "both by one coin": predicted(Policy(attribute=0.3, detail=0.3)),
    }
    return ledger.judge(
        "moments of masked captions: h Cov(x, t), h Cov(t) + b (1 - b) (t_g - t_y)(t_g - t_y)^T", ledger.mean(samples),
        predicted(policy), wrong,
    )  # fmt: skip


def diagnosis(key, model, caps, n, **arguments):
    """The diagnosis of n pairs, and the pairs."""
    image, text, group, _, prompts = (np.asarray(x) for x in pairs(key, model, caps, n=n))
    return mt.diagnose(
        image.astype(float), text.astype(float), CLASSES[group], ATTRIBUTES[group], prompts=prompts.astype(float),
        **arguments,
    )  # fmt: skip


def held_out_accuracies(effort):
    """Means over 32 data sets of 4,000 pairs against the theory of the mixture itself, at 3,600 samples.

    The theory of the whitened rule is of the population: its scores' extra variance, about 6/3600 of the noise's share,
    moves accuracies by less than .006.
    """
    model, caps = a_model(1)
    chosen = {"mmcl": Learner("mmcl"), "whitened": Learner("whitened", shrinkage=0.0)}
    found = [diagnosis(jax.random.key(i), model, caps, 4000, learners=chosen, knobs={}) for i in range(32 * effort)]
    samples = np.array([[f.outcomes[name].by_group for name in chosen] for f in found])
    gaussian = np.array([[f.outcomes[name].predicted for name in chosen] for f in found])

    def predicted(model, caps, learner=None):
        linear = theory.mmcl_accuracy(model, caps, OBS, 3600).by_group
        whitened = theory.whitened_accuracy(model, caps, OBS, 1.0).by_group
        both = np.stack([linear, whitened])
        return np.stack([both, both], 1)

    shifted = np.asarray(model.weight) + 0.05 * np.array([1, -1, -1, 1]) / 2
    other = mt.mixture(shifted, model.mean, model.covariance, CLASSES)
    wrong = {
        "p off by .05": predicted(other, caps),
        "captions ignored": predicted(model, None),
        "learners exchanged": predicted(model, caps)[::-1],
    }
    return ledger.judge(
        "held-out accuracies by group, counted and from Gaussian scores, are the theory's of the same mixture",
        ledger.mean(np.stack([samples, gaussian], 2), bias=0.006), predicted(model, caps), wrong,
    )  # fmt: skip


def true_effects(seed: int) -> dict:
    """Effect of each change on acc_P* in the population: rules from 50,000 pairs that have the change themselves."""
    model, caps = a_model(seed)
    key, rng = jax.random.key(10_000 + seed), np.random.default_rng(seed)

    def accuracy(kind, policy, same_class_weight=None, theta=1.0):
        weight = policy.weights(np.asarray(model.weight), CLASSES)
        changed = mt.mixture(weight, model.mean, model.covariance, CLASSES)
        image, text, group, d, prompts = (np.asarray(x) for x in pairs(key, changed, caps, n=50_000))
        text = masked(text, group, policy, rng)
        if kind == "mmcl":
            number = None if same_class_weight is None else CLASSES[group]
            score = learners.linear_optimum(learners.cross_covariance(image, text, number, same_class_weight))
        else:
            cov = [learners.cross_covariance(a, b) for a, b in ((image, text), (image, image), (text, text))]
            cov[1:] = [s + SHRINKAGE * np.trace(s) / len(s) * np.eye(len(s)) for s in cov[1:]]
            score = learners.whitened_optimum(*cov, theta)
        rules = np.asarray(prompts @ score.T)
        offsets = -rules @ image.mean(0)
        return float(model.rule_accuracy(rules @ d, rules @ rules.T, OBS.sd_image, offsets).shifted)

    now = {kind: accuracy(kind, Policy()) for kind in ("mmcl", "whitened")}
    effects = {}
    for knob, setting, kinds in CHANGES:
        for kind in kinds:
            policy = Policy(**{knob: setting}) if hasattr(Policy(), knob) else Policy()
            change = {} if hasattr(Policy(), knob) else {knob: setting}
            effects[kind, knob, setting] = accuracy(kind, policy, **change) - now[kind]
    return effects


def signs_of_the_advice(effort):
    """Verdicts on 8 changes in 20 random models of 2,000 pairs; at most 5% may have the wrong sign."""
    chosen = {kind: Learner(kind, shrinkage=SHRINKAGE) for kind in ("mmcl", "whitened")}
    knobs = {knob: [setting] for knob, setting, _ in CHANGES}
    effects, values, halves = [], [], []
    for seed in range(20 * effort):
        effects.append(true_effects(seed))
        advice = diagnosis(jax.random.key(seed), *a_model(seed), 2000, learners=chosen, knobs=knobs).advice
        found = {(a.learner, a.knob, a.setting): a.shifted for a in advice}
        values.append([found[case].value for case in effects[-1]])
        halves.append([found[case].high - found[case].value for case in effects[-1]])
    told = np.abs(values) > np.array(halves)

    def compare(effects):
        wrong = (np.sign(values) != np.sign([list(each.values()) for each in effects]))[told]
        se = (0.05 * 0.95 / len(wrong)) ** 0.5
        z = (wrong.mean() - 0.05) / se
        return ledger.Gap(0.05, float(wrong.mean()), se, float(z), float(scipy.stats.norm.isf(ledger.FALSE_ALARM)))

    wrong = {
        f"{text} the other way": [{case: -e if case[1] == knob else e for case, e in each.items()} for each in effects]
        for knob, text in (("minority", "weights of small groups"), ("detail", "other details"))
    }
    return ledger.judge(
        "where the interval of a change excludes 0, its sign is right in at least 95 of 100", compare, effects, wrong
    )


CHECKS = (masked_captions, held_out_accuracies, signs_of_the_advice)
