"""mmcl_mean_accuracy: its 1/n term against learnt rules, its limits against mmcl_accuracy.

At n = 64 the 1/n terms below move accuracy by .001 to .006. At lambda = 0 the term is too small beside the 1/n^2 terms
left out to be seen there (7e-4 both), so the least weight below is .3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_theory.data import captions, intra_class, observation
from mmcl_theory.theory import mmcl_accuracy, mmcl_mean_accuracy
from tests.statistics import assert_mean_close, rejects
from tests.test_theory_mmcl import groups, jit, learnt_rules, noise

pytestmark = pytest.mark.slow

mean_accuracy = jit(mmcl_mean_accuracy)
limit_accuracy = jit(mmcl_accuracy)
N = 64
OBS = noise(N // 2, 2, 1.0, 1.0)
RUNS = 10_000
CASES = {
    "rich": (intra_class(0.95, 0.3, 0.3), captions(), 0.5),
    "mixed": (intra_class(0.9, 0.5, 0.2, 1.2, 0.8), captions(0.5, 0.3), 0.5),
    "zero": (intra_class(0.9, 0.5, 0.2), captions(0.7, 0.5, "zero"), 0.5),
    "little intra-class contrasting": (intra_class(0.95, 0.3, 0.3), captions(0.5), 0.3),
    "much intra-class contrasting": (intra_class(0.95, 0.5, 0.3), captions(), 0.8),
}


@functools.cache
def simulate(name):
    model, caps, weight = CASES[name]
    return np.asarray(learnt_rules(jax.random.key(11), model, caps, OBS, weight, n=N, runs=RUNS)["weighted"][0])


@pytest.mark.parametrize("name", CASES)
def test_mean_over_samples(name):
    model, caps, weight = CASES[name]
    check = functools.partial(assert_mean_close, simulate(name), resolution=2e-3)
    check(np.asarray(groups(mean_accuracy(model, caps, OBS, float(N), weight))))
    rejects(check, np.asarray(groups(limit_accuracy(model, caps, OBS, float(N), same_class_weight=weight))))
    rejects(check, np.asarray(groups(mean_accuracy(model, caps, OBS, 2.0 * N, weight))))


def test_gap_to_the_limit_is_one_over_n():
    """n (mean - limit) tends to a constant at fixed d_I / n, and its distance from it halves as n doubles."""
    model, caps, _ = CASES["mixed"]
    scaled = []
    for n in (256, 512, 1024):
        args = (model, caps, noise(n // 2, 2, 1.0, 1.0), float(n))
        scaled.append(n * (groups(mean_accuracy(*args)) - groups(limit_accuracy(*args))))
    first, second = np.diff(np.asarray(scaled), axis=0)
    np.testing.assert_allclose(first / second, 2, rtol=0.05)
    assert (np.abs(scaled[-1]) > 0.05).all()


@pytest.mark.parametrize("masking", ["named", "mean", "zero"])
def test_many_samples_are_the_population(masking):
    model, caps, obs = intra_class(0.9, 0.8, 0.3, 1.1, 0.7), captions(0.4, 0.6, masking), observation(40, 30, 2.0, 1.5)
    for weight in (0.0, 0.5, 0.8):
        got = groups(mean_accuracy(model, caps, obs, 1e15, weight))
        want = groups(limit_accuracy(model, caps, obs, same_class_weight=weight))
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_groups_are_equal_without_correlation_and_swap_with_it():
    obs = observation(50, 5, 1.0, 1.0)
    got = groups(mean_accuracy(intra_class(np.array([0.5, 0.9, 0.1]), 0.8, 0.3), captions(0.7, 0.2), obs, 100.0))
    np.testing.assert_allclose(got[0, 0], got[0, 1], rtol=1e-12)
    np.testing.assert_allclose(got[1], got[2, ::-1], rtol=1e-12)


def test_ordinary_loss_and_broadcasting():
    model, obs = intra_class(np.array([[0.7], [0.95]]), 0.9, 0.2), observation(50, 5, np.array([0.5, 1.0, 2.0]), 1.0)
    got = groups(mean_accuracy(model, captions(), obs, 100.0))
    assert got.shape == (2, 3, 2)
    one = groups(
        mean_accuracy(intra_class(0.95, 0.9, 0.2), captions(), observation(50, 5, 1.0, 1.0), 100.0, jnp.asarray(0.5))
    )
    np.testing.assert_allclose(got[1, 1], one, rtol=1e-12)


@pytest.mark.parametrize(("n", "weight", "message"), [(1, 0.5, "n must be >= 2"), (9, 1.5, "same_class_weight must")])
def test_values_out_of_range_are_refused(n, weight, message):
    with pytest.raises(ValueError, match=message):
        mmcl_mean_accuracy(intra_class(0.9, 1.0, 0.1), captions(), observation(5, 5), n, weight)
