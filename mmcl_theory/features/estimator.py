"""The closed forms as a scikit-learn classifier. Needs scikit-learn, so that it is imported by its own name.

Symbols are those of `closed_form`.
"""

from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from mmcl_theory.features.closed_form import Learner, feature_rules
from mmcl_theory.features.moments import group_sums, policy_moments


class ContrastiveClassifier(ClassifierMixin, BaseEstimator):
    """Zero-shot classification of image features, learnt from pairs with text features in closed form.

    The rules are those of `feature_rules`: the class of x is argmax_k R_k . x + b_k. Without texts a class's name is
    the caption of all its images, as one-hot vectors; "supervised" needs none.

    Attributes:
        classes_: the K classes, sorted.
        coef_: R, (K, d_i).
        intercept_: b, (K,).
        n_features_in_: d_i.

    Example:
        The whitened rule from 300 pairs whose captions tell the features with noise:

        >>> import numpy as np
        >>> from mmcl_theory.features.estimator import ContrastiveClassifier
        >>> rng = np.random.default_rng(0)
        >>> label = rng.integers(0, 2, 300)
        >>> image = rng.normal(size=(300, 3)) + 4 * label[:, None]
        >>> text = image + rng.normal(size=(300, 3))
        >>> classifier = ContrastiveClassifier("whitened").fit(image, label, text=text)
        >>> print(f"{classifier.score(image, label):.2f}")
        1.00

    Source: docs/theory.md X14.
    """

    def __init__(
        self,
        kind: str = "whitened",
        *,
        same_class_weight: float | None = None,
        theta: float = 1.0,
        kappa: float = 1.0,
        rank: int | None = None,
        shrinkage: float = 0.01,
    ):
        """The settings of a `Learner`, which `fit` checks.

        Args:
            kind: "mmcl", "whitened", "ridge" or "supervised".
            same_class_weight: of "mmcl", in [0, 1]; None: the ordinary loss.
            theta: of "whitened", in [0, 1].
            kappa: of "ridge", >= 0.
            rank: of "mmcl" and "whitened", >= 1; None: no limit.
            shrinkage: >= 0.
        """
        self.kind = kind
        self.same_class_weight = same_class_weight
        self.theta = theta
        self.kappa = kappa
        self.rank = rank
        self.shrinkage = shrinkage

    def fit(self, X: Any, y: Any, text: Any = None, prompts: Any = None) -> "ContrastiveClassifier":
        """Learn the rules.

        Args:
            X: image features, (n, d_i).
            y: class of each image, (n,).
            text: text features of the captions, (n, d_t); None: the classes as one-hot vectors.
            prompts: text features of a prompt for each class in sorted order, (K, d_t); None: the class means of text.

        Returns:
            This classifier.

        Raises:
            ValueError: for arrays that disagree or are not finite, fewer than two classes, a setting out of its range,
                or a singular covariance without shrinkage.
        """
        learner = Learner(self.kind, self.same_class_weight, self.theta, self.kappa, self.rank, self.shrinkage)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, number = np.unique(y, return_inverse=True)
        k = len(self.classes_)
        if k < 2:
            raise ValueError(f"y must have at least two classes, got {k} class.")
        text = np.eye(k)[number] if text is None else check_array(text, input_name="text")
        if len(text) != len(X):
            raise ValueError(f"X and text must have the same number of rows, got {len(X)} and {len(text)}.")
        most = min(X.shape[1], text.shape[1])
        if learner.kind in ("mmcl", "whitened") and learner.rank is not None and learner.rank > most:
            raise ValueError(f"rank must be at most the number of features, {most}, got {learner.rank}.")
        with jax.enable_x64(True):
            sums = group_sums(X, text, number, k)
            mom = policy_moments(sums, np.arange(k))
            if prompts is None:
                centred = np.asarray(mom.u_mean)
            else:
                prompts = check_array(prompts, input_name="prompts")
                if prompts.shape != (k, text.shape[1]):
                    raise ValueError(f"prompts must have shape ({k}, {text.shape[1]}), got {prompts.shape}.")
                centred = prompts - sums.text_origin
            rules, offsets = map(np.asarray, feature_rules(mom, centred, learner))
        if not np.isfinite(rules).all():
            raise ValueError(f"a covariance is singular, which {learner.kind} inverts; use shrinkage > 0.")
        self.coef_, self.intercept_ = rules, offsets - rules @ sums.image_origin
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores R_k . x + b_k, (n, K); of two classes the second's minus the first's, (n,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores: np.ndarray = X @ self.coef_.T + self.intercept_
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of the highest score of each image, (n,)."""
        scores = self.decision_function(X)
        number = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        predicted: np.ndarray = self.classes_[number]
        return predicted
