"""`ContrastiveClassifier` against the learners that it wraps, scikit-learn's own, and scikit-learn's checks."""

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import RidgeClassifier
from sklearn.utils.estimator_checks import estimator_checks_generator

import mmcl_theory as mt
from mmcl_theory.features.estimator import ContrastiveClassifier


def pairs(classes=3, n=400):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, n)
    image = 2 * np.eye(classes, 4)[y] + rng.normal(size=(n, 4)) * [1, 2, 1, 3] + 5
    text = image[:, :3] + rng.normal(size=(n, 3)) - 1
    return image, text, np.array(list("cab"))[y]


def test_least_squares_is_that_of_scikit_learn():
    image, _, y = pairs()
    ours = ContrastiveClassifier("supervised", shrinkage=0.0).fit(image, y)
    theirs = RidgeClassifier(alpha=1e-9).fit(image, y)  # targets -1 and 1, where ours are 0 and 1
    np.testing.assert_allclose(2 * ours.decision_function(image) - 1, theirs.decision_function(image), atol=1e-8)
    wrong = RidgeClassifier(alpha=100).fit(image, y)
    assert np.abs(2 * ours.decision_function(image) - 1 - wrong.decision_function(image)).max() > 0.01


def test_the_whitened_rule_is_canonical_correlation():
    """W = sum_i r_i a_i b_i^T over the canonical directions, of variance 1, with their correlations r_i."""
    image, text, y = pairs()
    ours = ContrastiveClassifier("whitened", shrinkage=0.0, rank=2).fit(image, y, text=text)
    directions = CCA(2, scale=False, tol=1e-12, max_iter=10_000).fit(image, text)
    x, t = image - image.mean(0), text - text.mean(0)
    a, b = directions.x_rotations_, directions.y_rotations_
    a, b = a / (x @ a).std(0), b / (t @ b).std(0)
    r = np.diag(a.T @ x.T @ t @ b) / len(x)
    prompts = np.stack([t[y == k].mean(0) for k in ours.classes_])
    np.testing.assert_allclose(ours.coef_, prompts @ b * r @ a.T, atol=1e-5)
    assert np.abs(ours.coef_ - prompts @ b @ a.T).max() > 1e-2


def test_it_is_what_the_diagnosis_fits():
    image, text, y = pairs(2)
    place = np.where(image[:, 3] > image[:, 3].mean(), "in", "out")
    found = mt.diagnose(image, text, y, place, folds=2, knobs={}, learners={"ridge": mt.features.Learner("ridge")})
    classifier = ContrastiveClassifier("ridge").fit(image, y, text=text)
    assert classifier.score(image, y) == pytest.approx(found.outcomes["ridge"].at("train").value, abs=0.03)
    means = np.stack([text[y == k].mean(0) for k in np.unique(y)])
    upset = ContrastiveClassifier("ridge").fit(image, y, text=text, prompts=means[::-1])
    assert upset.score(image, y) == pytest.approx(1 - classifier.score(image, y), abs=1e-12)
    assert classifier.predict(image).dtype == y.dtype


@pytest.mark.parametrize(
    "settings, fit, said",
    [
        ({"kind": "other"}, {}, "kind must be"),
        ({"theta": 2.0}, {}, r"theta must be in \[0, 1\]"),
        ({"rank": 4}, {"text": True}, "rank must be at most the number of features, 3, got 4"),
        ({}, {"text": np.ones((3, 2))}, "X and text must have the same number of rows, got 400 and 3"),
        ({}, {"text": True, "prompts": np.ones((2, 3))}, r"prompts must have shape \(3, 3\), got \(2, 3\)"),
        ({"shrinkage": 0.0}, {}, "a covariance is singular, which whitened inverts"),  # one-hot texts sum to 1
    ],
)
def test_what_is_refused(settings, fit, said):
    image, text, y = pairs()
    given = {name: text if value is True else value for name, value in fit.items()}
    with pytest.raises(ValueError, match=said):
        ContrastiveClassifier(**settings).fit(image, y, **given)


def _checks():
    """scikit-learn's checks of the kind without data frames, a name for each."""
    return [
        pytest.param(estimator, check, id=f"{check.func.__name__}", marks=pytest.mark.slow)
        for estimator, check in estimator_checks_generator(ContrastiveClassifier("ridge"), mark=None)
    ]


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own
@pytest.mark.parametrize("estimator, check", _checks())
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)
