"""Mixtures at the edges: models and captions of one's own, ties, ranks that are not there, shapes that disagree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import mmcl_theory as mt
from mmcl_theory import _orthant, learners, theory
from mmcl_theory.data import AccuracyByGroup, Captions, IntraClass, Mixture
from tests.helpers import refuses

OBS = mt.observation(6, 5, 0.1, 0.1)
orthant = jax.jit(_orthant.positive)
probe = jax.jit(theory.probe_accuracy, static_argnames="embed_dim")


def four_groups(spread=(0.5, 0.1), weight=(0.45, 0.05, 0.05, 0.45), **given):
    mean = [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    return mt.mixture(list(weight), mean, np.diag(spread), [0, 0, 1, 1], **given)


class Tripled(IntraClass):
    """The spurious feature's mean has three times its size; only its mixture says so."""

    def as_mixture(self):
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(IntraClass)}
        return IntraClass(**{**fields, "mu_spu": 3 * self.mu_spu}).as_mixture()


@pytest.mark.costly
def test_pairs_and_rules_are_drawn_from_the_law_that_is_predicted():
    plain = mt.intra_class(0.9, 0.5, 0.1)
    model = Tripled(*jax.tree.leaves(plain))
    d = jax.jit(mt.draw_dictionaries)(jax.random.key(0), plain, OBS)
    caps = mt.group_captions(model)
    pairs = jax.jit(lambda key: mt.sample_pairs(key, model, caps, OBS, 400, d))(jax.random.key(1))
    spurious = np.abs(np.asarray(pairs.image) @ np.asarray(d.image)[:, 1])
    assert abs(spurious.mean() - 3) < 0.1
    assert set(np.unique(pairs.attribute)) == {0, 1, 2, 3}
    rules = jax.jit(lambda key: learners.sample_rules(key, model, caps, OBS, 4000))(jax.random.key(2))
    rule = jax.jit(theory.mmcl_rule)
    np.testing.assert_allclose(rules.latent, rule(model.as_mixture()), atol=0.2)
    assert np.abs(rules.latent - rule(plain.as_mixture())).max() > 1


class Renamed(Mixture):
    """Nothing but another name."""


def test_a_class_derived_from_a_mixture_is_one():
    model = four_groups()
    other = Renamed(model.weight, model.shifted_weight, model.mean, model.covariance, model.classes)
    np.testing.assert_array_equal(theory.mmcl_rule(other), theory.mmcl_rule(model))


class Silent(Captions):
    """Captions that say nothing."""

    def sample(self, key, model, latents):
        return 0 * latents.z


def test_captions_of_ones_own_are_not_taken_for_others():
    caps = Silent(*jax.tree.leaves(mt.captions()), "named")
    for call in (theory.mmcl_accuracy, theory.whitened_accuracy, theory.ridge_accuracy, mt.moments):
        refuses("Silent", call, mt.intra_class(0.9, 1.0, 0.1), caps, error=TypeError)


@pytest.mark.costly
@pytest.mark.parametrize("k", [2, 3, 4])
def test_classes_that_are_tied_share_the_answer(k):
    model = mt.mixture(np.full(k, 1 / k), np.eye(k), np.eye(k), list(range(k)))
    accuracy = jax.jit(lambda rules: model.rule_accuracy(rules, rules @ rules.T).by_group)
    np.testing.assert_allclose(accuracy(jnp.zeros((k, k))), 1 / k, rtol=1e-12)


@pytest.mark.costly
def test_an_embedding_beyond_what_the_outliers_can_be_is_refused():
    model, obs = four_groups(), mt.observation(300, 200, 3.0, 3.0)
    assert theory.outliers(model, None, obs, 600.0).exists.shape == (4,)
    refuses("embed_dim > 4", theory.mmcl_accuracy, model, None, obs, 600.0, embed_dim=5, error=NotImplementedError)


def test_a_probe_sees_no_direction_that_the_loss_has_not_learnt():
    """Captions name the core alone, so that the cross-covariance has rank 1."""
    model = four_groups()
    caps = mt.group_captions(model, mention=[1.0, 0.0], base="zero")
    one, whole = (probe(model, caps, embed_dim=r).by_group for r in (1, None))
    np.testing.assert_allclose(whole, one, atol=1e-12)
    rich = probe(model, mt.group_captions(model)).by_group
    assert np.abs(rich - whole).max() > 0.05


def test_a_model_without_as_mixture_has_no_finite_n():
    from tests.theory.test_mixtures import Corners

    refuses("Corners has no as_mixture", theory.mmcl_accuracy, Corners(), None, OBS, 100.0, error=NotImplementedError)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-8])
def test_orthants_of_coordinates_that_nearly_mirror_each_other(gap):
    mean, slope = np.array([0.4, 0.3]), -1 + gap
    value, error = orthant(mean, np.array([[1.0, slope], [slope, 1.0]]), mean)
    want = multivariate_normal(np.zeros(2), [[1, slope], [slope, 1]]).cdf(mean)
    assert abs(value - want) < 1e-9 and error < 1e-9


def other_captions(model):
    three = mt.mixture([0.4, 0.3, 0.3], np.eye(3, 2), np.eye(2), [0, 1, 1])
    return mt.group_captions(three)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: AccuracyByGroup(*[m.weight] * 4).at([1.0]), "one entry for each of 4 groups"),
        (lambda m: theory.mmcl_accuracy(m, other_captions(m)), r"caps must be of the model's \(4, 2\)"),
        (
            lambda m: jax.eval_shape(lambda key: mt.sample_pairs(key, m, other_captions(m), OBS, 9), jax.random.key(0)),
            "caps must be of the model's",
        ),
        (lambda m: theory.mmcl_accuracy(m, prompts="x"), "prompts must be one of core, train_mean"),
        (lambda m: theory.mmcl_accuracy(m, prompts=np.full((2, 2), np.nan)), "prompts must be an array of finite"),
        (lambda m: m.rule_accuracy(np.eye(2), np.eye(3)), r"gram \(..., 2, 2\)"),
        (lambda m: four_groups(weight=["0.45", ".05", ".05", ".45"]), "weight must be an array of finite numbers"),
        (lambda m: mt.mixture([0.5, 0.5], 1j * np.eye(2), np.eye(2), [0, 1]), "mean must be an array of finite"),
        (lambda m: mt.mixture([0.5, 0.5], np.eye(2), np.eye(2), 2), "classes must be one number a group"),
        (
            lambda m: mt.mixture(np.full((2, 2), 0.5), np.ones((3, 2, 2)), np.eye(2), [0, 1]),
            "leading dimensions that agree",
        ),
        (lambda m: four_groups(shifted_weight=[0.5, 0.5, 0.0, 0.0]).prompts(), "class 1 has no weight under the shift"),
        (
            lambda m: mt.group_captions(four_groups(weight=(1, 0, 0, 0)), base="mean", wrong=0.1),
            "no other group has weight",
        ),
        (lambda m: mt.is_aligned(jnp.array([1, -1]), jnp.array([0, 2])), "number of the group"),
        (lambda m: jax.tree.map(lambda *x: jnp.stack(x), m, m).sample(jax.random.key(0), 3), "single model"),
    ],
)
def test_what_disagrees_is_named(call, message):
    refuses(message, call, four_groups())


@pytest.mark.costly
def test_training_has_the_pair_models_slopes_and_none_where_singular_values_coincide():
    def conflicting(model):
        return theory.training_accuracy(model, time=2.0)

    @jax.jit
    @jax.vmap
    def slopes(p, spread):
        def of_mixture(spread):
            return conflicting(mt.intra_class(p, spread, 0.3).as_mixture()).by_group[1]

        def of_pair(spread):
            return conflicting(mt.intra_class(p, spread, 0.3)).conflicting

        return jnp.stack([*jax.value_and_grad(of_mixture)(spread), *jax.value_and_grad(of_pair)(spread)])

    # At p = 1/2 and equal variances C is a multiple of the identity.
    found = slopes(jnp.array([0.95, 0.5]), jnp.array([1.0, 0.3]))
    np.testing.assert_allclose(found[0, :2], found[0, 2:], rtol=1e-10)
    assert abs(found[0, 1]) > 0.01
    np.testing.assert_allclose(found[1, 0], found[1, 2], rtol=1e-12)
    assert np.isnan(found[1, 1]) and np.isfinite(found[1, 3])
