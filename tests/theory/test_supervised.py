"""The max-margin curve X1 against SciPy and against max-margin rules of sampled images; T3's bound; T4's limit."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from scipy.stats import norm

from mmcl_theory.data import class_labels, inter_class, intra_class, observation
from mmcl_theory.theory import max_margin_rule, shortcut_bound, supervised_accuracy, supervised_bound
from proofs_checks.ambient import max_margin
from proofs_checks.t4 import crammer_singer
from proofs_checks.x1 import hinge, program_optimum, slack
from tests.differences import central
from tests.statistics import rejects

DIM, LARGE = 2000, 10**9  # each is compiled once
accuracy_of = jax.jit(supervised_accuracy)


@jax.jit
def solve(model, obs, n):
    """(v_c, v_s, sqrt(T)) and the accuracies (aligned, conflicting)."""
    v, noise_norm = max_margin_rule(model, obs, n)
    accuracy = supervised_accuracy(model, obs, n)
    return jnp.concatenate([v, jnp.sqrt(noise_norm)[..., None]], -1), jnp.stack(
        [accuracy.aligned, accuracy.conflicting], -1
    )


def predict(p, s_c, s_s, n, d, sigma, mu_c=1.0, mu_s=1.0):
    """`solve` point by point, which compiles once for all tests."""
    points = np.broadcast_arrays(p, s_c, s_s, n, sigma, mu_c, mu_s)
    solved = [
        solve(intra_class(*x[:3], *x[5:]), observation(d, 2, x[4], 0.0), np.asarray(x[3]))
        for x in zip(*(np.asarray(x, float).ravel().tolist() for x in points), strict=True)
    ]
    return tuple(jnp.stack(x).reshape(*points[0].shape, -1) for x in zip(*solved, strict=True))


# X1 against SciPy


def scipy_rule(*parameters):
    """The convex problem in three variables from two feasible starts."""
    optima = [program_optimum(v, *parameters) for v in ((0.5, 0.5), (1.0, 0.1))]
    np.testing.assert_allclose(optima[0], optima[1], atol=1e-6 * np.linalg.norm(optima[0]))
    return optima[0]


def random_parameters(count):
    rng = np.random.default_rng(0)
    low = [0.5, 0.1, 0.0, 0.5, 0.3, np.log(100), 0.5]
    high = [1.0, 1.5, 0.6, 1.5, 1.5, np.log(1800), 20.0]
    x = rng.uniform(low, high, (count, 7))
    x[:, 5] = np.exp(x[:, 5])
    return x


def test_hinge_is_its_integral():
    for m, s in ((0.3, 0.7), (2.0, 0.5), (-1.0, 2.0)):
        integral = scipy.integrate.quad(lambda z, m=m, s=s: (1 - z) ** 2 * norm.pdf(z, m, s), m - 20 * s, 1)[0]
        np.testing.assert_allclose(hinge(m, s), integral, rtol=1e-7)


@pytest.mark.costly
def test_rule_is_the_optimum_that_scipy_finds():
    x = random_parameters(30)
    p, s_c, s_s, mu_c, mu_s, n, sigma = x.T
    got, _ = predict(p, s_c, s_s, n, DIM, sigma, mu_c, mu_s)
    for (*row, sigma), rule in zip(x, got, strict=True):
        want = scipy_rule(*row, DIM, sigma)
        assert np.abs(rule - want).max() <= 1e-6 * np.linalg.norm(want)
        assert abs(slack(np.asarray(rule), *row, DIM, sigma)) <= 1e-12 * rule[2]


def test_values_in_the_theory_text():
    rule, _ = predict(0.95, 1.0, 0.1, 1000, 2000, 2.0)
    np.testing.assert_allclose(rule[:2], [0.552, 0.934], atol=1e-3)
    np.testing.assert_allclose(rule[2] ** 2, 40.2, atol=0.2)
    # At n = 1000, d = 4000, sigma = 1, which are the same ratios.
    _, accuracy = predict(0.9, 1.0, 0.2, 500, 2000, 0.5**0.5)
    np.testing.assert_allclose(accuracy[1], 0.447, atol=1e-3)


@jax.jit
@jax.value_and_grad
def conflicting(point):
    """One program for both gradients and all values."""
    model = dataclasses.replace(intra_class(0.9, 0.8, 0.3), p_spu=point["p_spu"])
    return supervised_accuracy(model, observation(DIM, 2, 8.0, 0.0), point["n"]).conflicting


@pytest.mark.parametrize("name", ["p_spu", "n"])
def test_gradients_are_finite_differences(name):
    point = {"p_spu": 0.9, "n": 700.0}
    want = central(lambda x: conflicting(point | {name: x})[0], point[name], 1e-4 * point[name])
    np.testing.assert_allclose(conflicting(point)[1][name], want, rtol=1e-8)


@pytest.mark.slow
def test_leaves_broadcast_like_a_loop():
    p, n, sigma = np.array([[0.7], [0.95]]), np.array([300.0, 900.0, 1500.0]), np.array([2.0, 5.0, 9.0])
    model, obs = intra_class(p, 0.9, 0.2), observation(DIM, 2, sigma, 0.0)
    rule, accuracy = solve(model, obs, n)
    for i in range(2):
        for j in range(3):
            one_rule, one_accuracy = predict(p[i, 0], 0.9, 0.2, n[j], DIM, sigma[j])
            np.testing.assert_allclose(rule[i, j], one_rule, rtol=1e-11)
            np.testing.assert_allclose(accuracy[i, j], one_accuracy, rtol=1e-11)


def test_symmetries():
    rule, accuracy = predict(np.array([0.5, 0.9, 0.1]), 0.8, 0.3, 700, DIM, 8.0)
    np.testing.assert_allclose(rule[0, 1], 0, atol=1e-12)
    np.testing.assert_allclose(accuracy[0, 0], accuracy[0, 1], rtol=1e-12)
    # Turning the spurious axis round swaps the groups.
    np.testing.assert_allclose(rule[2], rule[1] * np.array([1, -1, 1]), rtol=1e-10)
    np.testing.assert_allclose(accuracy[2], accuracy[1, ::-1], rtol=1e-10)


def test_units_do_not_matter():
    scale = np.array([1.0, 7.0])
    rule, accuracy = predict(np.full(2, 0.9), 0.8 * scale, 0.3 * scale, 700, DIM, 8 * scale, scale, scale)
    np.testing.assert_allclose(accuracy[1], accuracy[0], rtol=1e-11)
    np.testing.assert_allclose(rule[1] * 7, rule[0], rtol=1e-11)


@pytest.mark.costly
def test_dimension_enters_through_noise_per_coordinate_and_n_over_d_only():
    want = predict(0.9, 0.8, 0.3, 700, DIM, 8.0)[0]
    k = LARGE // DIM
    np.testing.assert_allclose(predict(0.9, 0.8, 0.3, 700 * k, LARGE, 8.0 * k**0.5)[0], want, rtol=1e-12)


def test_not_separable_is_nan():
    """Pure noise: separable iff n < 2 d (Cover 1965). With a signal, n >> d.  sigma = 0: no noise part to scale."""
    rule, accuracy = predict(0.9, 0.0, 0.0, np.array([1.9, 2.1]) * DIM, DIM, 8.0, mu_c=1e-9, mu_s=0.0)
    assert jnp.isfinite(rule[0]).all() and jnp.isnan(rule[1]).all()
    np.testing.assert_allclose(accuracy[0], 0.5, atol=1e-6)
    for n, sigma in ((40 * DIM, 20.0), (500, 0.0)):
        assert all(jnp.isnan(x).all() for x in predict(0.9, 1.0, 0.3, n, DIM, sigma))


def test_missing_arguments_are_refused():
    model, obs = intra_class(0.9, 1.0, 0.3), observation(DIM, 2)
    for args in ((model,), (model, obs), (model, None, 100)):
        with pytest.raises(ValueError, match="obs and n must be given for this model, got None"):
            supervised_accuracy(*args)
    with pytest.raises(ValueError, match=r"n must be >= 2, got 1\."):
        supervised_accuracy(model, obs, 1)


# X1 and T3 against max-margin rules of sampled images


@functools.cache
def simulate(p, s_c, s_s, n, d, sigma, seeds):
    """In float32, which moves accuracies by less than 1e-4 (gap of max_margin_dual below 1e-3)."""
    model, obs = jax.tree.map(
        lambda x: x.astype(jnp.float32), (intra_class(p, s_c, s_s), observation(d, 2, sigma, 0.0))
    )
    return np.asarray(max_margin(jax.random.key(6), model, obs, n=n, seeds=seeds))


def assert_in_band(samples, prediction, *, margin=0.02):
    """Within 3 standard errors and the margin: a statement for finite n about a limit."""
    error = np.abs(samples.mean(0) - prediction)
    band = 3 * samples.std(0, ddof=1) / len(samples) ** 0.5 + margin
    assert (error <= band).all(), f"z = {error} > {band}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [(0.95, 1.0, 0.1, 1000, 2000, 2.0), pytest.param((0.9, 1.0, 0.2, 1000, 4000, 1.0), marks=pytest.mark.long)],
    ids=str,
)
def test_max_margin_at_a_thousand_samples(point):
    """Resolution: standard errors of .025 on the conflicting group, .003 on the aligned one."""
    samples = simulate(*point, 8)
    p, s_c, *rest = point
    assert_in_band(samples, predict(*point)[1])
    rejects(assert_in_band, samples, predict(*point)[1][::-1])
    rejects(assert_in_band, samples, predict(p - 0.1, s_c, *rest)[1])
    rejects(assert_in_band, samples, predict(p, s_c / 2, *rest)[1])


@pytest.mark.long
def test_gap_to_the_curve_shrinks_faster_than_one_over_root_n():
    """At fixed n/d and n/sigma^2, as X1 wants; the aligned group, whose noise is the smaller (resolution 5e-4).

    A gap of order 1/sqrt(n) would halve from n = 40 to n = 160; the limit with p_spu off by .03 would leave none of it.
    Seen: n times the gap is -.36, -.30, -.25, -.22 at n = 60, 125, 250, 500.
    """
    gaps, variances = [], []
    for n, seeds in ((40, 2000), (160, 1000)):
        sigma = 2 * (n / 1000) ** 0.5
        limit = np.asarray(predict(0.95, 1.0, 0.1, n, 2 * n, sigma)[1])
        samples = simulate(0.95, 1.0, 0.1, n, 2 * n, sigma, seeds)
        gaps.append(samples.mean(0)[0] - limit[0])
        variances.append(samples.var(0, ddof=1)[0] / seeds)
    np.testing.assert_array_less(np.sqrt(variances), 5e-4)
    five_errors = 5 * np.sqrt(variances[0] + 4 * variances[1])
    assert abs(gaps[0]) - 2 * abs(gaps[1]) > five_errors
    wrong = np.asarray(predict(0.92, 1.0, 0.1, n, 2 * n, sigma)[1][0] - limit[0])
    assert not abs(gaps[0] - wrong) - 2 * abs(gaps[1] - wrong) > five_errors


def sagawa(majority, minority, dim):
    """T3's regime as in Sagawa et al. 2020: (p, s_c, s_s, n, d, sigma)."""
    n = majority + minority
    return majority / n, 1.0, (16 * np.log(100 * majority)) ** -0.5, n, dim, majority**0.5 / 600


def test_bound_holds_for_the_curve_in_its_regime():
    p, s_c, s_s, n, d, sigma = sagawa(200_000, 100, LARGE)
    model, obs = intra_class(p, s_c, s_s), observation(d, 2, sigma, 0.0)
    conflicting = solve(model, obs, np.asarray(float(n)))[1][1]
    assert conflicting <= supervised_bound().conflicting
    assert supervised_bound().shifted == 2 / 3


def assert_below(samples, bound):
    """One-sided z-test of E[samples] <= bound at a false-alarm rate of 1e-6 with the evidence on the bound's side."""
    z = (samples.mean() - bound) / (samples.std(ddof=1) / len(samples) ** 0.5)
    assert z < -norm.isf(1e-6), f"z = {z:.1f}"


@pytest.mark.long
def test_bound_holds_for_sampled_images():
    """In float64: the noise, .017 of the signal's norm, leaves a margin too small for float32. Standard error .02."""

    def conflicting(p):
        _, s_c, s_s, n, d, sigma = sagawa(100, 5, 2000)
        obs = observation(d, 2, sigma, 0.0)
        return np.asarray(max_margin(jax.random.key(3), intra_class(p, s_c, s_s), obs, n=n, seeds=200))[:, 1]

    assert_below(conflicting(100 / 105), float(supervised_bound().conflicting))
    rejects(assert_below, conflicting(0.7), float(supervised_bound().conflicting))


# T4: the max-margin rule of the whole inter-class population


SETTINGS = [(2, 1.0, 0.5, 0.3), (2, 1.6, 0.2, 0.2), (3, 0.6, 0.35, 0.35), (3, 10.0, 1 / 3, 1 / 3), (3, 1.0, 0.2, 0.8)]


@pytest.mark.parametrize(("m", "alpha", "beta", "beta_spu"), SETTINGS)
def test_inter_class_rule_is_the_max_margin_of_the_population(m, alpha, beta, beta_spu):
    w = crammer_singer(m, alpha, beta, beta_spu)
    core, spu = 1 - beta, alpha * (1 - beta_spu)
    want = np.zeros((2 * m, 2 * m))
    for number, label in enumerate(np.asarray(class_labels(2 * m))):
        want[number, [abs(label) - 1, m + abs(label) - 1]] = np.sign(label) * np.array([core, spu])
    # The weights of all classes may shift together: only differences decide.
    w, want = w - w.mean(0), want - want.mean(0)
    scale = np.vdot(w, want) / np.vdot(want, want)
    np.testing.assert_allclose(w, scale * want, atol=1e-9)
    swapped = np.roll(want, m, axis=1)
    assert np.abs(w - np.vdot(w, swapped) / np.vdot(swapped, swapped) * swapped).max() > 0.05


@pytest.mark.parametrize(("m", "alpha", "beta", "beta_spu"), SETTINGS)
def test_inter_class_accuracy_is_what_the_population_counts(m, alpha, beta, beta_spu):
    w = crammer_singer(m, alpha, beta, beta_spu)
    correct, aligned = [], []
    for number, label in enumerate(np.asarray(class_labels(2 * m))):
        for signs in itertools.product((-1, 1), repeat=2 * m):
            z = np.array(signs) * np.repeat([beta, alpha * beta_spu], m)
            z[abs(label) - 1], z[m + abs(label) - 1] = np.sign(label), alpha * signs[m + abs(label) - 1]
            correct.append((w @ z).argmax() == number)
            aligned.append(signs[m + abs(label) - 1] == np.sign(label))
    correct, aligned = np.array(correct), np.array(aligned)
    accuracy = accuracy_of(inter_class(m, 1.0, alpha, beta, beta_spu))
    got = [correct[aligned].mean(), correct[~aligned].mean()]
    np.testing.assert_allclose([accuracy.aligned, accuracy.conflicting], got, atol=1e-12)
    # Not all right once a competitor has both signs right iff (1 - beta)^2 < alpha^2 (1 - beta_spu^2).
    assert (got[1] < 1) == ((1 - beta) ** 2 < alpha**2 * (1 - beta_spu**2))
    if 1 - beta < alpha**2 * (1 - beta_spu):  # the own score u - alpha v is negative: never right
        np.testing.assert_allclose(accuracy.conflicting, 0, atol=1e-12)


def test_the_paper_s_bound_lies_above_the_exact_accuracy():
    """1/2 + 2/((1+alpha^2)(1-beta)^2 - 8) by hand at alpha = 10, beta = 1/3: 101 * 4/9 - 8 = 332/9."""
    model = inter_class(20, 1.0, np.array([10.0, 4.0, 2.0]), np.array([1 / 3, 0.0, 0.0]))
    np.testing.assert_allclose(jax.jit(shortcut_bound)(model), [0.5 + 18 / 332, 0.5 + 2 / 9, np.nan], rtol=1e-12)
    np.testing.assert_array_equal(accuracy_of(model).shifted, 0.5)

    @jax.jit
    @jax.vmap
    def value_and_slopes(alpha):
        bound = lambda alpha: shortcut_bound(inter_class(3, 1.0, alpha, 0.3))  # noqa: E731
        return bound(alpha), jax.grad(bound)(alpha), jax.jvp(bound, (alpha,), (1.0,))[1]

    value, *slopes = value_and_slopes(jnp.array([jnp.nan, 1.5, 10.0]))
    np.testing.assert_array_equal(jnp.isnan(value), [True, True, False])
    for slope in slopes:
        assert jnp.isnan(slope[1]) and slope[2] < 0


def test_one_pair_has_no_other_class_to_stand_out_from():
    """u : v = 1 : alpha, whatever the shares: the conflicting group is right, tied, wrong as alpha passes 1."""
    alpha = np.array([0.9, 1.0, 1.1])
    for shares in ((0.5,), (0.2, 0.4)):
        accuracy = accuracy_of(inter_class(1, 1.0, alpha, *shares))
        np.testing.assert_array_equal(accuracy.conflicting, [1, 0.5, 0])
        np.testing.assert_array_equal(accuracy.aligned, 1)
    # Two pairs do stand out from each other: there alpha^2 = (1 - beta) / (1 + beta) parts right from wrong.
    assert accuracy_of(inter_class(2, 1.0, 0.9, 0.5)).conflicting < 1


def test_inter_class_has_no_limit_below_perfect_correlation():
    accuracy = accuracy_of(inter_class(3, np.array([0.9, 1.0]), 1.3, 0.5))
    assert jnp.isnan(accuracy.conflicting[0]) and jnp.isfinite(accuracy.conflicting[1])
