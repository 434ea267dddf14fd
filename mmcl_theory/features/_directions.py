"""Directions of a diagnosis's images: those that separate classes and attributes, and those that methods find first.

Symbols: S_I, S_T covariances of images and texts, C their cross-covariance; M folds, K classes.
"""

import itertools

import numpy as np

from mmcl_theory.data import Mixture, mixture
from mmcl_theory.features._cross_validation import Samples
from mmcl_theory.features.moments import GroupSums
from mmcl_theory.features.results import METHODS, Component, jackknife, over_folds

_RIDGE = 0.01  # of its mean eigenvalue, added to a covariance that directions need the inverse of


def fitted_mixture(data: Samples, num_attributes: int) -> tuple[Mixture, np.ndarray]:
    """The mixture of the held-out images along directions of classes and attributes, and what captions tell of them.

    The directions of fold f are S^-1 m, learnt from the other folds: S the covariance within groups, m the differences
    of the means of classes, or of attributes, from that of the first.
    """
    k, groups = data.classes.max() + 1, len(data.classes)
    l = k + num_attributes - 2
    z, guess = np.empty((len(data.image), l)), np.empty((len(data.image), l))
    for f in range(len(data.sums.size)):
        others = data.others(f)
        x, t = others.image / others.size[:, None], others.text / others.size[:, None]
        xx, xt, tt = (np.einsum("g,gij->ij", others.size / others.size.sum(), s) for s in others.within())
        xx, tt = _ridged(xx), _ridged(tt)
        means = x.reshape(k, num_attributes, -1)
        by_class, by_attribute = means.mean(1), means.mean(0)
        contrasts = np.concatenate([by_class[1:] - by_class[:1], by_attribute[1:] - by_attribute[:1]])
        directions = np.linalg.solve(xx, contrasts.T)  # (d_i, l)
        directions = directions / np.sqrt(np.einsum("il,ij,jl->l", directions, xx, directions))
        mine = data.fold == f
        middle = means.mean((0, 1))
        z[mine] = (data.image[mine] - data.sums.image_origin - middle) @ directions
        slope = np.linalg.solve(tt, xt.T @ directions)
        groups_here = data.group[mine]
        guess[mine] = (data.text[mine] - data.sums.text_origin - t[groups_here]) @ slope
    mean = np.stack([z[data.group == g].mean(0) for g in range(groups)])
    spread = np.stack([np.atleast_2d(np.cov(z[data.group == g].T)) for g in range(groups)])
    within = z - mean[data.group]
    caption_r2 = 1 - ((within - guess) ** 2).mean(0) / (within**2).mean(0)
    weight = np.bincount(data.group) / len(data.group)
    return mixture(weight, mean, spread, data.classes.tolist(), data.shifted), caption_r2


def leading_components(data: Samples, num_attributes: int) -> tuple[Component, ...]:
    """What the linear loss, prediction and alignment find first, learnt from all folds but one each (X7).

    Intervals of leads and gaps are those of the jackknife over folds. The correlation is of the held-out folds.
    """
    k, folds = int(data.classes.max()) + 1, range(len(data.sums.size))
    c = min(k + num_attributes - 1, data.total.image.shape[-1], data.total.text.shape[-1])
    measures = np.empty((len(folds), 4, len(METHODS), c))  # correlations, shares of class and of attribute, gaps
    for f in folds:
        others = data.others(f)
        (image, cross, text), mine = _covariances(others), _covariances(data.sums.fold(f))
        whiten = [_inverse_root(_ridged(s)) for s in (image, text)]
        plain = [np.eye(len(s)) for s in whiten]
        for i, (left, right) in enumerate((plain, (whiten[0], plain[1]), whiten)):
            u, score, vt = np.linalg.svd(left @ cross @ right)
            a, b = left @ u[:, :c], right @ vt[:c].T
            xx, xt, tt = (np.einsum("ic,ij,jc->c", p, s, q) for p, s, q in zip((a, a, b), mine, (a, b, b), strict=True))
            size = np.sqrt(xx * tt)
            measures[f, 0, i] = np.where(size > 0, xt / np.where(size > 0, size, 1.0), 0.0)
            measures[f, 1:3, i] = _shares(others, a, k)
            measures[f, 3, i] = -np.diff(score, append=0.0)[:c]
    _, of_class, of_attribute, _ = measures.mean(0)
    lead, gap = measures[:, 1] - measures[:, 2], measures[:, 3]
    components = []
    for (i, method), j in itertools.product(enumerate(METHODS), range(c)):
        shares = float(of_class[i, j]), float(of_attribute[i, j])
        intervals = jackknife(lead[:, i, j]), jackknife(gap[:, i, j])
        components.append(Component(method, j + 1, over_folds(measures[:, 0, i, j]), *shares, *intervals))
    return tuple(components)


def _covariances(sums: GroupSums) -> list[np.ndarray]:
    """S_I, C and S_T over all groups."""
    n = sums.size.sum()
    x, t = sums.image.sum(0) / n, sums.text.sum(0) / n
    products = sums.image_image, sums.image_text, sums.text_text
    return [s.sum(0) / n - np.outer(p, q) for s, p, q in zip(products, (x, x, t), (x, t, t), strict=True)]


def _ridged(s: np.ndarray) -> np.ndarray:
    return s + _RIDGE * np.trace(s) / len(s) * np.eye(len(s))


def _inverse_root(s: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(s)
    return (vectors / np.sqrt(values)) @ vectors.T


def _shares(sums: GroupSums, directions: np.ndarray, k: int) -> np.ndarray:
    """The shares of the variance of x . a_c that class and attribute have, groups counting equally, (2, c)."""
    mean = sums.image / sums.size[:, None]
    square = sums.image_image / sums.size[:, None, None] - mean[:, :, None] * mean[:, None, :]
    within = np.einsum("ic,gij,jc->c", directions, square, directions) / len(mean)
    table = (mean @ directions).reshape(k, -1, directions.shape[1])
    whole = within + table.var((0, 1))
    return np.stack([table.mean(axis).var(0) for axis in (1, 0)]) / np.where(whole > 0, whole, 1.0)
