"""Trained encoders against the closed forms, the logistic curve of the linear loss, and what each batch contains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmcl_theory import losses
from mmcl_theory.learners import (
    Encoders,
    cross_covariance,
    init_encoders,
    linear_optimum,
    train_encoders,
    train_linear_mmcl,
    whitened_optimum,
)
from tests.helpers import refuses
from tests.statistics import assert_mean_close, rejects

N, D_I, D_T, R = 24, 5, 4, 3
SMALL_STEP, ADAM = optax.sgd(0.002), optax.adam(0.02)
LOSSES = {
    "linear_mmcl": lambda i, t, y: losses.linear_mmcl(i, t),
    "linear_mmcl, weighted": lambda i, t, y: losses.linear_mmcl(i, t, labels=y, same_class_weight=0.2),
    "info_nce": lambda i, t, y: losses.info_nce(i, t, temperature=0.5),
    "info_nce, normalized": lambda i, t, y: losses.info_nce(i, t, temperature=0.2, normalize=True),
    "siglip": lambda i, t, y: losses.siglip(i, t, scale=5.0, bias=-3.0),
    "spectral": lambda i, t, y: losses.spectral(i, t),
}


initial = jax.jit(init_encoders, static_argnums=(1, 2, 3, 5))
optimum = jax.jit(linear_optimum, static_argnums=2)


@functools.cache
def data():
    """(image, text, labels): shared latents plus noise, of size about 1 a coordinate."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, 2))
    image = z @ rng.normal(size=(2, D_I)) / 2 + 0.5 * rng.normal(size=(N, D_I))
    text = z @ rng.normal(size=(2, D_T)) / 2 + 0.5 * rng.normal(size=(N, D_T))
    return jnp.asarray(image), jnp.asarray(text), jnp.asarray(rng.integers(0, 3, N))


@functools.cache
def start(embed_dim=R, scale=0.5):
    return initial(jax.random.key(1), D_I, D_T, embed_dim, scale, jnp.float64)


@functools.cache
def trainer(loss, optimizer, **kwargs):
    """A compiled train_encoders on data(): (key, encoders) -> (trained, values)."""
    pairs = data()  # not first inside the trace, whose tracers the cache would keep
    return jax.jit(lambda key, encoders: train_encoders(key, encoders, *pairs, loss, optimizer=optimizer, **kwargs))


def matrix(singular_values, seed=3):
    """(U, V, U diag(s) V^T) with random orthonormal U (D_I, k), V (D_T, k)."""
    rng, k = np.random.default_rng(seed), len(singular_values)
    u, v = (np.linalg.qr(rng.normal(size=(d, k)))[0] for d in (D_I, D_T))
    return u, v, (u * singular_values) @ v.T


# Initial encoders


def test_initial_encoders():
    encoders = init_encoders(jax.random.key(0), 40, 400, 80, 0.3)
    assert encoders.image.shape == (80, 40) and encoders.text.shape == (80, 400)
    assert encoders.image.dtype == jnp.float32
    for w in (encoders.image, encoders.text):
        x = np.asarray(w, np.float64).ravel() / 0.3 * max(w.shape) ** 0.5
        assert_mean_close(np.stack([x, x**2], 1), [0.0, 1.0], resolution=0.03)
        rejects(assert_mean_close, np.stack([x, x**2], 1), [0.0, max(w.shape) / min(w.shape)], resolution=0.03)
    # Singular values about scale: those of a Gaussian matrix lie in scale (1 +- sqrt(aspect ratio)), by 5 deviations
    # of at most scale / sqrt(larger size) each (Davidson and Szarek 2001).
    s = np.linalg.svd(encoders.text, compute_uv=False) / 0.3
    assert abs(s[0] - 1) <= 0.2**0.5 + 5 / 20 and abs(s[-1] - 1) <= 0.2**0.5 + 5 / 20
    corr = np.asarray(encoders.image).ravel() * np.asarray(encoders.text)[:, :40].ravel() * 80**0.5 * 20 / 0.09
    assert_mean_close(corr, 0.0, resolution=0.03)
    np.testing.assert_allclose(encoders.product, np.asarray(encoders.image).T @ encoders.text, atol=1e-6)


def test_bad_sizes_and_scale():
    key = jax.random.key(0)
    for position, name in enumerate(("dim_image", "dim_text", "embed_dim")):
        sizes = [3, 3, 3]
        sizes[position] = 0
        refuses(rf"{name} must be an integer >= 1, got 0\.", init_encoders, key, *sizes, 1.0)
    for scale in (0.0, -1.0, float("inf")):
        refuses(rf"scale must be finite and > 0, got {scale:g}\.", init_encoders, key, 3, 3, 3, scale)


# The linear loss


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("linear_mmcl", optax.sgd(0.05, momentum=0.9)),
        ("linear_mmcl, weighted", optax.adam(0.05)),
    ],
    ids=["plain, momentum", "weighted, adam"],
)
def test_cross_covariance_is_all_that_the_linear_loss_sees(name, optimizer):
    """Step for step. Rounding (1e-16) is amplified at most by a few e-folds, 0.05 x 60 steps x the largest s of C."""
    image, text, labels = data()
    weighting = (labels, 0.2, 3) if name.endswith("weighted") else ()
    want, want_values = trainer(LOSSES[name], optimizer, steps=60, rho=0.7)(jax.random.key(0), start())

    @jax.jit
    def from_the_covariance(encoders):
        c_hat = cross_covariance(image, text, *weighting)
        first = LOSSES[name](image @ encoders.image.T, text @ encoders.text.T, labels)
        first = first + 0.35 * jnp.sum(encoders.product**2)
        return *train_linear_mmcl(encoders, c_hat, rho=0.7, optimizer=optimizer, steps=60), first

    got, values, first = from_the_covariance(start())
    scale = float(np.abs(want_values).max())
    np.testing.assert_allclose(values, want_values, rtol=1e-9, atol=1e-9 * scale)
    for a, b in ((got.image, want.image), (got.text, want.text)):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    # The first value is the loss at the start, not after a step.
    np.testing.assert_allclose(values[0], first, rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_linear_loss_converges_to_the_truncated_svd(rank):
    """T1. Distances to the minimum fall by 1 - 0.1 (s_r - s_(r+1)) a step, or 1 - 0.1 s_4 at full rank: below
    e^-80 in all after 2,000 steps."""
    rho = 0.7
    _, _, c = matrix([2.0, 1.5, 1.0, 0.5])
    trained, values = jax.jit(
        lambda e: train_linear_mmcl(e, jnp.asarray(c), rho=rho, optimizer=optax.sgd(0.1), steps=2000)
    )(start(rank))
    product = np.asarray(trained.product)
    np.testing.assert_allclose(product, optimum(c, rho, rank), atol=1e-12)
    minimum = -(np.array([2.0, 1.5, 1.0, 0.5])[:rank] ** 2).sum() / (2 * rho)
    np.testing.assert_allclose(values[-1], minimum, rtol=1e-12)
    # <W, C> ends at 2 |minimum|, the penalty at |minimum|, in at most 48 products: 48 eps/2 of that in each value.
    assert (np.diff(values) <= 48 * np.finfo(float).eps * 3 * abs(minimum)).all()
    for other in {1, 2, 3, 4} - {rank}:
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(product, optimum(c, rho, other), atol=1e-2)


def test_modes_grow_along_the_logistic_curve():
    """X6: balanced aligned start, small steps. Euler's error is of first order, so it halves with the step; what
    remains after extrapolation is of second order and falls by four."""
    s, om_0, rho = np.array([2.0, 1.5, 0.7]), 0.01, 0.5
    u, v, c = matrix(s)
    balanced = Encoders(jnp.asarray(om_0**0.5 * u.T), jnp.asarray(om_0**0.5 * v.T))

    @functools.partial(jax.jit, static_argnames="steps")
    def train(lr, *, steps):
        return train_linear_mmcl(balanced, jnp.asarray(c), rho=rho, optimizer=optax.sgd(lr), steps=steps)[0].product

    def modes(time, steps):
        strengths = u.T @ np.asarray(train(time / steps, steps=steps)) @ v
        np.testing.assert_allclose(strengths - np.diag(np.diag(strengths)), 0, atol=1e-13)
        return np.diag(strengths)

    def curve(time, rate):
        return (s / rho) / (1 + ((s / rho) / om_0 - 1) * np.exp(-rate * s * time))

    for time in (1.0, 1.8, 3.0):
        coarse, middle, fine = (modes(time, steps) for steps in (400, 800, 1600))
        want = curve(time, 2.0)
        np.testing.assert_allclose((coarse - want) / (middle - want), 2, rtol=0.1)
        first, second = 2 * middle - coarse - want, 2 * fine - middle - want
        np.testing.assert_allclose(first / second, 4, rtol=0.3)
        np.testing.assert_allclose(2 * fine - middle, want, rtol=1e-4)
        for wrong in (curve(time, 1.0), curve(time, 2.0)[::-1]):
            with pytest.raises(AssertionError):
                np.testing.assert_allclose(2 * fine - middle, wrong, rtol=1e-2)


# Any loss


@pytest.mark.parametrize("name", LOSSES)
def test_full_batch_descent(name):
    """Below 2 over the curvature every step lowers the loss; no key enters."""
    train = trainer(LOSSES[name], SMALL_STEP, steps=150, rho=1.0 if "linear" in name else 0.0)
    trained, values = train(jax.random.key(0), start())
    assert np.isfinite(values).all() and (np.diff(values) < 0).all()
    again, _ = train(jax.random.key(5), start())
    np.testing.assert_array_equal(again.image, trained.image)


@pytest.mark.costly
@pytest.mark.parametrize("name", ["linear_mmcl", "info_nce", "siglip", "spectral"])
def test_minibatches_descend(name):
    """On batches of 8 the loss of the whole sample falls too."""
    rho = 1.0 if "linear" in name else 0.0
    key = jax.random.key(0)
    trained, values = trainer(LOSSES[name], ADAM, steps=150, batch_size=8, rho=rho)(key, start())
    before, after = (trainer(LOSSES[name], SMALL_STEP, steps=150, rho=rho)(key, e)[1][0] for e in (start(), trained))
    assert np.isfinite(values).all() and after < before


def test_penalty_enters_the_objective():
    """The same loss with and without rho differs by the penalty at the start."""
    key, encoders = jax.random.key(0), start()
    with_penalty = trainer(LOSSES["info_nce"], optax.sgd(0.02), steps=1, rho=0.3)(key, encoders)
    without = trainer(LOSSES["info_nce"], optax.sgd(0.02), steps=1)(key, encoders)
    want = 0.15 * np.sum(np.asarray(encoders.product) ** 2)
    np.testing.assert_allclose(with_penalty[1][0] - without[1][0], want, rtol=1e-12)
    image = np.asarray(encoders.image)
    pull = 0.02 * 0.3 * np.asarray(encoders.text) @ np.asarray(encoders.text).T @ image
    np.testing.assert_allclose(without[0].image - with_penalty[0].image, pull, rtol=1e-9, atol=1e-15)


def test_info_nce_starts_along_the_linear_loss():
    """X5: tau times InfoNCE is (n - 1)/n times the linear loss up to O(1/tau), over a path of 30 steps."""

    def path(loss, lr):
        return np.asarray(trainer(loss, optax.sgd(lr), steps=30)(jax.random.key(0), start())[0].product)

    linear = path(LOSSES["linear_mmcl"], 0.02)
    gaps = []
    for tau in (1e3, 1e4):
        hot = path(lambda i, t, y, tau=tau: losses.info_nce(i, t, temperature=tau), 0.02 * tau * N / (N - 1))
        gaps.append(np.linalg.norm(hot - linear) / np.linalg.norm(linear))
    assert gaps[1] < 1e-3
    np.testing.assert_allclose(gaps[0] / gaps[1], 10, rtol=0.05)
    # Without the factor (n - 1)/n it is another path.
    wrong = path(lambda i, t, y: losses.info_nce(i, t, temperature=1e4), 0.02 * 1e4)
    assert np.linalg.norm(wrong - linear) / np.linalg.norm(linear) > 10 * gaps[1]


# It runs for longer than it takes to compile.
@functools.partial(jax.jit, static_argnames=("n", "seeds"), compiler_options={"xla_backend_optimization_level": 1})
def info_nce_products(key, root_cov, noise, *, n, seeds):
    """(seeds, 2, 2), W after InfoNCE training on pairs z + noise, z ~ N(0, root_cov root_cov^T)."""

    def one(key):
        keys = jax.random.split(key, 4)
        z = jax.random.normal(keys[0], (n, 2)) @ root_cov.T
        image, text = (z + noise * jax.random.normal(k, (n, 2)) for k in keys[1:3])
        encoders = init_encoders(keys[3], 2, 2, 2, 0.5, jnp.float64)
        trained, _ = train_encoders(
            key,
            encoders,
            image,
            text,
            jnp.zeros(n, int),
            lambda i, t, y: losses.info_nce(i, t),
            optimizer=optax.sgd(0.05, momentum=0.9),
            steps=150,
        )
        return trained.product

    return jax.lax.map(one, jax.random.split(key, seeds))


def angles(w):
    """Directions of the rules W p at the core prompt p = e_core, in degrees."""
    return np.degrees(np.arctan2(w[..., 1, 0], w[..., 0, 0]))


@pytest.mark.costly
def test_bilinear_info_nce_finds_the_whitened_rule():
    """X5 on Gaussian latents with noise of sd 1: the rule points to -3.1 degrees, that of the linear loss to
    24.2. Resolution: a standard error below 2.5 degrees. X5 is a limit in n; the finite-sample bias is O(1/n)."""
    q, s_c, s_s, noise = 0.9, 1.0, 0.3, 1.0
    cov = np.array([[1 + s_c**2, q], [q, 1 + s_s**2]])
    marginal = jnp.asarray(cov + noise**2 * np.eye(2))
    w = info_nce_products(jax.random.key(0), jnp.asarray(np.linalg.cholesky(cov)), noise, n=128, seeds=24)
    got = angles(np.asarray(w))
    whitened, linear = (np.asarray(whitened_optimum(jnp.asarray(cov), marginal, marginal, th)) for th in (1.0, 0.0))
    assert_mean_close(got, angles(whitened), resolution=2.5)
    rejects(assert_mean_close, got, angles(linear), resolution=2.5)
    # Shrinking the noise to nothing, or the sign of q, would show as well.
    noiseless = np.linalg.inv(cov)
    rejects(assert_mean_close, got, angles(noiseless), resolution=2.5)


# Minibatches


def test_minibatches_depend_on_the_key_only():
    train = trainer(LOSSES["info_nce"], ADAM, steps=150, batch_size=8, rho=0.0)
    a, b, c = (train(jax.random.key(seed), start()) for seed in (7, 7, 8))
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(a[0].image, b[0].image)
    assert np.abs(np.asarray(a[1]) - np.asarray(c[1])).max() > 1e-3


@functools.partial(jax.jit, static_argnames="batch_size")
def batch_codes(key, *, batch_size):
    """sum 2^i over the samples i of a batch, plus 1/2 if a row's image, text and label differ; 4,000 batches."""

    def code(image, text, ids):
        mixed = ((image[:, 0] != ids) | (text[:, 0] != ids)).any()
        return (2.0**ids).sum() + 0.5 * mixed + 0 * image.sum()

    ids = jnp.arange(N)
    column = ids[:, None].astype(float)
    encoders = Encoders(jnp.ones((1, 1)), jnp.ones((1, 1)))
    _, codes = train_encoders(
        key, encoders, column, column, ids, code, optimizer=optax.sgd(0.0), steps=4000, batch_size=batch_size
    )
    return codes


@pytest.mark.parametrize("batch_size", [2, 8, N])
def test_batches_are_uniform_and_without_replacement(batch_size):
    codes = np.asarray(batch_codes(jax.random.key(2), batch_size=batch_size))
    drawn = codes.astype(int)
    np.testing.assert_array_equal(codes, drawn)  # rows stay together
    member = drawn[:, None] >> np.arange(N) & 1
    # A sample drawn twice would carry into the next bit: fewer bits than samples.
    np.testing.assert_array_equal(member.sum(1), batch_size)
    pair = member[:, 0] * member[:, 1]
    chances = [batch_size / N] * N + [batch_size * (batch_size - 1) / (N * (N - 1))]
    samples = np.column_stack([member, pair])
    assert_mean_close(samples, chances, resolution=0.01)
    if batch_size < N:
        # Neighbours that come together.
        rejects(assert_mean_close, samples, [*chances[:-1], chances[0]], resolution=0.01)


def test_minibatch_linear_loss_is_unbiased():
    """C_hat of a batch is unbiased for that of the sample, so the mean loss is the full loss; 1/n would not be."""
    _, values = trainer(LOSSES["linear_mmcl"], optax.sgd(0.0), steps=20_000, batch_size=4)(jax.random.key(3), start())
    _, full = trainer(LOSSES["linear_mmcl"], optax.sgd(0.0), steps=1)(jax.random.key(3), start())
    resolution = float(abs(full[0])) / 50
    assert_mean_close(values, full[0], resolution=resolution)
    rejects(assert_mean_close, values, full[0] * 0.75, resolution=resolution)


def test_vmap_over_start_and_rho():
    """A sweep as the simulations make it: rho and the start are mapped."""
    c = jnp.asarray(matrix([2.0, 1.0])[2])

    def final(rho, key):
        encoders = init_encoders(key, D_I, D_T, 2, 0.5, jnp.float64)
        return train_linear_mmcl(encoders, c, rho=rho, optimizer=optax.sgd(0.05), steps=30)[0].product

    rho, keys = jnp.asarray([0.5, 2.0]), jax.random.split(jax.random.key(0), 2)
    swept, single = jax.jit(jax.vmap(final))(rho, keys), jax.jit(final)
    for i in range(2):
        np.testing.assert_allclose(swept[i], single(rho[i], keys[i]), rtol=1e-11, atol=1e-13)


def test_single_precision_is_kept():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (start(), *data()[:2]))
    sgd = optax.sgd(0.05)

    @jax.jit
    def both(encoders, image, text):
        trained = train_encoders(
            jax.random.key(0), encoders, image, text, data()[2], LOSSES["info_nce"], optimizer=sgd, steps=5, rho=0.1
        )
        return trained, train_linear_mmcl(encoders, cross_covariance(image, text), rho=0.1, optimizer=sgd, steps=5)

    (trained, values), (linear, _) = both(*single)
    assert {x.dtype for x in (trained.image, trained.text, values, linear.image)} == {jnp.dtype("float32")}


def test_bad_training_arguments():
    key, encoders, sgd = jax.random.key(0), start(), optax.sgd(0.1)
    train = functools.partial(train_encoders, key, encoders, *data(), LOSSES["info_nce"], optimizer=sgd)
    c = jnp.ones((D_I, D_T))
    for steps in (0, -3):
        for call in (train, functools.partial(train_linear_mmcl, encoders, c, optimizer=sgd)):
            refuses(rf"steps must be an integer >= 1, got {steps}\.", call, steps=steps)
    refuses(r"batch_size must be an integer >= 2, got 1\.", train, steps=1, batch_size=1)
    refuses(rf"batch_size must be an integer in 2\.\.{N}, got {N + 1}\.", train, steps=1, batch_size=N + 1)
    for rho in (-0.1, float("inf")):
        refuses(rf"rho must be finite and >= 0, got {rho:g}\.", train, steps=1, rho=rho)
    for rho in (0.0, -0.1):
        with pytest.raises(ValueError, match=rf"rho must be finite and > 0, got {rho:g}\."):
            train_linear_mmcl(encoders, c, rho=rho, optimizer=sgd, steps=1)


SGDS = [
    optax.sgd(0.05),
    optax.sgd(0.03, momentum=0.9, nesterov=True),
    optax.sgd(optax.linear_schedule(0.1, 0.01, 40)),
]


def with_and_without_span(optimizer, d_i, d_t, r, **settings):
    rng = np.random.default_rng(0)
    sizes = ((r, d_i), (r, d_t), (d_i, d_t))
    image, text, cross_cov = (rng.normal(size=s) * f for s, f in zip(sizes, (0.3, 0.3, 1), strict=True))
    encoders = Encoders(jnp.asarray(image / max(d_i, r) ** 0.5), jnp.asarray(text / max(d_t, r) ** 0.5))
    cross_cov = jnp.asarray(cross_cov / d_i**0.5)

    @jax.jit
    def train(encoders, cross_cov):
        return [
            train_linear_mmcl(encoders, cross_cov, optimizer=optimizer, in_span=in_span, **settings)
            for in_span in (False, True)
        ]

    return train(encoders, cross_cov)


@pytest.mark.parametrize("optimizer", SGDS, ids=["plain", "momentum", "schedule"])
@pytest.mark.parametrize("d_i, d_t, r", [(50, 6, 4), (5, 6, 4)])
def test_descent_in_the_span_is_the_same_path(optimizer, d_i, d_t, r):
    (expected, losses_expected), (found, losses_found) = with_and_without_span(
        optimizer, d_i, d_t, r, rho=0.7, steps=60
    )
    for a, b in ((found.image, expected.image), (found.text, expected.text), (losses_found, losses_expected)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_adam_makes_another_path_in_the_span():
    (whole, _), (span, _) = with_and_without_span(optax.adam(0.05), 50, 6, 4, steps=20)
    assert np.abs(whole.product - span.product).max() > 1e-3
