"""The spiked cross-covariance X2: edge, outliers, overlaps and truncated accuracy against sampled matrices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_theory.data import captions, inter_class, intra_class, moments, observation
from mmcl_theory.learners import cross_covariance
from mmcl_theory.theory import bulk_edge, mmcl_accuracy, outliers
from proofs_checks.ambient import exact_accuracy, fresh_pairs, groups, jit_long, noise
from tests.differences import central
from tests.statistics import assert_mean_close, rejects

pytestmark = pytest.mark.slow

law = jit_long(outliers)
accuracy = jit_long(mmcl_accuracy, static_argnames=("embed_dim", "prompts"))
MODEL = intra_class(0.9, 0.8, 0.6)
CAPS = captions(0.8, 0.9)
OBS = noise(200, 160, 0.6, 0.5)
N = 400
RUNS = 200


@functools.partial(jit_long, static_argnames=("n", "runs"))
def singular_triplets(key, model, caps, obs, *, n, runs):
    """Of each run: the 3 largest singular values in units of s_I s_T, overlaps l, r (3, 2), accuracies at rank 1, 2."""

    def run(key):
        d, pairs = fresh_pairs(key, model, caps, obs, n)
        u, s, vt = jnp.linalg.svd(cross_covariance(pairs.image, pairs.text), full_matrices=False)
        u, s, vt = u[:, :3], s[:3], vt[:3]
        accuracies = []
        for rank in (1, 2):
            w = (u[:, :rank] * s[None, :rank]) @ (vt[:rank] @ (model.mu_core * d.text[:, 0]))
            accuracies.append(exact_accuracy(model, w, d, obs))
        return s / (obs.sd_image * obs.sd_text), u.T @ d.image, vt @ d.text, jnp.stack(accuracies)

    return jax.lax.map(run, jax.random.split(key, runs))


@functools.cache
def simulate(n):
    obs = dataclasses.replace(OBS, dim_image=n // 2, dim_text=2 * n // 5)
    scale = (n / N) ** 0.5  # the noise per coordinate stays
    obs = dataclasses.replace(obs, sigma_image=OBS.sigma_image * scale, sigma_text=OBS.sigma_text * scale)
    return jax.tree.map(np.asarray, singular_triplets(jax.random.key(5), MODEL, CAPS, obs, n=n, runs=RUNS))


def predicted(p=0.9, n=N, pi_spu=0.9):
    found = law(intra_class(p, 0.8, 0.6), captions(0.8, pi_spu), OBS, float(n))
    s, l, r = (np.asarray(x)[:2] for x in (found.value, found.left, found.right))
    # Each vector's sign is arbitrary; the products below are not.
    return s, l[:, :, None] * r[:, None, :], l[:, 0] * l[:, 1]


def measured(n=N):
    s, l, r, _ = simulate(n)
    l, r = l[:, :2], r[:, :2]
    return s[:, :2], l[:, :, :, None] * r[:, :, None, :], l[:, :, 0] * l[:, :, 1]


def test_singular_values_and_vectors():
    """At n = 400 the O(1/n) bias is below the resolution, .01 relative for values and .01 for overlaps."""
    (s, products, tilt), (want_s, want_products, want_tilt) = measured(), predicted()
    wrong_s, wrong_products, _ = predicted(p=0.87)
    check = functools.partial(assert_mean_close, resolution=0.01)
    check(s / want_s, np.ones(2))
    rejects(check, s / wrong_s, np.ones(2))
    rejects(check, s / predicted(n=2 * N)[0], np.ones(2))
    check(products, want_products)
    rejects(check, products, wrong_products)
    check(tilt, want_tilt)
    rejects(check, tilt, want_tilt[::-1])


@pytest.mark.parametrize("rank", [1, 2])
def test_truncated_accuracy(rank):
    samples = simulate(N)[3][:, rank - 1]

    def predict(n=float(N), rank=rank, p=0.9):
        model = intra_class(p, 0.8, 0.6)
        return np.asarray(groups(accuracy(model, CAPS, OBS, n, embed_dim=rank)))

    check = functools.partial(assert_mean_close, samples, resolution=3e-3)
    check(predict())
    rejects(check, predict(rank=3 - rank))
    rejects(check, predict(p=0.85))
    rejects(check, predict(n=4.0 * N))


def test_values_in_the_theory_text():
    model, obs = intra_class(0.95, 1.0, 0.3), noise(300, 240, 1.0, 1.0)
    got = [accuracy(model, None, obs, 600.0, embed_dim=r).shifted for r in (None, 1, 2)]
    np.testing.assert_allclose(got, [0.7248, 0.7123, 0.7149], atol=5e-5)


def test_edge_is_the_largest_singular_value_of_noise():
    """Also for many samples, where X^T Y / sqrt(n) is itself Gaussian: sqrt(a_I) + sqrt(a_T)."""
    np.testing.assert_allclose(bulk_edge(3e-10, 1e-10), (np.sqrt(3) + 1) * 1e-5, rtol=1e-8)
    np.testing.assert_allclose(bulk_edge(0.5, 0.4), bulk_edge(0.4, 0.5), rtol=1e-14)
    n = 1500
    key_x, key_y = jax.random.split(jax.random.key(0))
    x, y = jax.random.normal(key_x, (n, n // 2)), jax.random.normal(key_y, (n, n // 5))
    largest = jnp.linalg.norm(x.T @ y / n, ord=2)
    # Tracy-Widom: fluctuations of relative size n^(-2/3) = .008.
    np.testing.assert_allclose(largest, bulk_edge(0.5, 0.2), rtol=0.02)
    assert abs(largest / bulk_edge(0.5, 0.25) - 1) > 0.04


def test_edge_solves_its_cubic():
    a_i, a_t = np.meshgrid([1e-6, 0.3, 1.0, 50.0, 1e4], [1e-6, 0.7, 30.0])
    for x, y in zip(a_i.ravel(), a_t.ravel(), strict=True):
        grid = np.exp(np.linspace(np.log(1e-10), np.log(1e5), 400001))
        smallest = ((1 + grid) * (x + grid) * (y + grid) / grid).min()  # the edge is where lambda(t) turns
        np.testing.assert_allclose(bulk_edge(x, y) ** 2, smallest, rtol=1e-8)


def test_many_samples_give_the_singular_values_of_the_population():
    found = law(MODEL, CAPS, OBS, 1e13)
    u, s, vt = np.linalg.svd(np.asarray(moments(MODEL, CAPS).zu))
    np.testing.assert_allclose(found.value[:2], s / (0.6 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(np.abs(found.left[:2]), np.abs(u.T), atol=1e-6)
    np.testing.assert_allclose(np.abs(found.right[:2]), np.abs(vt), atol=1e-6)
    for rank in (1, 2):
        got = groups(accuracy(MODEL, CAPS, OBS, 1e13, embed_dim=rank))
        np.testing.assert_allclose(got, groups(accuracy(MODEL, CAPS, OBS, embed_dim=rank)), rtol=1e-6)


def test_buried_signal_has_no_outlier_and_no_accuracy():
    weak = intra_class(0.9, 0.05, 0.05, 0.05, 0.05)
    found = law(weak, CAPS, noise(200, 160, 1.0, 1.0), 100.0)
    assert not found.exists.any() and jnp.isnan(found.value).all()
    assert jnp.isnan(accuracy(weak, CAPS, noise(200, 160, 1.0, 1.0), 100.0, embed_dim=1).shifted)
    samples = singular_triplets(jax.random.key(1), weak, CAPS, noise(200, 160, 1.0, 1.0), n=100, runs=40)
    edge = bulk_edge(2.0, 1.6)
    np.testing.assert_allclose(np.asarray(samples[0])[:, 0].mean(), edge, rtol=0.05)


def test_outliers_lie_above_the_edge_and_fall_in_order():
    rng = np.random.default_rng(0)
    shape = (200,)
    model = intra_class(*(rng.uniform(low, high, shape) for low, high in ((0.5, 1), (0, 2), (0, 2), (0.1, 2), (0, 2))))
    caps, obs = captions(rng.uniform(size=shape), rng.uniform(size=shape)), noise(200, 160, 0.7, 1.3)
    found = law(model, caps, obs, rng.uniform(50, 5000, shape))
    value = np.where(found.exists, found.value, 0.0)
    assert (np.diff(value, axis=-1) <= 0).all() and 20 < found.exists.sum() < 800
    overlap = np.where(found.exists[..., None], found.left, 0.0)
    assert (np.linalg.norm(overlap, axis=-1) <= 1).all()


def test_leaves_broadcast_and_differentiate():
    obs = dataclasses.replace(OBS, sigma_text=OBS.sigma_text * np.array([1.0, 1.2]))
    both = groups(accuracy(MODEL, CAPS, obs, float(N), embed_dim=2))
    one = dataclasses.replace(obs, sigma_text=obs.sigma_text[1])
    np.testing.assert_allclose(both[1], groups(accuracy(MODEL, CAPS, one, float(N), embed_dim=2)), rtol=1e-10)

    def conflicting(p):
        model = dataclasses.replace(MODEL, p_spu=p)
        return mmcl_accuracy(model, CAPS, OBS, float(N), embed_dim=1).conflicting

    gradient = jit_long(jax.grad(conflicting))(jnp.asarray(0.9))
    np.testing.assert_allclose(gradient, central(jit_long(conflicting), 0.9), rtol=1e-7)


def test_derivatives_are_those_of_the_outliers_that_exist():
    """Reverse mode: those that are missing leave the others' derivatives alone; an accuracy without any has none."""

    def largest(p):
        found = outliers(dataclasses.replace(MODEL, p_spu=p), CAPS, OBS, float(N))
        return found.value[0], found.exists

    (_, exists), slope = jit_long(jax.value_and_grad(largest, has_aux=True))(0.9)
    value, h = jit_long(lambda p: largest(p)[0]), 1e-4
    np.testing.assert_allclose(slope, (value(0.9 + h) - value(0.9 - h)) / (2 * h), rtol=1e-6)
    assert exists.any() and not exists.all()
    weak, loud = intra_class(0.9, 0.05, 0.05, 0.05, 0.05), noise(200, 160, 1.0, 1.0)

    def buried(p):
        return mmcl_accuracy(dataclasses.replace(weak, p_spu=p), CAPS, loud, 100.0, embed_dim=1).shifted

    assert jnp.isnan(jit_long(jax.grad(buried))(0.9))


def test_what_the_law_does_not_cover_is_refused():
    with pytest.raises(NotImplementedError, match="embed_dim with same_class_weight and n"):
        mmcl_accuracy(MODEL, CAPS, OBS, 50, embed_dim=1, same_class_weight=0.3)
    with pytest.raises(NotImplementedError, match="n samples of the inter-class model"):
        mmcl_accuracy(inter_class(3, 0.9, 1.0, 0.2, 0.1), CAPS, OBS, 50)
    with pytest.raises(NotImplementedError, match="embed_dim > 4 below the dimensions"):
        mmcl_accuracy(MODEL, CAPS, OBS, 50, embed_dim=5)
    with pytest.raises(ValueError, match="n must be >= 2"):
        outliers(MODEL, CAPS, OBS, 1)
    noiseless = law(MODEL, CAPS, observation(10, 10, 1.0, 0.0), 50.0)
    np.testing.assert_array_equal(noiseless.value, [np.inf, np.inf, np.nan, np.nan])
