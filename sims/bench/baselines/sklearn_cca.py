"""Canonical correlations of image and text features by scikit-learn's CCA, all samples in memory."""

import numpy as np
from sklearn.cross_decomposition import CCA


def correlations(image: np.ndarray, text: np.ndarray, components: int) -> np.ndarray:
    """The leading canonical correlations of the samples."""
    scores = CCA(n_components=components, scale=False, max_iter=2000, tol=1e-8).fit_transform(image, text)
    return np.array([np.corrcoef(x, t)[0, 1] for x, t in zip(scores[0].T, scores[1].T, strict=True)])
