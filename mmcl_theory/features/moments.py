"""Moments of a user's own image and text features, by fold and group, and of the training set that a policy makes.

Symbols: x image and t text features, y class, a attribute, g = (y, a) group of weight P_g, with means x_g, t_g and
covariances within the group; t_y mean text of class y; d_i, d_t sizes of the features.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mmcl_theory.data import ClassMoments

CHUNK = 8192  # rows that are read at once
_MOST_BYTES = 8 * 2**30


@dataclasses.dataclass(frozen=True)
class GroupSums:
    """Sums over the samples of each group, of features from which `image_origin` and `text_origin` are subtracted.

    Leading dimensions, such as folds, may stand before the groups. Sums over disjoint samples add up.

    Attributes:
        size: number of samples, (..., G).
        image: sum of x, (..., G, d_i).
        text: sum of t, (..., G, d_t).
        image_image: sum of x x^T, (..., G, d_i, d_i).
        image_text: sum of x t^T, (..., G, d_i, d_t).
        text_text: sum of t t^T, (..., G, d_t, d_t).
        image_origin: what is subtracted from x, (d_i,).
        text_origin: what is subtracted from t, (d_t,).

    Example:
        The covariance of images and texts in each of two groups:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> image, text = np.array([[1.0], [3.0], [8.0], [9.0]]), np.array([[0.0], [2.0], [5.0], [7.0]])
        >>> sums = mt.features.group_sums(image, text, cell=np.array([0, 0, 1, 1]), cells=2)
        >>> means = [x[:, 0] / sums.size for x in (sums.image, sums.text)]
        >>> print((sums.image_text[:, 0, 0] / sums.size - means[0] * means[1]).round(3))
        [1.  0.5]
    """

    size: np.ndarray  # (..., G)
    image: np.ndarray  # (..., G, d_i)
    text: np.ndarray  # (..., G, d_t)
    image_image: np.ndarray  # (..., G, d_i, d_i)
    image_text: np.ndarray  # (..., G, d_i, d_t)
    text_text: np.ndarray  # (..., G, d_t, d_t)
    image_origin: np.ndarray  # (d_i,)
    text_origin: np.ndarray  # (d_t,)

    def by_fold(self, m: int) -> "GroupSums":
        """Sums over m folds of groups, folds slowest, with an axis for each: (M, G, ...)."""
        return self._map(lambda x: x.reshape(m, -1, *x.shape[1:]))

    def minus(self, folds: "GroupSums", fold: int) -> "GroupSums":
        """These sums without those of one fold; the first dimension of `folds` is the folds."""
        return self._map(lambda x, y: x - y[fold], folds)

    def fold(self, fold: int) -> "GroupSums":
        """The sums of one fold; the first dimension is the folds."""
        return self._map(lambda x: x[fold])

    def total(self) -> "GroupSums":
        """The sums over all folds; the first dimension is the folds."""
        return self._map(lambda x: x.sum(0))

    def within(self) -> list[np.ndarray]:
        """The covariances Cov(x), Cov(x, t) and Cov(t) in each group."""
        x, t = self.image / self.size[..., None], self.text / self.size[..., None]
        products = (self.image_image, x, x), (self.image_text, x, t), (self.text_text, t, t)
        return [s / self.size[..., None, None] - p[..., :, None] * q[..., None, :] for s, p, q in products]

    def _map(self, f: Callable[..., np.ndarray], *others: "GroupSums") -> "GroupSums":
        names = [field.name for field in dataclasses.fields(self) if not field.name.endswith("origin")]
        changed = {name: f(*(getattr(sums, name) for sums in (self, *others))) for name in names}
        return dataclasses.replace(self, **changed)


@dataclasses.dataclass(frozen=True)
class Policy:
    """A change of the training set, relative to the features as they are.

    Captions name the attribute of an image with probability `attribute`, and independently every other detail of it
    with probability `detail`. What they leave out is replaced by its mean. With b and h Bernoulli variables of these
    probabilities, the text of a sample (x, t) of group (y, a) becomes

        t' = t_y + b (t_g - t_y) + h (t - t_g)

    Example:
        The weights of two classes, 90 to 10 and 30 to 70, when small groups count four times:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> policy = mt.features.Policy(minority=4.0)
        >>> print(policy.weights(np.array([90.0, 10.0, 30.0, 70.0]), np.array([0, 0, 1, 1])).round(3))
        [0.36 0.16 0.2  0.28]

    Attributes:
        attribute: in [0, 1]; 1: as the captions are.
        detail: in [0, 1]; 0: captions tell no more than the class and, if they name it, the attribute.
        minority: factor >= 0 by which the weight of every group is multiplied that has less than an equal part of its
            class, up to that part: as if there were so many times its samples, but with the moments of those there are.
    """

    attribute: float = 1.0
    detail: float = 1.0
    minority: float = 1.0

    def __post_init__(self) -> None:
        for name in ("attribute", "detail"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}.")
        if not (self.minority >= 0 and np.isfinite(self.minority)):
            raise ValueError(f"minority must be finite and >= 0, got {self.minority}.")

    def weights(self, size: Float[np.ndarray, " g"], classes: Int[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
        """The weights P_g of the groups in training, of sum 1. size: numbers of samples n_g."""
        size = np.asarray(size, float)
        member = classes[:, None] == classes[None, :]
        part = (member @ size) / member.sum(1)  # an equal part of the own class
        grown = np.where(size < part, np.minimum(size * self.minority, np.maximum(part, size)), size)
        return grown / grown.sum()


AS_IT_IS = Policy()


def group_sums(
    image: np.ndarray, text: np.ndarray, cell: Int[np.ndarray, " n"], cells: int, dtype: type = np.float64
) -> GroupSums:
    """The sums over the samples of each cell, in one pass over arrays of any size, such as memory-mapped files.

    The cost is O(n (d_i + d_t)^2), the memory O(cells (d_i + d_t)^2). The origins are the means of the first samples.

    Args:
        image: image features, one sample a row, (n, d_i).
        text: text features of the same samples, (n, d_t).
        cell: what each sample is counted in, in 0..cells-1: its group, or its fold and group.
        cells: number of cells.
        dtype: of the products; sums over chunks are float64. float32 takes half the time.

    Returns:
        The sums, with leading dimensions (cells,).

    Raises:
        ValueError: for values that are not finite, or more than 8 GiB of sums.

    Example:
        The mean image of each of two groups:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> image, text, group = np.array([[1.0], [3.0], [8.0]]), np.array([[0.0], [2.0], [5.0]]), np.array([0, 0, 1])
        >>> sums = mt.features.group_sums(image, text, group, cells=2)
        >>> print((sums.image / sums.size[:, None] + sums.image_origin).tolist())
        [[2.0], [8.0]]
    """
    di, dt = image.shape[1], text.shape[1]
    if (needed := 8 * cells * (di * di + di * dt + dt * dt)) > _MOST_BYTES:
        raise ValueError(
            f"{cells} groups and folds of {di} and {dt} features need {needed / 2**30:.3g} GiB of moments, more than"
            f" {_MOST_BYTES / 2**30:g}; use fewer components or folds."
        )
    first = [np.asarray(x[:CHUNK], np.float64) for x in (image, text)]
    origins = [np.where(np.isfinite(x), x, 0.0).mean(0) for x in first]
    size = np.bincount(cell, minlength=cells).astype(float)
    sums = [np.zeros((cells, d)) for d in (di, dt)]
    products = [np.zeros((cells, a, b)) for a, b in ((di, di), (di, dt), (dt, dt))]
    chunk = max(CHUNK, 64 * cells)  # each update of a cell costs O(d^2), however few its rows
    for start in range(0, len(cell), chunk):
        here = cell[start : start + chunk]
        order = np.argsort(here, kind="stable")
        rows = []
        for name, features, origin in zip(("image", "text"), (image, text), origins, strict=True):
            values = (np.asarray(features[start : start + chunk], np.float64) - origin)[order]
            if not np.isfinite(values).all():
                row = start + int(order[np.argwhere(~np.isfinite(values))[0][0]])
                raise ValueError(f"{name} features must be finite, got another value in row {row}.")
            rows.append(values)
        ends = np.searchsorted(here[order], np.arange(cells + 1))
        x, t = (values.astype(dtype) for values in rows)
        for c in np.unique(here):
            part = slice(ends[c], ends[c + 1])
            for mean_sum, values in zip(sums, rows, strict=True):
                mean_sum[c] += values[part].sum(0)
            for product, left, right in zip(products, (x, x, t), (x, t, t), strict=True):
                with np.errstate(over="ignore", invalid="ignore"):  # `diagnose` refuses what overflows
                    product[c] += left[part].T @ right[part]
    return GroupSums(size, *sums, *products, *origins)


def policy_moments(sums: GroupSums, classes: Int[np.ndarray, " g"], policy: Policy = AS_IT_IS) -> ClassMoments:
    """Moments of the training set that a policy makes, in each class, with the origins subtracted.

    In group g of class y, with t_g, t_y the mean texts as they are (t_y at the weights as they are):

        E[t']      = t_y + b (t_g - t_y)
        Cov(x, t') = h Cov(x, t)
        Cov(t')    = h Cov(t) + b (1 - b) (t_g - t_y) (t_g - t_y)^T

    with b the rate `attribute` and h the rate `detail`. They follow from the independence of both mentions.

    Args:
        sums: the sums over the groups, (G, ...), every group with samples.
        classes: y, the class of each group.
        policy: the change of the training set.

    Returns:
        The moments; `z` is the image and `u` the text, of their own sizes.

    Example:
        Captions that mention half of the details keep half of their covariance with the images of a class:

        >>> import numpy as np
        >>> import mmcl_theory as mt
        >>> image, text = np.array([[1.0], [3.0], [8.0], [9.0]]), np.array([[0.0], [2.0], [5.0], [7.0]])
        >>> classes = np.array([0, 1])
        >>> sums = mt.features.group_sums(image, text, cell=np.array([0, 0, 1, 1]), cells=2)
        >>> for detail in (1.0, 0.5):
        ...     mom = mt.features.policy_moments(sums, classes, mt.features.Policy(detail=detail))
        ...     print([f"{value:.2f}" for value in mom.zu.ravel()])
        ['1.00', '0.50']
        ['0.50', '0.25']

    Source: docs/theory.md X14.
    """
    size = sums.size
    x, t = sums.image / size[:, None], sums.text / size[:, None]
    xx, xt, tt = sums.within()
    own = np.eye(classes.max() + 1)[classes]  # (G, K)
    t_class = (own * size[:, None]).T @ t / (own.T @ size)[:, None]
    difference = t - t_class[classes]
    b, h = policy.attribute, policy.detail
    t = t_class[classes] + b * difference
    xt = h * xt
    tt = h * tt + b * (1 - b) * difference[:, :, None] * difference[:, None, :]
    weight = policy.weights(size, classes)
    total = own.T @ weight
    share = own.T * weight / total[:, None]  # (K, G)
    x_class, t_class = share @ x, share @ t
    x, t = x - x_class[classes], t - t_class[classes]

    def within(covariance: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.einsum("kg,gij->kij", share, covariance + left[:, :, None] * right[:, None, :])

    moments = (total, x_class, t_class, within(xx, x, x), within(xt, x, t), within(tt, t, t))
    return ClassMoments(*map(jnp.asarray, moments))
