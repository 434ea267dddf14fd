"""Learning dynamics X6 against gradient descent on both encoders, in the ambient space too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmcl_theory.data import captions, draw_dictionaries, intra_class, moments, sample_pairs
from mmcl_theory.learners import Encoders, cross_covariance, train_linear_mmcl
from mmcl_theory.theory import mmcl_accuracy, mode_strength, training_accuracy
from mmcl_theory.zero_shot import linear_rule_accuracy
from tests.statistics import assert_mean_close, rejects
from tests.theory.learnt import groups, jit, noise

pytestmark = pytest.mark.slow

MODEL, CAPS = intra_class(0.95, 1.0, 0.3), captions(0.7, 0.9)
RHO, INITIAL = 0.8, 1e-3
strength = jit(mode_strength)
accuracy = jit(training_accuracy, static_argnames=("prompts",))


def aligned_encoders(c, initial):
    """W_I = sqrt(om_0) U^T, W_T = sqrt(om_0) V^T: balanced, aligned, every mode of strength om_0."""
    u, _, vt = jnp.linalg.svd(c, full_matrices=False)
    return Encoders(jnp.sqrt(initial) * u.T, jnp.sqrt(initial) * vt)


def descend(c, time, rate, initial=INITIAL):
    steps = round(time / rate)
    return train_linear_mmcl(aligned_encoders(c, initial), c, rho=RHO, optimizer=optax.sgd(rate), steps=steps)[0]


@pytest.mark.parametrize("time", [1.0, 2.0, 4.0])
def test_modes_follow_gradient_descent_to_first_order_in_its_rate(time):
    c = moments(MODEL, CAPS).zu
    s = jnp.linalg.svd(c, compute_uv=False)
    want = np.asarray(strength(time, s, RHO, INITIAL))
    errors = []
    for rate in (2e-3, 1e-3, 5e-4):
        w = descend(c, time, rate).product
        u, _, vt = jnp.linalg.svd(c)
        errors.append(np.diagonal(u.T @ w @ vt.T) - want)
    errors = np.array(errors)
    assert (np.abs(errors[-1]) < 5e-3 * want).all()
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2, rtol=0.03)


def test_limits_of_a_mode():
    s = np.array([0.0, 0.3, 2.0])
    np.testing.assert_allclose(strength(0.0, s, RHO, INITIAL), INITIAL, rtol=1e-12)
    np.testing.assert_allclose(strength(1e3, s[1:], RHO, INITIAL), s[1:] / RHO, rtol=1e-12)
    np.testing.assert_allclose(strength(5.0, 0.0, RHO, INITIAL), INITIAL / (1 + 2 * RHO * INITIAL * 5), rtol=1e-12)
    np.testing.assert_allclose(strength(5.0, 1e-9, RHO, INITIAL), strength(5.0, 0.0, RHO, INITIAL), rtol=1e-7)
    t, x, om0 = 1.7, 0.9, 0.02
    np.testing.assert_allclose(
        strength(t, x, RHO, om0), (x / RHO) / (1 + ((x / RHO) / om0 - 1) * np.exp(-2 * x * t)), rtol=1e-12
    )


def test_a_mode_solves_its_equation():
    s = 1.3

    def om(t):
        return mode_strength(t, s, RHO, INITIAL)

    for t in (0.0, 1.0, 2.5, 6.0):
        slope, at = jax.jvp(om, (t,), (1.0,))[1], om(t)
        np.testing.assert_allclose(slope, 2 * at * (s - RHO * at), rtol=1e-10)


def test_training_ends_at_the_minimiser_and_starts_at_the_projected_prompt():
    obs = noise(2, 2, 0.4, 0.4)
    want = groups(mmcl_accuracy(MODEL, CAPS, obs))
    np.testing.assert_allclose(groups(accuracy(MODEL, CAPS, obs, time=200.0)), want, rtol=1e-12)
    u, _, vt = np.linalg.svd(np.asarray(moments(MODEL, CAPS).zu))
    w = u @ vt @ np.array([1.0, 0.0])
    start = linear_rule_accuracy(MODEL, jnp.asarray(w), jnp.asarray(w @ w), 0.4)
    np.testing.assert_allclose(groups(accuracy(MODEL, CAPS, obs, time=0.0)), groups(start), rtol=1e-12)


@functools.partial(jit, static_argnames=("time", "n", "runs"))
def trained_accuracies(key, model, caps, obs, *, time, n, runs):
    """(runs, 2) of encoders descending on the loss of n sampled pairs, aligned with the population's modes."""

    def run(key):
        key_dictionaries, key_pairs = jax.random.split(key)
        d = draw_dictionaries(key_dictionaries, model, obs)
        pairs = sample_pairs(key_pairs, model, caps, obs, n, d)
        inner = aligned_encoders(moments(model, caps).zu, INITIAL)
        start = Encoders(inner.image @ d.image.T, inner.text @ d.text.T)
        c = cross_covariance(pairs.image, pairs.text)
        optimizer = optax.sgd(2e-3)
        trained, _ = train_linear_mmcl(start, c, rho=RHO, optimizer=optimizer, steps=round(time / 2e-3))
        w = trained.product @ d.text @ (model.mu_core * jnp.array([1.0, 0.0]))
        return groups(linear_rule_accuracy(model, w @ d.image, w @ w, obs.sd_image))

    return jax.lax.map(run, jax.random.split(key, runs))


@pytest.mark.parametrize("time", [1.5, 2.5])
def test_accuracy_along_training_in_ambient_space(time):
    """In the middle of training, when one mode is grown and the other is not. Resolution 2e-3."""
    obs = noise(12, 8, 0.1, 0.1)
    samples = trained_accuracies(jax.random.key(2), MODEL, CAPS, obs, time=time, n=10_000, runs=60)
    check = functools.partial(assert_mean_close, samples, resolution=2e-3)

    def predict(time=time, model=MODEL):
        return np.asarray(groups(accuracy(model, CAPS, obs, time=time, rho=RHO, initial=INITIAL)))

    check(predict())
    rejects(check, predict(time=0.0))
    rejects(check, predict()[::-1])
    rejects(check, predict(model=intra_class(0.92, 1.0, 0.3)))


def test_wrong_values_are_refused():
    for args, name in (((-1.0, 1.0), "time"), ((1.0, -1.0), "singular_value"), ((1.0, 1.0, 0.0), "rho")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            mode_strength(*args)
    with pytest.raises(ValueError, match="initial must be"):
        mode_strength(1.0, 1.0, 1.0, 0.0)
    for model in (MODEL, MODEL.as_mixture()):
        for name, values in (("time", [-1.0, 2.0]), ("rho", [0.0, 1.0]), ("initial", [1.0, -1.0])):
            arguments = {"time": 1.0, name: jnp.array(values)}
            with pytest.raises(ValueError, match=f"{name} must be"):
                training_accuracy(model, **arguments)
