"""mmcl_mean_accuracy: its 1/n term against learnt rules, its limits against mmcl_accuracy, and steep spurious features.

At n = 64 the 1/n terms below move accuracy by .001 to .006. At lambda = 0 the term is too small beside the 1/n^2 terms
left out to be seen there (7e-4 both), so the least weight below is .3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from mmcl_theory.data import captions, intra_class, observation
from mmcl_theory.learners import sample_rule_statistics
from mmcl_theory.theory import mmcl_accuracy, mmcl_accuracy_cumulants, mmcl_mean_accuracy, mmcl_rule
from mmcl_theory.theory.finite_sample import _cells, _product_moments, _rule_law
from mmcl_theory.zero_shot import linear_rule_accuracy
from proofs_checks.ambient import groups, jit_long, noise
from tests.statistics import assert_mean_close, rejects
from tests.theory.learnt import learnt_rules

pytestmark = pytest.mark.slow

mean_accuracy = jit_long(mmcl_mean_accuracy, static_argnames="prompts")
limit_accuracy = jit_long(mmcl_accuracy, static_argnames="prompts")
cumulants = jit_long(mmcl_accuracy_cumulants)
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


def test_products_have_the_moments_of_quadrature():
    """E X, E X X^T of X = (A_1 T, A_2 T, T^2), polynomials of degree 8: Gauss-Hermite with 9 nodes is exact."""
    rng = np.random.default_rng(0)
    cases = 8
    probability, alpha, tau = rng.dirichlet(np.ones(cases)), rng.normal(size=(cases, 2)), rng.normal(size=cases)
    s_image = np.diag(rng.uniform(0.2, 1, 2))
    s_text = rng.uniform(1.0, 2.0, cases)
    s_cross = rng.uniform(-0.3, 0.3, (cases, 2))
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    g = np.stack(np.meshgrid(*3 * [nodes], indexing="ij"), -1).reshape(-1, 3)
    weight = np.prod(np.stack(np.meshgrid(*3 * [weights / weights.sum()], indexing="ij"), -1), -1).ravel()
    first, second = np.zeros(3), np.zeros((3, 3))
    for k in range(cases):
        covariance = np.block([[s_image, s_cross[k][:, None]], [s_cross[k][None, :], np.array([[s_text[k]]])]])
        a_t = np.r_[alpha[k], tau[k]] + g @ np.linalg.cholesky(covariance).T
        x = a_t * a_t[:, 2:]
        first += probability[k] * weight @ x
        second += probability[k] * (x * weight[:, None]).T @ x
    got = _product_moments(*map(jnp.asarray, (probability, alpha, tau, s_image, s_cross, s_text)))
    np.testing.assert_allclose(got[0], first, rtol=1e-10)
    np.testing.assert_allclose(got[1], second, rtol=1e-10)


def test_correction_is_the_delta_method_on_drawn_pairs():
    """Covariance of a sample's contribution from 400,000 drawn pairs, Hessian by differences: 4% of the 1/n term, at an
    n where the 1/n^2 terms of the average over the rule's law are below that."""
    n, weight, perpendicular = 960, 0.2, 1598
    model, caps = intra_class(0.8, 0.7, 0.4, 1.2, 0.9), captions(0.6, 0.3)
    obs = noise(perpendicular + 2, 2, 0.6, 0.7)
    key_z, key_u, key_x, key_t = jax.random.split(jax.random.key(4), 4)
    count = 400_000
    latents = model.sample(key_z, count)
    h = np.asarray(latents.z + 0.6 * jax.random.normal(key_x, latents.z.shape))
    t = np.asarray(1.2 * (caps.sample(key_u, model, latents)[:, 0] + 0.7 * jax.random.normal(key_t, (count,))))
    y = np.asarray(latents.label)
    c = 1 - 2 * weight
    h_mean, t_mean = (y[:, None] * h).mean(0), (y * t).mean()
    a_vector, t_vector = y[:, None] * h + c * h_mean, y * t + c * t_mean
    k = 0.6**2 * perpendicular / (n - 1)
    x = np.column_stack([a_vector * t_vector[:, None], k * t_vector**2])
    covariance = np.cov(x.T) / n
    t_square = 1.2**2 * (1.2**2 + 0.6 * 0.7**2 + 0.7**2) + (2 * c + c**2) * 1.2**4
    center = np.r_[mmcl_rule(model, caps, same_class_weight=weight), k * t_square]
    covariance[2, 2] += 2 * perpendicular * (center[2] / perpendicular) ** 2

    def value(at):
        norm = at[:2] @ at[:2] + at[2]
        return np.asarray(groups(linear_rule_accuracy(model, jnp.asarray(at[:2]), jnp.asarray(norm), 0.6)))

    def mixed(a, b):
        ends = value(center + a + b) - value(center + a - b) - value(center - a + b) + value(center - a - b)
        return ends / (4 * 1e-3**2)

    hessian = np.array([[mixed(a, b) for b in 1e-3 * np.eye(3)] for a in 1e-3 * np.eye(3)])
    correction = 0.5 * np.einsum("ijg,ij->g", hessian, covariance)
    got = np.asarray(groups(mean_accuracy(model, caps, obs, float(n), weight))) - value(center)
    assert np.abs(correction).max() > 3e-3 * 30 / n
    np.testing.assert_allclose(got, correction, rtol=0.04, atol=3e-6)


def brute_force(model, caps, obs, n, weight):
    """The average over the law of (w, log V) on a grid, in its Cholesky coordinates: which the margin's are not."""
    static, leaves = _cells(model, caps, obs, n, weight, "core")
    law = _rule_law(*static, *leaves)
    mean, covariance = np.asarray(law.mean), np.asarray(law.covariance)
    scale = np.array([1, 1, mean[2] or 1])
    root = np.linalg.cholesky(covariance / np.outer(scale, scale) + 1e-18 * np.eye(3))
    grid = np.linspace(-7, 7, 561)
    nodes, of_nodes = np.polynomial.hermite_e.hermegauss(9)
    x = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    of_x = np.exp(-(x**2).sum(-1) / 2)
    total = 0
    for node, of_node in zip(nodes, of_nodes / of_nodes.sum(), strict=True):
        deviation = x @ root[:, :2].T + node * root[:, 2]
        w, v = mean[:2] + deviation[:, :2], mean[2] * np.exp(deviation[:, 2] - (root[2] ** 2).sum() / 2)
        sd = np.sqrt(w**2 @ np.asarray(law.image_variance) + float(law.noise_variance) * v)
        with np.errstate(divide="ignore", invalid="ignore"):
            right = norm.cdf(w @ np.asarray(law.group_means).T / sd[:, None])
        total = total + of_node * (of_x @ np.where(np.isnan(right), 0.5, right)) / of_x.sum()
    return total


HARD = {
    "weak spurious": (intra_class(0.733, 0.0, 1.0, 1.0, 0.186), captions(), noise(10, 5, 0.0, 3.0), 50.0, 0.8),
    "little noise": (intra_class(0.832, 0.0, 1.0, 1.0, 0.198), captions(1.0, 0.5), noise(100, 5, 0.1, 3.0), 50.0, 0.8),
    "five": (intra_class(0.827, 0.0, 1.0, 1.0, 1.502), captions(1.0, 0.0), noise(10, 5, 0.1, 3.0), 5.0, 0.0),
    "smooth": (intra_class(0.9, 0.5, 0.3, 1.0, 1.0), captions(), noise(100, 5, 1.0, 1.0), 200.0, 0.5),
}


@pytest.mark.parametrize("name", HARD)
def test_quadrature_is_as_exact_as_the_docstring_says(name):
    *args, n, weight = HARD[name]
    want = brute_force(*args, n, weight)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol={5: 9e-4, 50: 2e-4, 200: 5e-5}[n])
    close(groups(mean_accuracy(*args, n, weight)), want)
    for wrong in (groups(mean_accuracy(*args, 1.1 * n, weight)), limit_without_guard(*args, n)):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            close(wrong, want)


def test_derivative_without_any_noise():
    """The accuracy is P(w . mu > 0), and its derivative comes from the step alone."""

    def conflicting(p):
        return mmcl_mean_accuracy(
            intra_class(p, 0.0, 0.0, 1.0, 3.0), captions(), observation(5, 5, 0.0, 0.0), 20.0
        ).conflicting

    value, h = jit_long(conflicting), 1e-4
    central = (value(0.6 + h) - value(0.6 - h)) / (2 * h)
    np.testing.assert_allclose(jit_long(jax.grad(conflicting))(0.6), central, rtol=1e-5)
    assert central < -3


STEEP = {
    "core prompt": (intra_class(0.5, 1.0, 0.1, 1.0, 5.0), captions(), noise(600, 5, 0.2, 1.0), 500, "core"),
    "steeper": (intra_class(0.5, 1.0, 0.1, 1.0, 20.0), captions(), noise(600, 5, 0.2, 1.0), 500, "core"),
    "weak core": (intra_class(0.7, 0.5, 0.1, 0.2, 3.0), captions(), noise(600, 5, 0.2, 1.0), 200, "core"),
    "training mean": (
        intra_class(0.52, 1.0, 0.1, 1.0, 4.0),
        captions(0.6, 0.4),
        noise(60, 5, 0.4, 0.5),
        200,
        "train_mean",
    ),
}


@pytest.mark.parametrize("name", STEEP)
def test_a_rule_that_varies_as_much_as_it_is_large(name):
    """Where mu_spu >> mu_core an expansion left [0, 1]. The rule is drawn exactly; the law's error is below .003."""
    model, caps, obs, n, prompts = STEEP[name]
    draw = jit_long(jax.vmap(lambda key: sample_rule_statistics(key, model, caps, obs, float(n), None, prompts)))
    rules, norms = draw(jax.random.split(jax.random.key(3), 100_000))
    samples = np.asarray(groups(linear_rule_accuracy(model, rules, norms, obs.sd_image)))
    got = np.asarray(groups(mean_accuracy(model, caps, obs, float(n), prompts=prompts)))
    check = functools.partial(assert_mean_close, resolution=2e-3)
    for shift in (-3e-3, 3e-3):  # between both bounds
        rejects(check, samples, got + 10 * shift)
    se = samples.std(0, ddof=1) / len(samples) ** 0.5
    assert (np.abs(samples.mean(0) - got) <= 3e-3 + 6 * se).all(), (samples.mean(0), got, se)
    limit = groups(limit_accuracy(model, caps, obs, float(n), prompts=prompts))
    naive = groups(limit_accuracy(model, caps, obs, prompts=prompts))
    assert np.isnan(np.asarray(limit)).any() and np.abs(naive - samples.mean(0)).max() > 0.02


def test_means_are_accuracies_and_the_limit_is_nan_where_it_is_wrong():
    rng = np.random.default_rng(0)
    shape = (4000,)
    model = intra_class(
        *(rng.uniform(*ends, shape) for ends in ((0, 1), (0, 2), (0, 1))),
        *(10 ** rng.uniform(*ends, shape) for ends in ((-1, 1), (-1, 2))),
    )
    caps, n = captions(rng.uniform(size=shape), rng.uniform(size=shape)), np.floor(10 ** rng.uniform(1.3, 4, shape))
    obs = noise(100, 5, 10 ** rng.uniform(-2, 1, shape), 10 ** rng.uniform(-2, 1, shape))
    mean = np.asarray(groups(mean_accuracy(model, caps, obs, n)))
    assert ((mean >= 0) & (mean <= 1)).all()
    limit = np.asarray(groups(limit_accuracy(model, caps, obs, n)))
    known = ~np.isnan(limit)
    assert 0.5 < known.mean() < 0.99
    # The guard lets through .02; the law also knows that the noise outside the signal varies.
    assert np.abs(mean - limit)[known].max() < 0.03 < np.abs(mean - limit_without_guard(model, caps, obs, n)).max()


def limit_without_guard(model, caps, obs, n):
    """X2's formula written out: core prompt, ordinary loss."""
    w = np.asarray(mmcl_rule(model, caps))
    text = np.asarray(model.mu_core**2 * (model.mu_core**2 + caps.pi_core * model.sigma_core**2 + obs.sd_text**2))
    norm = (w**2).sum(-1) + np.asarray(obs.sd_image) ** 2 * obs.dim_image / n * text
    return np.asarray(groups(linear_rule_accuracy(model, jnp.asarray(w), jnp.asarray(norm), obs.sd_image)))


@pytest.mark.parametrize("name", ["rich", "mixed", "little intra-class contrasting"])  # NaN for the others
def test_variance_over_samples(name):
    """To the share 4/n of what follows, which `sims` adds too."""
    model, caps, weight = CASES[name]
    accuracy = simulate(name)
    accuracy = np.concatenate([accuracy, accuracy.mean(-1, keepdims=True)], -1)
    variance = np.asarray(cumulants(model, caps, OBS, float(N), weight))[:, 0]
    relative = (accuracy - accuracy.mean(0)) ** 2 / variance
    error = relative.std(0) / len(relative) ** 0.5
    assert (error < 0.05).all()
    assert (np.abs(relative.mean(0) - 1) < 2 * 4 / N + 5 * error).all(), relative.mean(0)


def test_the_shifted_accuracy_is_quadratic_at_one_half():
    """A constant less sigma^2 chi^2_1: its standard deviation falls as 1/n, its skewness stays -sqrt(8)."""
    model, caps = intra_class(0.5, 1.0, 0.3), captions()
    first, second = (np.asarray(cumulants(model, caps, noise(30, 10, 0.0, 1.0), n)) for n in (2e3, 8e3))
    np.testing.assert_allclose(first[:, 0] / second[:, 0], [4, 4, 16], rtol=1e-3)
    np.testing.assert_allclose(second[2, 1] / second[2, 0] ** 1.5, -(8**0.5), rtol=1e-2)
    assert np.isnan(cumulants(model, caps, noise(30, 10, 0.0, 30.0), 20.0)).all()


@pytest.mark.parametrize(
    ("sigma", "noise_text", "n", "sure"), [(0.05, 0.1, 2000, 1), (0, 0, 200, 1), (0.05, 0.1, 20, 0)]
)
def test_sure_groups_have_cumulants_and_those_that_a_rule_may_lose_have_none(sigma, noise_text, n, sure):
    """Phi^-1(acc) is over 11, and its fluctuations over .3: the runs say whether the accuracy stays near 1."""
    model, obs = intra_class(0.7, sigma, sigma), noise(5, 5, 0.0, noise_text)
    draw = jit_long(jax.vmap(lambda key: sample_rule_statistics(key, model, captions(), obs, float(n))))
    rules, norms = draw(jax.random.split(jax.random.key(0), 2000))
    near_1 = np.asarray(groups(linear_rule_accuracy(model, rules, norms, obs.sd_image))) > 1 - 1e-5
    got = np.asarray(cumulants(model, captions(), obs, float(n)))
    assert near_1.all() == np.isfinite(got).all() == sure
    assert not sure or (np.abs(got) < 1e-12).all()
