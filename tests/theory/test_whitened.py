"""The whitened family X5 and the balanced captions X10: matrix algebra, stated values, rules learnt from samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from scipy.stats import norm

from mmcl_theory.data import captions, group_captions, inter_class, intra_class, mixture, moments, observation
from mmcl_theory.data.captions import second_moments
from mmcl_theory.learners import whitened_optimum
from mmcl_theory.theory import (
    balanced_pi_spu,
    mmcl_accuracy,
    mmcl_rule,
    whitened_accuracy,
    whitened_rule,
    whitening_crossovers,
)
from mmcl_theory.zero_shot import latent_prompts
from proofs_checks.ambient import (
    fresh_pairs,
    groups,
    jit_long,
    learnt_ratios,
    noise,
    ratio,
    sample_covariances,
    whitened,
)
from proofs_checks.x11 import covariances
from tests.differences import central
from tests.statistics import assert_mean_close, rejects

pytestmark = pytest.mark.slow

rule = jit_long(whitened_rule, static_argnames=("prompts",))
accuracy = jit_long(whitened_accuracy, static_argnames=("prompts",))
balanced = jit_long(balanced_pi_spu)
QUIET = noise(2, 2, 0.0, 0.1)
MODELS = {"intra": intra_class(0.9, 0.8, 0.3, 1.1, 0.7), "inter": inter_class(4, 0.9, 1.0, 0.4, 0.3)}
over_models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@over_models
@pytest.mark.parametrize("masking", ["named", "mean", "zero"])
@pytest.mark.parametrize("prompts", ["core", "train_mean"])
@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_rule_is_the_matrix_product(model, masking, prompts, theta):
    caps, obs = captions(0.4, 0.6, masking), noise(12, 12, 0.5, 0.7)
    cross, image, text = covariances(model, caps, obs)
    prompt = np.asarray(latent_prompts(model, prompts)[1]).reshape(2, -1)[:, 0]  # of class +1, on its own pair
    power = functools.partial(scipy.linalg.fractional_matrix_power, t=-theta)
    want = power(image) @ cross @ power(text) @ prompt
    np.testing.assert_allclose(rule(model, caps, obs, theta, prompts=prompts), want, rtol=1e-10)


@over_models
def test_theta_0_is_the_linear_loss(model):
    caps = captions(0.4, 0.6)
    scale = model.num_pairs if model.num_classes > 2 else 1
    np.testing.assert_allclose(rule(model, caps, theta=0.0) * scale, mmcl_rule(model, caps), rtol=1e-12)
    obs = noise(12, 12, 0.5, 0.7)
    got, want = accuracy(model, caps, obs, 0.0), mmcl_accuracy(model, caps, obs)
    np.testing.assert_allclose(groups(got), groups(want), rtol=1e-12)


def test_values_of_the_caption_table():
    model = intra_class(0.99, 1.0, 0.1)
    pi_core, pi_spu = np.array([(1, 1), (1, 0.5), (1, 0), (0.5, 0.5), (0, 0), (0, 1)], float).T
    want = [(0.516, 0.975), (0.700, 0.930), (0.841, 0.841), (0.835, 0.847), (1.0, 0.0), (0.592, 0.961)]
    np.testing.assert_allclose(groups(accuracy(model, captions(pi_core, pi_spu), QUIET)), want, atol=6e-4)


def test_values_of_the_gaussian_example():
    model, obs = intra_class(0.95, 1.0, 0.3), noise(2, 2, 1.0, 1.0)
    np.testing.assert_allclose(accuracy(model, None, obs, np.array([0.0, 1.0])).shifted, [0.7393, 0.7599], atol=5e-5)


def test_without_noise_rich_captions_give_the_inverse_of_the_text_covariance():
    """S_I = S_T = C, so w = C^-1 p, proportional to (mu_s^2 + s_s^2, -q mu_c mu_s)."""
    w = rule(intra_class(0.9, 0.8, 0.3, 1.2, 0.7))
    np.testing.assert_allclose(ratio(w), -0.8 * 1.2 * 0.7 / (0.7**2 + 0.3**2), rtol=1e-12)


def test_label_only_captions_are_least_squares():
    """Both details unmentioned, no text noise: w = S_I^-1 E[z y] up to scale, the least-squares classifier."""
    model, obs = MODELS["intra"], noise(2, 2, 0.3, 0.0)
    w = rule(model, captions(0.0, 0.0), obs)
    want = np.linalg.solve(moments(model, captions()).zz + 0.09 * np.eye(2), [1.1, 0.8 * 0.7])
    np.testing.assert_allclose(ratio(w), ratio(want), rtol=1e-12)


# (seed, model, caps, obs, theta) -> (runs,): spurious over core weight of rules learnt from 4000 pairs each.
learnt = functools.partial(learnt_ratios, rule=whitened, n=4000, runs=400)


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_rules_learnt_from_samples_tend_to_it(theta):
    """The ratio of weights at n = 4000, d = 6 and 5: a bias of O(1/n), below the resolution of .002."""
    model, obs = intra_class(0.95, 1.0, 0.3), noise(6, 5, 0.5, 0.4)
    for pi in ((1.0, 1.0), (0.3, 0.8)):
        ratios = learnt(9, model, captions(*pi), obs, theta)
        check = functools.partial(assert_mean_close, ratios[:, None], resolution=2e-3)

        def predicted(theta=theta, pi=pi, model=model):
            w = rule(model, captions(*pi), obs, theta)
            return np.asarray(w[1:] / w[0])

        check(predicted())
        rejects(check, predicted(theta=theta - 0.2))
        rejects(check, predicted(pi=(pi[0], 0.5)))
        rejects(check, predicted(model=intra_class(0.92, 1.0, 0.3)))


# Which end of the dial is better


crossovers = jit_long(whitening_crossovers, static_argnames=("prompts",))


def gain(model, caps, prompts="core"):
    """acc_P* of theta = 1 less that of theta = 0 as a function of s, by NumPy from the moments."""
    mom = moments(model, caps)
    zz, zu, uu = (np.asarray(x) for x in (mom.zz, mom.zu, mom.uu))
    prompt = np.asarray(latent_prompts(model, prompts)[1])
    sd, mu = (np.array(x, float) for x in ((model.sigma_core, model.sigma_spu), (model.mu_core, model.mu_spu)))

    def shifted(w, s):
        scale = np.sqrt((w * sd) @ (w * sd) + s**2 * w @ w)
        return norm.cdf(np.array([w @ mu, w @ (mu * [1, -1])]) / scale).mean()

    def at(s):
        left, right = (np.linalg.inv(x + s**2 * np.eye(2)) for x in (zz, uu))
        return shifted(left @ zu @ right @ prompt, s) - shifted(zu @ prompt, s)

    return at


@pytest.mark.parametrize("prompts", ["core", "train_mean"])
@pytest.mark.parametrize("masking", ["named", "mean", "zero"])
def test_crossovers_are_the_roots_that_a_search_finds(masking, prompts):
    """Sign changes on a grid of s, then Brent's method; 12 models each."""
    grid = np.geomspace(0.02, 30, 400)
    found = 0
    for p, s_c, s_s, mu_s in ((0.99, 1.0, 0.1, 1.0), (0.9, 0.5, 0.3, 0.7), (0.2, 0.3, 0.2, 1.5)):
        for pi_core, pi_spu in ((1.0, 1.0), (0.5, 0.5), (0.8, 0.1), (0.2, 0.9)):
            model, caps = intra_class(p, s_c, s_s, 1.1, mu_s), captions(pi_core, pi_spu, masking)
            at = gain(model, caps, prompts)
            sign = np.sign([at(s) for s in grid])
            search = [scipy.optimize.brentq(at, grid[j], grid[j + 1]) for j in np.flatnonzero(sign[1:] != sign[:-1])]
            roots = np.asarray(crossovers(model, caps, prompts=prompts))
            np.testing.assert_allclose(roots[(roots > grid[0]) & (roots < grid[-1])], search, rtol=1e-6)
            found += len(search)
    assert found > 0


def test_crossover_of_rich_captions():
    s_c, s_s = np.array([1.0, 1.0, 0.5]), np.array([0.1, 0.3, 0.3])
    p = np.array([0.99, 0.95, 0.9])
    q, a, d = 2 * p - 1, 1 + s_c**2, 1 + s_s**2
    det = a * d - q**2
    v = (-det + np.sqrt(det**2 + 2 * a * (a - d) * det)) / (2 * a)
    got = crossovers(intra_class(p, s_c, s_s))
    np.testing.assert_allclose(got[:, 0], np.sqrt(v), rtol=1e-12)
    np.testing.assert_allclose(got[0, 0], 0.5583, atol=5e-5)  # at s_c = 1; not near 1, where whitening is at its best
    assert jnp.isnan(got[:, 1:]).all()
    for i in range(3):
        model, s = intra_class(p[i], s_c[i], s_s[i]), float(got[i, 0])
        at = gain(model, captions())
        assert at(0.9 * s) < 0 < at(1.1 * s)
        wrong = float(crossovers(intra_class(p[i] - 0.03, s_c[i], s_s[i]))[0])
        assert abs(at(wrong)) > 1e-4 > 1e-12 > abs(at(s))
        balanced_noise = det[i] ** 0.25
        w = rule(model, captions(), noise(2, 2, balanced_noise, balanced_noise))
        np.testing.assert_allclose(w[1] / w[0], 0, atol=1e-12)


@pytest.mark.parametrize("model", [intra_class(0.9, 0.3, 0.1, 1.0, 1.2), intra_class(0.5, 1.0, 0.1)])
def test_no_crossover(model):
    """a <= d: whitening is always better; q = 0: both ends are the same."""
    assert jnp.isnan(crossovers(model)).all()


def test_rules_learnt_from_samples_cross_there():
    """Weights' ratio of both losses learnt at the crossover, n = 4000: opposite, to the resolution of .003."""
    model = intra_class(0.95, 1.0, 0.3)
    s = float(crossovers(model)[0])
    obs = noise(6, 5, s, s)
    ends = [learnt(k, model, captions(), obs, theta) for k, theta in ((1, 0.0), (2, 1.0))]
    check = functools.partial(assert_mean_close, (ends[0] + ends[1])[:, None], resolution=3e-3)
    check(np.zeros(1))
    obs = noise(6, 5, 1.0, 1.0)
    off = learnt(3, model, captions(), obs, 1.0)
    rejects(assert_mean_close, (ends[0] + off)[:, None], np.zeros(1), resolution=3e-3)


# Balanced captions


GRID = np.meshgrid([0.55, 0.9, 0.99], [0.3, 1.0], [0.1, 0.6], [0.2, 0.8, 1.0], [0.0, 0.3, 1.0], indexing="ij")


def test_balanced_rule_ignores_the_spurious_feature():
    p, s_c, s_s, pi, s_i = (x.ravel() for x in GRID)
    model, obs = intra_class(p, s_c, s_s, 1.3, 0.8), observation(2, 2, s_i * 2**0.5, 0.4 * 2**0.5)
    root = balanced(model, captions(pi), obs)
    assert (root >= 0).all() and jnp.isfinite(root).all()
    # As an equation in any pi_spu >= 0, roots above 1 included, by moments that extend beyond 1.
    caps = captions(pi)
    for factor, sign in ((1.0, 0), (0.8, 1), (1.2, -1)):
        usable = (root > 1e-9) & (root * factor <= 1)
        w = rule(model, type(caps)(caps.pi_core, jnp.where(usable, root * factor, 0.5), "named"), obs)
        share = np.asarray(w[:, 1] / w[:, 0])[np.asarray(usable)]
        assert len(share) > 20
        if sign:
            assert (np.sign(share) == sign).all()
        else:
            np.testing.assert_allclose(share, 0, atol=1e-12)


def test_balanced_captions_are_the_best_on_the_shifted_distribution():
    model, obs = intra_class(0.95, 1.0, 0.2), noise(2, 2, 0.3, 0.3)
    root = balanced(model, captions(0.5), obs)
    assert 0.1 < root < 0.9
    got = accuracy(model, captions(0.5, np.append(np.linspace(0, 1, 401), root)), obs).shifted
    np.testing.assert_allclose(got[-1], norm.cdf(1 / np.hypot(1, 0.3)), rtol=1e-12)
    assert (got[:-1] < got[-1]).all()
    # The linear loss does not see pi_spu, and never gets there.
    assert mmcl_accuracy(model, captions(0.5), obs).shifted < got[-1] - 0.01


def test_image_noise_and_poor_captions_move_the_balance_up():
    def at(pi, s_i, s_t=0.1):
        return balanced(intra_class(0.99, 1.0, 0.1), captions(pi), noise(2, 2, s_i, s_t))

    assert at(1.0, 0.0) == 0
    for low, high in ((at(1.0, 0.1), at(1.0, 0.5)), (at(0.9, 0.1), at(0.5, 0.1)), (at(0.5, 0.1), at(0.5, 0.1, 0.5))):
        assert low < high


@pytest.mark.parametrize("model", [intra_class(0.5, 1.0, 0.1), intra_class(1.0, 0.0, 0.0)])
def test_where_every_policy_is_balanced_there_is_no_root(model):
    assert jnp.isnan(balanced(model, captions(0.5), noise(2, 2, 0.0, 0.1)))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"theta must be in \[0, 1\], got 1\.5"):
        whitened_accuracy(MODELS["intra"], theta=1.5)
    with pytest.raises(ValueError, match='masking must be "named"'):
        balanced_pi_spu(MODELS["intra"], captions(0.5, 0.5, "mean"))


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.0])
def test_gradients_are_those_of_differences_where_eigenvalues_coincide_too(theta):
    """p_spu = 1/2 with equal means and variances: S_I is a multiple of the identity."""

    def value(p):
        model = intra_class(p, 1.0, 1.0)
        return whitened_accuracy(model, captions(0.4, 0.6), noise(2, 2, 0.3, 0.2), theta).aligned

    gradient, value = jit_long(jax.grad(value)), jit_long(value)
    for p in (0.5, 0.5 + 1e-9, 0.8):
        np.testing.assert_allclose(gradient(jnp.asarray(p)), central(value, p), rtol=1e-8)


@pytest.mark.slow
def test_the_number_of_samples_that_a_whitened_rule_needs():
    """|w_hat - w|^2 / |w|^2 in the norm of S_I is (1 - rho^2) d_I / (rho^2 (n - d_I)), up to terms without d_I."""
    model, n = (
        mixture([0.4, 0.1, 0.2, 0.3], [[-1.0, -1], [-1, 1], [1, -1], [1, 1]], 0.3 * np.eye(2), [0, 0, 1, 1]),
        4000,
    )
    prompt, s = np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.6
    caps = group_captions(model, 0.7, wrong=0.5)
    zz, zu, uu = (np.asarray(x) for x in second_moments(model, caps))
    image, text = zz + s**2 * np.eye(2), uu + s**2 * np.eye(2)
    beta = np.linalg.solve(text, prompt[1])
    w = np.linalg.solve(image, zu @ beta)
    rho_squared = (w @ image @ w) / (prompt[1] @ beta)
    assert rho_squared < 0.2

    def predicted(d):
        return (1 - rho_squared) * d / ((n - d) * rho_squared)

    def sampled(d):
        obs = noise(d, 3, s, s)

        @jit_long
        def run(key):
            d, pairs = fresh_pairs(key, model, caps, obs, n)
            off = whitened_optimum(*sample_covariances(pairs), 1.0) @ d.text @ prompt[1] - d.image @ jnp.asarray(w)
            latent = off @ d.image
            return (latent @ jnp.asarray(image) @ latent + s**2 * (off @ off - latent @ latent)) / (w @ image @ w)

        return np.array([run(key) for key in jax.random.split(jax.random.key(d), 60)])

    # The difference of two dimensions has none of the other terms.
    gap = sampled(60) - sampled(20)
    check = functools.partial(assert_mean_close, gap, resolution=0.01)
    check(predicted(60) - predicted(20))
    rejects(check, 40 / n)  # without rho
