"""Hard-margin classification without bias by scikit-learn's SVC.

SVC has a bias; on the mirrored points (z_i, +1), (-z_i, -1), z_i = y_i x_i, it is 0 by symmetry.
"""

import numpy as np
from sklearn.svm import SVC


def mirrored(gram: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Gram matrix (2n, 2n) of the mirrored points and their labels."""
    q = np.asarray(gram, float) * y[:, None] * y[None, :]
    return np.block([[q, -q], [-q, q]]), np.repeat([1, -1], len(y))


def fit(gram: np.ndarray, label: np.ndarray) -> SVC:
    """The SVC of mirrored points."""
    return SVC(kernel="precomputed", C=1e8, tol=1e-3, cache_size=1000).fit(gram, label)


def margin(svc: SVC, gram: np.ndarray) -> float:
    """min_i y_i x_i.w / |w|, the margin that the rule attains."""
    n = len(gram) // 2
    both = np.zeros(2 * n)
    both[svc.support_] = svc.dual_coef_[0]
    alpha = both[:n] - both[n:]
    outputs = gram[:n, :n] @ alpha
    return outputs.min() / (alpha @ outputs) ** 0.5
