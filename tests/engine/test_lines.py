"""ID-OOD lines: fits, arms at matched ID accuracy, and the coverage of their intervals."""

import numpy as np
import pytest
import scipy.stats

from sims.engine import lines
from sims.engine.lines import Line, bootstrap_band, family, fit_line, matched, read

MODELS = np.array([0.2, 0.35, 0.5, 0.55, 0.7]), np.array([0.1, 0.3, 0.35, 0.5, 0.6])
G = {"logit": lambda p: np.log(p / (1 - p)), "probit": scipy.stats.norm.ppf, "plain": lambda p: p}


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("transform", lines.TRANSFORMS)
def test_a_fitted_line_is_numpys(transform):
    g = G[transform]
    line = fit_line(*MODELS, transform)
    expected = np.polyfit(g(MODELS[0]), g(MODELS[1]), 1)
    np.testing.assert_allclose([line.slope, line.intercept], expected)
    assert line.transform == transform
    exact = Line(0.8, -0.05, transform)
    found = fit_line(MODELS[0], exact.at(MODELS[0]), transform)
    np.testing.assert_allclose([found.slope, found.intercept], [0.8, -0.05])
    np.testing.assert_allclose(read(family(*MODELS), MODELS[0], rng(), transform=transform).value, line.at(MODELS[0]))


def test_the_band_is_of_lines_through_drawn_points():
    """By a loop over the same draws, and exact where all points are on the line."""
    at = np.array([0.25, 0.6])
    drawn, found = np.random.default_rng(3), []
    g, back = lines.TRANSFORMS["logit"]
    for picked in drawn.integers(0, 5, (200, 5)):
        if len(set(picked)) > 1:
            found.append(np.polyval(np.polyfit(g(MODELS[0][picked]), g(MODELS[1][picked]), 1), g(at)))
    expected = back(np.quantile(found, [0.05, 0.95], axis=0))
    band = bootstrap_band(*MODELS, "logit", at, np.random.default_rng(3), draws=200, level=0.9)
    np.testing.assert_allclose(band, expected)
    wider = bootstrap_band(*MODELS, "logit", at, np.random.default_rng(3), draws=200, level=0.99)
    assert (wider[0] < band[0]).all() and (wider[1] > band[1]).all()
    line = Line(0.9232, -0.4977)
    exact = bootstrap_band(MODELS[0], line.at(MODELS[0]), "logit", at, rng())
    np.testing.assert_allclose(exact, [line.at(at)] * 2)


def test_a_curve_is_straight_between_points_in_the_order_of_their_ids():
    """Points of one ID count as their mean; outside the points there is no curve."""
    arm = family([0.6, 0.2, 0.4, 0.4], [0.5, 0.1, 0.2, 0.4])
    found = read(arm, [0.2, 0.3, 0.55, 0.61], rng(), transform="plain", reading="curve")
    np.testing.assert_allclose(found.value, [0.1, 0.2, 0.45, np.nan])
    np.testing.assert_array_equal(found.extrapolated, [False, False, False, True])
    straight = read(arm, 0.5, rng(), reading="curve").value  # on the axes of probit
    share = (G["probit"](0.5) - G["probit"](0.4)) / (G["probit"](0.6) - G["probit"](0.4))
    expected = (1 - share) * (G["probit"](0.2) + G["probit"](0.4)) / 2 + share * G["probit"](0.5)
    np.testing.assert_allclose(G["probit"](straight), expected)


def curves(seeds, scale=0.02):
    """(x, y, seed) of three points a seed, whose curves at x = .5 are independent normal numbers."""
    level = np.random.default_rng(seeds).normal(0.3, scale, seeds)
    x = np.tile([0.2, 0.6, 0.8], seeds)
    return x, np.repeat(level, 3) + 0.4 * (x - 0.5), np.repeat(np.arange(seeds), 3)


def test_over_seeds_it_is_students_and_welchs_interval():
    """The mean over seeds of each seed's curve; twins: without the factor u / (u - 1), with the normal quantile."""
    first, second = family(*curves(5)), family(*curves(4, 0.1))
    how = {"transform": "plain", "reading": "curve", "draws": 40_000}
    found = read(first, 0.5, rng(), **how)
    values = curves(5)[1].reshape(5, 3) @ [0.25, 0.75, 0.0]
    known = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose([found.low[0], found.high[0]], known, atol=0.02 * np.diff(known)[0])
    assert found.covers == "seeds" and found.value[0] == pytest.approx(values.mean())
    for short in (0.8**0.5, 1.96 / scipy.stats.t.ppf(0.975, 4)):
        assert abs(short - 1) > 0.05
    both = matched(second, first, 0.5, rng(), **how)
    others = curves(4, 0.1)[1].reshape(4, 3) @ [0.25, 0.75, 0.0]
    known = scipy.stats.ttest_ind(others, values, equal_var=False).confidence_interval()
    np.testing.assert_allclose([both.low[0], both.high[0]], known, atol=0.02 * np.diff(known)[0])
    pooled = scipy.stats.ttest_ind(others, values).confidence_interval()
    assert abs(np.diff(pooled) / np.diff(known) - 1) > 0.1


@pytest.mark.parametrize("seed", [None, [0, 0, 1, 1, 2]])
def test_the_interval_is_of_lines_through_drawn_units(seed):
    """By a loop over the same draws, with NumPy's fit."""
    x, y = MODELS
    label = np.arange(5) if seed is None else np.array(seed)
    u, at = label.max() + 1, 0.45
    found = []
    for times in np.random.default_rng(7).multinomial(u, np.full(u, 1 / u), 300):
        picked = np.repeat(np.arange(5), times[label])
        if len(set(x[picked])) > 1 and (seed is not None or (times > 0).sum() > 2):
            fit = np.polyfit(G["probit"](x[picked]), G["probit"](y[picked]), 1)
            found.append(scipy.stats.norm.cdf(np.polyval(fit, G["probit"](at))))
    half = np.std(found, ddof=1) * (u / (u - 1)) ** 0.5 * scipy.stats.t.ppf(0.975, u - 2 if seed is None else u - 1)
    one = read(family(x, y, seed), at, np.random.default_rng(7), draws=300)
    np.testing.assert_allclose([one.value - one.low, one.high - one.value], half)
    assert one.covers == ("points" if seed is None else "seeds")


def covered(factor, found, truth):
    half = factor * (found.high - found.value)
    return bool(abs(found.value - truth)[0] <= half[0])


def check_coverage(count, of, least=0.95, most=0.98):
    """The binomial test of least <= P(covered) <= most: a true claim fails w.p. 2e-6."""
    low, high = scipy.stats.binom.ppf(1e-6, of, least), scipy.stats.binom.isf(1e-6, of, most)
    assert low <= count <= high, f"covers {count} of {of}, not {low:g} to {high:g}"


def points(drawn, n, slope, intercept):
    x = drawn.uniform(-1, 1, n)
    return scipy.stats.norm.cdf(np.stack([x, slope * x + intercept + 0.1 * drawn.normal(size=n)])), None


def seeds(drawn, n, slope, intercept, widths=4):
    x = np.tile(np.linspace(-1, 1, widths), n)
    effect = np.repeat(0.1 * drawn.normal(size=n), widths)
    y = slope * x + intercept + effect + 0.05 * drawn.normal(size=widths * n)
    return scipy.stats.norm.cdf(np.stack([x, y])), np.repeat(np.arange(n), widths)


@pytest.mark.costly
@pytest.mark.parametrize(("draw", "n"), [(points, 12), (seeds, 5)])
def test_an_interval_covers_the_true_difference(draw, n):
    """Of arms on lines that differ; twins: half and double the width."""
    drawn, of, at = np.random.default_rng(1), 2000, 0.6
    g = G["probit"](at)
    truth = np.diff(scipy.stats.norm.cdf([0.7 * g - 0.8, 0.9 * g - 0.5]))[0]
    counts = np.zeros(3)
    for _ in range(of):
        (a, seed), (b, other) = draw(drawn, n, 0.9, -0.5), draw(drawn, n, 0.7, -0.8)
        found = matched(family(*a, seed), family(*b, other), at, drawn, draws=200)
        counts += [covered(factor, found, truth) for factor in (1, 0.5, 2)]
    check_coverage(counts[0], of)
    for wrong in counts[1:]:
        with pytest.raises(AssertionError, match="covers"):
            check_coverage(wrong, of)


@pytest.mark.costly
def test_an_interval_covers_seeds_and_the_images_that_they_share():
    """Twin: the images are taken for the whole law."""
    drawn, of, images = np.random.default_rng(2), 1000, 400
    counts = np.zeros(2)
    for _ in range(of):
        (x, y), seed = seeds(drawn, 5, 0.9, -0.5, 2)
        middle = scipy.stats.norm.cdf(0.9 * G["probit"](x) - 0.5)
        y = y + np.sqrt(middle * (1 - middle) / images) * drawn.normal()
        right = np.round(y * images)
        for i, items in enumerate((lines.binomial_draws(right, images, drawn, 100), None)):
            found = read(family(x, right / images, seed, ood_draws=items), 0.6, drawn, draws=100)
            counts[i] += covered(1, found, scipy.stats.norm.cdf(0.9 * G["probit"](0.6) - 0.5))
    check_coverage(counts[0], of)
    with pytest.raises(AssertionError, match="covers"):
        check_coverage(counts[1], of)


def test_two_arms_share_the_items_that_are_redrawn():
    """The variance of a difference over the same items is that of the items' differences; twin: drawn apart."""
    drawn, items = np.random.default_rng(4), 200
    skill = drawn.normal(size=items)  # of an item, which both arms share
    right = [skill + 0.3 * drawn.normal(size=(2, items)) > level for level in (0.0, 0.5)]
    x = [0.4, 0.6]

    def half(*generators):
        arms = [
            family(x, r.mean(1), ood_draws=lines.item_draws(r, g, 4000)) for r, g in zip(right, generators, strict=True)
        ]
        found = matched(*arms, 0.5, rng(), transform="plain", reading="curve")
        assert found.covers == "test items"
        return (found.high - found.value)[0]

    exact = 1.959964 * (right[0].mean(0) - right[1].mean(0)).std() / items**0.5
    assert half(rng(), rng()) == pytest.approx(exact, rel=0.07)
    assert half(rng(), np.random.default_rng(5)) > 1.3 * exact


def test_binomial_draws_have_the_binomials_moments_and_are_shared_by_the_models():
    found = lines.binomial_draws([20, 60], 100, rng(), 40_000)
    np.testing.assert_allclose(found.mean(0), [0.2, 0.6], atol=5 * 0.05 / 200)
    np.testing.assert_allclose(found.var(0), [0.2 * 0.8 / 100, 0.6 * 0.4 / 100], rtol=0.05)
    assert np.corrcoef(found.T)[0, 1] > 0.98
    np.testing.assert_allclose(lines.binomial_draws([0, 4], 4, rng(), 3), np.tile([0.125, 0.875], (3, 1)))
    np.testing.assert_allclose(lines.inside([0, 3, 10], 10), [0.05, 0.3, 0.95])


def test_ood_is_the_mean_over_sets_and_anything_else_may_stand_for_it():
    x, sets = np.array([0.2, 0.4, 0.6, 0.8]), np.random.default_rng(0).uniform(0.1, 0.5, (4, 3))
    many, one = family(x, sets), family(x, sets.mean(1))
    np.testing.assert_array_equal(many.acc_ood, one.acc_ood)
    images = lines.binomial_draws(np.round(sets * 50), 50, rng(), 10)
    np.testing.assert_allclose(family(x, sets, ood_draws=images).ood_draws, images.mean(2))
    gaps = family(x, -0.4 * x)  # of groups, below 0
    found = matched(gaps, one, x, rng(), transform="plain")
    np.testing.assert_allclose(found.value, -0.4 * x - fit_line(x, one.acc_ood, "plain").at(x))
    percent = matched(family(100 * x, -40 * x), family(100 * x, 100 * one.acc_ood), 100 * x, rng(), transform="plain")
    np.testing.assert_allclose([percent.low, percent.high], [100 * found.low, 100 * found.high])


def test_what_is_beyond_either_arm_is_marked():
    first, second = family([0.2, 0.4, 0.5], [0.1, 0.2, 0.3]), family([0.3, 0.6, 0.7], [0.1, 0.2, 0.3])
    at = [0.25, 0.3, 0.5, 0.55]
    for reading in lines.READINGS:
        np.testing.assert_array_equal(
            matched(first, second, at, rng(), reading=reading).extrapolated, [True, False, False, True]
        )
    assert np.isnan(matched(first, second, at, rng(), reading="curve").value[[0, 3]]).all()
    uneven = family([0.2, 0.4, 0.3, 0.6], [0.1, 0.2, 0.1, 0.2], [0, 0, 1, 1])
    np.testing.assert_array_equal(read(uneven, [0.25, 0.35], rng(), reading="curve").extrapolated, [True, False])


def test_where_nothing_can_be_redrawn_there_is_no_interval():
    """Three points have a line but no scatter that could be drawn; a curve of one seed has none either."""
    three, four = family(*(m[:3] for m in MODELS)), family(*(m[:4] for m in MODELS))
    for arms, reading in (((three, four), "line"), ((four, four), "curve")):
        found = matched(*arms, 0.3, rng(), reading=reading)
        assert np.isfinite(found.value).all() and np.isnan([found.low, found.high]).all() and found.covers == ""
    assert np.isfinite(matched(four, four, 0.3, rng()).low).all()
    equal = family(*MODELS, id_draws=np.stack([MODELS[0], np.full(5, 0.4)]))
    assert np.isnan(read(equal, 0.4, rng()).low).all()  # the second draw has no line


def test_a_table_has_a_row_for_each_id():
    x, y, seed = curves(3)
    table = matched(family(x, y, seed), family(x, y - 0.1, seed), [0.3, 0.9], rng()).to_dataframe()
    assert list(table) == ["at", "first", "second", "difference", "low", "high", "extrapolated", "covers"]
    np.testing.assert_allclose(table["difference"], table["first"] - table["second"])
    assert list(table["extrapolated"]) == [False, True] and set(table["covers"]) == {"seeds"}
    assert list(read(family(x, y), 0.3, rng()).to_dataframe())[:4] == ["at", "value", "low", "high"]


def test_what_has_no_line_is_refused():
    x, y = MODELS
    for arguments, said in (
        ((np.array([0.0, 0.5]), np.array([0.1, 0.5])), r"acc_id must be inside \(0, 1\), where logit is finite"),
        ((np.array([0.3, 0.5]), np.array([0.1, 1.0]), "probit"), r"acc_ood must be inside \(0, 1\)"),
        ((np.array([0.3, np.nan]), np.array([0.1, 1.0]), "plain"), "acc_id must be finite"),
        ((np.array([0.5, 0.5]), np.array([0.1, 0.5])), "two different"),
        ((x, y[:2]), "shapes"),
        ((x, y, "cube"), "transform must be of logit, probit, plain, got 'cube'"),
    ):
        with pytest.raises(ValueError, match=said):
            fit_line(*arguments)
    with pytest.raises(ValueError, match="three points"):
        bootstrap_band(x[:2], y[:2], "logit", x, rng())
    with pytest.raises(ValueError, match="correct <= images"):
        lines.inside(3, 2)
    with pytest.raises(ValueError, match="accuracy must be finite"):
        Line(1, 0, "plain").at(np.inf)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"at": 0.0}, r"at must be inside \(0, 1\)"),
        ({"at": np.nan, "transform": "plain"}, "at must be finite"),
        ({"transform": "cube"}, "transform must be of"),
        ({"reading": "spline"}, "reading must be of line, curve, got 'spline'"),
        ({"draws": 1}, "draws >= 2"),
        ({"level": 1.0}, "level in"),
        ({"second": family([0.5], [0.4])}, "two different"),
        ({"second": family([0.5, 0.5], [0.4, 0.3])}, "two different"),
        ({"second": family([0.5, 0.6], [0.4, 0.0])}, "acc_ood must be inside"),
        ({"second": family(*MODELS, ood_draws=np.full((3, 5), 0.5))}, "as many draws of items, got 2 and 3"),
        ({"second": family(*MODELS, ood_draws=np.full((2, 5), 1.0))}, "ood_draws must be inside"),
    ],
)
def test_arms_that_cannot_be_matched_are_refused(how, said):
    given = {"second": family(*MODELS), "at": 0.4} | how
    first = family(*MODELS, ood_draws=np.full((2, 5), 0.5))
    with pytest.raises(ValueError, match=said):
        matched(first, given.pop("second"), given.pop("at"), rng(), **given)


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (([], []), {}, "n >= 1"),
        (([0.1, 0.2], [0.1]), {}, "acc_ood"),
        (([0.1, np.nan], [0.1, 0.2]), {}, "acc_id must be finite numbers, got nan"),
        (([0.1, 0.2], [0.1, np.inf]), {}, "acc_ood must be finite numbers, got inf"),
        (([0.1, 0.2], [0.1, 0.2], [0]), {}, "one label a point"),
        (([0.1, 0.2], [0.1, 0.2]), {"id_draws": np.ones((5, 3))}, r"id_draws must be \(draws >= 2, 2\)"),
        (([0.1, 0.2], [[0.1], [0.2]]), {"ood_draws": np.ones((5, 2))}, r"ood_draws must be \(draws >= 2, 2, 1\)"),
        (([0.1, 0.2], [0.1, 0.2]), {"id_draws": np.ones((5, 2)), "ood_draws": np.ones((4, 2))}, "as many"),
    ],
)
def test_points_that_are_no_family_are_refused(arguments, given, said):
    with pytest.raises(ValueError, match=said):
        family(*arguments, **given)
    with pytest.raises(ValueError, match="0 and 1"):
        lines.item_draws([[0.5]], rng())
