"""The cross-covariance against pair loops and the loss itself; low-rank minimisers against other candidates and CCA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from mmcl_theory import losses
from mmcl_theory.learners import (
    cross_covariance,
    linear_optimum,
    sup_con_matrix,
    sup_con_optimum,
    truncate,
    whitened_optimum,
)
from tests.differences import central
from tests.helpers import refuses

D_I, D_T = 5, 4
EPS = np.finfo(np.float64).eps
NUM_CLASSES = 9
# Tiny programs: compiling dominates.
plain = jax.jit(cross_covariance)
weighted = functools.partial(jax.jit(cross_covariance, static_argnames="num_classes"), num_classes=NUM_CLASSES)
whitened = jax.jit(whitened_optimum, static_argnames="rank")
CLASSES = {
    "balanced": [0, 1, 2, 0, 1, 2, 0, 1, 2],
    "unbalanced": [0, 0, 1, 0, 1, 0, 0, 0, 2],  # class 2 has one sample
    "one class absent": [0, 2, 0, 0, 2, 2, 0, 0, 0],
    "all of one class": [1] * 9,
    "all different": list(range(9)),
}


def draw_pairs(n=9, seed=0):
    """Shared directions, so that C is not small, and means that centring has to remove."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3))
    image = z @ rng.normal(size=(3, D_I)) + 0.5 * rng.normal(size=(n, D_I)) + 2.0
    text = z @ rng.normal(size=(3, D_T)) + 0.5 * rng.normal(size=(n, D_T)) - 1.0
    return image, text


def random_cov(rng, d, rank=None):
    """Condition number below 100 on its range."""
    q = np.linalg.qr(rng.normal(size=(d, d)))[0][:, : rank or d]
    return q @ np.diag(rng.uniform(0.2, 5.0, q.shape[1])) @ q.T


def assert_close(got, want, tol=1e-12):
    """Relative to the largest entry: entries that cancel are not resolved better than that."""
    np.testing.assert_allclose(got, want, rtol=0, atol=tol * np.abs(want).max())


# The cross-covariance


def pair_loop(image, text, classes=None, weight=None):
    """-d loss / dW for the loss sum of docs/theory.md 2: 1/(2n) sum_i sum_{j != i} w_ij (s_ij + s_ji - 2 s_ii)."""
    n = len(image)
    total = np.zeros((image.shape[1], text.shape[1]))
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            if classes is None:
                w = 1 / (n - 1)
            else:
                members = classes.count(classes[i])
                w = weight / (members - 1) if classes[i] == classes[j] else (1 - weight) / (n - members)
            total -= w * (np.outer(image[i], text[j]) + np.outer(image[j], text[i]) - 2 * np.outer(image[i], text[i]))
    return total / (2 * n)


def test_unweighted_is_the_sample_cross_covariance():
    image, text = draw_pairs()
    got = plain(image, text)
    assert_close(got, np.cov(image.T, text.T)[:D_I, D_I:])
    assert_close(got, pair_loop(image, text))
    assert_close(plain(image + 3.0, text - 5.0), got)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", CLASSES)
def test_weighted_is_the_sum_over_pairs(name, weight):
    image, text = draw_pairs()
    y = CLASSES[name]
    got = weighted(image, text, np.asarray(y), weight)
    # The sum may be empty: 0 up to the rounding of products that cancel.
    tol = 1e-12 * np.abs(image).max() * np.abs(text).max()
    np.testing.assert_allclose(got, pair_loop(image, text, y, weight), rtol=0, atol=tol)
    if name != "all different":
        few = weighted(image, text, np.asarray(y), weight, num_classes=3)
        np.testing.assert_allclose(few, got, rtol=0, atol=tol)


@pytest.mark.parametrize("name", [None, *CLASSES])
def test_is_minus_the_gradient_of_the_loss(name):
    """-<W, C> is the loss itself, at every W."""
    image, text = draw_pairs()
    w = np.random.default_rng(1).normal(size=(D_I, D_T))
    if name is None:
        kwargs, c_hat = {}, plain(image, text)
    else:
        y = np.asarray(CLASSES[name])
        kwargs, c_hat = {"labels": y, "same_class_weight": 0.2}, weighted(image, text, y, 0.2)
    value, gradient = loss_and_gradient(w, image, text, **kwargs)
    tol = 1e-12 * np.abs(image).max() * np.abs(text).max()
    np.testing.assert_allclose(-gradient, c_hat, rtol=0, atol=tol)
    np.testing.assert_allclose(value, -np.vdot(w, c_hat), rtol=0, atol=tol * np.abs(w).sum())


@jax.jit
def loss_and_gradient(w, image, text, **kwargs):
    return jax.value_and_grad(lambda w: losses.linear_mmcl(image @ w, text, **kwargs))(w)


def test_neutral_weight_is_no_weight():
    image, text = draw_pairs()
    y = np.asarray(CLASSES["balanced"])
    neutral = (len(y) / 3 - 1) / (len(y) - 1)
    assert_close(weighted(image, text, y, neutral), plain(image, text))
    with pytest.raises(AssertionError):
        assert_close(weighted(image, text, y, 1 / 3), plain(image, text), 1e-3)


def test_weight_one_is_the_pooled_covariance_within_classes():
    image, text = draw_pairs()
    y = np.asarray(CLASSES["one class absent"])
    want = sum((y == k).mean() * np.cov(image[y == k].T, text[y == k].T)[:D_I, D_I:] for k in (0, 2))
    assert_close(weighted(image, text, y, 1.0), want)


def test_batches_with_one_kind_of_negative():
    image, text = draw_pairs()
    y = np.asarray(CLASSES["all of one class"])
    assert_close(weighted(image, text, y, 0.3), 0.3 * plain(image, text))
    np.testing.assert_array_equal(weighted(image, text, y, 0.0), 0.0)
    assert_close(weighted(image, text, np.asarray(CLASSES["all different"]), 0.3), 0.7 * plain(image, text))


def test_weight_is_affine_and_vmaps():
    image, text, y = map(jnp.asarray, (*draw_pairs(), CLASSES["unbalanced"]))
    weights = np.array([0.0, 0.25, 1.0])
    swept = jax.jit(jax.vmap(lambda v: cross_covariance(image, text, y, v, 3)))(weights)
    for v, c_hat in zip(weights, swept, strict=True):
        np.testing.assert_allclose(c_hat, weighted(image, text, y, v), rtol=0, atol=1e-12)
    np.testing.assert_allclose(swept[1], 0.75 * swept[0] + 0.25 * swept[2], rtol=0, atol=1e-12)


def test_bad_input_to_the_cross_covariance():
    image, text = map(jnp.asarray, draw_pairs())
    y = jnp.asarray(CLASSES["balanced"])
    refuses(r"n must be an integer >= 2, got 1\.", cross_covariance, image[:1], text[:1])
    with pytest.raises(ValueError, match=r"class_number must be given with same_class_weight, got None\."):
        cross_covariance(image, text, same_class_weight=0.5)
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"same_class_weight must be in \[0, 1\], got {weight:g}\."):
            cross_covariance(image, text, y, weight, 3)


# The linear optimum


def assert_minimises(w, rank, c, left, right):
    """No matrix of rank <= rank has a smaller -<W, C> + 1/2 tr(W^T left W right) than w.

    Descent in factors, which ends in a global minimum (all others are strict saddles), from next to w, which leaves a
    saddle, and from far away, which must also end in w.
    """

    def loss(w):
        return -np.vdot(w, c) + np.vdot(w, left @ w @ right) / 2

    def in_factors(x):
        a, b = x[: D_I * rank].reshape(D_I, rank), x[D_I * rank :].reshape(D_T, rank)
        gradient = left @ (a @ b.T) @ right - c
        return loss(a @ b.T), np.r_[(gradient @ b).ravel(), (gradient.T @ a).ravel()]

    u, s, vt = np.linalg.svd(w)
    assert (s[rank:] <= 1e-13 * s[0]).all(), "rank too high"
    best = loss(w)
    at_w = np.r_[(u[:, :rank] * np.sqrt(s[:rank])).ravel(), (vt[:rank].T * np.sqrt(s[:rank])).ravel()]
    noise = np.random.default_rng(5).normal(size=at_w.size)
    for start in (at_w + 1e-2 * noise, noise):
        fit = scipy.optimize.minimize(in_factors, start, jac=True, method="BFGS", options={"gtol": 1e-9})
        assert fit.fun >= best - 1e-12 * abs(best), "a better candidate"
        # A loss within 1e-12 leaves the minimiser undetermined by the root of that, over the spectral gap.
        assert_close(fit.x[: D_I * rank].reshape(D_I, rank) @ fit.x[D_I * rank :].reshape(D_T, rank).T, w, 1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_linear_optimum_minimises_at_every_rank(rank):
    c, rho = np.random.default_rng(2).normal(size=(D_I, D_T)), 0.7
    w = np.asarray(linear_optimum(jnp.asarray(c), rho, rank))
    problem = c, rho * np.eye(D_I), np.eye(D_T)
    assert_minimises(w, rank, *problem)
    u, s, vt = np.linalg.svd(c)
    # Eckart-Young: the minimum is -(1/(2 rho)) sum_{k <= r} s_k^2.
    value = -np.vdot(w, c) + rho / 2 * np.vdot(w, w)
    np.testing.assert_allclose(value, -(s[:rank] ** 2).sum() / (2 * rho), rtol=1e-12)
    # Stationarity in the factors: the residual is orthogonal to the rows and columns of W.
    residual = rho * w - c
    np.testing.assert_allclose(residual @ w.T, 0, atol=1e-12)
    np.testing.assert_allclose(w.T @ residual, 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(residual, 2), s[rank] if rank < D_T else 0, rtol=1e-12, atol=1e-12)
    # Other critical points (any r singular triples), a smaller rank and another rho are rejected.
    triples = [u[:, k, None] * s[k] / rho @ vt[k, None] for k in range(D_T)]
    saddle = sum(triples[: rank - 1], triples[rank] if rank < D_T else 0.0)
    for wrong in (saddle, 0.9 * w):
        with pytest.raises(AssertionError, match="a better candidate"):
            assert_minimises(wrong, rank, *problem)


def test_linear_optimum_at_full_rank_is_exact():
    c = jnp.asarray(np.random.default_rng(3).normal(size=(D_I, D_T)))
    for rank in (None, D_T):
        np.testing.assert_array_equal(linear_optimum(c, 2.0, rank), c / 2)
        np.testing.assert_array_equal(truncate(c, rank), c)
    assert_close(linear_optimum(c.T, 2.0, 2), linear_optimum(c, 2.0, 2).T)
    rank_two = truncate(c, 2)
    assert_close(truncate(rank_two, 3), rank_two)


def test_rho_vmaps():
    c = jnp.asarray(np.random.default_rng(3).normal(size=(D_I, D_T)))
    rho = jnp.asarray([0.1, 1.0, 7.0])
    swept = jax.vmap(lambda r: linear_optimum(c, r, 2))(rho)
    for r, w in zip(rho, swept, strict=True):
        assert_close(w, linear_optimum(c, float(r), 2))


def test_population_rule_of_the_paper():
    """The class prompt through the minimiser at n = infinity: w = (mu_c^2 + s_c^2, q mu_c mu_s) (T5, X4)."""
    p, s_c, s_s, mu_c, mu_s = 0.9, 0.8, 0.3, 1.2, 0.7
    q = 2 * p - 1
    cov = np.array([[mu_c**2 + s_c**2, q * mu_c * mu_s], [q * mu_c * mu_s, mu_s**2 + s_s**2]])
    np.testing.assert_allclose(linear_optimum(jnp.asarray(cov))[:, 0], [mu_c**2 + s_c**2, q * mu_c * mu_s], rtol=1e-15)
    # Whitened without noise: w ~ (mu_s^2 + s_s^2, -q mu_c mu_s) (X5).
    w = whitened_optimum(*[jnp.asarray(cov)] * 3, 1.0)[:, 0]
    np.testing.assert_allclose(w[1] / w[0], -q * mu_c * mu_s / (mu_s**2 + s_s**2), rtol=1e-12)


def test_bad_input_to_the_linear_optimum():
    c = jnp.ones((3, 2))
    for rho in (0.0, -1.0, float("inf")):
        refuses(rf"rho must be finite and > 0, got {rho:g}\.", linear_optimum, c, rho)
    for rank in (0, -1, True):
        refuses(rf"rank must be an integer >= 1, got {rank}\.", linear_optimum, c, 1.0, rank)
    refuses(r"rank must be an integer in 1\.\.2, got 3\.", linear_optimum, c, 1.0, 3)


# The whitened optimum


@functools.cache
def problem():
    """C, S_I, S_T, the blocks of one joint covariance."""
    joint = random_cov(np.random.default_rng(4), D_I + D_T)
    return joint[:D_I, D_I:], joint[:D_I, :D_I], joint[D_I:, D_I:]


def cca(c, s_i, s_t, rank):
    """sum_k r_k a_k b_k^T over the leading canonical pairs, a^T S_I a = b^T S_T b = 1, by the generalised eigenproblem
    C S_T^-1 C^T a = r^2 S_I a."""
    squares, vectors = scipy.linalg.eigh(c @ scipy.linalg.solve(s_t, c.T), s_i)
    total = 0.0
    for k in range(1, rank + 1):
        r, a = np.sqrt(squares[-k]), vectors[:, -k]
        b = scipy.linalg.solve(s_t, c.T @ a) / r
        total = total + r * np.outer(a, b)
    return total


def test_theta_zero_is_the_linear_optimum():
    args = [jnp.asarray(x) for x in problem()]
    for rank in (None, 1, 2, 3, D_T):
        assert_close(whitened_optimum(*args, 0.0, rank), linear_optimum(args[0], 1.0, rank))


def test_theta_one_is_cca():
    c, s_i, s_t = problem()
    args = [jnp.asarray(x) for x in (c, s_i, s_t)]
    want = scipy.linalg.solve(s_i, scipy.linalg.solve(s_t, c.T).T)
    assert_close(whitened_optimum(*args, 1.0), want, 1e-11)
    assert_close(cca(c, s_i, s_t, D_T), want, 1e-11)
    for rank in (1, 2, 3):
        assert_close(whitened_optimum(*args, 1, rank), cca(c, s_i, s_t, rank), 1e-11)
        # Truncating after whitening instead of in the whitened metric is another matrix.
        with pytest.raises(AssertionError):
            assert_close(truncate(jnp.asarray(want), rank), cca(c, s_i, s_t, rank), 1e-3)


@pytest.mark.parametrize("theta", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_whitened_optimum_minimises_its_objective(theta, rank):
    c, s_i, s_t = problem()
    powers = [scipy.linalg.fractional_matrix_power(s, theta) for s in (s_i, s_t)]
    assert_minimises(np.asarray(whitened(c, s_i, s_t, theta, rank=rank)), rank, c, *powers)
    for wrong in (0.0, theta - 0.1, 1.0):
        with pytest.raises(AssertionError, match="a better candidate"):
            assert_minimises(np.asarray(whitened(c, s_i, s_t, wrong, rank=rank)), rank, c, *powers)


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_singular_covariances_are_pseudo_inverted(theta):
    """A text coordinate that is never mentioned, and images in a subspace."""
    rng = np.random.default_rng(6)
    s_i, s_t = random_cov(rng, D_I, rank=3), np.zeros((D_T, D_T))
    s_t[:3, :3] = random_cov(rng, 3)
    c = s_i @ rng.normal(size=(D_I, D_T)) @ s_t

    def inverse(s):
        # Of a matrix without null space, in the basis of the range of s.
        u, values, _ = np.linalg.svd(s)
        basis = u[:, : (values > 1e-10).sum()]
        return basis @ scipy.linalg.fractional_matrix_power(basis.T @ s @ basis, -theta) @ basis.T

    w = whitened(c, s_i, s_t, theta)
    assert_close(w, inverse(s_i) @ c @ inverse(s_t), 1e-11)
    if theta == 1:
        assert_close(w, np.linalg.pinv(s_i, hermitian=True) @ c @ np.linalg.pinv(s_t, hermitian=True), 1e-11)
    # Eigenvectors to within rounding only: that of the coordinate never mentioned too.
    for null in (scipy.linalg.null_space(s_i).T @ np.asarray(w), np.asarray(w)[:, 3]):
        np.testing.assert_allclose(null, 0, atol=1e-12 * np.abs(w).max())
    # theta = 0 asks for no inverse: C as it is, null space included.
    outside = jnp.asarray(rng.normal(size=(D_I, D_T)))
    assert_close(whitened_optimum(outside, jnp.asarray(s_i), jnp.asarray(s_t), 0.0), outside)


def test_theta_vmaps():
    args = [jnp.asarray(x) for x in problem()]
    theta = jnp.asarray([0.0, 0.3, 1.0])
    swept = jax.vmap(lambda t: whitened(*args, t, rank=2))(theta)
    for t, w in zip(theta, swept, strict=True):
        assert_close(w, whitened(*args, float(t), rank=2), 1e-11)


def test_derivative_in_theta():
    args = [jnp.asarray(x) for x in problem()]
    curve = functools.partial(whitened, *args, rank=None)
    # Error of the stencil: h^4 / 30 times a fifth derivative, about (log condition)^5; of rounding: EPS / h.
    assert_close(jax.jacfwd(curve)(0.4), central(curve, 0.4, 1e-3), 1e-9)


def test_units():
    """Images in other units, A x: at theta = 1 the scores x^T W t do not change; at theta = 0 they do."""
    c, s_i, s_t = problem()
    a = np.random.default_rng(7).normal(size=(D_I, D_I)) + 2 * np.eye(D_I)
    args = [jnp.asarray(x) for x in (c, s_i, s_t)]
    changed = [jnp.asarray(x) for x in (a @ c, a @ s_i @ a.T, s_t)]
    tol = 10 * EPS * np.linalg.cond(a) ** 2 * np.linalg.cond(s_i) * np.linalg.cond(s_t)
    assert tol < 1e-8
    assert_close(a.T @ whitened_optimum(*changed, 1.0, 2), whitened_optimum(*args, 1.0, 2), tol)
    with pytest.raises(AssertionError):
        assert_close(a.T @ whitened_optimum(*changed, 0.0, 2), whitened_optimum(*args, 0.0, 2), 1e-2)


def test_bad_input_to_the_whitened_optimum():
    args = jnp.ones((3, 2)), jnp.eye(3), jnp.eye(2)
    for theta in (-0.1, 1.5, float("nan")):
        refuses(rf"theta must be in \[0, 1\], got {theta:g}\.", whitened_optimum, *args, theta)
    refuses(r"rank must be an integer >= 1, got 0\.", whitened_optimum, *args, 0.5, 0)
    refuses(r"rank must be an integer in 1\.\.2, got 5\.", whitened_optimum, *args, 0.5, 5)


# Both


def test_single_precision_agrees_with_double():
    """Relative errors of float32 rounding times what amplifies it: s_1 over the gap that decides a truncation, and the
    condition numbers of what is inverted."""
    single = functools.partial(jnp.asarray, dtype=jnp.float32)
    eps = float(jnp.finfo(jnp.float32).eps)
    image, text = draw_pairs(200)
    y = np.arange(200) % 3
    for of_pairs in (plain, lambda image, text: weighted(image, text, y, 0.2)):
        got = of_pairs(single(image), single(text))
        assert got.dtype == jnp.float32
        want = of_pairs(image, text)
        # Sums of 200 products, of uncentred values in the weighted form.
        np.testing.assert_allclose(got, want, rtol=0, atol=200 * eps * np.sqrt((image**2).mean() * (text**2).mean()))
    c, s_i, s_t = problem()
    s = np.linalg.svd(c)[1]
    got = linear_optimum(single(c), 0.7, 2)
    assert got.dtype == jnp.float32
    assert_close(got, linear_optimum(jnp.asarray(c), 0.7, 2), 10 * eps * s[0] / (s[1] - s[2]))
    white = whitened(*(single(x) for x in (c, s_i, s_t)), 1.0, rank=2)
    assert white.dtype == jnp.float32
    r = np.sqrt(scipy.linalg.eigh(c @ scipy.linalg.solve(s_t, c.T), s_i, eigvals_only=True))[::-1]
    tol = 10 * eps * np.linalg.cond(s_i) * np.linalg.cond(s_t) * r[0] / (r[1] - r[2])
    assert tol < 0.1
    assert_close(white, whitened(c, s_i, s_t, 1.0, rank=2), tol)


def test_class_numbers_out_of_range_are_refused():
    x = jnp.ones((4, 2))
    for number in (-1, 2):
        with pytest.raises(ValueError, match=rf"class_number must be in 0\.\.1, got {number}"):
            cross_covariance(x, x, jnp.array([0, 1, 1, number]), 0.5)


sup_con = functools.partial(jax.jit(sup_con_matrix, static_argnames="num_classes"), num_classes=NUM_CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_sup_con_matrix_is_that_of_the_loss(name):
    number, rng = jnp.array(CLASSES[name]), np.random.default_rng(2)
    x, w = jnp.asarray(draw_pairs()[0]), jnp.asarray(rng.normal(size=(3, D_I)))
    matrix = np.asarray(sup_con(x, number))
    assert_close(matrix, matrix.T, 1e-14)
    want = float(jax.jit(losses.linear_sup_con)(x @ w.T, number))
    np.testing.assert_allclose(-np.sum(np.asarray(w.T @ w) * matrix), want, rtol=1e-11, atol=1e-11)
    if name not in ("all of one class", "all different"):
        wrong = np.asarray(sup_con(x, number[::-1]))
        assert name == "balanced" or abs(np.sum(np.asarray(w.T @ w) * (matrix - wrong))) > 1e-3


@pytest.mark.parametrize("rank", [1, 2, 4, None])
def test_sup_con_minimiser_is_where_descent_ends(rank):
    """M has three positive eigenvalues; a fourth row stays 0. Descent starts twice, at random."""
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.normal(size=(D_I, D_I)))[0]
    values = np.array([3.0, 2.0, 0.7, -0.5, -2.0])
    matrix, rho = q @ np.diag(values) @ q.T, 0.8
    w = np.asarray(sup_con_optimum(jnp.asarray(matrix), rho, rank))
    kept = np.maximum(values[: rank or D_I], 0)
    assert w.shape == (rank or D_I, D_I)
    assert_close(w.T @ w, q[:, : len(kept)] @ np.diag(kept / rho) @ q[:, : len(kept)].T)

    def objective(flat):
        v = flat.reshape(w.shape)
        gram = v.T @ v
        gradient = 2 * v @ (rho * gram - matrix)
        return -np.sum(gram * matrix) + rho / 2 * np.sum(gram**2), gradient.ravel()

    least = objective(w.ravel())[0]
    for _ in range(2):
        found = scipy.optimize.minimize(objective, rng.normal(size=w.size), jac=True, method="BFGS", tol=1e-10)
        np.testing.assert_allclose(found.fun, least, rtol=1e-9)
    assert objective(1.01 * w.ravel())[0] > least + 1e-4


def test_wrong_input_of_sup_con_is_refused():
    x, number = jnp.ones((4, 3)), jnp.array([0, 1, 0, 2])
    for call, told in (
        (lambda: sup_con_matrix(x[:1], number[:1]), "n must be an integer >= 2, got 1"),
        (lambda: sup_con_matrix(x, number, 2), r"class_number must be in 0\.\.1, got 2"),
        (lambda: sup_con_optimum(jnp.eye(3), 0.0), "rho must be finite and > 0, got 0"),
        (lambda: sup_con_optimum(jnp.eye(3), 1.0, 4), r"rank must be an integer in 1\.\.3, got 4"),
    ):
        refuses(told, call)
