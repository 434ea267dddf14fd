"""Mixture models: the paper's first model is a case, derivatives hold, and nothing is predicted for another law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

import mmcl_theory as mt
from mmcl_theory import _orthant, learners, theory
from mmcl_theory.data import ClassMoments, IntraClass, Latents, Mixture
from mmcl_theory.data.captions import second_moments
from tests.differences import assert_slopes
from tests.helpers import refuses

OBS = mt.observation(300, 240, 3.0, 4.0)


def example(p=0.9):
    """Unequal classes with a shared background, with which the first group of each class agrees."""
    core = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
    background = np.array([1.0, -1.0, 0.5])
    mean = [[*core[k], sign * background[k]] for k in range(3) for sign in (1, -1)]
    weight = np.repeat([0.4, 0.35, 0.25], 2) * np.tile([p, 1 - p], 3)
    return mt.mixture(weight, mean, np.diag([0.5, 0.3, 0.05]) + 0.05, [0, 0, 1, 1, 2, 2])


def faulty(model):
    return mt.group_captions(model, mention=[0.9, 0.6, 0.7], wrong=[0.1, 0.0, 0.2], blur=[0.0, 0.3, 0.1])


def all_predictions(model, caps):
    """(..., 10, G): what every loss learns."""
    found = [
        theory.mmcl_accuracy(model, caps),
        theory.mmcl_accuracy(model, caps, OBS, 600.0),
        theory.mmcl_accuracy(model, caps, OBS, 600.0, embed_dim=2),
        theory.mmcl_accuracy(model, caps, OBS, 600.0, same_class_weight=0.8),
        theory.mmcl_accuracy(model, caps, OBS, prompts="train_mean"),
        theory.whitened_accuracy(model, caps, OBS, 0.6),
        theory.whitened_accuracy(model, caps, OBS),
        theory.ridge_accuracy(model, caps, OBS, 0.7),
        theory.training_accuracy(model, caps, OBS, time=3.0, rho=0.8),
        theory.supervised_accuracy(model, mt.observation(2000, 2, 2.0, 1.0), 1000.0),
    ]
    if isinstance(model, IntraClass):
        return jnp.stack([jnp.stack([x.aligned, x.conflicting, x.conflicting, x.aligned], -1) for x in found], -2)
    return jnp.stack([x.by_group for x in found], -2)


# Operation by operation each would be compiled by itself.
predict = jax.jit(all_predictions)
accuracy = jax.jit(lambda model, caps: theory.mmcl_accuracy(model, caps, OBS, 600.0))
orthant = jax.jit(_orthant.positive)


@pytest.mark.slow
@pytest.mark.parametrize("masking", ["named", "mean", "zero"])
def test_every_prediction_of_four_groups_is_the_intra_class_models(masking):
    model = mt.intra_class(np.array([0.95, 0.5]), 0.8, np.array([0.3, 0.1]), 1.1, 0.7)
    caps = mt.captions(0.6, 0.8, masking)
    groups = caps.as_group_captions(model)
    want = predict(model, caps)
    assert np.isfinite(want).all()
    np.testing.assert_allclose(predict(model.as_mixture(), groups), want, atol=1e-10)
    others = dataclasses.replace(groups, mention=groups.mention[..., ::-1])
    assert np.abs(predict(model.as_mixture(), others) - want).max() > 0.01


@pytest.mark.parametrize("masking", ["named", "mean", "zero"])
def test_four_groups_have_the_moments_of_the_intra_class_model(masking):
    model, caps = mt.intra_class(np.array([0.95, 0.5]), 0.8, 0.3, 1.1, 0.7), mt.captions(0.6, 0.8, masking)
    want, found = jax.jit(
        lambda model: (mt.moments(model, caps), second_moments(model.as_mixture(), caps.as_group_captions(model)))
    )(model)
    for got, name in zip(found, ("zz", "zu", "uu"), strict=True):
        np.testing.assert_allclose(got, getattr(want, name), atol=1e-14)


@pytest.mark.costly
def test_grids_and_vmap_equal_a_loop():
    models = [example(p) for p in (0.7, 0.95)]
    grid, caps = (jax.tree.map(lambda *x: jnp.stack(x), *each) for each in (models, map(faulty, models)))
    want = [accuracy(model, faulty(model)).by_group for model in models]
    np.testing.assert_allclose(accuracy(grid, caps).by_group, want, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(accuracy)(grid, caps).by_group, want, atol=1e-12)
    assert np.abs(np.diff(want, axis=0)).max() > 0.01


@pytest.mark.costly
@pytest.mark.parametrize("d", [2, 3, 5])
def test_orthant_probabilities(d):
    rng, missed = np.random.default_rng(d), []
    for _ in range(4):
        root, mean = rng.normal(size=(d, d)), rng.normal(size=d) + 0.5
        value, error = orthant(mean, root @ root.T, np.abs(mean))
        want = multivariate_normal(np.zeros(d), root @ root.T, maxpts=10**6, abseps=1e-8).cdf(mean)
        assert abs(value - want) < (1e-12 if d == 2 else 6 * error + 1e-7)
        assert error < 1e-3
        missed.append(abs(norm.cdf(mean / np.linalg.norm(root, axis=1)).prod() - want))
    assert max(missed) > 0.01  # what independent coordinates would give


def test_orthant_probabilities_where_the_covariance_is_singular():
    """Two coordinates that move together or apart, a third that is their sum, one that does not vary."""
    mean = jnp.array([0.5, 0.3])
    for slope, want in ((1.0, norm.cdf(0.3)), (-1.0, norm.cdf(0.3) - norm.cdf(-0.5))):
        value, _ = orthant(mean, jnp.array([[1.0, slope], [slope, 1.0]]), mean)
        np.testing.assert_allclose(value, want, atol=1e-14)
    value, _ = orthant(mean, jnp.diag(jnp.array([1.0, 0.0])), mean)
    np.testing.assert_allclose(value, norm.cdf(0.5), atol=1e-14)
    value, _ = orthant(jnp.array([0.5, 0.0]), jnp.diag(jnp.array([1.0, 0.0])), mean)
    np.testing.assert_allclose(value, norm.cdf(0.5) / 2, atol=1e-14)
    value, _ = orthant(jnp.array([0.5, -0.3]), jnp.zeros((2, 2)), mean)
    assert value == 0
    sums = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    value, error = orthant(jnp.zeros(3), jnp.asarray(sums @ sums.T), jnp.ones(3))
    np.testing.assert_allclose(value, 0.25, atol=5 * float(error) + 1e-12)


def test_accuracy_at_any_weights():
    found = accuracy(example(), faulty(example()))
    by_group = np.asarray(found.by_group)
    weights = np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.4])
    np.testing.assert_allclose(found.at(weights), weights @ by_group)
    np.testing.assert_allclose(found.shifted, found.at(found.shifted_weight))
    np.testing.assert_allclose(found.train, found.at(found.weight))
    assert found.worst == by_group.min()
    refuses(r"weights must sum to 1, got 1\.1", found.at, weights * 1.1)


def test_a_group_that_does_not_occur_does_not_count():
    mean = [[-1.0, 0.0], [1.0, 0.0], [-9.0, 0.0]]
    model = mt.mixture([0.5, 0.5, 0.0], mean, np.eye(2), [0, 1, 1], [0.5, 0.5, 0.0])
    found = jax.jit(theory.mmcl_accuracy)(model)
    np.testing.assert_allclose(found.worst, norm.cdf(1), atol=1e-12)
    assert found.by_group[2] < 1e-6


@pytest.mark.costly
def test_label_shift_alone_changes_accuracies_only_by_weights():
    """Weights of P* within classes kept: every group is classified as before."""
    model = example()
    moved = dataclasses.replace(model, shifted_weight=model.weight)
    predict = jax.jit(lambda x: theory.mmcl_accuracy(x, prompts=model.prompts("core")))
    before, after = predict(model), predict(moved)
    np.testing.assert_array_equal(before.by_group, after.by_group)
    assert before.shifted != after.shifted


def test_an_error_of_captions_is_a_draw_of_another_group():
    """Two groups: always wrong about a coordinate means naming the other group's."""
    model = mt.mixture([0.5, 0.5], [[-1.0, -2.0], [1.0, 2.0]], np.diag([1.0, 0.5]), [0, 1])
    wrong = mt.group_captions(model, wrong=[0.0, 1.0])
    mom = model.class_moments(wrong)
    np.testing.assert_allclose(mom.u_mean, [[-1, 2], [1, -2]], atol=1e-12)
    np.testing.assert_allclose(mom.uu, np.broadcast_to(np.diag([1.0, 0.5]), (2, 2, 2)), atol=1e-12)
    np.testing.assert_allclose(mom.zu, np.broadcast_to(np.diag([1.0, 0.0]), (2, 2, 2)), atol=1e-12)


class Subclass(IntraClass):
    """Another law: the spurious feature's mean has three times its size."""

    def sample(self, key, n):
        return dataclasses.replace(self, mu_spu=3 * self.mu_spu).sample(key, n)


def change(model, cls):
    return cls(**{f.name: getattr(model, f.name) for f in dataclasses.fields(model)})


@pytest.mark.parametrize(
    "call",
    [
        theory.mmcl_accuracy,
        theory.mmcl_rule,
        theory.whitened_accuracy,
        theory.ridge_accuracy,
        theory.optimal_ridge,
        theory.whitening_crossovers,
        theory.strong_spurious_threshold,
        theory.sup_con_accuracy,
        lambda m: theory.balanced_pi_spu(m, mt.captions(), OBS),
        lambda m: theory.mmcl_mean_accuracy(m, mt.captions(), OBS, 100.0),
        lambda m: theory.mmcl_accuracy(m, mt.captions(), OBS, 100.0),
        lambda m: theory.outliers(m, mt.captions(), OBS, 100.0),
        lambda m: theory.supervised_accuracy(m, OBS, 100.0),
        lambda m: theory.max_margin_rule(m, OBS, 100.0),
        lambda m: theory.info_nce_optimum(m, mt.captions(), OBS),
        lambda m: theory.training_accuracy(m, time=1.0),
        lambda m: learners.sample_rule_statistics(jax.random.key(0), m, mt.captions(), OBS, 10),
        lambda m: mt.moments(m, mt.captions()),
        lambda m: mt.zero_shot.latent_prompts(m),
        mt.shifted,
    ],
)
def test_no_number_of_another_models_law(call):
    model = mt.intra_class(0.9, 1.0, 0.1)
    refuses("Subclass", call, change(model, Subclass), error=TypeError)


class Tripled(Subclass):
    """The same law, with what the theory needs."""

    def sample(self, key, n):
        return self.as_mixture().sample(key, n)

    def as_mixture(self):
        return dataclasses.replace(change(self, IntraClass), mu_spu=3 * self.mu_spu).as_mixture()


@pytest.mark.costly
def test_a_model_of_ones_own_is_predicted_by_its_mixture():
    model = mt.intra_class(0.9, 1.0, 0.1, 1.0, 0.5)

    @jax.jit
    def both(model):
        tripled = dataclasses.replace(model, mu_spu=jnp.asarray(1.5))
        of_mixture = theory.mmcl_accuracy(change(model, Tripled), None, OBS, 500.0)
        return theory.mmcl_accuracy(tripled, mt.captions(), OBS, 500.0), of_mixture

    want, found = both(model)
    np.testing.assert_allclose(found.by_group[:2], [want.aligned, want.conflicting], atol=1e-12)


@dataclasses.dataclass(frozen=True)
class Corners:
    """No mixture of Gaussians: two classes, y uniform on +-1, z = (y + s, y + t), s and t fair signs of size 1/2."""

    num_latents = 2
    num_classes = 2

    def sample(self, key, n):
        y, *signs = (jax.random.rademacher(k, (n,), dtype=float) for k in jax.random.split(key, 3))
        z = y[:, None] + jnp.stack(signs, -1) / 2
        return Latents(z, y.astype(int), (y > 0).astype(int))

    def class_moments(self, caps):
        assert caps is None
        mean, spread = jnp.array([[-1.0, -1.0], [1.0, 1.0]]), jnp.broadcast_to(jnp.eye(2) / 4, (2, 2, 2))
        return ClassMoments(jnp.array([0.5, 0.5]), mean, mean, spread, spread, spread)

    def prompts(self, kind):
        return jnp.array([[-1.0, 0.0], [1.0, 0.0]])

    def rule_accuracy(self, rules, gram, sd_image=0.0, offsets=None):
        corners = jnp.array([[0.5, 0.5], [0.5, 1.5], [1.5, 0.5], [1.5, 1.5]])
        right = (corners @ (rules[1] - rules[0]) > 0).mean()
        half = jnp.array([0.5, 0.5])
        return mt.data.AccuracyByGroup(jnp.stack([right, right]), half, half, jnp.zeros(2))


def test_a_law_that_is_no_mixture_has_rules_by_its_own_moments():
    model = Corners()
    np.testing.assert_allclose(theory.mmcl_rule(model), [[-1.25, -1.0], [1.25, 1.0]])
    assert theory.mmcl_accuracy(model).shifted == 1
    assert theory.whitened_accuracy(model).shifted == 0.75  # w ~ (1.25, -1) is wrong where the second is larger
    refuses("Corners must define as_mixture", theory.supervised_accuracy, model, OBS, 100.0, error=TypeError)


def test_more_classes_than_the_max_margin_rule_has_a_theory_for():
    refuses("3 classes", theory.supervised_accuracy, example(), OBS, 100.0, error=NotImplementedError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": [0.5, 0.6]}, "weight must sum to 1, got 1.1"),
        ({"weight": [1.5, -0.5]}, "weight must be >= 0, got -0.5"),
        ({"weight": [1.0]}, "weight must have one entry for each of 2 groups"),
        ({"shifted_weight": [0.5, 0.4]}, "shifted_weight must sum to 1, got 0.9"),
        ({"mean": [[0.0, 1.0]]}, r"mean must have shape \(..., 2, l\)"),
        ({"mean": [[0.0, 1.0], [np.nan, 1.0]]}, "mean must be an array of finite numbers, got nan"),
        ({"mean": "x"}, "mean must be an array of finite numbers"),
        ({"covariance": np.eye(3)}, r"covariance must have shape \(..., 2, 2, 2\)"),
        ({"covariance": np.ones((3, 2, 2))}, r"covariance must have shape \(..., 2, 2, 2\)"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "positive semi-definite, got eigenvalue -1 for group 0"),
        ({"covariance": [[1.0, 0.5], [0.0, 1.0]]}, "covariance must be symmetric"),
        ({"classes": [0, 2]}, "got no group of class 1"),
        ({"classes": [0, 0]}, "at least 2 classes"),
        ({"classes": [0, -1]}, r"classes\[1\] must be an integer >= 0"),
    ],
)
def test_bad_mixtures_are_refused(change, message):
    good = {"weight": [0.5, 0.5], "mean": [[0.0, 1.0], [1.0, 0.0]], "covariance": np.eye(2), "classes": [0, 1]}
    mt.mixture(**good)
    refuses(message, mt.mixture, **{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mention": 1.5}, r"mention must be in \[0, 1\], got 1.5"),
        ({"wrong": [0.0, -0.1, 0.0]}, r"wrong must be in \[0, 1\], got -0.1"),
        ({"blur": -1.0}, "blur must be finite and >= 0"),
        ({"mention": [1.0, 0.5]}, r"mention must be a number, or have shape \(3,\) or \(6, 3\)"),
        ({"base": "nothing"}, "base must be one of named, mean, zero"),
        ({"base": [np.inf, 0.0, 0.0]}, "base must be an array of finite numbers"),
    ],
)
def test_bad_captions_are_refused(change, message):
    refuses(message, mt.group_captions, example(), **change)


def test_what_does_not_go_together_is_refused():
    model = example()

    def traced(model, caps):
        jax.eval_shape(lambda key: mt.sample_pairs(key, model, caps, mt.observation(4, 4), 10), jax.random.key(0))

    refuses("caps must be group_captions", model.class_moments, mt.captions(), error=TypeError)
    refuses(r"prompts must have shape \(..., 3, 3\), got \(2, 3\)", theory.mmcl_accuracy, model, prompts=np.eye(3)[:2])
    with pytest.raises(TypeError, match="as_mixture"):
        pair = mt.intra_class(0.9, 1.0, 0.1)
        traced(pair, mt.group_captions(pair))
    refuses("class_means", traced, model, mt.captions(), error=TypeError)


def of_parameters(x):
    """Accuracies of several losses as functions of (p, a variance, a mean, a mention, an error, a noise)."""
    p, variance, shift, mention, wrong, noise = x
    model = example()
    weight = model.weight * jnp.tile(jnp.stack([p / 0.9, (1 - p) / 0.1]), 3)
    covariance = model.covariance + (variance - 0.5) * jnp.broadcast_to(jnp.diag(jnp.array([1.0, 0, 0])), (6, 3, 3))
    mean = model.mean + shift * jnp.eye(6, 3)
    model = Mixture(weight, model.shifted_weight, mean, covariance, model.classes)
    caps = faulty(example())
    caps = dataclasses.replace(caps, mention=caps.mention * mention, wrong=caps.wrong * wrong)
    obs = dataclasses.replace(OBS, sigma_image=noise, sigma_text=noise)
    found = (
        theory.mmcl_accuracy(model, caps, obs, 600.0),
        theory.mmcl_accuracy(model, caps, obs, embed_dim=1),
        theory.mmcl_accuracy(model, caps, obs, 600.0, embed_dim=2),
        theory.whitened_accuracy(model, caps, obs, 0.7),
        theory.ridge_accuracy(model, caps, obs, 0.5),
        theory.probe_accuracy(model, caps, obs, 2),
    )
    return jnp.concatenate([y.by_group for y in found])


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.8, 1.0])
def test_derivatives(p):
    lower, upper = [0, 0.05, -9, 0, 0, 0.1], [1, 9, 9, 1, 1, 9]
    assert_slopes(of_parameters, [p, 0.4, 0.1, 0.9, 0.5, 3.0], lower, upper)


@pytest.mark.slow
def test_whitening_has_derivatives_where_eigenvalues_coincide():
    """Isotropic latents; the derivative of an eigendecomposition would be NaN or wrong."""

    def rules(x):
        covariance = jnp.broadcast_to(jnp.eye(2) + x * jnp.array([[0.3, 0.2], [0.2, -0.1]]), (2, 2, 2))
        mean = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
        model = Mixture(jnp.array([0.5, 0.5]), jnp.array([0.5, 0.5]), mean * 1e-9, covariance, (0, 1))
        return theory.whitened_rule(model, None, OBS, 0.7, prompts=mean)[1]

    got = jax.jacfwd(rules)(0.0)
    step = 1e-5
    np.testing.assert_allclose(got, (rules(step) - rules(-step)) / (2 * step), atol=1e-8)
    assert np.abs(got).max() > 0.01


@pytest.mark.costly
def test_derivatives_are_nan_where_a_covariance_is_singular():
    """A coordinate that captions never mention, without text noise."""
    model = example()
    quiet = mt.observation(300, 240, 3.0, 0.0)

    @jax.jit
    @jax.value_and_grad
    def shifted(mention, theta):
        caps = mt.group_captions(model, base="zero")
        caps = dataclasses.replace(caps, mention=caps.mention * jnp.stack([1.0, 1.0, mention])[None, :])
        return theory.whitened_accuracy(model, caps, quiet, theta).shifted

    value, slope = shifted(0.0, 1.0)
    assert np.isfinite(value) and np.isnan(slope)
    assert np.isfinite(shifted(0.0, 0.0)[1])
    assert np.isfinite(shifted(0.5, 1.0)[1])
