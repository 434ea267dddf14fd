"""X9: rules drawn in law against rules learnt from pairs in the ambient space, by two-sample tests.

Ambient runs share with the samplers the data model and nothing else: fresh dictionaries, pairs, C_hat p.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mmcl_theory import _random
from mmcl_theory.data import (
    captions,
    class_index,
    draw_dictionaries,
    group_captions,
    inter_class,
    intra_class,
    mixture,
    observation,
    sample_pairs,
    shifted,
)
from mmcl_theory.learners import (
    cross_covariance,
    dual_rule,
    max_margin_dual,
    sample_gram,
    sample_rule_latent,
    sample_rule_statistics,
    sample_rules,
    sample_scores,
)
from mmcl_theory.theory import mmcl_accuracy, mmcl_rule
from mmcl_theory.zero_shot import latent_prompts, linear_rule_accuracy
from proofs_checks.ambient import fresh_pairs, groups, noise, shares
from proofs_checks.ambient import jit_long as optimised
from tests.statistics import assert_mean_close, assert_same_law, rejects

long = pytest.mark.long
jit = jax.jit  # at the tests' own level: compiling is most of what these take
MODEL = intra_class(0.9, 0.8, 0.3, 1.1, 0.7)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    n: int
    dim: int
    runs: int = 4000
    model: object = MODEL
    caps: object = captions(0.4, 0.6)
    weight: float | None = None
    prompts: str = "core"
    s_i: float = 0.5
    s_t: float = 0.6

    @property
    def obs(self):
        return noise(self.dim, 4, self.s_i, self.s_t)

    def draws(self, kind, seed=0):
        """(runs, 6): both weights, squared norm, its part off the signal coordinates, both accuracies."""
        n = float(self.n) if kind == "statistics" else self.n
        args = jax.random.key(seed), self.model, self.caps, self.obs, n, self.weight
        return compiled(kind)(*args, runs=self.runs, prompts=self.prompts)


def rest(whole, part):
    """whole - part, 0 where only rounding is left."""
    return jnp.where(jnp.abs(whole - part) > 1e-12 * jnp.abs(whole), whole - part, 0.0)


@functools.cache
def compiled(kind):
    def run(key, model, caps, obs, n, weight, *, runs, prompts):
        def one(key):
            weights, norm = LEARN[kind](key, model, caps, obs, n, weight, prompts)
            accuracy = groups(linear_rule_accuracy(model, weights, norm, obs.sd_image))
            return jnp.concatenate([weights, jnp.stack([norm, rest(norm, weights @ weights)]), accuracy])

        return jax.lax.map(one, jax.random.split(key, runs), batch_size=min(runs, 100))

    static = ("runs", "prompts") if kind == "statistics" else ("runs", "prompts", "n")
    return (optimised if kind == "ambient" else jit)(run, static_argnames=static)


def ambient(key, model, caps, obs, n, weight, prompts):
    d, pairs = fresh_pairs(key, model, caps, obs, n)
    score = pairs.text @ (d.text @ latent_prompts(model, prompts)[1])
    w = cross_covariance(pairs.image, score[:, None], class_index(pairs.label), weight)[:, 0]
    return w @ d.image, w @ w


LEARN = {"ambient": ambient, "latent": sample_rule_latent, "statistics": sample_rule_statistics}

QUICK = {"n=8, d=30": Case(8, 30)}
SLOW = {
    "n=3, d=6, weight": Case(3, 6, weight=0.3),
    "n=60, d=50": Case(60, 50, runs=2000),
    "n=60, weight": Case(60, 50, weight=0.3, prompts="train_mean"),
    "n=400, d=800": Case(400, 800, runs=2000),
    "n=8, zero noise": Case(8, 6, s_i=0.0, s_t=0.0),
    "n=8, d=2": Case(8, 2),
    "n=400, weight 0": Case(400, 20, weight=0.0, s_i=0.2),
    "n=400, weight 1": Case(400, 20, weight=1.0, s_i=0.2),
}
SLOW |= {f"n={n}, d=6": Case(n, 6, runs=10000) for n in (2, 3, 4, 5)}
SLOW |= {f"n={n}, d=6, weight {w}": Case(n, 6, runs=10000, weight=w) for n in (2, 5) for w in (0.0, 0.3, 1.0)}
SLOW |= {
    f"{masking}, {prompts}": Case(5, 4, caps=captions(0.4, 0.6, masking), prompts=prompts, runs=10000)
    for masking in ("named", "mean", "zero")
    for prompts in ("core", "train_mean")
}
SLOW |= {
    f"p={p}, pi={pi}": Case(4, 5, caps=captions(pi, 1 - pi), prompts="train_mean", model=intra_class(p, 0.8, 0.3, 1.1))
    for p in (0.0, 1.0)
    for pi in (0.0, 1.0)
}
CASES = QUICK | SLOW
over_cases = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=long) for name in SLOW)])


@functools.cache
def measured(name):
    return CASES[name].draws("ambient", seed=1)


@pytest.mark.slow
@over_cases
@pytest.mark.parametrize("kind", ["latent", "statistics"])
def test_rules_have_the_law_of_the_ambient_run(name, kind):
    assert_same_law(CASES[name].draws(kind), measured(name))


@long
@pytest.mark.parametrize("weight", [None, 0.3])
def test_both_samplers_agree_where_the_ambient_run_is_too_large(weight):
    case = Case(2000, 10**6, weight=weight, prompts="train_mean", runs=2000, s_i=0.02)
    assert_same_law(case.draws("latent"), case.draws("statistics", seed=1))
    wrong = dataclasses.replace(case, model=dataclasses.replace(MODEL, p_spu=0.87 * jnp.ones(())))
    rejects(assert_same_law, case.draws("latent"), wrong.draws("statistics", seed=1))


def change(name, **changes):
    return dataclasses.replace(CASES[name], **changes).draws("statistics")


def divided_by_n(name):
    draws, n = np.asarray(CASES[name].draws("statistics")), CASES[name].n
    return draws * np.array([(n - 1) / n, (n - 1) / n, ((n - 1) / n) ** 2, ((n - 1) / n) ** 2, 1, 1])


WRONG = {
    "d_I for d_I - 2": ("n=3, d=6, weight", lambda name: change(name, dim=8)),
    "mention ignored": ("n=8, d=30", lambda name: change(name, caps=captions())),
    "n for n - 1": ("n=8, d=30", divided_by_n),
    "weight ignored": ("n=3, d=6, weight", lambda name: change(name, weight=None)),
    "p_spu off by .03": (
        "n=400, weight 0",
        lambda name: change(name, model=dataclasses.replace(MODEL, p_spu=0.87 * jnp.ones(()))),
    ),
    "masking ignored": ("mean, train_mean", lambda name: change(name, caps=captions(0.4, 0.6))),
    "mean for zero": ("zero, core", lambda name: change(name, caps=captions(0.4, 0.6, "mean"))),
}


@pytest.mark.parametrize(
    "wrong", [pytest.param(w, marks=long if name in SLOW else pytest.mark.slow) for w, (name, _) in WRONG.items()]
)
def test_wrong_laws_are_rejected(wrong):
    name, draw = WRONG[wrong]
    rejects(assert_same_law, draw(name), measured(name))


# Many samples


@functools.partial(jit, static_argnames=("runs", "prompts"))
def rules_at(key, model, caps, obs, n, weight, *, runs, prompts="core"):
    return jax.vmap(lambda k: sample_rule_statistics(k, model, caps, obs, n, weight, prompts))(
        jax.random.split(key, runs)
    )


@long
@pytest.mark.parametrize("weight", [None, 0.2])
def test_a_thousand_million_samples_are_the_population(weight):
    """Resolution 1e-5: the standard error of 300 runs, each of which deviates by about 3e-5."""
    obs, caps = noise(1000, 4, 0.5, 0.6), captions(0.4, 0.6)
    weights, norm = rules_at(jax.random.key(2), MODEL, caps, obs, 1e9, weight, runs=300)
    want = mmcl_rule(MODEL, caps, same_class_weight=weight)
    check = functools.partial(assert_mean_close, weights, resolution=1e-5)
    check(want)
    rejects(check, mmcl_rule(MODEL, captions(0.401), same_class_weight=weight))
    rejects(check, mmcl_rule(MODEL, caps, same_class_weight=0.201))
    np.testing.assert_allclose(norm, (weights**2).sum(-1), rtol=1e-5)
    spread = np.std(weights, axis=0) * 1e9**0.5
    assert (spread > 0.3).all() and (spread < 3).all()
    accuracy = groups(linear_rule_accuracy(MODEL, weights, norm, obs.sd_image))
    population = groups(mmcl_accuracy(MODEL, caps, obs, same_class_weight=weight))
    np.testing.assert_allclose(accuracy.mean(0), population, atol=1e-5)


@long
@pytest.mark.parametrize("n", [50.0, 1e5, 1e9])
def test_single_precision_has_the_same_law(n):
    """The deviation from the population in units of 1/sqrt(n); float32's rounding is .002 of them at 10^9 samples."""

    def deviations(seed):
        obs, caps, model = noise(1000, 4, 0.5, 0.6), captions(0.4, 0.6), intra_class(0.9, 0.8, 0.3, 1.1, 0.7)
        draw = rules_at(jax.random.key(seed), model, caps, obs, jnp.asarray(n, float), None, runs=4000)
        return np.asarray(draw[0], np.float64), draw[0].dtype

    double, _ = deviations(3)
    with jax.enable_x64(False):
        single, dtype = deviations(4)
    assert dtype == jnp.float32
    want = np.asarray(mmcl_rule(MODEL, captions(0.4, 0.6)))
    assert_same_law((single - want) * n**0.5, (double - want) * n**0.5)


COUNTS = [(3, 0.5), (1e3, 0.02), (1e4, 0.5), (1e6, 0.97), (1e9, 0.5), (1e9, 1e-8)]


@long
@pytest.mark.parametrize("x64", [True, False])
def test_counts_and_scatters_of_any_size(x64):
    """Kolmogorov-Smirnov, 20,000 draws each, against SciPy; float32 rounds the largest counts to 64."""
    df = np.array([1.0, 2.0, 7.0, 21.0, 22.0, 1e3, 1e5, 1e9])
    runs, limit = 20_000, 1e-6 / (len(COUNTS) + len(df))
    rng = np.random.default_rng(0)
    with jax.enable_x64(x64):
        key_b, key_c = jax.random.split(jax.random.key(5))
        n, p = jnp.asarray(np.array(COUNTS).T[:, :, None] * np.ones((1, 1, runs)), float)
        draws = np.asarray(jit(_random.binomial)(key_b, n, p), np.float64)
        z = jax.random.normal(key_c, (_random.NORMALS, len(df), runs))
        squares = jit(_random.chi_squared)(z, jnp.asarray(df[:, None] * np.ones((1, runs)), float))
    for x, (count, q) in zip(draws, COUNTS, strict=True):
        assert (x == np.round(x)).all() and (x >= 0).all() and (x <= count).all()
        width = 1.0 if x64 or count < 2**24 or q < 0.1 else 64.0
        jitter = rng.uniform(-0.5, 0.5, runs) * width
        smooth = np.floor(x + 0.5 + jitter) if width > 1 else x
        law = scipy.stats.binom(count, float(np.float32(q)) if not x64 else q)
        u = law.cdf(smooth) - rng.uniform(size=runs) * law.pmf(smooth)
        assert scipy.stats.kstest(u, "uniform").pvalue > limit
    for x, k in zip(np.asarray(squares, np.float64), df, strict=True):
        step = float(np.spacing(np.float32(k))) if not x64 and k > 1e4 else 0.0
        x = x + rng.uniform(-0.5, 0.5, runs) * step
        assert scipy.stats.kstest(scipy.stats.chi2(k).cdf(x), "uniform").pvalue > limit
        assert scipy.stats.kstest(scipy.stats.chi2(k + 0.2 * k**0.5).cdf(x), "uniform").pvalue < limit


def test_chi_squared_accepts_by_the_ratio_of_densities():
    """A proposal is taken just above the ratio of SciPy's densities; just below it, the next one is."""
    df, x = (a.ravel() for a in np.meshgrid([22.0, 300.0, 1e4], [-5.0, -2.5, 1.5, 5.0]))
    d = df / 2 - 1 / 3

    def draw(x):
        return 2 * d * (1 + x / (3 * d**0.5)) ** 3

    def log_ratio(x):  # up to a constant; the draw's slope is 2 d^(1/2) (1 + y)^2
        slope = 2 * np.log1p(x / (3 * d**0.5))
        return scipy.stats.chi2(df).logpdf(draw(x)) + slope - scipy.stats.norm.logpdf(x)

    threshold = log_ratio(np.zeros_like(x)) - log_ratio(x)
    assert (threshold > 1e-6).all()
    for factor, want in ((1.001, x), (0.999, np.zeros_like(x))):
        z = np.ones((_random.NORMALS, len(x)))
        z[:4] = x, np.sqrt(factor * threshold), np.sqrt(factor * threshold), np.zeros_like(x)
        np.testing.assert_allclose(_random.chi_squared(jnp.asarray(z), jnp.asarray(df)), draw(want), rtol=1e-14)


@long
@pytest.mark.parametrize("x64", [True, False])
def test_certain_and_empty_counts(x64):
    with jax.enable_x64(x64):
        n, p = (jnp.asarray(v, float) for v in ([0, 5, 5, 1e9, 1e9, 0], [0.5, 0, 1, 0, 1, 1]))
        got = np.stack([_random.binomial(jax.random.key(i), n, p) for i in range(5)])
        np.testing.assert_array_equal(got, np.tile(np.array([0, 0, 5, 0, 1e9, 0]), (5, 1)))
        z = jax.random.normal(jax.random.key(0), (_random.NORMALS, 2))
        assert (_random.chi_squared(z, jnp.asarray([0.0, -1.0])) == 0).all()
        none = _random.normals(jax.random.key(0), z.dtype, *_random.wishart_shapes(0, 3))
        assert _random.wishart_factor(0, *none).shape == (3, 0)


# Inter-class rules


@functools.partial(jit, static_argnames=("n", "runs", "prompts", "exact"))
def inter_rules(key, model, caps, obs, weight, *, n, runs, prompts, exact):
    """(runs, ...): latent parts, Gram matrix of the rest, and accuracies on 400 test images, of the m rules."""

    def one(key):
        key_dictionaries, key_pairs, key_test, key_scores = jax.random.split(key, 4)
        if exact:
            rules = sample_rules(key_pairs, model, caps, obs, n, weight, prompts)
            test = shifted(model).sample(key_test, 400)
            scores = sample_scores(key_scores, rules, test.z, obs.sd_image)
            latent, gram = rules.latent, rules.gram
        else:
            d = draw_dictionaries(key_dictionaries, model, obs)
            pairs = sample_pairs(key_pairs, model, caps, obs, n, d)
            number = class_index(pairs.label)
            c = cross_covariance(pairs.image, pairs.text, number, weight, model.num_classes)
            w = c @ d.text @ latent_prompts(model, prompts).T
            test = sample_pairs(key_test, shifted(model), caps, obs, 400, d)
            scores = test.image @ w
            latent, gram = (d.image.T @ w[:, 1::2]).T, w[:, 1::2].T @ w[:, 1::2]
        perpendicular = rest(gram, latent @ latent.T)[jnp.triu_indices(model.num_pairs)]
        return jnp.concatenate([latent.ravel(), perpendicular, shares(scores, test)])

    return jax.lax.map(one, jax.random.split(key, runs), batch_size=50)


INTER = {
    "n=12, d=20": (3, 20, 12, 0.3, "core"),
    "few dimensions": (3, 7, 12, None, "train_mean"),
    "few samples": (4, 20, 2, None, "core"),
}


@long
@pytest.mark.parametrize("name", INTER)
def test_inter_class_rules_have_the_law_of_the_ambient_run(name):
    pairs, dim, n, weight, prompts = INTER[name]
    model, caps = inter_class(pairs, 0.9, 1.0, 0.4, 0.3), captions(0.6, 0.5)
    args = (model, caps, noise(dim, 2 * pairs + 1, 0.3, 0.2), weight)
    settings = {"n": n, "runs": 2000, "prompts": prompts}
    want = inter_rules(jax.random.key(6), *args, **settings, exact=False)
    assert_same_law(inter_rules(jax.random.key(7), *args, **settings, exact=True), want)
    for wrong in (
        (model, caps, noise(2 * dim, 2 * pairs + 1, 0.3, 0.2), weight),
        (inter_class(pairs, 0.9, 1.0, 0.7, 0.3), caps, *args[2:]),
    ):
        rejects(assert_same_law, inter_rules(jax.random.key(7), *wrong, **settings, exact=True), want)


# Rules of a mixture


def three_groups():
    """Two classes of three groups and two correlated latents; captions with all their faults."""
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 2)) / 2
    model = mixture([0.5, 0.2, 0.3], mean, root @ root.mT, [0, 0, 1])
    return model, group_captions(model, [0.8, 0.5], wrong=[0.3, 0.1], blur=[0.0, 0.4])


@functools.partial(jit, static_argnames=("n", "runs", "exact"))
def mixture_rules(key, model, caps, obs, weight, *, n, runs, exact):
    """(runs, ...): latent parts, Gram matrix of the rest."""

    def one(key):
        sampler = sample_rule_statistics if exact else sample_rules
        rules = sampler(key, model, caps, obs, n, weight)
        perpendicular = (rules.perpendicular @ rules.perpendicular.T)[jnp.triu_indices(2)]
        return jnp.concatenate([rules.latent.ravel(), perpendicular])

    return jax.lax.map(one, jax.random.split(key, runs), batch_size=100)


MIXTURES = {"n=3": (3, 7, None), "n=8, weight": (8, 4, 0.3), "n=200": (200, 30, 0.9), "n=2, one dimension": (2, 3, 0.0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*list(MIXTURES)[:1], *(pytest.param(x, marks=long) for x in list(MIXTURES)[1:])])
def test_statistics_of_a_mixture_have_the_law_of_its_samples(name):
    n, dim, weight = MIXTURES[name]
    model, caps = three_groups()
    obs, settings = noise(dim, 4, 0.5, 0.6), {"n": n, "runs": 1000}
    want = mixture_rules(jax.random.key(6), model, caps, obs, weight, **settings, exact=False)
    draw = functools.partial(mixture_rules, jax.random.key(7), weight=weight, exact=True)
    assert_same_law(draw(model, caps, obs, **settings), want)
    wrongs = (
        (model, dataclasses.replace(caps, wrong=0 * caps.wrong + 0.7), obs),
        (dataclasses.replace(model, mean=1.5 * model.mean), caps, obs),
    )
    for wrong in wrongs if n > 2 else ():
        rejects(assert_same_law, draw(*wrong, **settings), want)
    rejects(assert_same_law, draw(model, caps, obs, n=2 * n, runs=1000), want)


@long
def test_a_thousand_million_samples_of_a_mixture_are_the_population():
    """In both precisions, also where what captions never name is silent, and without any noise."""
    model, caps = three_groups()
    caps = dataclasses.replace(caps, mention=caps.mention * np.array([[1.0, 0.0]]))
    obs = noise(10, 4, 0.5, 0.0)
    want = np.asarray(mmcl_rule(model, caps))
    for x64, resolution in ((True, 1e-5), (False, 3e-5)):
        with jax.enable_x64(x64):
            args = jax.tree.map(lambda x: jnp.asarray(x, float), (model, caps, obs))
            found = mixture_rules(jax.random.key(8), *args, None, n=10**9, runs=300, exact=True)
        latent = np.asarray(found, np.float64)[:, :4].reshape(-1, 2, 2)
        assert_mean_close(latent, want, resolution=resolution)
        rejects(assert_mean_close, latent, 1.001 * want, resolution=resolution)


def test_statistics_of_a_mixture_refuse_other_captions():
    model, _ = three_groups()
    with pytest.raises(TypeError, match="caps must be group_captions"):
        sample_rule_statistics(jax.random.key(0), model, captions(), noise(5, 4, 0.5, 0.6), 9)


# Gram matrices


@functools.partial(jit, static_argnames=("n", "runs", "exact"))
def gram_statistics(key, model, obs, *, n, runs, exact):
    """(runs, ...): eigenvalues, two entries and a quadratic form of the Gram matrix; norm and rule of max-margin."""

    def one(key):
        key_dictionaries, key_pairs = jax.random.split(key)
        if exact:
            gram, observed, label = sample_gram(key_pairs, model, obs, n)
        else:
            d = draw_dictionaries(key_dictionaries, model, obs)
            pairs = sample_pairs(key_pairs, model, captions(), obs, n, d)
            gram, observed, label = pairs.image @ pairs.image.T, pairs.image @ d.image, pairs.label
        fit = max_margin_dual(gram, label)
        dual = jnp.where(fit.separable, fit.dual, 0.0) * label
        weights, norm = dual_rule(dual, gram, observed)
        if not exact:
            norm = ((dual @ pairs.image) ** 2).sum()
        scalars = jnp.stack([gram[0, 0], gram[0, 1], label @ gram @ label, norm, fit.margin])
        return jnp.concatenate([jnp.linalg.eigvalsh(gram), weights, jnp.log1p(scalars - scalars.clip(None, 0))])

    return jax.lax.map(one, jax.random.split(key, runs), batch_size=50)


@long
@pytest.mark.parametrize("dim", [20, 5, 2])
def test_gram_matrices_have_the_law_of_the_ambient_run(dim):
    """Also with fewer dimensions than samples, d - 2 < n, and with none beside the signal."""
    settings = {"n": 6, "runs": 3000}
    want = gram_statistics(jax.random.key(8), MODEL, noise(dim, 4, 0.7, 0.5), **settings, exact=False)
    draw = functools.partial(gram_statistics, jax.random.key(9), **settings, exact=True)
    assert_same_law(draw(MODEL, noise(dim, 4, 0.7, 0.5)), want)
    rejects(assert_same_law, draw(MODEL, noise(dim + 2, 4, 0.7, 0.5)), want)
    rejects(assert_same_law, draw(dataclasses.replace(MODEL, p_spu=0.6 * jnp.ones(())), noise(dim, 4, 0.7, 0.5)), want)


# Arguments


@long
def test_a_sweep_over_leaves_and_sizes_is_a_map():
    keys = jax.random.split(jax.random.key(0), 3)
    models, sizes = (
        intra_class(np.array([0.6, 0.8, 1.0]), 0.8 * np.ones(3), 0.3 * np.ones(3)),
        jnp.array([2.0, 50.0, 1e9]),
    )
    models = jax.tree.map(lambda x: jnp.broadcast_to(x, (3,)), models)
    caps, obs = captions(0.4, 0.6), observation(50, 4)
    got = jit(jax.vmap(lambda k, m, n: sample_rule_statistics(k, m, caps, obs, n)))(keys, models, sizes)
    assert got[0].shape == (3, 2) and got[1].shape == (3,)
    for i in range(3):
        one = sample_rule_statistics(keys[i], jax.tree.map(lambda x, i=i: x[i], models), caps, obs, sizes[i])
        np.testing.assert_allclose(one[0], got[0][i], rtol=1e-10)


def test_wrong_arguments_are_refused():
    key, caps, obs = jax.random.key(0), captions(), observation(5, 4)
    refused = [
        (sample_rule_statistics, (MODEL, caps, obs, 1), r"n must be >= 2, got 1\."),
        (sample_rule_statistics, (MODEL, caps, obs, 2.5), r"n must be a whole number, got 2\.5"),
        (sample_rule_latent, (MODEL, caps, obs, 1), "n must be an integer >= 2, got 1"),
        (sample_gram, (MODEL, obs, 1), "n must be an integer >= 2, got 1"),
        (sample_rule_statistics, (MODEL, caps, obs, 5, 1.5), r"same_class_weight must be in \[0, 1\]"),
        (sample_rule_latent, (MODEL, caps, obs, 5, None, "other"), "must be one of core, train_mean"),
        (sample_rule_statistics, (MODEL, caps, obs, 5, None, "other"), "must be one of core, train_mean"),
        (sample_rules, (inter_class(3, 0.9, 1.0, 0.4, 0.3), caps, obs, 5), r"dim_image must be an integer >= 6"),
    ]
    for sampler, args, message in refused:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(lambda sampler, args, key: sampler(key, *args), sampler, args), key)
