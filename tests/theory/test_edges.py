"""Every prediction that calls itself differentiable, at every end of its parameters' ranges: values and derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmcl_theory.data import Captions, InterClass, IntraClass, Observation, captions, inter_class, intra_class
from mmcl_theory.theory import (
    balanced_pi_spu,
    info_nce_optimum,
    max_margin_rule,
    mmcl_accuracy,
    mmcl_mean_accuracy,
    outliers,
    training_accuracy,
    whitened_accuracy,
    whitened_rule,
)
from proofs_checks.ambient import groups, jit_long, noise
from tests.differences import assert_slopes

law = jax.jit(outliers)
accuracy = jax.jit(mmcl_accuracy, static_argnames="embed_dim")
NAMES = ("p", "s_c", "s_s", "m_c", "m_s", "pi_c", "pi_s", "s_I", "s_T")
LOWER = np.array([0.0, 0, 0, 1e-3, 0, 0, 0, 0, 0])
UPPER = np.array([1.0, 9, 9, 9, 9, 1, 1, 9, 9])
trained_accuracy = jax.jit(training_accuracy)
INSIDE = dict(zip(NAMES, (0.95, 0.8, 0.3, 1.0, 1.0, 0.7, 0.6, 0.4, 0.3), strict=True))
ENDS = (
    {},
    {"pi_c": 1.0, "pi_s": 1.0},
    {"pi_c": 0.0},
    {"pi_s": 0.0},
    {"pi_c": 0.0, "pi_s": 0.0},
    {"p": 1.0},
    {"p": 0.0},
    {"p": 0.5},
    {"s_c": 0.0},
    {"s_s": 0.0},
    {"m_s": 0.0},
    {"s_I": 0.0},
    {"s_T": 0.0},
    {"s_I": 0.0, "s_T": 0.0},
    {"s_T": 0.0, "pi_c": 1.0, "pi_s": 1.0},
    {"s_T": 0.0, "pi_s": 0.0},
)


def parts(x, masking="named", d_image=200, d_text=100):
    """Model, captions and observation of the nine numbers, unchecked, so that they may be traced."""
    obs = Observation(d_image, d_text, x[7] * d_image**0.5, x[8] * d_text**0.5)
    return IntraClass(*x[:5]), Captions(x[5], x[6], masking), obs


def population(x):
    model, caps, obs = parts(x)
    return groups(mmcl_accuracy(model, caps, obs, same_class_weight=0.3))


def truncated(rank, x):
    return groups(mmcl_accuracy(*parts(x), 300.0, embed_dim=rank))


def finite(x):
    return groups(mmcl_mean_accuracy(*parts(x), 300.0, 0.4, "train_mean"))


def trained(x):
    return groups(training_accuracy(*parts(x), time=2.0, initial=1e-2, prompts="train_mean"))


def whitened(theta, x):
    return groups(whitened_accuracy(*parts(x), theta, "train_mean"))


def info_nce(masking, x):
    model, caps, obs = parts(x, masking)
    optimum = info_nce_optimum(model, caps, obs, nodes=24)
    return jnp.append(groups(optimum.accuracy(model, obs)), optimum.loss)


def supervised(x):
    model, _, obs = parts(x, d_image=400)
    rule, norm = max_margin_rule(model, obs, 200.0)
    return jnp.append(rule, norm)


FUNCTIONS = {
    "population": population,
    "rank 1": functools.partial(truncated, 1),
    "rank 2": functools.partial(truncated, 2),
    "n samples": finite,
    "training": trained,
    "whitened": functools.partial(whitened, 1.0),
    "half whitened": functools.partial(whitened, 0.5),
    "max margin": supervised,
}
# Where the docstrings say that there is no derivative.
UNDEFINED = {
    ("whitened", "s_T pi_s"): ("pi_s",),
    ("half whitened", "s_T pi_s"): ("pi_s",),
    ("info_nce", "s_T pi_s"): ("pi_s",),
}


def end(changes):
    return np.array(list((INSIDE | changes).values()))


def undefined(name, changes):
    key = " ".join(k for k in ("s_T", "pi_s") if changes.get(k) == 0.0)
    return tuple(NAMES.index(k) for k in UNDEFINED.get((name, key), ()))


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_at_the_ends(name):
    for changes in ENDS:
        if name == "max margin" and changes.get("s_I") == 0.0:
            continue  # NaN without noise
        assert_slopes(FUNCTIONS[name], end(changes), LOWER, UPPER, undefined=undefined(name, changes))


INTER = {"p": 0.9, "alpha": 1.5, "beta": 0.4, "beta_s": 0.3, "pi_c": 0.7, "pi_s": 0.6, "s_I": 0.4, "s_T": 0.3}
INTER_ENDS = (
    *({}, {"pi_c": 1.0, "pi_s": 1.0}, {"pi_c": 0.0}, {"pi_s": 0.0}, {"pi_c": 0.0, "pi_s": 0.0}),
    *({"p": 1.0}, {"p": 0.0}, {"p": 0.5}, {"beta": 0.0}, {"beta": 0.0, "beta_s": 0.0}, {"s_T": 0.0}),
    {"alpha": 1.0, "beta_s": 0.4, "pi_s": 0.7},  # all singular values of a kind are those of the other
    {"alpha": 1.0, "beta_s": 0.4, "pi_s": 0.7, "p": 0.5},
)


def inter_population(x):
    model, obs = InterClass(*x[:4], num_pairs=3), Observation(200, 100, x[6] * 200**0.5, x[7] * 100**0.5)
    return groups(mmcl_accuracy(model, Captions(x[4], x[5], "named"), obs, same_class_weight=0.3))


def inter_whitened(x):
    model, obs = InterClass(*x[:4], num_pairs=3), Observation(200, 100, x[6] * 200**0.5, x[7] * 100**0.5)
    return groups(whitened_accuracy(model, Captions(x[4], x[5], "named"), obs, 0.5, "train_mean"))


@pytest.mark.slow
@pytest.mark.parametrize("f", [inter_population, inter_whitened])
def test_derivatives_of_the_inter_class_model_at_the_ends(f):
    lower, upper = np.array([0, 1e-3, 0, 0, 0, 0, 0, 0]), np.array([1, 9, 0.999, 0.999, 1, 1, 9, 9])
    for changes in INTER_ENDS:
        assert_slopes(f, np.array(list((INTER | changes).values())), lower, upper)


@pytest.mark.long
@pytest.mark.parametrize("masking", ["named", "mean", "zero"])
def test_derivatives_of_info_nce_at_the_ends(masking):
    """The default captions are an end: the loss of what they never say has a slope there all the same."""
    f = functools.partial(info_nce, masking)
    for changes in ENDS if masking == "named" else ENDS[:5]:
        if masking == "zero" and 0.0 in (changes.get("pi_c"), changes.get("pi_s")):
            continue  # the prompt names nothing that captions ever say: no rule
        assert_slopes(f, end(changes), LOWER, UPPER, undefined=undefined("info_nce", changes), tolerance=1e-4)


@pytest.mark.slow
def test_info_nce_at_the_default_captions():
    """It gave +.00027 at the end of the range, and -.00957 beside it."""
    model, obs = intra_class(0.95, 0.8, 0.3), noise(4, 4, 0.4, 0.3)

    def shifted(pi):
        return info_nce_optimum(model, Captions(pi, pi, "named"), obs).accuracy(model, obs).shifted

    f, slope = jit_long(shifted), jit_long(jax.grad(shifted))
    h = 1e-4
    difference = (3 * f(1.0) - 4 * f(1 - h) + f(1 - 2 * h)) / (2 * h)
    np.testing.assert_allclose(slope(1.0), difference, rtol=1e-4)
    np.testing.assert_allclose(slope(1.0), slope(1 - 1e-7), rtol=1e-4)


@pytest.mark.costly
@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_equal_singular_values_have_orthogonal_vectors(spread):
    """Uncorrelated twins, told apart by nothing: both groups, and both features, must come out alike."""
    p = np.array([0.5, 0.5 + 1e-5, 0.5 - 1e-5])
    model, obs = intra_class(p, spread, spread), noise(200, 100, 0.4, 0.3)
    found = law(model, captions(), obs, 300.0)
    left, right = np.asarray(found.left)[0, :2], np.asarray(found.right)[0, :2]
    np.testing.assert_array_equal(found.exists[0], [True, True, False, False])
    np.testing.assert_allclose(found.value[0, 0], found.value[0, 1], rtol=1e-12)
    for vectors in (left, right):
        np.testing.assert_allclose(vectors @ vectors.T, vectors[0] @ vectors[0] * np.eye(2), atol=1e-12)
    np.testing.assert_allclose(left.T @ right, (left.T @ right)[0, 0] * np.eye(2), atol=1e-12)
    equal, *near = groups(accuracy(model, captions(), obs, 300.0, embed_dim=2))
    np.testing.assert_allclose(equal[0], equal[1], rtol=1e-10)
    # As the limit of values that differ.
    np.testing.assert_allclose(near, np.stack([equal, equal]), atol=1e-4)
    if spread == 1.0:
        np.testing.assert_allclose(equal, [0.8225, 0.8225], atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("which", [(1, 0), (0, 1), (1, 1)])
def test_truncated_accuracy_has_a_limit_without_noise(which):
    model, caps = intra_class(0.9, 0.8, 0.3), captions(0.7, 0.6)

    def at(size):
        s_image, s_text = (size if small else 0.4 for small in which)
        return np.stack(
            [groups(accuracy(model, caps, noise(200, 100, s_image, s_text), 300.0, embed_dim=r)) for r in (1, 2)]
        )

    limit = at(0.0)
    gaps = [np.abs(at(size) - limit).max() for size in (1e-2, 1e-3)]
    assert gaps[0] < 1e-3 and gaps[1] < gaps[0] / 50  # even in the noise
    if which == (1, 1):
        pure = np.stack([groups(accuracy(model, caps, embed_dim=r)) for r in (1, 2)])
        np.testing.assert_allclose(limit, pure, rtol=1e-12)


@pytest.mark.costly
def test_all_within_nothing_is_a_tie():
    """Only contrasts within classes, and captions that do not vary there: nothing is learnt, at any rounding."""
    rng = np.random.default_rng(0)
    model = intra_class(*rng.uniform(0.1, 1.0, (3, 50)), *rng.uniform(0.1, 3.0, (2, 50)))
    for masking, pi_spu in (("named", 0.0), ("zero", 0.0)):
        got = groups(accuracy(model, captions(0.0, pi_spu, masking), same_class_weight=1.0))
        np.testing.assert_array_equal(got, np.full((50, 2), 0.5))
    inter = accuracy(inter_class(3, 1.0, 1.0, 0.4, 0.3), captions(0.0, 0.0), same_class_weight=1.0)
    np.testing.assert_allclose(groups(inter), [1 / 6, 1 / 6], rtol=1e-12)


@pytest.mark.slow
def test_single_precision_drops_no_direction_for_its_scale():
    rules = []
    for x64 in (True, False):
        with jax.enable_x64(x64):
            scale = np.array([1.0, 30.0, 700.0, 5000.0])
            model = intra_class(0.9, 0.8, 0.3 * scale, 1.0, scale)
            for theta in (1.0, 0.5):
                rule = jax.jit(whitened_rule)(model, captions(0.7, 0.6), noise(4, 4, 0.6, 0.4), theta)
                rules.append(np.asarray(rule, np.float64) * np.stack([np.ones(4), scale], -1))
    for exact, single in zip(rules[:2], rules[2:], strict=True):
        np.testing.assert_allclose(single, exact, rtol=2e-4, atol=2e-4)
        assert (np.abs(exact) > 0.01).all()


def test_balanced_captions_where_the_roots_coincide():
    model = intra_class(0.9, 0.8, 0.3)

    @jax.jit
    def root(pi_core):
        return balanced_pi_spu(model, Captions(jnp.asarray(pi_core), jnp.ones(()), "named"), noise(4, 4, 0.0, 0.0))

    h = 1e-6
    np.testing.assert_allclose(jax.jit(jax.grad(root))(1.0), (root(1.0) - root(1.0 - h)) / h, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.5, 0.5 + 1e-9, 0.6])
def test_training_where_singular_values_coincide(p):
    """p_spu = 1/2 with features alike, and both signs of the determinant."""
    x = end({"p": p, "s_c": 0.5, "s_s": 0.5, "pi_c": 1.0, "pi_s": 1.0})
    # p enters the values at first order only through q, which is why the step is not small.
    assert_slopes(trained, x, LOWER, UPPER, tolerance=1e-5)


@pytest.mark.costly
def test_where_the_value_is_nan_the_derivative_is():
    x = end({"p": 0.5, "s_c": 1.0, "s_s": 0.1, "m_s": 5.0, "s_I": 0.2, "s_T": 1.0, "pi_c": 1.0, "pi_s": 1.0})

    @jax.jit
    def at_n(x):
        """Value, derivatives in reverse mode, and one in forward mode."""
        value = lambda x: mmcl_accuracy(*parts(x), 500.0).shifted  # noqa: E731
        return value(x), jax.grad(value)(x), jax.jvp(value, (x,), (jnp.ones_like(x),))[1]

    assert all(jnp.isnan(found).all() for found in at_n(jnp.asarray(x)))
    assert all(jnp.isfinite(found).all() for found in at_n(jnp.asarray(end({}))))


def test_training_from_captions_that_say_nothing_is_the_projection():
    """No mode grows: the rule is om_0 / (1 + 2 rho om_0 t) times the prompt, as beside it."""
    caps = captions(*2 * [np.array([0.0, 1e-9])], "zero")
    accuracy_at = jax.jit(lambda time: groups(training_accuracy(intra_class(0.9, 0.5, 0.3), caps, None, time=time)))
    for time in (0.0, 1.0, 100.0):
        exact, near = accuracy_at(time)
        np.testing.assert_allclose(exact, near, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whitened", "half whitened"])
@pytest.mark.parametrize("changes", [{"s_c": 0.0, "s_s": 0.0}, {"s_c": 0.4, "s_s": 0.4, "p": 0.7}])
def test_whitening_where_both_features_have_one_variance(name, changes):
    """The diagonal of Cov(z) is constant. The slope of |its difference| was taken for that of the eigenvectors."""
    # The scores without variance are far in the tail, in which differences need a small step.
    assert_slopes(FUNCTIONS[name], end(changes), LOWER, UPPER, step=1e-5)


@pytest.mark.costly
def test_slopes_of_a_jump_are_nan():
    """Without noise and variance at p = 1 both features say the same: half of the conflicting group is right."""

    @jax.jit
    def at(x):
        return groups(mmcl_accuracy(*parts(x))), jax.jacfwd(lambda x: groups(mmcl_accuracy(*parts(x))))(x)

    silent = {"p": 1.0, "s_c": 0.0, "s_s": 0.0, "s_I": 0.0, "s_T": 0.0, "pi_c": 1.0, "pi_s": 1.0}
    value, slopes = at(jnp.asarray(end(silent)))
    np.testing.assert_array_equal(value, [1.0, 0.5])
    assert np.isnan(slopes[1, :7]).all() and (slopes[0] == 0).all()
    value, slopes = at(jnp.asarray(end(silent | {"m_s": 0.9})))
    assert value[1] == 1 and (slopes == 0).all()


@pytest.mark.costly
def test_rank_one_at_equal_singular_values_has_no_slope():
    """Each of two rules is a minimiser; which one is judged is arbitrary."""
    x = {"p": 0.5, "s_c": 0.5, "s_s": 0.5, "pi_c": 1.0, "pi_s": 1.0}

    @jax.jit
    def slope(x):
        return jax.jacrev(lambda x: groups(mmcl_accuracy(*parts(x), embed_dim=1)))(x)

    assert np.isnan(slope(jnp.asarray(end(x)))[:, :7]).all()  # all but the noises
    assert np.isfinite(slope(jnp.asarray(end(x | {"p": 0.6})))).all()
