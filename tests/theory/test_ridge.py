"""The dial X11 between whitening and the linear loss, and masking by the mean X12: limits, algebra, certificates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.stats import norm

from mmcl_theory.data import captions, inter_class, intra_class, moments
from mmcl_theory.learners import gradient_flow, linear_optimum, nuclear_norm_optimum, ridge_optimum, whitened_optimum
from mmcl_theory.theory import (
    info_nce_optimum,
    mmcl_accuracy,
    optimal_ridge,
    ridge_accuracy,
    ridge_rule,
    whitened_accuracy,
    whitened_rule,
)
from mmcl_theory.zero_shot import latent_prompts, linear_rule_accuracy
from proofs_checks.ambient import groups, noise
from proofs_checks.x11 import covariances
from tests.differences import assert_slopes
from tests.helpers import refuses

pytestmark = pytest.mark.slow

accuracy = jax.jit(ridge_accuracy, static_argnames=("prompts",))
rule = jax.jit(ridge_rule, static_argnames=("prompts",))
best = jax.jit(optimal_ridge, static_argnames=("prompts",))
ridge = jax.jit(ridge_optimum)
nuclear = jax.jit(nuclear_norm_optimum, static_argnames=("max_steps",))
MODELS = {"intra": intra_class(0.9, 0.8, 0.3, 1.1, 0.7), "inter": inter_class(4, 0.9, 1.0, 0.4, 0.3)}
OBS = noise(12, 12, 0.5, 0.7)
KAPPAS = np.array([0.0, 1e-3, 0.4, 7.0, np.inf])


def joint(seed, rank=9):
    """C, S_I, S_T of pairs in 5 and 4 dimensions."""
    a = np.random.default_rng(seed).normal(size=(9, rank))
    s = a @ a.T / rank
    return jnp.asarray(s[:5, 5:]), jnp.asarray(s[:5, :5]), jnp.asarray(s[5:, 5:])


def solved(c, image, text, kappa):
    """(1 + kappa) times the solution of S_I W S_T + kappa W = C as one linear system."""
    if np.isinf(kappa):
        return np.asarray(c)
    system = np.kron(image, text) + kappa * np.eye(c.size)
    return (1 + kappa) * np.linalg.solve(system, np.ravel(c)).reshape(c.shape)


# The rule


@pytest.mark.parametrize(
    "name, masking, prompts",
    [
        ("intra", "named", "core"),
        ("intra", "mean", "train_mean"),
        ("intra", "zero", "core"),
        ("inter", "named", "core"),
    ],
)
def test_rule_solves_the_linear_system(name, masking, prompts):
    model, caps = MODELS[name], captions(0.4, 0.6, masking)
    mom = moments(model, caps)
    prompt = np.asarray(latent_prompts(model, prompts)[1]).reshape(2, -1)[:, 0]  # of class +1, on its own pair
    parts = mom.zu, mom.zz + 0.25 * np.eye(2), mom.uu + 0.49 * np.eye(2)
    want = [solved(*parts, kappa) @ prompt for kappa in KAPPAS]
    got = rule(model, caps, OBS, KAPPAS, prompts=prompts)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.abs(np.asarray(rule(model, caps, OBS, 1.1 * KAPPAS[1:4], prompts=prompts)) - want[1:4]).max() > 1e-4


def test_ends_are_whitening_and_the_linear_loss():
    model, caps = MODELS["intra"], captions(0.4, 0.6)
    ends = groups(accuracy(model, caps, OBS, np.array([0.0, np.inf, 1e-10, 1e10])))
    np.testing.assert_allclose(ends[0], groups(jax.jit(whitened_accuracy)(model, caps, OBS)), rtol=1e-12)
    np.testing.assert_allclose(ends[1], groups(jax.jit(mmcl_accuracy)(model, caps, OBS)), rtol=1e-12)
    np.testing.assert_allclose(ends[2:], ends[:2], rtol=1e-8)
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def test_what_is_never_mentioned_is_left_out_at_every_ridge():
    """No text noise: S_T is singular, and kappa -> 0 tends to the pseudo-inverse."""
    model, caps, obs = MODELS["intra"], captions(1.0, 0.0), noise(12, 12, 0.3, 0.0)
    got = rule(model, caps, obs, np.array([0.0, 1e-11, 1e-9, 1.0, 2.0]), prompts="core")
    np.testing.assert_allclose(got[0], jax.jit(whitened_rule)(model, caps, obs), rtol=1e-12)
    np.testing.assert_allclose(got[0], got[1], rtol=1e-8)


def slope_at(x):
    """Both accuracies of (p_spu, sigma_core, pi_core, pi_spu, kappa)."""
    p, sigma, pi_core, pi_spu, kappa = x
    return groups(ridge_accuracy(intra_class(p, sigma, 0.3), captions(pi_core, pi_spu), noise(2, 2, 0.4, 0.3), kappa))


LOWER, UPPER = (0.0, 0.0, 0.0, 0.0, 0.0), (1.0, np.inf, 1.0, 1.0, np.inf)


@pytest.mark.parametrize("point", [(0.9, 0.8, 0.5, 0.6, 0.3), (1.0, 0.8, 1.0, 0.0, 2.0), (0.9, 0.8, 0.5, 0.6, 0.0)])
def test_derivatives_are_those_of_differences(point):
    assert_slopes(slope_at, point, LOWER, UPPER)


def test_derivatives_where_eigenvalues_coincide_and_where_a_detail_is_never_mentioned():
    """p_spu = 1/2 with equal moments; pi_spu = 0 without text noise, where whitening has no derivative."""

    def value(x):
        p, pi, kappa = x
        model = intra_class(p, 1.0, 1.0)
        return groups(ridge_accuracy(model, captions(1.0, pi), noise(2, 2, 0.3, 0.0), kappa))

    for point in ((0.5, 1.0, 0.7), (0.9, 0.0, 0.7)):
        assert_slopes(value, point, (0.0, 0.0, 0.0), (1.0, 1.0, np.inf))
    assert_slopes(value, (0.9, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, np.inf), undefined=(1,))


def test_float32(float32):
    got = jax.jit(ridge_accuracy)(
        intra_class(0.99, 1.0, 0.1), captions(), noise(2, 2, 0.3, 0.3), jnp.array([0.0, 1.0, jnp.inf])
    )
    assert got.aligned.dtype == jnp.float32
    np.testing.assert_allclose(got.shifted, [0.7625, 0.8309, 0.8033], atol=1e-4)


# The matrix


@pytest.mark.parametrize("rank", [9, 4])
def test_matrix_solves_the_linear_system(rank):
    parts = joint(0, rank)
    for kappa in KAPPAS[1:]:
        np.testing.assert_allclose(ridge(*parts, kappa), solved(*parts, kappa), rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(ridge(*parts, 0.0), whitened_optimum(*parts, 1.0), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(ridge(*parts, np.inf), linear_optimum(parts[0]), rtol=1e-12, atol=1e-14)


def test_singular_covariances_have_the_limit_of_small_ridges():
    parts = joint(1, 4)
    end, gap = ridge(*parts, 0.0), [np.abs(ridge(*parts, k) - ridge(*parts, 0.0)).max() for k in (1e-6, 1e-7)]
    assert jnp.isfinite(end).all() and gap[0] < 1e-3
    np.testing.assert_allclose(gap[0] / gap[1], 10, rtol=0.1)


def test_any_features_and_prompts():
    """Three states without a latent model: one-hot images, one text coordinate; at kappa = 0 least squares."""
    image, text, chance = np.eye(3), np.array([-1.0, 0.0, 2.0]), np.array([0.5, 0.3, 0.2])
    image, text = image - chance @ image, (text - chance @ text)[:, None]
    c, s_i, s_t = ((a * chance[:, None]).T @ b for a, b in ((image, text), (image, image), (text, text)))
    score = image @ np.asarray(ridge_optimum(*map(jnp.asarray, (c, s_i, s_t)), 0.0)) @ np.array([1.0])
    np.testing.assert_allclose(score * (chance @ text[:, 0] ** 2), text[:, 0], atol=1e-12)


@pytest.mark.parametrize("coincide", [False, True])
def test_derivatives_of_the_matrix(coincide):
    c, image, text = joint(2)
    image = jnp.eye(5) if coincide else image
    direction = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)))
    direction = direction + direction.T

    def value(x):
        return jnp.stack([(ridge_optimum(c, image + x[0] * direction, text, x[1]) ** 3).sum()])

    assert_slopes(value, (0.0, 0.4), (-1.0, 0.0), (1.0, np.inf), tolerance=1e-6)
    bend = jax.jit(jax.grad(jax.grad(lambda k: ridge_optimum(c, image, text, k)[0, 0])))
    h = 1e-4
    want = (ridge(c, image, text, 0.4 + h) - 2 * ridge(c, image, text, 0.4) + ridge(c, image, text, 0.4 - h))[0, 0]
    np.testing.assert_allclose(bend(0.4), want / h**2, rtol=1e-5)


def test_no_derivative_at_a_singular_covariance_without_ridge():
    c, image, text = joint(1, 4)

    def slope(kappa):
        return jax.grad(lambda image: ridge_optimum(c, image, text, kappa)[0, 0])(image)

    assert jnp.isnan(slope(0.0)).all() and jnp.isfinite(slope(0.1)).all()


# The best ridge


def test_best_ridge_of_rich_captions():
    """kappa = det Cov(z) - s_I^2 s_T^2, and its derivatives; above s_I s_T = sqrt(det) whitening is best."""

    def closed(x):
        p, s_c, s_s, s_i, s_t = x
        return (1 + s_c**2) * (1 + s_s**2) - (2 * p - 1) ** 2 - (s_i * s_t) ** 2

    def found(x):
        p, s_c, s_s, s_i, s_t = x
        got = optimal_ridge(intra_class(p, s_c, s_s), None, noise(2, 2, s_i, s_t))
        return jnp.stack([got.kappa, *groups(got.accuracy)]), got

    x = np.array([0.95, 0.9, 0.3, 0.4, 0.6])
    slopes, got = jax.jit(jax.jacrev(found, has_aux=True))(x)
    np.testing.assert_allclose(got.kappa, closed(x), rtol=1e-10)
    np.testing.assert_allclose(groups(got.accuracy), norm.cdf(1 / np.hypot(0.9, 0.4)), rtol=1e-12)
    np.testing.assert_allclose([got.bound, got.ratio, got.slope], [got.accuracy.worst, 0, 0], atol=1e-12)
    assert abs(closed(x) - closed(x - np.array([0.03, 0, 0, 0, 0]))) > 0.01
    np.testing.assert_allclose(slopes[0], jax.grad(closed)(x), rtol=1e-6)
    np.testing.assert_allclose(slopes[1], slopes[2], atol=1e-9)
    noisy = best(intra_class(0.95, 0.9, 0.3), captions(), noise(2, 2, 1.2, 1.2))
    assert closed(np.array([0.95, 0.9, 0.3, 1.2, 1.2])) < 0 and noisy.kappa == 0 and noisy.slope < 0


@jax.jit
def value_at_share(model, caps, obs, share):
    _, image, text = covariances(model, caps, obs)
    scale = jnp.linalg.eigvalsh(image)[-1] * jnp.linalg.eigvalsh(text)[-1]
    return ridge_accuracy(model, caps, obs, scale * share / (1 - share)).shifted


@pytest.mark.parametrize("caps, end", [(captions(0.5, 0.5), 0.0), (captions(0.0, 0.0), 1.0)])
def test_slope_at_an_end_is_that_of_differences(caps, end):
    model, obs, h = intra_class(0.99, 1.0, 0.1), noise(2, 2, 0.3, 0.3), 1e-4
    got = best(model, caps, obs)
    assert got.kappa == (0.0 if end == 0 else np.inf)
    side = 1 if end == 0 else -1
    f = [float(value_at_share(model, caps, obs, end + side * k * h)) for k in (1, 2, 3)]
    np.testing.assert_allclose(got.slope, side * (-5 * f[0] + 8 * f[1] - 3 * f[2]) / (2 * h), rtol=1e-3)
    assert got.slope * side < 0


def test_best_ridge_is_the_best_of_a_grid():
    """12 models at once; both measures, whatever end or interior point is best."""
    rng = np.random.default_rng(5)
    p, s_c, s_s, mu_s, core, spu, s_i, s_t = rng.uniform(
        (0.5, 0.2, 0.05, 0.2, 0, 0, 0.05, 0.05), (1, 1.5, 1, 1.5, 1, 1, 1, 1), (12, 8)
    ).T
    grid = np.concatenate([[0], np.geomspace(1e-5, 1e4, 1500), [np.inf]])

    def one(p, s_c, s_s, mu_s, core, spu, s_i, s_t):
        model, caps, obs = intra_class(p, s_c, s_s, 1.0, mu_s), captions(core, spu), noise(2, 2, s_i, s_t)
        every, found = ridge_accuracy(model, caps, obs, grid), optimal_ridge(model, caps, obs)
        return found, every.shifted.max(), every.worst.max(), every.shifted[0], every.shifted[-1]

    found, shifted, worst, *ends = jax.jit(jax.vmap(one))(p, s_c, s_s, mu_s, core, spu, s_i, s_t)
    for got, largest in ((found.accuracy.shifted, shifted), (found.accuracy.worst, worst)):
        assert (got >= largest - 1e-13).all()
        np.testing.assert_allclose(got, largest, atol=1e-3)
    assert (found.candidates.max(1) <= found.accuracy.shifted + 1e-14).all()
    assert (found.accuracy.shifted <= found.bound + 1e-14).all()
    inside = (found.kappa > 0) & jnp.isfinite(found.kappa)
    assert 2 <= inside.sum() <= 10
    assert (np.abs(found.slope[inside]) < 1e-9).all()
    assert (found.accuracy.shifted[inside] > jnp.maximum(*ends)[inside]).all()


def test_best_ridge_where_nothing_depends_on_it():
    got = best(intra_class(0.5, 1.0, 0.1), captions(), noise(2, 2, 0.3, 0.3))
    assert got.kappa == jnp.inf and got.ratio == 0
    np.testing.assert_allclose(got.accuracy.shifted, got.bound, rtol=1e-12)


# Masking by the mean


def test_mean_masking_whitens_alike_whatever_is_mentioned_until_there_is_a_ridge():
    model, obs = MODELS["intra"], noise(2, 2, 0.4, 0.0)
    caps = captions(np.array([1.0, 0.5, 0.2]), np.array([1.0, 0.1, 0.9]), "mean")
    w = rule(model, caps, obs, 0.0)
    want = np.linalg.solve(moments(model, captions()).zz + 0.16 * np.eye(2), [1.1, 0.0])
    np.testing.assert_allclose(w, np.tile(want, (3, 1)), rtol=1e-12)
    assert want[1] < 0
    assert np.ptp(np.asarray(rule(model, caps, obs, 0.1))[:, 1]) > 0.01
    assert np.ptp(np.asarray(rule(model, caps, noise(2, 2, 0.4, 0.3), 0.0))[:, 1]) > 0.01
    named = captions(caps.pi_core, caps.pi_spu)
    assert np.ptp(np.asarray(rule(model, named, obs, 0.0))[:, 1]) > 0.1


def test_mean_masking_is_a_ridge_for_each_direction_of_the_text():
    model, kappa = MODELS["intra"], 0.3
    mom = moments(model, captions(0.3, 0.8, "mean"))
    m, v = np.linalg.eigh(mom.uu)
    image = np.asarray(mom.zz) + 0.16 * np.eye(2)
    want = sum(np.linalg.solve(image + kappa / m[j] * np.eye(2), v[:, j]) * v[0, j] for j in range(2))
    got = rule(model, captions(0.3, 0.8, "mean"), noise(2, 2, 0.4, 0.0), kappa)
    np.testing.assert_allclose(got, 1.1 * (1 + kappa) * want, rtol=1e-12)


# Early stopping


def test_gradient_flow_is_the_matrix_exponential():
    c, image, text = joint(3)
    system = np.kron(image, text)
    for time in (0.0, 0.3, 4.0):
        augmented = np.zeros((21, 21))
        augmented[:20, :20], augmented[:20, 20] = -system * time, np.ravel(c) * time
        want = scipy.linalg.expm(augmented)[:20, 20].reshape(5, 4)
        np.testing.assert_allclose(gradient_flow(c, image, text, time), want, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(gradient_flow(c, image, text, 1e9), whitened_optimum(c, image, text, 1.0), rtol=1e-8)
    np.testing.assert_allclose(gradient_flow(c, image, text, 1e-9), 1e-9 * np.asarray(c), rtol=1e-7)


def test_flow_at_t_is_the_ridge_1_over_t_up_to_a_bounded_factor():
    c, image, text = joint(4)
    u, v = np.linalg.eigh(image)[1], np.linalg.eigh(text)[1]
    factors = []
    for time in np.geomspace(1e-3, 1e3, 60):
        flow, of_ridge = gradient_flow(c, image, text, time), ridge(c, image, text, 1 / time) / (1 + 1 / time)
        factors.append((u.T @ np.asarray(flow) @ v) / (u.T @ np.asarray(of_ridge) @ v))
    factors = np.array(factors)
    assert factors.min() > 1 - 1e-9 and 1.29 < factors.max() < 1.2985


# Weight decay on both encoders


def loss(w, c, image, text, nu):
    return -np.vdot(w, c) + np.vdot(w, image @ w @ text) / 2 + nu * np.linalg.svd(w)[1].sum()


def test_nuclear_norm_where_the_modes_are_aligned():
    l, m, s = np.array([3.0, 0.5, 1.0]), np.array([2.0, 1.0, 0.2]), np.array([1.2, 0.4, 0.1])
    u, v = (np.linalg.qr(np.random.default_rng(k).normal(size=(3, 3)))[0] for k in (0, 1))
    parts = [jnp.asarray(x) for x in (u * s @ v.T, u * l @ u.T, v * m @ v.T)]
    for nu in (0.0, 0.05, 0.3, 0.8):
        got = nuclear(*parts, nu)
        np.testing.assert_allclose(got.score, u * (np.maximum(s - nu, 0) / (l * m)) @ v.T, atol=1e-7)
        assert -1e-14 < got.gap < 1e-13 and (got.singular_values > 0).sum() == (s > nu).sum()


def test_nuclear_norm_optimum_is_certified():
    c, image, text = parts = joint(5)
    for nu in (0.02, 0.2, 0.5):
        got = nuclear(*parts, nu)
        left = c - image @ got.score @ text
        assert jnp.linalg.svd(left)[1].max() < nu + 1e-6 and 0 <= got.gap + 1e-15 < 1e-13
        np.testing.assert_allclose(jnp.vdot(left, got.score), nu * got.singular_values.sum(), rtol=1e-6)
        np.testing.assert_allclose(got.loss, loss(np.asarray(got.score), *map(np.asarray, parts), nu), rtol=1e-12)
        few = nuclear(*parts, nu, max_steps=3)
        assert few.gap > 1e-6 and few.gap > few.loss - got.loss > 0  # an early end is noticed, and bounded


def test_nuclear_norm_ends_in_whitening_in_rank_one_and_in_nothing():
    parts = joint(6)
    np.testing.assert_allclose(nuclear(*parts, 0.0).score, whitened_optimum(*parts, 1.0), atol=1e-5)
    u, s, vt = np.linalg.svd(parts[0])
    assert (np.asarray(nuclear(*parts, s[0] * (1 + 1e-12)).score) == 0).all()
    near = nuclear(*parts, s[0] * (1 - 1e-5))
    assert (near.singular_values > 0).sum() == 1
    np.testing.assert_allclose(near.score / near.singular_values[0], np.outer(u[:, 0], vt[0]), atol=1e-4)
    assert np.abs(np.asarray(ridge_optimum(*parts, s[0]))).max() > 0.1  # a ridge of that size does nothing of the kind


def test_values_of_the_page():
    """docs/theory.md X11: rich captions, nuclear norm at 0, .1 and .2 and nearly 1 of s_1(C); flow balances at .994."""
    model = intra_class(0.99, 1.0, 0.1)
    parts = covariances(model, captions(), noise(2, 2, 0.3, 0.3))
    scores = [nuclear(*parts, x * np.linalg.svd(parts[0])[1][0]).score[:, 0] for x in (0.0, 0.1, 0.2, 0.99)]
    got = linear_rule_accuracy(model, jnp.stack(scores), jnp.stack([w @ w for w in scores]), 0.3).shifted
    np.testing.assert_allclose(got, [0.762, 0.820, 0.789, 0.789], atol=5.5e-4)
    ratio = [float(w[1, 0] / w[0, 0]) for w in (gradient_flow(*parts, t) for t in (0.9931, 0.9942))]
    assert ratio[0] > 0 > ratio[1]


# The exact optimum with a ridge


def test_info_nce_with_a_ridge():
    """At a large kappa it is the formula's, at kappa = 1 it is not."""
    model, caps, obs = intra_class(0.95, 0.8, 0.3), captions(0.7, 0.6), noise(2, 2, 0.5, 0.6)
    found = jax.jit(functools.partial(info_nce_optimum, nodes=16))
    for kappa, close in ((1.0, False), (300.0, True)):
        got = found(model, caps, obs, kappa=kappa).score * (1 + kappa)
        assert (np.abs(got[:, 0] - rule(model, caps, obs, kappa) / model.mu_core).max() < 1e-5) == close


def test_info_nce_has_slopes_at_the_ends_of_the_ridge_and_of_mentions():
    """In (pi_spu, kappa), without text noise: with a ridge the derivative in a detail never mentioned exists too."""

    def value(x):
        return info_nce_optimum(
            intra_class(0.9, 0.8, 0.3), captions(1.0, x[0]), noise(2, 2, 0.5, 0.0), 12, x[1]
        ).score.ravel()

    for point in ((0.0, 0.3), (0.6, 0.0)):
        assert_slopes(value, point, (0.0, 0.0), (1.0, np.inf))


def test_info_nce_with_a_ridge_has_a_minimum_without_any_noise():
    found = jax.jit(functools.partial(info_nce_optimum, nodes=16))
    got = found(intra_class(1.0, 0.0, 0.0), captions(), noise(2, 2, 0.0, 0.0), kappa=0.3)
    assert jnp.isfinite(got.score).all() and got.residual < 1e-12


# Errors


def test_wrong_arguments_are_refused():
    parts, model = joint(0), MODELS["intra"]
    for call in (
        lambda k: ridge_optimum(*parts, k),
        lambda k: ridge_accuracy(model, None, None, k),
        lambda k: ridge_rule(model, kappa=k),
    ):
        for bad in (-1.0, np.nan):
            refuses(r"kappa must be in \[0, inf\], got", call, bad)
    refuses("kappa must be finite and >= 0, got -1", info_nce_optimum, model, captions(), OBS, 16, -1.0)
    refuses("time must be finite and >= 0, got inf", gradient_flow, *parts, np.inf)
    refuses(r"nu must be finite and >= 0, got -0\.1", nuclear_norm_optimum, *parts, -0.1)
    refuses("max_steps must be an integer >= 1, got 0", nuclear_norm_optimum, *parts, 0.1, 0)
    refuses("prompts must be one of", optimal_ridge, model, prompts="none")
