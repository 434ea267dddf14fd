"""How a claim is judged: a prediction against a measurement, and wrong predictions that the comparison must reject.

A comparison maps a prediction to a `Gap`. `judge` applies one comparison to the right prediction and to every wrong
one; `refute` to a claim as first stated and to what holds instead.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import numpy as np
import scipy.stats
import sympy

FALSE_ALARM = 1e-6  # family-wise, over all entries of a comparison of means
HOLDS, FAILS, REFUTED = "holds", "fails", "refuted as stated"


@dataclasses.dataclass(frozen=True)
class Gap:
    """The entry that disagrees most: prediction, measurement, its standard error (None if exact), z and its limit.

    allowed: error of the prediction (of a limit, say), subtracted from the difference before z.
    """

    predicted: float
    measured: float
    se: float | None
    z: float
    limit: float
    allowed: float = 0.0

    @property
    def holds(self) -> bool:
        return self.z <= self.limit  # False for NaN

    @property
    def excess(self) -> float:
        """z over its limit; without a limit (algebra) 0 or infinity; NaN if z is."""
        if self.limit == 0 and not math.isnan(self.z):
            return 0.0 if self.holds else math.inf
        return self.z / self.limit


Comparison = Callable[[Any], Gap]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the ledger.

    wrong: each wrong theory and its z over the comparison's limit; above 1 it was rejected, and NaN rejects nothing.
    label, check: the statement, and the name of the function that judged it.
    A row is `good` if its verdict is not "fails", at least one wrong theory was tried, and every one was rejected.
    """

    claim: str
    gap: Gap
    verdict: str
    wrong: tuple[tuple[str, float], ...]
    label: str = ""
    check: str = ""
    seconds: float = math.nan

    @property
    def rejected(self) -> list[str]:
        return [name for name, excess in self.wrong if excess > 1]

    @property
    def missed(self) -> list[str]:
        return [name for name, excess in self.wrong if not excess > 1]

    @property
    def good(self) -> bool:
        return self.verdict != FAILS and bool(self.wrong) and not self.missed


def judge(claim: str, compare: Comparison, right: Any, wrong: Mapping[str, Any]) -> Row:
    """The claim holds iff its prediction passes; the predictions of `wrong` must not pass."""
    gap = compare(right)
    return Row(claim, gap, HOLDS if gap.holds else FAILS, tuple((name, compare(w).excess) for name, w in wrong.items()))


def refute(claim: str, compare: Comparison, stated: Any, right: Any) -> Row:
    """The claim as stated fails, and `right` passes instead; the row shows the gap of the claim as stated."""
    gap = compare(stated)
    refuted = gap.excess > 1 and compare(right).holds
    return Row(claim, gap, REFUTED if refuted else FAILS, (("as stated", gap.excess),))


def mean(samples: Any, bias: float = 0.0) -> Comparison:
    """E[samples] = prediction, by entry: |mean - prediction| / se, at FALSE_ALARM over all entries (t, Bonferroni).

    samples: (runs, ...).
    bias: allowed error of the prediction (of a limit, say), subtracted from the difference. It must be known, derived
    or measured, and so small that the row rejects `off`, or an error of .03 to .05 in p_spu.
    """
    x = np.asarray(samples, np.float64)
    x = x.reshape(len(x), -1)
    if not np.isfinite(x).all():
        raise ValueError("samples must be finite.")
    average, se = x.mean(0), x.std(0, ddof=1) / len(x) ** 0.5
    limit = float(scipy.stats.t.isf(FALSE_ALARM / (2 * x.shape[1]), len(x) - 1))

    return _by_entry(average, se, np.maximum(se, 1e-13), limit, bias)


def estimate(value: Any, se: Any, bias: float = 0.0) -> Comparison:
    """As `mean`, for Gaussian estimates with known standard errors: E[value] = prediction, by entry."""
    average, error = (np.asarray(x, np.float64).reshape(-1) for x in (value, se))
    limit = float(scipy.stats.norm.isf(FALSE_ALARM / (2 * average.size)))

    return _by_entry(average, error, error, limit, bias)


def _by_entry(average: np.ndarray, se: np.ndarray, unit: np.ndarray, limit: float, bias: float) -> Comparison:
    """The entry with the largest (|average - prediction| - `bias`) / `unit`; NaN counts as the largest."""

    def compare(prediction: Any) -> Gap:
        expected = np.broadcast_to(np.asarray(prediction, np.float64).reshape(-1), average.shape)
        z = np.maximum(np.abs(average - expected) - bias, 0) / unit
        i = int(np.argmax(np.where(np.isnan(z), np.inf, z)))
        return Gap(float(expected[i]), float(average[i]), float(se[i]), float(z[i]), limit, bias)

    return compare


def close(measured: Any, tolerance: float) -> Comparison:
    """|measured - prediction| <= tolerance (1 + |measured|) in every entry; z in units of that."""
    x = np.asarray(measured, np.float64).reshape(-1)

    def compare(prediction: Any) -> Gap:
        expected = np.broadcast_to(np.asarray(prediction, np.float64).reshape(-1), x.shape)
        z = np.abs(x - expected) / (tolerance * (1 + np.abs(x)))
        i = int(np.argmax(np.where(np.isnan(z), np.inf, z)))
        return Gap(float(expected[i]), float(x[i]), None, float(z[i]), 1.0)

    return compare


def off(right: Any, reference: Any = 0.0) -> np.ndarray:
    """A wrong prediction whose distance from `reference` is 8% too large."""
    right = np.asarray(right, np.float64)
    return right + 0.08 * (right - np.asarray(reference, np.float64))


def below(samples: Any) -> Comparison:
    """E[samples] <= prediction, one-sided: fails only if the mean is significantly larger, at FALSE_ALARM."""
    x = np.asarray(samples, np.float64).reshape(-1)
    average, se = float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5)

    def compare(prediction: Any) -> Gap:
        z = (average - float(prediction)) / se
        return Gap(float(prediction), average, se, z, float(scipy.stats.t.isf(FALSE_ALARM, len(x) - 1)))

    return compare


def algebra(derived: Any) -> Comparison:
    """derived = prediction as SymPy expressions or matrices, for all values of the symbols; counts entries that differ.

    An entry agrees if the difference simplifies to 0.
    """
    left = sympy.Matrix([derived]) if not isinstance(derived, sympy.MatrixBase) else derived

    def compare(prediction: Any) -> Gap:
        right = sympy.Matrix([prediction]) if not isinstance(prediction, sympy.MatrixBase) else prediction
        different = sum(not _vanishes(entry) for entry in left - right)
        return Gap(0.0, float(different), None, float(different), 0.0)

    return compare


def _vanishes(entry: sympy.Expr) -> bool:
    expanded = sympy.expand(entry)
    return expanded == 0 or sympy.simplify(sympy.together(expanded)) == 0


def contained(interval: Any) -> Comparison:
    """The prediction, a decimal as text, is the rigorous interval rounded to its digits; z in half units of the last.

    interval: an mpmath interval known to hold the true value.
    """
    low, high = mpmath.mpf(interval.a), mpmath.mpf(interval.b)

    def compare(prediction: str) -> Gap:
        unit = mpmath.mpf(10) ** -len(prediction.split(".")[1])
        stated = mpmath.mpf(prediction)
        z = max(abs(low - stated), abs(high - stated)) / (unit / 2)
        return Gap(float(stated), float((low + high) / 2), float(high - low), float(z), 1.0)

    return compare


def rate(sizes: Any, gaps: Any, errors: Any = None) -> Comparison:
    """gap ~ size^prediction: exponent by weighted least squares on log |gap|, within 4 standard errors + .1.

    errors: standard errors of the independent gaps; None if the gaps are exact, which must be within .3. The allowed
    error is for the next order, which the fit leaves out.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.abs(np.asarray(gaps, float)))
    relative = np.ones(len(x)) if errors is None else np.abs(np.asarray(errors) / np.asarray(gaps))
    weight = relative**-2.0
    center = (weight * x).sum() / weight.sum()
    spread = (weight * (x - center) ** 2).sum()
    exponent, se = float((weight * (x - center) * y).sum() / spread), float(spread**-0.5)

    def compare(prediction: float) -> Gap:
        if errors is None:
            return Gap(prediction, exponent, None, abs(exponent - prediction) / 0.3, 1.0)
        z = max(abs(exponent - prediction) - 0.1, 0.0) / se
        return Gap(prediction, exponent, se, z, 4.0, 0.1)

    return compare


def approach(sizes: Any, samples: Sequence[Any]) -> Comparison:
    """E[samples at size] - limit ~ size^exponent, as `rate` judges it; the prediction is (exponent, limit).

    samples: independent draws (runs,) at each size. A wrong limit leaves a gap that does not shrink.
    """
    average, se = means([np.asarray(x, np.float64) for x in samples])

    def compare(prediction: tuple[float, float]) -> Gap:
        exponent, limit = prediction
        return rate(sizes, average - limit, se)(exponent)

    return compare


def means(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means of the draws (runs, ...) at each size, and their standard errors."""
    return np.array([x.mean(0) for x in samples]), np.array([x.std(0, ddof=1) / len(x) ** 0.5 for x in samples])


def intercept(sizes: Any, average: np.ndarray, se: np.ndarray, powers: Sequence[float]) -> tuple[float, float]:
    """The constant of a weighted least-squares fit of a constant and n^power to the means, and its standard error."""
    design = np.stack([np.array(sizes) ** power for power in (0.0, *powers)], -1) / se[:, None]
    covariance = np.linalg.inv(design.T @ design)
    return float((covariance @ design.T @ (average / se))[0]), float(covariance[0, 0] ** 0.5)


def same_law(samples: Any) -> Comparison:
    """The prediction, other samples, has the law of `samples` in every coordinate: Kolmogorov-Smirnov, at FALSE_ALARM.

    samples: (runs, k).  z is the statistic times sqrt(n m / (n + m)), its limit the Kolmogorov quantile (Bonferroni;
    that of many runs, and conservative for atoms). Shown are the means of the worst coordinate.
    """
    x = np.asarray(samples, np.float64)
    limit = float(scipy.stats.kstwobign.isf(FALSE_ALARM / x.shape[1]))

    def compare(prediction: Any) -> Gap:
        y = np.asarray(prediction, np.float64)
        scale = (len(x) * len(y) / (len(x) + len(y))) ** 0.5
        z = [scale * scipy.stats.ks_2samp(a, b, method="asymp").statistic for a, b in zip(x.T, y.T, strict=True)]
        i = int(np.argmax(z))
        return Gap(float(y[:, i].mean()), float(x[:, i].mean()), None, float(z[i]), limit)

    return compare
