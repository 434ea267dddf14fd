"""Learning dynamics X6 against gradient descent on both encoders, in the ambient space too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_theory.data import captions, intra_class, moments
from mmcl_theory.theory import mmcl_accuracy, mode_strength, training_accuracy
from mmcl_theory.zero_shot import linear_rule_accuracy
from proofs_checks.ambient import exact_accuracy, groups, jit_long, noise
from proofs_checks.x6 import INITIAL, RHO, accuracies_along, descended
from tests.helpers import refuses
from tests.statistics import assert_mean_close, rejects

pytestmark = pytest.mark.slow

MODEL, CAPS = intra_class(0.95, 1.0, 0.3), captions(0.7, 0.9)
strength = jit_long(mode_strength)
accuracy = jit_long(training_accuracy, static_argnames=("prompts",))


@pytest.mark.parametrize("time", [1.0, 2.0, 4.0])
def test_modes_follow_gradient_descent_to_first_order_in_its_rate(time):
    c = moments(MODEL, CAPS).zu
    u, s, vt = jnp.linalg.svd(c)
    want = np.asarray(strength(time, s, RHO, INITIAL))
    errors = []
    for rate in (2e-3, 1e-3, 5e-4):
        errors.append(np.diagonal(u.T @ descended(c, time, rate) @ vt.T) - want)
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


@pytest.mark.parametrize("time", [1.5, 2.5])
def test_accuracy_along_training_in_ambient_space(time):
    """In the middle of training, when one mode is grown and the other is not. Resolution 2e-3."""
    obs = noise(12, 8, 0.1, 0.1)

    def accuracy_of(d, product):
        return exact_accuracy(MODEL, product @ d.text[:, 0], d, obs)

    how = {"n": 10_000, "runs": 60, "accuracy": accuracy_of, "rate": 2e-3}
    samples = accuracies_along(jax.random.key(2), MODEL, CAPS, obs, (time,), **how)[:, 0]
    check = functools.partial(assert_mean_close, samples, resolution=2e-3)

    def predict(time=time, model=MODEL):
        return np.asarray(groups(accuracy(model, CAPS, obs, time=time, rho=RHO, initial=INITIAL)))

    check(predict())
    rejects(check, predict(time=0.0))
    rejects(check, predict()[::-1])
    rejects(check, predict(model=intra_class(0.92, 1.0, 0.3)))


def test_wrong_values_are_refused():
    for args, name in (((-1.0, 1.0), "time"), ((1.0, -1.0), "singular_value"), ((1.0, 1.0, 0.0), "rho")):
        refuses(f"{name} must be", mode_strength, *args)
    refuses("initial must be", mode_strength, 1.0, 1.0, 1.0, 0.0)
    for model in (MODEL, MODEL.as_mixture()):
        for name, values in (("time", [-1.0, 2.0]), ("rho", [0.0, 1.0]), ("initial", [1.0, -1.0])):
            arguments = {"time": 1.0, name: jnp.array(values)}
            refuses(f"{name} must be", training_accuracy, model, **arguments)
