"""Max-margin rules against hand-solved cases, NNLS and libsvm; logistic paths against descent on w; least squares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import sklearn.svm

from mmcl_theory.learners import least_squares, logistic_dual, max_margin, max_margin_dual
from tests.helpers import refuses

solve = jax.jit(max_margin_dual)


@pytest.fixture
def compiled(monkeypatch):
    """max_margin solves with the programs that the other tests use."""
    monkeypatch.setattr("mmcl_theory.learners.supervised.max_margin_dual", solve)


def separable_data(n, d, seed=0):
    """Labels of a random teacher; at n > d the margin is small and few points support it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, np.where(x @ rng.normal(size=d) > 0, 1, -1)


def fit_rule(x, y):
    fit = solve(x @ x.T, y)
    return (np.asarray(fit.dual) * y) @ x, fit


def assert_certificate(x, y, dual, tol=1e-10):
    """The KKT conditions of min |w|^2 / 2 s.t. y_i x_i.w >= 1 at w = sum_i dual_i y_i x_i, by NumPy alone."""
    dual, x = np.asarray(dual, np.float64), np.asarray(x, np.float64)
    w = (dual * y) @ x
    margins = y * (x @ w)
    norm = w @ w
    assert (dual >= 0).all(), "dual infeasible"
    assert margins.min() >= 1 - tol, "primal infeasible"
    assert (dual * (margins - 1)).max() <= tol * norm, "slack on the support"
    # primal - dual = |w|^2 / 2 - (sum dual - |w|^2 / 2)
    assert abs(norm - dual.sum()) <= tol * norm, "duality gap"


def assert_no_rule(fit):
    """What is returned for data that is not separable, whatever the rounding of the search that found no rule."""
    assert not bool(fit.separable)
    assert (np.asarray(fit.dual) == 0).all() and float(fit.margin) == 0 and float(fit.gap) == 1


def assert_bounded_by_gap(w, optimum, gap):
    """For feasible w, |w|^2 - |w*|^2 <= gap |w|^2, and w* is the feasible point closest to 0: |w - w*|^2 <= that."""
    assert np.linalg.norm(w - optimum) <= (np.sqrt(max(gap, 0)) + 1e-7) * np.linalg.norm(w)


# Max-margin: exact cases


HAND = {
    "one sample": ([[3.0, 4.0]], [-1], [-0.12, -0.16]),
    "orthogonal": ([[1.0, 0.0], [0.0, 2.0]], [1, -1], [1.0, -0.5]),
    "second constraint slack": ([[1.0, 0.0], [3.0, 1.0]], [1, 1], [1.0, 0.0]),
    "opposite points": ([[1.0, 2.0], [-1.0, -2.0]], [1, -1], [0.2, 0.4]),
    "two supports of three": ([[1.0, 1.0], [-1.0, 1.0], [0.0, 5.0]], [1, 1, 1], [0.0, 1.0]),
    "one dimension": ([[1.0], [2.0], [-3.0]], [1, 1, -1], [1.0]),
    "duplicates": ([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]], [1, 1, -1], [1.0, -0.5]),
    "on a line": ([[1.0, 1.0], [2.0, 2.0], [-0.5, -0.5]], [1, 1, -1], [1.0, 1.0]),
}


@pytest.mark.parametrize("name", HAND)
def test_solved_by_hand(name):
    x, y, want = (np.array(a) for a in HAND[name])
    # Three samples each, by repeating the last, which changes nothing.
    x, y = x[np.minimum(range(3), len(x) - 1)], y[np.minimum(range(3), len(y) - 1)]
    w, fit = fit_rule(x, y)
    np.testing.assert_allclose(w, want, atol=1e-12)
    np.testing.assert_allclose(fit.margin, 1 / np.linalg.norm(want), rtol=1e-12)
    np.testing.assert_allclose(fit.gap, 0, atol=1e-12)
    assert_certificate(x, y, fit.dual, 1e-12)


def test_max_margin_returns_the_rule_and_its_certificate(compiled):
    x, y = separable_data(30, 60)
    w, fit = max_margin(jnp.asarray(x), jnp.asarray(y))
    want, want_fit = fit_rule(x, y)
    np.testing.assert_allclose(w, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fit.margin, want_fit.margin, rtol=1e-12)
    with pytest.raises(ValueError, match=r"tolerance must be at least the duality gap reached, .*, got -1\."):
        max_margin(jnp.asarray(x), jnp.asarray(y), tolerance=-1.0)


# Max-margin: other solvers


def nnls_rule(x, y):
    """The max-margin rule w from argmin over a >= 0 of |Z^T a|^2 + (1 - sum a)^2, Z = y x, whose KKT conditions are
    those of the dual at a / (1 - sum a). The least value is 1 - sum a = 1 / (1 + |w|^2).

    None where the data is not separable: by Gordan's theorem some a >= 0, sum a = 1, then has Z^T a = 0, and there is
    no rule. Rounding leaves a residual of 1e-15 or so there, never 1e-6: a margin of 1e-6, which no data here has.
    """
    z = y[:, None] * x
    a, residual = scipy.optimize.nnls(np.vstack([z.T, np.ones(len(y))]), np.r_[np.zeros(x.shape[1]), 1.0])
    return a / (1 - a.sum()) @ z if residual > 1e-6 else None


def libsvm_rule(x, y, tol):
    """scikit-learn's SVC has a bias; on {(z_i, +1), (-z_i, -1)}, z = y x, it is 0 by symmetry and the constraints are
    ours. Scaled to be feasible: it meets the constraints to within tol only."""
    z = np.vstack([y[:, None] * x, -y[:, None] * x])
    svc = sklearn.svm.SVC(kernel="precomputed", C=1e10, tol=tol).fit(z @ z.T, np.repeat([1, -1], len(y)))
    w = svc.dual_coef_[0] @ z[svc.support_]
    assert abs(svc.intercept_[0]) <= 10 * tol
    return w / (y * (x @ w)).min()


SHAPES = [(30, 60), (60, 60), (60, 5), (200, 400), (200, 20)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_certificate_and_other_solvers(shape):
    x, y = separable_data(*shape)
    w, fit = fit_rule(x, y)
    assert bool(fit.separable)
    assert_certificate(x, y, fit.dual)
    assert abs(fit.gap) <= 1e-10
    np.testing.assert_allclose(fit.margin, (y * (x @ w)).min() / np.linalg.norm(w), rtol=1e-10)
    np.testing.assert_allclose(w, nnls_rule(x, y), atol=1e-9 * np.linalg.norm(w))
    tol = 1e-8
    other = libsvm_rule(x, y, tol)
    # A violation of tol in every constraint costs at most tol sum(dual) = tol |w|^2 of a value |w|^2 / 2, on either
    # side, and rescaling to feasibility as much again.
    assert_bounded_by_gap(other, w, 8 * tol)


@pytest.mark.parametrize("shape", [(30, 60), (60, 5)], ids=str)
def test_wrong_rules_have_no_certificate(shape):
    x, y = separable_data(*shape)
    w, fit = fit_rule(x, y)
    dual = np.asarray(fit.dual)
    shifted = dual.copy()
    shifted[np.argmax(dual)] *= 1.01
    duals = [shifted, 1.01 * dual, 0.99 * dual, np.ones(len(y)) / len(y)]
    if shape[0] < shape[1]:
        # The interpolator: every y_i x_i.w is 1, so it is feasible, but longer.
        interpolator = np.linalg.solve(x @ x.T, y.astype(float)) * y
        duals.append(interpolator)
        assert np.linalg.norm((interpolator * y) @ x) > 1.01 * np.linalg.norm(w)
    for wrong in duals:
        with pytest.raises(AssertionError):
            assert_certificate(x, y, wrong, 1e-4)
    # Other labels of the same points: another rule, or none where there are many more samples than dimensions.
    other = nnls_rule(x, -y[::-1])
    assert bool(solve(x @ x.T, -y[::-1]).separable) == (other is not None) == (shape[0] < shape[1])
    assert other is None or not np.allclose(other, w, atol=1e-2 * np.linalg.norm(w))


def test_random_small_problems():
    """60 problems of 8 points in 3 or 12 dimensions, labels at random: separable iff NNLS finds a rule."""
    rng = np.random.default_rng(1)
    batch = jax.jit(jax.vmap(max_margin_dual))
    for d in (3, 12):
        x, y = rng.normal(size=(60, 8, d)), rng.choice([-1, 1], size=(60, 8))
        fits = batch(np.einsum("kid,kjd->kij", x, x), y)
        for k in range(60):
            separable = nnls_rule(x[k], y[k]) is not None
            assert bool(fits.separable[k]) == separable
            if separable:
                assert_certificate(x[k], y[k], fits.dual[k], 1e-9)
        assert fits.separable.any() and (d > 8 or not fits.separable.all())


# Max-margin: symmetries and degenerate data


def test_vmap_equals_a_loop():
    problems = [separable_data(30, 10, seed) for seed in range(4)]
    problems.append((problems[0][0], np.random.default_rng(9).choice([-1, 1], 30)))  # not separable
    grams, labels = np.stack([x @ x.T for x, _ in problems]), np.stack([y for _, y in problems])
    fits = jax.jit(jax.vmap(max_margin_dual))(grams, labels)
    assert list(fits.separable) == [True] * 4 + [False]
    for k in range(4):
        one = solve(grams[k], labels[k])
        for name in ("dual", "margin", "gap"):
            got, want = getattr(fits, name)[k], getattr(one, name)
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * float(jnp.abs(want).max()) + 1e-12)
    assert_no_rule(jax.tree.map(lambda leaf: leaf[4], fits))
    assert_no_rule(solve(grams[4], labels[4]))


def test_symmetries():
    x, y = separable_data(30, 60)
    w, fit = fit_rule(x, y)
    scaled, scaled_fit = fit_rule(4 * x, y)
    np.testing.assert_allclose(scaled, w / 4, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(scaled_fit.margin, 4 * fit.margin, rtol=1e-12)
    np.testing.assert_allclose(scaled_fit.dual, fit.dual / 16, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fit_rule(x, -y)[0], -w, rtol=1e-10, atol=1e-12)
    order = np.random.default_rng(2).permutation(30)
    np.testing.assert_allclose(fit_rule(x[order], y[order])[0], w, rtol=1e-9, atol=1e-11)
    # A sample may be replaced by its mirror image with the other label.
    flip = np.where(np.arange(30) % 2, 1, -1)
    np.testing.assert_allclose(fit_rule(flip[:, None] * x, flip * y)[0], w, rtol=1e-9, atol=1e-11)
    # Samples off the margin do not matter if they move away from it.
    off = np.asarray(fit.dual) == 0
    assert off.any()
    np.testing.assert_allclose(fit_rule(np.where(off[:, None], 3 * x, x), y)[0], w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(20, 40), (20, 6)], ids=str)
def test_duplicates_and_rank_deficient_gram_matrices(shape):
    """The dual is not unique, w is."""
    x, y = separable_data(*shape)
    want = nnls_rule(x, y)
    tripled, labels = np.repeat(x, 3, axis=0), np.repeat(y, 3)
    w, fit = fit_rule(tripled, labels)
    assert_certificate(tripled, labels, fit.dual, 1e-9)
    np.testing.assert_allclose(w, want, atol=1e-8 * np.linalg.norm(want))
    # In a subspace: the same Gram matrix up to rounding.
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(100, shape[1])))[0]
    embedded, _ = fit_rule(tripled @ q.T, labels)
    np.testing.assert_allclose(embedded @ q, want, atol=1e-8 * np.linalg.norm(want))


def test_many_more_samples_than_dimensions():
    """Singular Gram matrices, few supports: whatever path the solver takes, the rules of 30 teachers are found."""
    for seed in range(30):
        x, y = separable_data(60, 5, seed)
        w, fit = fit_rule(x, y)
        assert bool(fit.separable), seed
        assert_certificate(x, y, fit.dual, 1e-9)
        np.testing.assert_allclose(w, nnls_rule(x, y), atol=1e-9 * np.linalg.norm(w))


NOT_SEPARABLE = {
    "point with both labels": ([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], [1, -1, 1]),
    "mirror images of one label": ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], [1, 1, 1]),
    "a zero point": ([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], [1, 1, 1]),
    "triangle round the origin": ([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], [1, 1, 1]),
    "all zero": ([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [1, -1, 1]),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NOT_SEPARABLE)
def test_not_separable(name, dtype):
    x, y = NOT_SEPARABLE[name]
    x = np.asarray(x, dtype)
    assert_no_rule(solve(x @ x.T, np.array(y)))


def test_random_labels_are_not_separable(compiled):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 5)), rng.choice([-1, 1], 60)
    assert_no_rule(solve(x @ x.T, y))
    message = r"x must be linearly separable for a hard margin, got 60 samples that are not\."
    refuses(message, max_margin, jnp.asarray(x), jnp.asarray(y))


@pytest.mark.parametrize(("dtype", "seen", "lost"), [("float64", 1e-5, 1e-9), ("float32", 1e-2, 1e-5)])
def test_smallest_margin_that_is_seen(dtype, seen, lost):
    """Points (1, m), (-1, m) of one label: w = (0, 1/m), margin m. At 1e-7 (1e-3) of the norm it drowns in rounding."""
    for m, separable in ((seen, True), (lost, False)):
        x, y = np.asarray([[1.0, m], [-1.0, m], [-1.0, m]], dtype), np.ones(3, int)
        fit = solve(x @ x.T, y)
        assert bool(fit.separable) == separable
        if separable:
            # The Gram matrix knows m^2 to eps.
            np.testing.assert_allclose(fit.margin, m, rtol=10 * float(jnp.finfo(dtype).eps) / m**2)


@pytest.mark.parametrize("shape", [(200, 400), (200, 20)], ids=str)
def test_single_precision(shape):
    x, y = separable_data(*shape)
    w, _ = fit_rule(x, y)
    single = np.asarray(x, np.float32)
    fit = solve(single @ single.T, y)
    assert fit.dual.dtype == fit.margin.dtype == jnp.float32
    assert fit.gap < 1e-3 and bool(fit.separable)
    exact = (np.asarray(fit.dual, np.float64) * y) @ x
    exact = exact / (y * (x @ exact)).min()
    dual = np.asarray(fit.dual, np.float64)
    v = (dual * y) @ x
    gap = 1 - dual.sum() ** 2 / (v @ v) / (exact @ exact)
    assert gap < 1e-3
    assert_bounded_by_gap(exact, w, gap)


def test_bad_input_to_max_margin():
    x, y = map(jnp.asarray, separable_data(10, 20))
    for wrong in (0, 2, -3):
        refuses(r"y must have entries in \{-1, \+1\}\.", max_margin, x, y.at[3].set(wrong))


# Logistic regression


def descend_on_w(x, y, optimizer, steps, normalized=False):
    """Autodiff on w, the loss in the form logaddexp."""

    @jax.jit
    def run(x, y):
        def loss(w):
            value = jnp.mean(jnp.logaddexp(0.0, -y * (x @ w)))
            return jnp.log(value) if normalized else value

        def step(carry, _):
            w, state = carry
            value, gradient = jax.value_and_grad(loss)(w)
            updates, state = optimizer.update(gradient, state, w)
            return (w + updates, state), value if normalized else jnp.log(value)

        w = jnp.zeros(x.shape[1])
        (w, _), values = jax.lax.scan(step, (w, optimizer.init(w)), None, length=steps)
        return w, values

    return run(x, y.astype(float))


@functools.partial(jax.jit, static_argnames=("optimizer", "steps", "normalized"))
def logistic_rule(x, y, *, optimizer, steps, normalized=False):
    a, values = logistic_dual(x @ x.T, y, optimizer=optimizer, steps=steps, normalized=normalized)
    return a @ x, values


def noisy_data():
    """Not separable."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 3))
    return x, np.where(x[:, 0] + rng.normal(size=60) > 0, 1, -1)


@pytest.mark.parametrize(
    ("optimizer", "normalized", "separable"),
    [
        (optax.sgd(0.1), False, False),
        (optax.sgd(0.1, momentum=0.9), False, True),
        (optax.sgd(0.1, momentum=0.9), True, False),
        (optax.sgd(optax.cosine_decay_schedule(0.2, 40), momentum=0.5, nesterov=True), True, True),
    ],
    ids=["sgd", "momentum", "momentum on log L", "schedule on log L"],
)
def test_dual_path_is_descent_on_w(optimizer, normalized, separable):
    x, y = separable_data(20, 7) if separable else noisy_data()
    w, values = logistic_rule(x, y, optimizer=optimizer, steps=40, normalized=normalized)
    want, want_values = descend_on_w(x, y, optimizer, 40, normalized)
    np.testing.assert_allclose(w, want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(values, want_values, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(values[0], np.log(np.log(2)), rtol=1e-12)


def test_adam_makes_another_path():
    x, y = separable_data(20, 7)
    w, _ = logistic_rule(x, y, optimizer=optax.adam(0.1), steps=40)
    want, _ = descend_on_w(x, y, optax.adam(0.1), 40)
    assert np.linalg.norm(w / np.linalg.norm(w) - want / np.linalg.norm(want)) > 1e-2


def test_logistic_minimum_on_data_that_is_not_separable():
    """Descent contracts by 1 - lr h a step, h the smallest curvature at the minimum, found by SciPy."""
    x, y = noisy_data()
    z = y[:, None] * x
    fit = scipy.optimize.minimize(
        lambda w: (
            np.logaddexp(0, -z @ w).mean(),
            -z.T @ (1 / (1 + np.exp(z @ w))) / len(y),
        ),
        np.zeros(3),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-10},
    )
    prob = 1 / (1 + np.exp(z @ fit.x))
    curvature = np.linalg.eigvalsh(z.T @ (z * (prob * (1 - prob))[:, None]) / len(y))
    lr, steps = 2.0, 1000
    assert lr * np.linalg.norm(z, 2) ** 2 / (4 * len(y)) < 2 and (1 - lr * curvature[0]) ** steps < 1e-12
    w, values = logistic_rule(x, y, optimizer=optax.sgd(lr), steps=steps)
    np.testing.assert_allclose(w, fit.x, atol=2 * 1e-10 / curvature[0])
    np.testing.assert_allclose(values[-1], np.log(fit.fun), rtol=1e-10)
    # Rounding of a mean of 60.
    assert (np.diff(values) <= 60 * np.finfo(np.float64).eps).all()


def angle(a, b):
    return np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))


@pytest.mark.parametrize("shape", [(30, 60), (30, 4)], ids=str)
def test_normalized_descent_tends_to_the_max_margin_rule(shape):
    """The angle falls about like 1 / steps; plain descent (1 / log steps) is far behind; least squares is elsewhere."""
    x, y = separable_data(*shape)
    w, _ = fit_rule(x, y)
    optimizer = optax.sgd(1 / np.linalg.norm(x, axis=1).max() ** 2)

    def angle_after(steps, normalized=True):
        rule, values = logistic_rule(x, y, optimizer=optimizer, steps=steps, normalized=normalized)
        assert np.isfinite(values).all()
        return angle(np.asarray(rule), w)

    early, late = angle_after(8_000), angle_after(32_000)
    assert late < early / 3 and late < 0.03
    assert angle_after(8_000, normalized=False) > 5 * late
    assert angle(np.linalg.pinv(x) @ y, w) > 5 * late


def test_log_loss_does_not_underflow():
    """One sample x = 1: w grows without bound and log L = -w where e^-w is far below the smallest double."""
    w, values = logistic_rule(np.ones((1, 1)), np.ones(1, int), optimizer=optax.sgd(0.5), steps=3000, normalized=True)
    assert w[0] > 1000 and np.isfinite(values).all()
    # At w > 40 a step adds lr: d log L / dw = -1 to within e^-40.
    np.testing.assert_allclose(values[-1], -(w[0] - 0.5), rtol=1e-12)
    np.testing.assert_allclose(np.diff(values[200:]), -0.5, rtol=1e-9)


def test_bad_steps():
    for steps in (0, -1):
        with pytest.raises(ValueError, match=rf"steps must be an integer >= 1, got {steps}\."):
            logistic_dual(jnp.eye(2), jnp.asarray([1, -1]), optimizer=optax.sgd(0.1), steps=steps)


# Least squares


@pytest.mark.parametrize("shape", [(10, 25), (25, 10), (12, 12)], ids=str)
def test_least_squares_is_the_one_of_least_norm(shape):
    rng = np.random.default_rng(6)
    x, targets = rng.normal(size=shape), rng.normal(size=shape[0])
    w = np.asarray(least_squares(jnp.asarray(x), jnp.asarray(targets)))
    tol = 1e-13 * np.linalg.cond(x) ** 2
    np.testing.assert_allclose(w, np.linalg.lstsq(x, targets)[0], rtol=0, atol=tol)
    if shape[0] <= shape[1]:
        np.testing.assert_allclose(x @ w, targets, rtol=0, atol=tol)
        # Least norm: no part outside the row space.
        assert np.abs(w - np.linalg.pinv(x) @ (x @ w)).max() <= tol
    else:
        np.testing.assert_allclose(x.T @ (x @ w - targets), 0, atol=tol)


def test_least_squares_of_rank_deficient_data():
    rng = np.random.default_rng(7)
    x, targets = rng.normal(size=(10, 3)) @ rng.normal(size=(3, 6)), rng.normal(size=10)
    w = np.asarray(least_squares(jnp.asarray(x), jnp.asarray(targets)))
    np.testing.assert_allclose(w, np.linalg.lstsq(x, targets, rcond=1e-10)[0], atol=1e-11)


def test_least_squares_is_not_max_margin():
    """Interpolation is feasible for the hard margin, but its margin is smaller; they agree iff all samples support."""
    x, y = separable_data(30, 60)
    w, fit = fit_rule(x, y)
    interpolator = np.asarray(least_squares(jnp.asarray(x), jnp.asarray(y, float)))
    np.testing.assert_allclose(y * (x @ interpolator), 1, rtol=1e-10)
    assert 1 / np.linalg.norm(interpolator) < 0.99 * fit.margin
    assert angle(interpolator, w) > 0.1
    orthogonal, y = np.diag([1.0, 2.0, 3.0]), np.array([1, -1, 1])
    rule, _ = fit_rule(orthogonal, y)
    np.testing.assert_allclose(rule, least_squares(jnp.asarray(orthogonal), jnp.asarray(y, float)), rtol=1e-12)


def test_labels_that_do_not_fit_are_refused():
    refuses("y must have entries", logistic_dual, jnp.eye(3), jnp.array([0, 1, 1]), optimizer=optax.sgd(0.1), steps=1)
    refuses("x must be finite", max_margin, jnp.array([[jnp.nan, 1.0], [1.0, 1.0]]), jnp.array([1, -1]))
