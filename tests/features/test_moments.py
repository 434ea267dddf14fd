"""Sums of features by group, and the moments of the training set that a policy makes."""

import jax
import numpy as np
import pytest

from mmcl_theory.features import Policy, group_sums, policy_moments

CLASSES = np.array([0, 0, 1, 1])


@pytest.fixture(scope="module")
def features():
    """(image, text, group) of 60 samples whose groups differ in means and spread."""
    rng = np.random.default_rng(0)
    group = np.concatenate([np.full(n, g) for g, n in enumerate((25, 5, 10, 20))])
    image = rng.normal(size=(60, 3)) * (1 + group[:, None]) + group[:, None] + 100
    text = image @ rng.normal(size=(3, 2)) + rng.normal(size=(60, 2))
    order = rng.permutation(60)
    return image[order], text[order], group[order]


def direct(image, text, label, weight):
    """Class weights, means and covariances of weighted samples."""
    parts = []
    for y in (0, 1):
        w = np.where(label == y, weight, 0.0)
        share = w / w.sum()
        x, t = image - share @ image, text - share @ text
        parts.append((w.sum() / weight.sum(), share @ image, share @ text,
                      *((share[:, None] * a).T @ b for a, b in ((x, x), (x, t), (t, t)))))  # fmt: skip
    return [np.stack(values) for values in zip(*parts, strict=True)]


def found(sums, policy=None):
    """Leaves of the policy's moments, with the origins added to the means."""
    mom = policy_moments(sums, CLASSES, *([policy] if policy else []))
    weight, z_mean, u_mean, *products = map(np.asarray, jax.tree.leaves(mom))
    return [weight, z_mean + sums.image_origin, u_mean + sums.text_origin, *products]


def masked(image, text, group):
    """Every sample four times, with all combinations of both mentions: their rates are 1/2 exactly."""
    means = np.stack([text[group == g].mean(0) for g in range(4)])
    by_class = np.stack([text[CLASSES[group] == y].mean(0) for y in (0, 1)])[CLASSES[group]]
    versions = [by_class + b * (means[group] - by_class) + h * (text - means[group]) for b in (0, 1) for h in (0, 1)]
    return np.tile(image, (4, 1)), np.concatenate(versions), np.tile(group, 4)


def agrees(left, right):
    return all(np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(left, right, strict=True))


def test_as_it_is_the_moments_are_those_of_the_samples(features):
    image, text, group = features
    sums = group_sums(image, text, group, 4)
    assert agrees(found(sums), direct(image, text, CLASSES[group], np.ones(60)))
    assert not agrees(found(sums), direct(image, text, CLASSES[group], np.arange(60.0)))


def test_masked_captions_have_the_policy_s_moments(features):
    image, text, group = features
    sums = group_sums(image, text, group, 4)
    image, text, group = masked(image, text, group)
    wanted = direct(image, text, CLASSES[group], np.ones(240))
    assert agrees(found(sums, Policy(attribute=0.5, detail=0.5)), wanted)
    for wrong in (Policy(attribute=0.6, detail=0.5), Policy(attribute=0.5, detail=0.4), Policy(detail=0.5)):
        assert not agrees(found(sums, wrong), wanted)


def test_more_samples_of_small_groups(features):
    """Group 1 of 5 and group 2 of 10 are below the equal parts 15 and 15 of their classes."""
    image, text, group = features
    sums = group_sums(image, text, group, 4)

    def weighted(*factors):
        return direct(image, text, CLASSES[group], np.array(factors)[group])

    assert agrees(found(sums, Policy(minority=1.2)), weighted(1, 1.2, 1.2, 1))
    assert agrees(found(sums, Policy(minority=2.0)), weighted(1, 2, 1.5, 1))
    assert agrees(found(sums, Policy(minority=50.0)), weighted(1, 3, 1.5, 1))
    assert not agrees(found(sums, Policy(minority=2.0)), weighted(1, 2, 2, 1))
    np.testing.assert_allclose(Policy(minority=0.0).weights(sums.size, CLASSES), np.array([25, 0, 0, 20]) / 45)


def test_folds_add_up_and_chunks_do_not_matter(features, monkeypatch):
    image, text, group = features
    fold = np.arange(60) % 3
    shaped = group_sums(image, text, fold * 4 + group, 12).by_fold(3)
    assert agrees(found(shaped.total()), direct(image, text, CLASSES[group], np.ones(60)))
    others = direct(image, text, CLASSES[group], np.where(fold == 1, 0.0, 1.0))
    assert agrees(found(shaped.total().minus(shaped, 1)), others)
    monkeypatch.setattr("mmcl_theory.features.moments.CHUNK", 7)
    assert agrees(found(group_sums(image, text, group, 4)), found(shaped.total()))
    assert not agrees(found(shaped.total().minus(shaped, 0)), found(shaped.total()))


def test_float32_products_are_close(features):
    image, text, group = features
    exact, quick = (found(group_sums(image, text, group, 4, dtype)) for dtype in (np.float64, np.float32))
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(exact, quick, strict=True))


@pytest.mark.parametrize(
    "policy, said",
    [
        ({"attribute": 1.5}, "attribute must be in [0, 1], got 1.5."),
        ({"detail": -0.1}, "detail must be in [0, 1], got -0.1."),
        ({"minority": np.inf}, "minority must be finite and >= 0, got inf."),
    ],
)
def test_a_policy_out_of_range_is_refused(policy, said):
    with pytest.raises(ValueError) as error:
        Policy(**policy)
    assert str(error.value) == said


def test_features_that_are_not_finite_are_named(features):
    image, text, group = features
    broken = text.copy()
    broken[17, 1] = np.nan
    with pytest.raises(ValueError, match=r"text features must be finite, got another value in row 17\."):
        group_sums(image, broken, group, 4)
    with pytest.raises(ValueError, match=r"need \S+ GiB of moments"):
        group_sums(np.zeros((4, 20_000)), np.zeros((4, 2)), np.arange(4), 4)
