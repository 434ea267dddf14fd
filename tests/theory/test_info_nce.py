"""The population optimum of bilinear InfoNCE (X10) against batches in ambient space, limits, trained encoders."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as t_law

from mmcl_theory.data import captions, group_captions, inter_class, intra_class, mixture
from mmcl_theory.theory import (
    balanced_pi_spu,
    info_nce_balanced_captions,
    info_nce_batch_optimum,
    info_nce_optimum,
    whitened_rule,
)
from mmcl_theory.theory.info_nce_mixtures import (
    _text_cumulant,
    pair_law,
    population_derivatives,
    population_loss,
    quadrature,
    quasi_random,
    shifted_points,
)
from proofs_checks.ambient import groups, jit_long, noise, ratio
from proofs_checks.x10 import POLICIES, TRAINED, gradients, setting
from tests.differences import assert_slopes, central
from tests.helpers import refuses
from tests.statistics import assert_mean_close, rejects

pytestmark = pytest.mark.slow

balanced = jit_long(info_nce_balanced_captions, static_argnames=("nodes",))
optimum = jit_long(info_nce_optimum, static_argnames=("nodes", "points"))
batch_optimum = jit_long(info_nce_batch_optimum, static_argnames=("batch_size", "batches"))
# Sizes 6 and 5 everywhere, as each would be compiled; optima depend on the noise per coordinate alone.
MODEL, CAPS, OBS = setting()


def check_stationary(score):
    samples = gradients(jax.random.key(3), MODEL, CAPS, OBS, score, n=32, batches=1000)
    assert_mean_close(samples, 0.0, resolution=7e-3)


def test_batch_optimum_is_stationary_in_the_ambient_space():
    """All 6 x 5 entries of the gradient of batches of 32. Four times the batches make M, whose error adds 1/4."""
    found = batch_optimum(jax.random.key(0), MODEL, CAPS, OBS, batch_size=32, batches=4000)
    assert found.residual < 1e-10
    check_stationary(found.score)
    rejects(check_stationary, found.score.T)
    rejects(check_stationary, optimum(MODEL, CAPS, OBS).score)  # infinitely many negatives
    rejects(check_stationary, optimum(intra_class(0.9, 0.8, 0.3), CAPS, OBS).score)


@pytest.mark.long
def test_batches_tend_to_the_population_as_one_over_n():
    """M_N = M + b/N + O(1/N^2): (4 M_128 - M_32)/3 has no 1/N left. In standard errors of the batches drawn."""
    want = optimum(MODEL, CAPS, OBS).score
    few = batch_optimum(jax.random.key(1), MODEL, CAPS, OBS, batch_size=32, batches=4000)
    many = batch_optimum(jax.random.key(2), MODEL, CAPS, OBS, batch_size=128, batches=1000)
    combined = (4 * many.score - few.score) / 3
    error = np.hypot(4 * many.standard_error, few.standard_error) / 3
    assert error.max() < 0.02
    z = np.abs(combined - want) / error
    assert z.max() < 5
    assert (np.abs(few.score - want) / few.standard_error).max() > 5
    wrong = optimum(intra_class(0.9, 0.8, 0.3), CAPS, OBS).score
    assert (np.abs(combined - wrong) / error).max() > 5


@pytest.mark.long
def test_standard_error_is_the_spread_over_batches():
    keys = jax.random.split(jax.random.key(4), 100)
    found = jit_long(jax.vmap(lambda key: info_nce_batch_optimum(key, MODEL, CAPS, OBS, 16, 32)))(keys)
    # The relative error of a standard deviation of 100 draws is .07.
    np.testing.assert_allclose(found.score.std(0, ddof=1) / found.standard_error.mean(0), 1, atol=0.35)


def test_trained_encoders_of_the_caption_table():
    """Aligned, conflicting of encoders trained by Adam, batch 1024, 8,000 steps, one run: X10, two digits."""
    model, obs = intra_class(0.99, 1.0, 0.1), noise(6, 5, 0.3, 0.3)
    for policy, want in zip(POLICIES, TRAINED, strict=True):
        caps = captions(*policy)
        found = optimum(model, caps, obs)
        assert found.residual < 1e-12
        np.testing.assert_allclose(groups(found.accuracy(model, obs)), want, atol=5e-3)
        # The Gaussian formula is off by ten times that, except for label-only captions.
        gaussian = whitened_rule(model, caps, obs)
        if policy != (0, 0):
            assert abs(ratio(gaussian) - ratio(found.score[:, 0])) > 0.03


def test_much_noise_leaves_the_whitened_rule():
    """Scores are then small and the second order is all; what is left falls as 1/s^8.

    In whitened units M is 1/s^2 and fourth cumulants are 1/s^4; they enter the gradient with M^3, against M.
    """
    gaps = []
    for s in (4.0, 8.0, 16.0):
        obs = noise(6, 5, s, s)
        gaps.append(ratio(optimum(MODEL, CAPS, obs).score[:, 0]) - ratio(whitened_rule(MODEL, CAPS, obs)))
    gaps = np.abs(gaps)
    assert gaps[-1] < 5e-3
    np.testing.assert_allclose(gaps[:-1] / gaps[1:], 2**8, rtol=0.3)


def test_without_correlation_the_spurious_weight_vanishes_and_groups_swap():
    model = intra_class(np.array([0.5, 0.9, 0.1]), 0.8, 0.3)
    found = [optimum(jax.tree.map(lambda x, i=i: x if x.ndim == 0 else x[i], model), CAPS, OBS).score for i in range(3)]
    np.testing.assert_allclose(found[0] - np.diag(np.diagonal(found[0])), 0, atol=1e-12)
    np.testing.assert_allclose(found[1] * np.array([[1, -1], [-1, 1]]), found[2], atol=1e-12)


def test_quadrature_has_converged():
    for caps in (CAPS, captions(0.0, 0.0), captions(1.0, 1.0)):
        few, many = optimum(MODEL, caps, OBS, nodes=36).score, optimum(MODEL, caps, OBS).score
        np.testing.assert_allclose(few, many, atol=1e-9)


@pytest.mark.long
def test_derivatives_are_those_of_differences():
    def conflicting(pi):
        found = info_nce_optimum(MODEL, captions(0.7, pi), OBS, nodes=32)
        return found.accuracy(MODEL, OBS).conflicting

    gradient = jit_long(jax.grad(conflicting))(jnp.asarray(0.6))
    np.testing.assert_allclose(gradient, central(jit_long(conflicting), 0.6, 1e-3), rtol=1e-7)


def test_no_minimum_is_reported():
    found = optimum(intra_class(1.0, 0.0, 0.0), captions(), noise(6, 5, 0.0, 0.0))
    assert jnp.isnan(found.score).all() and found.residual == jnp.inf


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="batch_size must be an integer >= 2, got 1"):
        info_nce_batch_optimum(jax.random.key(0), MODEL, CAPS, OBS, 1, 10)
    refuses("batches must be an integer >= 2, got 1", info_nce_batch_optimum, jax.random.key(0), MODEL, CAPS, OBS, 8, 1)
    refuses("nodes must be an integer >= 2, got 1", info_nce_optimum, MODEL, CAPS, OBS, 1)


# Balanced captions


BALANCE = intra_class(0.99, 1.0, 0.1)
NOISES = (0.1, 0.3, 0.5, 0.7, 1.0)
# pi_spu in balance at these s = s_I = s_T, exact and by the whitened formula; NaN where none in [0, 1] is.
TABLE = {
    0.5: ((0.6187, 0.7230, 0.8809, np.nan, np.nan), (0.4912, 0.5955, 0.7643, 0.9662, 1.2927)),
    1.0: ((0.1897, 0.3131, 0.5035, 0.7278, np.nan), (0.0155, 0.1322, 0.3347, 0.5832, 0.9807)),
}


@pytest.mark.parametrize("pi_core", TABLE)
def test_balance_moves_up_with_noise_and_lies_above_the_whitened_formula(pi_core):
    """By .12 to .18, the more so the richer the captions: the mixture over-corrects less than Gaussian latents do."""
    exact, whitened = TABLE[pi_core]
    found = [balanced(BALANCE, captions(pi_core), noise(6, 5, s, s), nodes=32) for s in NOISES]
    np.testing.assert_allclose([x.pi_spu for x in found], exact, atol=6e-5)
    formula = [balanced_pi_spu(BALANCE, captions(pi_core), noise(6, 5, s, s)) for s in NOISES]
    np.testing.assert_allclose(formula, whitened, atol=6e-5)
    for x, s in zip(found, NOISES, strict=True):
        np.testing.assert_allclose(x.bound, norm.cdf(1 / np.hypot(1, s)), rtol=1e-12)
        if np.isnan(x.pi_spu):
            assert (x.end_ratios > 0).all() and jnp.isnan(x.shifted) and jnp.isnan(x.ratio)
        else:
            assert x.end_ratios[0] > 0 > x.end_ratios[1] and abs(x.ratio) < 1e-12
            np.testing.assert_allclose(x.shifted, x.bound, rtol=1e-12)


def test_balanced_captions_in_single_precision_end_at_rounding():
    """The root is looked for until the ratio is 0 to rounding, which is coarser there."""
    exact = balanced(BALANCE, captions(0.5), noise(6, 5, 0.3, 0.3), nodes=16)
    with jax.enable_x64(False):
        single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (BALANCE, captions(0.5), noise(6, 5, 0.3, 0.3)))
        found = balanced(*single, nodes=16)
    assert found.pi_spu.dtype == jnp.float32 and abs(found.pi_spu - exact.pi_spu) < 1e-3
    assert abs(found.ratio) < 100 * np.finfo(np.float32).eps < 1e-3 < np.abs(found.end_ratios).min()


def test_balanced_captions_are_a_joint_optimum():
    """No policy of a grid of both probabilities beats the bound, which every balanced one attains."""
    obs = noise(6, 5, 0.3, 0.3)
    bound = float(balanced(BALANCE, captions(0.5), obs, nodes=32).bound)

    @jit_long
    @jax.vmap
    def policy(pi_core, pi_spu):
        found = info_nce_optimum(BALANCE, captions(pi_core, pi_spu), obs, nodes=32)
        w = found.score[:, 0]
        return found.accuracy(BALANCE, obs).shifted, w[1] / w[0]

    grid = np.linspace(0, 1, 11)
    pi = np.stack(np.meshgrid([0.3, 0.5, 0.8, 1.0], grid, indexing="ij"), -1).reshape(-1, 2)
    shifted, ratios = (x.reshape(4, 11) for x in policy(*pi.T))
    assert (shifted < bound).all() and (np.diff(ratios, axis=1) < 0).all()
    order = np.argsort(np.abs(ratios), axis=1)
    assert (np.diff(np.take_along_axis(np.asarray(shifted), order, 1), axis=1) < 0).all()


@pytest.mark.long
def test_balanced_captions_balance_batches():
    """The spurious weight of (4 M_128 - M_32)/3, whose 1/N has gone, in standard errors of the batches drawn."""
    obs = noise(6, 5, 0.5, 0.5)
    caps = captions(0.8)
    root = balanced(MODEL, caps, obs, nodes=32).pi_spu
    formula = balanced_pi_spu(MODEL, caps, obs)
    assert 0.05 < formula < root < 0.95

    def z(pi_spu):
        few, many = (
            batch_optimum(jax.random.key(k), MODEL, captions(0.8, pi_spu), obs, batch_size=size, batches=count)
            for k, size, count in ((5, 32, 4000), (6, 128, 1000))
        )
        error = np.hypot(4 * many.standard_error, few.standard_error) / 3
        return float(np.abs((4 * many.score - few.score) / 3 / error)[1, 0])

    assert z(root) < 5
    assert z(formula) > 5


def test_without_correlation_every_policy_is_balanced():
    found = balanced(intra_class(0.5, 0.8, 0.3), captions(0.5), OBS, nodes=32)
    np.testing.assert_allclose(found.end_ratios, 0, atol=1e-12)
    assert jnp.isnan(found.pi_spu)


# Mixtures


def test_four_groups_have_the_optimum_of_the_intra_class_model():
    def shifted(p, groups):
        model = intra_class(p, 0.8, 0.3, 1.1, 0.7)
        if groups:
            found = info_nce_optimum(model.as_mixture(), CAPS.as_group_captions(model), OBS, 16)
            return found.accuracy(model.as_mixture(), OBS).shifted, found.score
        found = info_nce_optimum(model, CAPS, OBS, 16)
        return found.accuracy(model, OBS).shifted, found.score

    found = jit_long(jax.value_and_grad(shifted, has_aux=True), static_argnums=1)
    ((want, score), slope), ((value, groups_score), groups_slope) = (found(0.9, groups) for groups in (False, True))
    np.testing.assert_allclose(groups_score, score, atol=1e-12)
    np.testing.assert_allclose([value, groups_slope], [want, slope], atol=1e-10)
    assert np.abs(score - found(0.93, True)[0][1]).max() > 0.01


def two_groups(l):
    """Two classes of l latents that err in their captions, and are told apart by a mean and a covariance."""
    rng = np.random.default_rng(l)
    mean, root = rng.normal(size=(2, l)), rng.normal(size=(2, l, l)) / 2
    model = mixture([0.6, 0.4], mean, root @ root.mT + 0.1 * np.eye(l), [0, 1])
    return model, group_captions(model, 0.7, wrong=[0.3, *[0.1] * (l - 1)], blur=0.2)


def test_cumulants_are_sums_over_all_states_of_captions():
    """Against every case, one by one: 3 states of each coordinate, at points that no case makes likely."""
    model, caps = two_groups(3)
    law, a = pair_law(model, caps, OBS), np.random.default_rng(0).normal(size=(5, 3))
    probability, mean, variance = (np.asarray(x) for x in law.states)
    total = np.zeros(5)
    for g, states in itertools.product(range(2), itertools.product(range(3), repeat=3)):
        at = (g, states, range(3))
        right = np.array(states) == 1
        covariance = np.asarray(model.covariance)[g] * np.outer(right, right) + np.diag(variance[at] + 0.6**2)
        share = model.weight[g] * probability[at].prod()
        total += share * np.exp(a @ mean[at] + np.einsum("ni,ij,nj->n", a, covariance, a) / 2)
    np.testing.assert_allclose(_text_cumulant(law, jnp.asarray(a)), np.log(total), rtol=1e-12)
    wrong = pair_law(model, dataclasses.replace(caps, wrong=0.9 * caps.wrong), OBS)
    assert np.abs(_text_cumulant(wrong, jnp.asarray(a)) - np.log(total)).max() > 1e-3


def test_both_rules_give_the_derivatives_of_the_loss():
    model, caps = two_groups(2)
    law, m = pair_law(model, caps, OBS), jnp.array([0.3, -0.1, 0.2, 0.4])

    @jit_long
    def both(sides):
        loss = functools.partial(population_loss, law, *sides, jnp.asarray(0.3))
        want = loss(m), jax.grad(loss)(m), jax.hessian(loss)(m)
        return population_derivatives(law, *sides, jnp.asarray(0.3), m), want

    for points in (quadrature(law, 3)[:2], quasi_random(law, jnp.asarray(shifted_points(4, 2)[0]))):
        for got, expected in zip(*both(points), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-13)
            assert np.abs(expected).max() > 0.01


def check_replicates(replicates, want):
    """A t-test of 16 independent replicates, entry by entry."""
    x = np.asarray(replicates).reshape(16, -1)
    z = np.abs(x.mean(0) - np.ravel(want)) / (x.std(0, ddof=1) / 4)
    limit = t_law.isf(1e-6 / (2 * z.size), 15)
    assert z.max() <= limit, f"z = {z.max():.1f} > {limit:.1f}"


def test_quasi_random_points_give_what_quadrature_gives():
    model, caps = two_groups(2)
    exact, drawn = (optimum(model, caps, OBS, nodes=24, points=points) for points in (None, 256))
    check_replicates(drawn.replicates, exact.score)
    rejects(
        check_replicates,
        drawn.replicates,
        optimum(model, dataclasses.replace(caps, wrong=0 * caps.wrong), OBS, nodes=24).score,
    )
    np.testing.assert_allclose(drawn.replicates.mean(0), drawn.score, atol=1e-14)
    assert drawn.standard_error.max() < 0.01 and drawn.residual < 1e-10
    accuracies = drawn.accuracy(model, OBS)
    assert (accuracies.error > 0).all() and (accuracies.error < 2e-3).all()
    want = exact.accuracy(model, OBS)
    assert (want.error == 0).all()
    assert (np.abs(accuracies.by_group - want.by_group) < 8 * accuracies.error).all()


def test_a_single_captions_error_is_another_law():
    """Two groups, always wrong about a coordinate: the captions of the other group, of independent noise."""
    model, _ = two_groups(1)
    wrong = group_captions(model, wrong=1.0)
    found = optimum(model, wrong, OBS, nodes=24).score
    # E[t | g] is the other group's mean, and t is independent of x in a group.
    assert np.sign(found) == -np.sign(optimum(model, group_captions(model), OBS, nodes=24).score)
    # An error that says what the truth would say changes only the dependence within the group.
    mean = model.mean[:1] + 0 * model.mean
    same = dataclasses.replace(model, mean=mean, covariance=0 * model.covariance + 1)
    np.testing.assert_allclose(optimum(same, group_captions(same, wrong=1.0), OBS, nodes=24).score, 0, atol=1e-10)


def test_derivatives_in_errors_of_captions():
    """From within at no error, and inside; those of quasi-random points are NaN."""

    def score(x):
        model, caps = two_groups(2)
        caps = dataclasses.replace(caps, wrong=caps.wrong * x[0], blur=caps.blur * x[1], mention=caps.mention * x[2])
        return info_nce_optimum(model, caps, OBS, 16).score.ravel()

    for x in ([0.0, 0.5, 0.9], [0.8, 1.0, 1.0]):
        assert_slopes(score, x, [0, 0, 0], [3, 9, 1 / 0.7])
    model, caps = two_groups(2)

    def drawn(x):
        found = info_nce_optimum(model, dataclasses.replace(caps, wrong=x * caps.wrong), OBS, points=2)
        return found.score.sum(), found.loss

    assert all(jnp.isnan(slope) for slope in jit_long(jax.jacrev(drawn))(1.0))


def test_four_latents_have_an_optimum():
    """Two latents beside two that are nothing but noise in images and texts: the optimum of the two."""
    model, caps = two_groups(2)
    nothing = np.zeros((2, 2))
    mean = np.concatenate([model.mean, nothing], 1)
    covariance = np.stack([np.block([[x, nothing], [nothing, 0.1 * np.eye(2)]]) for x in np.asarray(model.covariance)])
    four = mixture(model.weight, mean, covariance, model.classes)
    wide = group_captions(four, np.append(caps.mention[0], [0.0, 0.0]), "named", np.append(caps.wrong[0], [0, 0]), 0.2)
    wide = dataclasses.replace(wide, base=jnp.concatenate([caps.base, nothing], 1))
    want = np.zeros((4, 4))
    want[:2, :2] = optimum(model, caps, OBS, nodes=24).score
    found = optimum(four, wide, OBS, points=64)
    check_replicates(found.replicates, want)
    rejects(check_replicates, found.replicates, 1.2 * want)


def test_what_is_not_covered():
    model = intra_class(0.9, 0.8, 0.3)
    caps = group_captions(model)
    for wrong, with_captions, points in (
        (model, CAPS, 64),
        (model.as_mixture(), caps, 48),
        (model.as_mixture(), caps, 1),
    ):
        refuses("points must be", info_nce_optimum, wrong, with_captions, OBS, points=points)
    with pytest.raises(TypeError, match="InterClass must define as_mixture"):
        info_nce_optimum(inter_class(2, 0.9, 1.0, 0.4), CAPS, OBS)
    silent = mixture([0.5, 0.5], np.array([[-1.0], [1.0]]), np.zeros((1, 1)), [0, 1])
    found = optimum(silent, group_captions(silent), noise(6, 5, 0.0, 0.0), points=64)
    assert jnp.isnan(found.score).all() and jnp.isnan(found.replicates).all() and found.residual == jnp.inf
