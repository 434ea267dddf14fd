"""The exact accuracy of a linear zero-shot rule against counting, quadrature by scipy, closed forms and limits."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from mmcl_theory import data
from mmcl_theory.data import inter_class, intra_class, observation
from mmcl_theory.zero_shot import GroupAccuracy, latent_prompts, linear_rule_accuracy, sampled_accuracy
from tests.statistics import assert_mean_close, rejects

Phi = scipy.special.ndtr
INTRA = {"p_spu": 0.8, "sigma_core": 0.9, "sigma_spu": 0.4, "mu_core": 1.3, "mu_spu": 1.1}
INTER = {"num_pairs": 3, "p_spu": 0.8, "alpha": 1.2, "beta": 0.6, "beta_spu": 0.3}
MODELS = {"intra": lambda: intra_class(**INTRA), "inter": lambda: inter_class(**INTER)}
over_models = pytest.mark.parametrize("name", MODELS)
OBS = observation(12, 12, 2.0, 1.0)
SD = 2.0 / 12**0.5
A, B = 1.0, 0.6
OUTSIDE = 0.8  # norm of the rule's part outside the dictionary
N = 100_000


compiled = jax.jit(linear_rule_accuracy)
sampled = jax.jit(sampled_accuracy)
prompts_of = jax.jit(latent_prompts, static_argnames="kind")


def numbers(accuracy):
    return np.array([accuracy.aligned, accuracy.conflicting])


def exact(model, weights, norm_squared, sd=0.0):
    return compiled(model, jnp.array(weights, float), jnp.asarray(norm_squared, float), sd)


@functools.cache
def counted(name):
    """Scores of N images, one class a column, under explicit rules in the ambient space; labels, groups."""
    model, key = MODELS[name](), jax.random.key(0)
    pairs_of_classes, l = model.num_latents // 2, model.num_latents
    d = data.draw_dictionaries(key, model, OBS)
    pairs = jax.jit(lambda key: data.sample_pairs(key, model, data.captions(), OBS, N, d))(jax.random.key(1))
    image = np.asarray(d.image)
    basis = np.linalg.svd(image, full_matrices=True)[0][:, l:]  # orthogonal to the dictionary
    rules = [
        c * (A * image[:, k] + B * image[:, pairs_of_classes + k] + OUTSIDE * basis[:, k])
        for k in range(pairs_of_classes)
        for c in (-1, 1)
    ]
    scores = np.asarray(pairs.image) @ np.stack(rules, 1)
    return scores, np.asarray(data.class_index(pairs.label)), np.asarray(data.is_aligned(pairs.label, pairs.attribute))


def check_counted(name, *, swapped=False, norm_squared=A**2 + B**2 + OUTSIDE**2, sd=SD, p=0.8):
    scores, own, aligned = counted(name)
    right = scores.argmax(1) == own
    accuracy = exact(MODELS[name](), (A, B), norm_squared, sd)
    assert_mean_close(right, accuracy.train(p), resolution=0.002)
    for group, want in zip((aligned, ~aligned), numbers(accuracy)[:: -1 if swapped else 1], strict=True):
        assert_mean_close(right[group], want, resolution=0.005)


@pytest.mark.costly
@over_models
def test_accuracy_is_what_counting_finds(name):
    check_counted(name)


@over_models
@pytest.mark.parametrize(
    "wrong", [{"swapped": True}, {"sd": 0.0}, {"norm_squared": A**2 + B**2}, {"p": 0.77}], ids=lambda w: next(iter(w))
)
def test_counting_rejects_a_wrong_theory(name, wrong):
    rejects(check_counted, name, **wrong)


@over_models
def test_sampled_accuracy_is_the_exact_one_on_average(name):
    """400 batches of 250 images. Both groups always occur."""
    scores, own, aligned = (x.reshape(400, 250, *x.shape[1:]) for x in counted(name))
    got = jax.jit(jax.vmap(sampled_accuracy))(scores, own, aligned)
    want = exact(MODELS[name](), (A, B), A**2 + B**2 + OUTSIDE**2, SD)
    assert_mean_close(np.stack([got.aligned, got.conflicting], 1), numbers(want), resolution=0.005)
    rejects(assert_mean_close, got.aligned, want.conflicting, resolution=0.005)


def test_intra_class_formula_as_written_in_theory():
    _p, s_c, s_s, mu_c, mu_s = INTRA.values()
    for w_c, w_s, norm, s in ((1.0, 0.6, 2.0, 0.5), (-0.3, 2.0, 5.0, 0.0), (0.5, -0.5, 0.5, 1.0), (0.0, 1.0, 1.0, 0.1)):
        sd = np.sqrt(w_c**2 * s_c**2 + w_s**2 * s_s**2 + s**2 * norm)
        want = [Phi((w_c * mu_c + r * w_s * mu_s) / sd) for r in (1, -1)]
        np.testing.assert_allclose(numbers(exact(intra_class(**INTRA), (w_c, w_s), norm, s)), want, rtol=1e-12)


def by_quadrature(m, a, b, variance, alpha, beta, beta_spu):
    """E_g[1{S > 0} P(|S'| < S)^(m-1)], split where S passes 0 and each foreign mean."""
    t, b = np.sqrt(variance), alpha * b
    foreign = np.array([a * beta + b * beta_spu, a * beta - b * beta_spu])

    def group(r):
        own = a + r * b

        def integrand(g):
            s = own + t * g
            beaten = np.mean(Phi((s - foreign) / t) - Phi((-s - foreign) / t))
            return beaten ** (m - 1) * np.exp(-(g**2) / 2) / np.sqrt(2 * np.pi)

        low = max(-own / t, -40.0)
        cuts = sorted({c for f in foreign for c in ((abs(f) - own) / t, (abs(f) - own) / t + 4)} | {-3.0, 0.0, 3.0})
        cuts = [low, *(c for c in cuts if low < c < 12), max(12.0, low + 1)]
        pieces = itertools.pairwise(cuts)
        return sum(scipy.integrate.quad(integrand, x, y, epsabs=1e-13, epsrel=1e-12, limit=200)[0] for x, y in pieces)

    return [group(1), group(-1)]


@pytest.mark.parametrize("m", [1, 3, 1000, 10**6])
@pytest.mark.parametrize(
    ("a", "b", "variance", "alpha", "beta", "beta_spu"),
    [
        (1.0, 0.6, 0.4, 1.0, 0.6, 0.3),
        (2.5, 0.3, 0.01, 3.0, 0.2, 0.8),
        (1.0, -0.8, 4.0, 0.5, 0.9, 0.5),
        (-1.0, 0.3, 1.0, 1.0, 0.5, 0.0),
        (0.5, 0.05, 1e-3, 10.0, 0.4, 0.2),
        (1.0, 0.0, 0.09, 1.0, 0.0, 0.9),
    ],
)
def test_inter_class_integral_equals_scipy_quadrature(m, a, b, variance, alpha, beta, beta_spu):
    model = inter_class(m, 0.9, alpha, beta, beta_spu)
    got = numbers(exact(model, (a, b), variance / 0.25, 0.5))
    np.testing.assert_allclose(got, by_quadrature(m, a, b, variance, alpha, beta, beta_spu), rtol=0, atol=1e-10)


def test_the_strength_of_the_spurious_feature_counts():
    got = numbers(exact(inter_class(3, 0.9, 1.1, 0.6, 0.3), (1.0, 0.6), 1.6, 0.5))
    np.testing.assert_allclose(got, by_quadrature(3, 1.0, 0.6, 0.4, 1.1, 0.6, 0.3), rtol=0, atol=1e-10)
    assert not np.allclose(got, by_quadrature(3, 1.0, 0.6, 0.4, 1.0, 0.6, 0.3), rtol=0, atol=1e-3)
    assert not np.allclose(got, by_quadrature(3, 1.0, 0.6, 0.4, 1.1, 0.6, 0.6), rtol=0, atol=1e-3)


@pytest.mark.parametrize("t", [1e-6, 0.03, 0.7, 3.0])
def test_a_single_pair_has_a_closed_form(t):
    got = numbers(exact(inter_class(1, 0.7, 0.5, 0.2, 0.3), (A, -2 * B), 1.0, t))
    np.testing.assert_allclose(got, Phi([(A - B) / t, (A + B) / t]), rtol=1e-12, atol=0)


@pytest.mark.costly
def test_many_pairs_without_strength_of_foreign_details():
    """beta = beta_spu = 0 leaves m - 1 competitors |N(0, t^2)|; the accuracy falls with m, to 0, with no step lost."""
    t, sizes = 0.3, (1, 4, 50, 1000, 10**6, 10**12)  # all but the last in other tests too
    accuracies = [float(exact(inter_class(m, 0.7, 1.0, 0.0, 0.0), (A, B), t**2, 1.0).conflicting) for m in sizes]
    assert (np.diff(accuracies) < 0).all() and accuracies[-1] < 1e-6
    # With own mean A - B = 0 too the own score is one more |N(0, t^2)|: positive, and the largest of m.
    for m in (1, 2, 4, 1000):
        got = exact(inter_class(m, 0.7, 1.0, 0.0, 0.0), (A, A), t**2, 1.0).conflicting
        np.testing.assert_allclose(got, 1 / (2 * m), rtol=1e-10)


@pytest.mark.parametrize("m", [1, 3, 50])
def test_inter_class_noise_to_zero_is_the_step(m):
    """Conflicting A - b, b = alpha B, meets |A beta +- b beta_spu|: right, right without a strong competitor, never."""
    for b, beta_spu, beta, want in ((0.1, 0.3, 0.5, 1.0), (0.2, 0.5, 0.5, 0.5 ** (m - 1)), (0.55, 0.5, 0.5, 0.0)):
        model = inter_class(m, 0.9, 2.0, beta, beta_spu)
        assert exact(model, (1.0, b), 2.0).conflicting == want
        np.testing.assert_allclose(exact(model, (1.0, b), 2.0, 1e-4).conflicting, want, rtol=0, atol=1e-12)
        assert exact(model, (1.0, b), 2.0).aligned == 1


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("b", [0.0, 0.25, 0.5, 1.0, 1.5])
def test_ties_share_the_answer_as_in_counted_scores(m, b):
    """Every latent of a model whose scores tie in numbers: own score against 2m - 1 others, at and beside a tie."""
    for alpha, beta, beta_spu in ((1.0, 0.375, 0.25), (1.0, 0.0, 0.5), (1.0, 0.0, 0.0), (2.0, 0.5, 0.25)):
        model, counted = inter_class(m, 0.5, alpha, beta, beta_spu), []
        rules = np.kron(np.eye(m), np.array([[-1.0], [1.0]]))
        for a in (1, -1):
            signs = np.array(list(itertools.product([1, -1], repeat=2 * (m - 1)))).reshape(4 ** (m - 1), 2, m - 1)
            core = np.concatenate([np.ones((len(signs), 1)), beta * signs[:, 0]], 1)
            spu = alpha * np.concatenate([np.full((len(signs), 1), float(a)), beta_spu * signs[:, 1]], 1)
            group = sampled((core + b * spu) @ rules.T, np.ones(len(signs), int), np.ones(len(signs), bool))
            counted.append(float(group.aligned))
        np.testing.assert_allclose(numbers(exact(model, (1.0, b), 1 + b**2)), counted, rtol=1e-12)


def test_ties_that_rounding_hides():
    """.1 + .2 - .3 is not 0 in floating point."""
    assert exact(intra_class(0.9, 0.0, 0.0, 0.3, 0.1), (0.1, 0.3), 0.1).conflicting == 0.5
    got = exact(inter_class(2, 0.9, 1.0, 0.1, 0.1), (0.1, 0.9 / 11 * 0.1 / 0.1), 0.1)
    np.testing.assert_allclose(got.conflicting, (1 + 1 + 0.5 + 0.5) / 4, rtol=1e-12)


def test_ties_without_noise_count_one_half():
    assert exact(intra_class(0.9, 0.0, 0.0), (1.0, 1.0), 2.0).conflicting == 0.5
    assert exact(intra_class(0.9, 0.0, 0.0), (1.0, 2.0), 5.0).conflicting == 0
    assert exact(intra_class(0.9, 0.0, 0.0), (0.0, 0.0), 0.0).aligned == 0.5
    assert exact(inter_class(1, 0.9, 1.0, 0.5, 0.5), (1.0, 1.0), 2.0).conflicting == 0.5
    # A - B = 1/2 meets |S'| = A beta + B beta_spu = 1/2 or 1/4, half the time each.
    model = inter_class(2, 0.9, 1.0, 0.375, 0.25)
    assert exact(model, (1.0, 0.5), 1.25).conflicting == 0.75
    np.testing.assert_allclose(exact(model, (1.0, 0.5), 1.25, 1e-6).conflicting, 0.75, rtol=0, atol=1e-10)


def test_step_function_against_every_latent_of_a_small_model():
    """m = 2, no noise: both groups counted over the signs of the other pair, ties included."""
    for b in (0.2, 0.5, 0.8):
        model, want = inter_class(2, 0.5, 1.0, 0.375, 0.25), []
        for a in (1, -1):
            z = np.array([[1, i * 0.375, a, j * 0.25] for i in (1, -1) for j in (1, -1)])
            rule = np.array([[-1, 0, -b, 0], [1, 0, b, 0], [0, -1, 0, -b], [0, 1, 0, b]])
            group = sampled(z @ rule.T, np.ones(4, int), np.ones(4, bool))
            want.append(float(group.aligned))
        np.testing.assert_array_equal(numbers(exact(model, (1.0, b), 1 + b**2)), want)


def test_sampled_accuracy_by_hand():
    scores = np.array([[1.0, 0.0, 0.5], [2.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [-1.0, -1.0, -3.0]])
    own, aligned = np.array([0, 1, 2, 1, 2]), np.array([True, True, False, True, False])
    got = sampled(scores, own, aligned)
    np.testing.assert_allclose(numbers(got), [(1 + 1 / 2 + 0) / 3, (1 / 3 + 0) / 2], rtol=1e-15)
    only = sampled(scores, own, np.ones(5, bool))
    assert np.isnan(only.conflicting) and not np.isnan(only.aligned)
    np.testing.assert_allclose(only.aligned, (1 + 1 / 2 + 1 / 3) / 5, rtol=1e-15)
    assert np.isnan(sampled(scores, own, np.zeros(5, bool)).aligned)


def test_group_accuracy_weights_its_groups():
    groups = GroupAccuracy(jnp.array([0.9, 0.2]), jnp.array([0.5, 0.6]))
    np.testing.assert_allclose(groups.shifted, [0.7, 0.4], rtol=1e-15)
    np.testing.assert_array_equal(groups.worst, [0.5, 0.2])
    np.testing.assert_allclose(groups.at(0.75), [0.8, 0.3], rtol=1e-15)
    np.testing.assert_array_equal(groups.at(1.0), groups.aligned)
    np.testing.assert_array_equal(groups.at(0.0), groups.conflicting)
    np.testing.assert_allclose(groups.at(0.5), groups.shifted, rtol=1e-15)
    np.testing.assert_array_equal(groups.train(0.75), groups.at(0.75))
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"^p_spu must be in \[0, 1\], got {p:g}\.$"):
            groups.at(p)


def test_prompts():
    q = 2 * 0.8 - 1
    np.testing.assert_allclose(prompts_of(MODELS["intra"]()), [[-1.3, 0], [1.3, 0]], rtol=1e-12)
    want = [[-1.3, -q * 1.1], [1.3, q * 1.1]]
    np.testing.assert_allclose(prompts_of(MODELS["intra"](), "train_mean"), want, rtol=1e-12)
    eye = np.repeat(np.eye(3), 2, axis=0) * np.tile([[-1], [1]], (3, 1))  # -1, +1, -2, +2, -3, +3
    np.testing.assert_array_equal(prompts_of(MODELS["inter"]()), np.concatenate([eye, 0 * eye], 1))
    got = prompts_of(MODELS["inter"](), "train_mean")
    np.testing.assert_allclose(got, np.concatenate([eye, q * INTER["alpha"] * eye], 1), rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match=r"^kind must be one of core, train_mean, got 'spu'\.$"):
        latent_prompts(MODELS["intra"](), "spu")


@over_models
def test_flipping_the_spurious_weight_swaps_the_groups_and_scaling_changes_nothing(name):
    model = MODELS[name]()
    base = numbers(exact(model, (A, B), 3.0, 0.4))
    np.testing.assert_allclose(numbers(exact(model, (A, -B), 3.0, 0.4))[::-1], base, rtol=1e-12)
    np.testing.assert_allclose(numbers(exact(model, (7 * A, 7 * B), 49 * 3.0, 0.4)), base, rtol=1e-12)
    np.testing.assert_allclose(numbers(exact(model, (A, B), 0.75, 0.8)), base, rtol=1e-12)


@pytest.mark.costly
@over_models
@pytest.mark.parametrize(
    "transform", [jax.jit, pytest.param(lambda f: f, marks=pytest.mark.slow)], ids=["jit", "eager"]
)
def test_arrays_of_rules_equal_a_loop(name, transform):
    """Operation by operation it is dozens of programs, and the library's examples run that way too."""
    weights = np.array([[[A, B], [0.5, 2.0], [-1.0, 0.2]]] * 2)
    norms, sds = np.full((2, 3), 5.0), np.repeat([[0.0], [0.5]], 3, axis=1)
    grid = transform(linear_rule_accuracy)(MODELS[name](), jnp.asarray(weights), jnp.asarray(norms), jnp.asarray(sds))
    assert grid.aligned.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        one = numbers(exact(MODELS[name](), weights[i, j], 5.0, sds[i, j]))
        np.testing.assert_allclose(numbers(grid)[:, i, j], one, rtol=1e-12)


@functools.cache
def slopes_of(name):
    """Accuracy of a mixture of the groups, and its derivatives: one program for any rule, noise and leaves."""

    def accuracy(weights, norm, sd, leaves):
        groups = linear_rule_accuracy(dataclasses.replace(MODELS[name](), **leaves), weights, norm, sd)
        return 0.3 * groups.aligned + 0.7 * groups.conflicting

    return jax.jit(jax.value_and_grad(accuracy, argnums=(0, 1, 2, 3)))


@pytest.mark.costly
@over_models
@pytest.mark.parametrize("sd", [0.0, 0.5])
def test_gradients_are_finite_and_those_of_differences(name, sd):
    """Without noise the accuracy is a step (or, intra-class with noisy latents, smooth): finite either way."""
    leaves = {k: x for k, x in MODELS[name]().__dict__.items() if not isinstance(x, int)}
    args = np.array([A, B]), np.array(3.0), np.array(sd)
    _, grads = slopes_of(name)(*args, leaves)
    assert len(grads[3]) == len(leaves) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    if sd:
        h = 1e-5
        for k, step in enumerate((np.array([h, 0.0]), h, h)):
            up, down = (slopes_of(name)(*args[:k], args[k] + s * step, *args[k + 1 :], leaves)[0] for s in (1, -1))
            got = grads[k][0] if k == 0 else grads[k]
            np.testing.assert_allclose(got, (up - down) / (2 * h), rtol=1e-6)


@over_models
def test_undefined_rules_have_undefined_accuracy(name):
    for weights, norm in (((np.nan, 1.0), 2.0), ((1.0, 1.0), np.nan), ((1.0, 1.0), np.inf)):
        got = numbers(exact(MODELS[name](), weights, norm, 0.5))
        assert np.isnan(got).all() or np.isinf(norm)
        assert not (got == 1).any()
