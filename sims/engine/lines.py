"""ID-OOD lines: accuracy under shift against accuracy in distribution over a family of runs, and arms at matched ID.

x: ID accuracy.  y: OOD accuracy, or anything else that is read at matched ID, such as a group's accuracy or a gap.
g: probit, logit or plain (the number itself).  An arm is a family of points (x, y): widths, data sizes or times of
training, of one seed or several. It is read at an ID accuracy in one of two ways:
  line   g(y) = slope g(x) + intercept, by least squares over all its points;
  curve  straight pieces on the axes of g between points in the order of their x, a curve for each seed; its mean.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

_Function = Callable[[Any], Any]
TRANSFORMS: dict[str, tuple[_Function, _Function]] = {
    "logit": (scipy.special.logit, scipy.special.expit),
    "probit": (scipy.special.ndtri, scipy.special.ndtr),
    "plain": (np.asarray, np.asarray),
}
READINGS = ("line", "curve")
_LEAST_POINTS = 4  # with three, every draw that has a line is the same


@dataclasses.dataclass(frozen=True)
class Line:
    """g(y) = slope g(x) + intercept; transform names g."""

    slope: float
    intercept: float
    transform: str = "logit"

    def at(self, accuracy: Any) -> np.ndarray:
        """The line's y at an ID accuracy.  In logit and probit x is in [0, 1]; at its ends y is the limit.

        In plain x is any finite number, and y may leave [0, 1].
        Raises: ValueError for any other x, NaN included.
        """
        forward, back = _transform(self.transform)
        x = np.asarray(accuracy, float)
        if self.transform == "plain":
            x = _transformed("accuracy", x, "plain")
        elif not ((x >= 0) & (x <= 1)).all():
            raise ValueError(f"accuracy must be in [0, 1], got {accuracy}.")
        return back(self.slope * forward(x) + self.intercept)


def inside(correct: Any, images: Any) -> np.ndarray:
    """The share correct / images, where 0 and 1 are moved inwards by half an image, so that g is finite.

    For fits and axes only. images: > 0.
    Raises: ValueError for counts that are not 0 <= correct <= images.
    """
    k, n = np.asarray(correct, float), np.asarray(images, float)
    if not ((n > 0) & (0 <= k) & (k <= n)).all():
        raise ValueError(f"needs 0 <= correct <= images and images > 0, got {correct} of {images}.")
    return np.clip(k, 0.5, n - 0.5) / n


def fit_line(acc_id: Any, acc_ood: Any, transform: str = "logit") -> Line:
    """The least-squares line of g(acc_ood) on g(acc_id).

    Raises: ValueError for an accuracy that is not inside (0, 1) in logit or probit (see `inside`) or not finite in
    plain, or fewer than two different ID accuracies.
    """
    x, y = (_transformed(name, a, transform) for name, a in (("acc_id", acc_id), ("acc_ood", acc_ood)))
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"needs one ID and one OOD accuracy a point, got shapes {x.shape} and {y.shape}.")
    if len(np.unique(x)) < 2:
        raise ValueError("a line needs points of two different ID accuracies or more.")
    slope, intercept = _fit(x[None], y[None], np.ones((1, len(x))))
    return Line(float(slope[0]), float(intercept[0]), transform)


def bootstrap_band(
    acc_id: Any,
    acc_ood: Any,
    transform: str,
    at: Any,
    rng: np.random.Generator,
    *,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) ends of a band around the fitted line at the ID accuracies `at`, by bootstrap over points.

    The ends are percentiles (1 - level)/2 and (1 + level)/2 of `draws` lines, each fitted to points drawn with
    replacement. A draw whose points all share one ID accuracy has no line and is left out.
    Raises: ValueError as `fit_line`, and for fewer than three points.
    """
    x, y = (_transformed(name, a, transform) for name, a in (("acc_id", acc_id), ("acc_ood", acc_ood)))
    grid = _transformed("at", at, transform)
    fit_line(acc_id, acc_ood, transform)
    if len(x) < 3:
        raise ValueError(f"a bootstrap band needs three points or more, got {len(x)}.")
    picked = rng.integers(0, len(x), (draws, len(x)))
    picked = picked[np.ptp(x[picked], axis=1) > 0]
    slope, intercept = _fit(x[picked], y[picked], np.ones(picked.shape))
    lines = slope[:, None] * grid + intercept[:, None]
    low, high = np.quantile(lines, [(1 - level) / 2, (1 + level) / 2], axis=0)
    back = TRANSFORMS[transform][1]
    return back(low), back(high)


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """The n points of an arm, in u units that are independent: its seeds, or the points where each is a run.

    Attributes:
      acc_id, acc_ood: (n,).
      unit: (n,), in 0..u-1.
      seeds: whether the units are seeds, of which one has several points.
      id_draws, ood_draws: (draws, n), the same from redrawn test items; None: taken as exact.
    """

    acc_id: np.ndarray
    acc_ood: np.ndarray
    unit: np.ndarray
    seeds: bool
    id_draws: np.ndarray | None = None
    ood_draws: np.ndarray | None = None


def family(acc_id: Any, acc_ood: Any, seed: Any = None, *, id_draws: Any = None, ood_draws: Any = None) -> Family:
    """The family of an arm's points.

    Args:
      acc_id: (n,).
      acc_ood: (n,), or (n, sets): OOD accuracy is the mean over the sets.
      seed: (n,) labels. Points of a seed are drawn together. None: each point is a run of its own.
      id_draws: (draws, n), of `binomial_draws` or `item_draws`.
      ood_draws: (draws, n) or (draws, n, sets).

    Raises: ValueError for no points, shapes that do not match, and numbers that are not finite.
    """
    x, y = np.asarray(acc_id, float), np.asarray(acc_ood, float)
    if x.ndim != 1 or not len(x) or y.shape[:1] != x.shape or y.ndim > 2 or not y.size:
        raise ValueError(f"acc_id must be (n,) and acc_ood (n,) or (n, sets), n >= 1, got {x.shape} and {y.shape}.")
    labels = np.arange(len(x)) if seed is None else np.asarray(seed)
    if labels.shape != x.shape:
        raise ValueError(f"seed must be {x.shape}, one label a point, got {labels.shape}.")
    draws: dict[str, np.ndarray | None] = {"id_draws": None, "ood_draws": None}
    for name, given, like in (("id_draws", id_draws, x), ("ood_draws", ood_draws, y)):
        if given is not None:
            drawn = np.asarray(given, float)
            if drawn.shape[1:] != like.shape or len(drawn) < 2:
                raise ValueError(f"{name} must be (draws >= 2, {', '.join(map(str, like.shape))}), got {drawn.shape}.")
            draws[name] = _mean_over_sets(drawn, 3)
    y = _mean_over_sets(y, 2)
    for name, values in (("acc_id", x), ("acc_ood", y), *draws.items()):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite numbers, got {values[~np.isfinite(values)][0]}.")
    lengths = {len(values) for values in draws.values() if values is not None}
    if len(lengths) > 1:
        raise ValueError(f"id_draws and ood_draws must be as many, got {' and '.join(map(str, sorted(lengths)))}.")
    _, unit = np.unique(labels, return_inverse=True)
    return Family(x, y, unit, bool(np.bincount(unit).max() > 1), **draws)


def binomial_draws(correct: Any, images: Any, rng: np.random.Generator, draws: int = 1000) -> np.ndarray:
    """(draws, n) shares of images that n models classify correctly, k ~ Bin(images, correct / images); see `inside`.

    All models of an arm see the same images: a draw is the same quantile of each model's law. So this part of the
    error does not shrink with the number of models. Where models differ, it is an upper bound; `item_draws` is exact.
    Raises: ValueError for counts that are not 0 <= correct <= images.
    """
    k, n = np.asarray(correct, float), np.asarray(images, float)
    inside(k, n)
    return inside(scipy.stats.binom.ppf(rng.uniform(size=(draws, *[1] * k.ndim)), n, k / n), n)


def redraws(
    in_distribution: tuple[Any, Any], shifted: tuple[Any, Any], rng: np.random.Generator, draws: int = 1000
) -> dict[str, np.ndarray]:
    """`binomial_draws` of all sets, by the names that `family` takes them by.

    in_distribution: numbers of correct and of all images of the ID set, (n,) each.
    shifted: those of the OOD sets, (n, sets) each.
    """
    of_id = binomial_draws(*in_distribution, rng, draws)
    correct, images = (np.moveaxis(np.asarray(counts, float), -1, 0) for counts in shifted)  # (sets, n)
    of_ood = [binomial_draws(k, n, rng, draws) for k, n in zip(correct, images, strict=True)]
    return {"id_draws": of_id, "ood_draws": np.stack(of_ood, -1)}


def item_draws(right: Any, rng: np.random.Generator, draws: int = 1000) -> np.ndarray:
    """(draws, n) shares of `draws` sets of items drawn with replacement; see `inside`.

    right: (n, items), whether each model is right about each item. Two arms share the items of every draw if each is
    given a generator of the same seed.
    Raises: ValueError for another shape, and values that are not 0 or 1.
    """
    each = np.asarray(right, float)
    if each.ndim != 2 or not each.size or not np.isin(each, (0, 1)).all():
        raise ValueError(f"right must be (n, items) of 0 and 1, with an item or more, got {each.shape}.")
    items = each.shape[1]
    return inside(rng.multinomial(items, np.full(items, 1 / items), draws) @ each.T, items)


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """One or two arms at the ID accuracies `at`; all are (m,).

    Attributes:
      value: y of the arm; of two arms, the first's minus the second's.
      low, high: ends of its interval; NaN where nothing can be redrawn.
      extrapolated: whether `at` is outside the ID accuracies of the arm, or of either one; for curves, of any seed.
      each: (arms, m), y of each arm.
      covers: what the interval covers, such as "seeds" or "points, test items"; "" if there is none.
    """

    at: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    extrapolated: np.ndarray
    each: np.ndarray
    covers: str

    def to_dataframe(self) -> Any:
        """A row for each `at`, as a pandas DataFrame."""
        import pandas as pd

        names = ("value",) if len(self.each) == 1 else ("first", "second", "difference")
        values = (self.value,) if len(self.each) == 1 else (*self.each, self.value)
        table = {"at": self.at, **dict(zip(names, values, strict=True)), "low": self.low, "high": self.high}
        return pd.DataFrame({**table, "extrapolated": self.extrapolated, "covers": self.covers})


def middle(*arms: Family) -> float:
    """The middle of the ID accuracies that all arms reach; if they share none, of the gap between the arms."""
    return float(max(arm.acc_id.min() for arm in arms) + min(arm.acc_id.max() for arm in arms)) / 2


def read(arm: Family, at: Any, rng: np.random.Generator, **how: Any) -> Reading:
    """y of an arm at the ID accuracies `at`; arguments, interval and errors are those of `matched`."""
    return _read((arm,), at, rng, **how)


def matched(first: Family, second: Family, at: Any, rng: np.random.Generator, **how: Any) -> Reading:
    """y of the first arm minus that of the second, at the same ID accuracy.

    The interval is value +- t sqrt(v), v the sum of these bootstrap variances:
      * of each arm, over its units drawn with replacement, times u / (u - 1). A line through single points is drawn
        again from three different points or more; a line through seeds, from all points of the drawn seeds;
      * over test items, where draws are given. Rows of both arms' draws belong together.
    t is Student's, with Welch and Satterthwaite's degrees of freedom; an arm has u - 1, single points have u - 2.
    The arms' seeds are drawn independently. What cannot be drawn is left out: fewer than four single points on a line,
    a curve without seeds, one seed. If an arm has no part at all, the interval is NaN;
    so it is where a draw of test items leaves no line.

    Args:
      at: (m,) or a number, on the scale of acc_id.
      how: transform, "probit" by default; reading, "line" by default, or "curve", NaN where `at` is outside the ID
        accuracies of any seed; draws, 1000; level, .95.

    Raises: ValueError for an unknown transform or reading; for accuracies or `at` outside (0, 1) in logit and probit;
    for a family of one point, or of one ID accuracy; for two arms whose draws are not as many.
    """
    return _read((first, second), at, rng, **how)


def _read(
    arms: tuple[Family, ...],
    at: Any,
    rng: np.random.Generator,
    *,
    transform: str = "probit",
    reading: str = "line",
    draws: int = 1000,
    level: float = 0.95,
) -> Reading:
    if reading not in READINGS:
        raise ValueError(f"reading must be of {', '.join(READINGS)}, got {reading!r}.")
    if draws < 2 or not 0 < level < 1:
        raise ValueError(f"needs draws >= 2 and level in (0, 1), got {draws} and {level}.")
    at = np.atleast_1d(np.asarray(at, float))
    grid = _transformed("at", at, transform)
    counts = {len(d) for arm in arms for d in (arm.id_draws, arm.ood_draws) if d is not None}
    if len(counts) > 1:
        raise ValueError(f"both arms must have as many draws of items, got {' and '.join(map(str, sorted(counts)))}.")
    parts = [_parts(arm, grid, rng, transform, reading, draws) for arm in arms]
    each = np.array([part.value for part in parts])
    value = each[0] - each[1] if len(each) == 2 else each[0]
    # Rows of draws that belong together are subtracted before their variance is taken.
    items = [sign * part.items for sign, part in zip((1, -1), parts, strict=False) if part.items is not None]
    variances = [part.variance for part in parts] + ([np.var(sum(items), axis=0, ddof=1)] if items else [])
    freedom = [part.freedom for part in parts] + [np.inf] * bool(items)
    half = _half(np.array(variances), np.array(freedom, float), level)
    outside = np.any([(at < arm.acc_id.min()) | (at > arm.acc_id.max()) for arm in arms], axis=0) | np.isnan(value)
    covers = dict.fromkeys(name for part in parts for name in part.covers) if np.isfinite(half).any() else ()
    return Reading(at, value, value - half, value + half, outside, each, ", ".join(covers))


@dataclasses.dataclass(frozen=True, eq=False)
class _Parts:
    """An arm's y, (m,), its bootstrap variance over units with degrees of freedom, and y from redrawn items."""

    value: np.ndarray
    variance: np.ndarray
    freedom: float
    items: np.ndarray | None
    covers: tuple[str, ...]


def _parts(arm: Family, grid: np.ndarray, rng: np.random.Generator, transform: str, reading: str, draws: int) -> _Parts:
    fit_line(arm.acc_id, arm.acc_ood, transform)  # for its checks
    of = _lines if reading == "line" else _curves
    x, y = (_transformed(name, getattr(arm, name), transform)[None] for name in ("acc_id", "acc_ood"))
    value = of(arm, x, y, grid, transform)[0]
    items, covers = None, []
    given = {name: getattr(arm, name) for name in ("id_draws", "ood_draws")}
    if any(drawn is not None for drawn in given.values()):
        both = [
            z if drawn is None else _transformed(name, drawn, transform)
            for z, (name, drawn) in zip((x, y), given.items(), strict=True)
        ]
        x_draws, y_draws = np.broadcast_arrays(*both)
        items = of(arm, x_draws, y_draws, grid, transform)
        covers.append("test items")
    u = int(arm.unit.max()) + 1
    if u < (2 if arm.seeds else _LEAST_POINTS) or (reading == "curve" and not arm.seeds):
        return _Parts(value, np.full(grid.shape, np.nan if items is None else 0.0), np.inf, items, tuple(covers))
    redrawn = of(arm, x, y, grid, transform, times=rng.multinomial(u, np.full(u, 1 / u), draws))
    variance = redrawn.var(0, ddof=1) * u / (u - 1)
    covers.insert(0, "seeds" if arm.seeds else "points")
    return _Parts(value, variance, u - 1 if arm.seeds else u - 2, items, tuple(covers))


def _lines(
    arm: Family, x: np.ndarray, y: np.ndarray, grid: np.ndarray, transform: str, times: np.ndarray | None = None
) -> np.ndarray:
    """(rows, m), y on the line through each row's points.  x, y: (rows, n).

    times: (draws, u), how often a unit is drawn; then a row for each draw that has a line.
    """
    weights = np.ones(x.shape) if times is None else times[:, arm.unit].astype(float)
    if times is not None:
        drawn = weights > 0
        good = np.where(drawn, x, -np.inf).max(1) > np.where(drawn, x, np.inf).min(1)
        weights = weights[good & (arm.seeds | ((times > 0).sum(1) >= 3))]
    with np.errstate(invalid="ignore", divide="ignore"):  # redrawn items may give all points one x
        slope, intercept = _fit(x, y, weights)
    return TRANSFORMS[transform][1](slope[:, None] * grid + intercept[:, None])


def _curves(
    arm: Family, x: np.ndarray, y: np.ndarray, grid: np.ndarray, transform: str, times: np.ndarray | None = None
) -> np.ndarray:
    """As `_lines`, of the mean of the seeds' curves; points of one x count as their mean on the axes of g."""
    unit = arm.unit if arm.seeds else np.zeros_like(arm.unit)
    curves = np.empty((int(unit.max()) + 1, len(x), len(grid)))
    for k, i in np.ndindex(curves.shape[:2]):
        at, place = np.unique(x[i, unit == k], return_inverse=True)
        mean = np.bincount(place, y[i, unit == k]) / np.bincount(place)
        curves[k, i] = TRANSFORMS[transform][1](np.interp(grid, at, mean, left=np.nan, right=np.nan))
    return curves.mean(0) if times is None else times @ curves[:, 0] / len(curves)


def _half(variances: np.ndarray, freedom: np.ndarray, level: float) -> np.ndarray:
    """t sqrt(sum of variances), (parts, m), with Welch and Satterthwaite's degrees of freedom."""
    whole = variances.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = whole**2 / (variances**2 / freedom[:, None]).sum(0)
    t = scipy.stats.t.ppf((1 + level) / 2, np.where(whole > 0, effective, np.inf))
    return t * np.sqrt(whole)


def _fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(slopes, intercepts) of weighted least squares, a line for each row."""
    weights = weights / weights.sum(1, keepdims=True)
    middle = (weights * x).sum(1, keepdims=True)
    dx = weights * (x - middle)
    slope = (dx * y).sum(1) / (dx * (x - middle)).sum(1)
    return slope, (weights * y).sum(1) - slope * middle[:, 0]


def _mean_over_sets(values: np.ndarray, ndim: int) -> np.ndarray:
    return values.mean(-1) if values.ndim == ndim else values


def _transform(name: str) -> tuple[_Function, _Function]:
    if name not in TRANSFORMS:
        raise ValueError(f"transform must be of {', '.join(TRANSFORMS)}, got {name!r}.")
    return TRANSFORMS[name]


def _transformed(name: str, values: Any, transform: str) -> np.ndarray:
    forward, _ = _transform(transform)
    accuracy = np.asarray(values, float)
    if transform == "plain":
        if not np.isfinite(accuracy).all():
            raise ValueError(f"{name} must be finite numbers, got {values}.")
    elif not ((accuracy > 0) & (accuracy < 1)).all():
        raise ValueError(f"{name} must be inside (0, 1), where {transform} is finite, got {values}.")
    return forward(accuracy)
