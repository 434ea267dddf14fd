"""Figures: the line is the prediction as stored, the points are the measurement, and everything is named."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sims.latent import plots
from sims.latent.parameters import PARAMETERS
from sims.sweep_spurious.config import LEARNERS

GROUPS = ["aligned", "conflicting"]
P, FINE = [0.5, 0.7, 0.9], np.linspace(0.5, 0.9, 41)


def arrays(learners=("mmcl", "info_nce", "supervised"), without=("info_nce",)):
    """A prediction on the fine grid, and means and standard errors at the cells, no two alike."""
    number = np.arange(len(learners))[:, None, None]
    group = np.array([0.3, 0.1])
    predicted = 0.9 - FINE[:, None] * group - number / 100
    mean = 0.91 - np.array(P)[:, None] * group - number / 100

    def make(values, p):
        coords = {"learner": list(learners), "p_spu": p, "group": GROUPS}
        return xr.DataArray(values, dims=("learner", "p_spu", "group"), coords=coords)

    predicted = make(predicted, FINE)
    return predicted.where(~predicted.learner.isin(list(without))), make(mean, P), make(0.01 + 0 * mean, P)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def lines(ax, style, width=None):
    return [l for l in ax.lines if l.get_linestyle() == style and (width is None or l.get_linewidth() == width)]


def test_theory_is_drawn_as_it_is_stored(ax):
    predicted, mean, error = arrays()
    assert plots.accuracy_against_p_spu(ax, predicted, mean, error, thick=["aligned"], thin=["conflicting"]) is ax
    for learner, style in (("mmcl", "-"), ("supervised", "--")):
        for group, width in (("aligned", 1.8), ("conflicting", 0.7)):
            (line,) = lines(ax, style, width)
            np.testing.assert_array_equal(line.get_xdata(), FINE)
            np.testing.assert_array_equal(line.get_ydata(), predicted.sel(learner=learner, group=group))
            assert line.get_color() == plots.STYLE[learner].colour


def test_measurement_is_drawn_as_points_with_intervals(ax):
    predicted, mean, error = arrays()
    error[0, 1] = np.nan
    plots.accuracy_against_p_spu(ax, predicted, mean, error, thick=["aligned"], thin=["conflicting"])
    assert len(ax.containers) == len(mean.learner)  # the thin group has lines only
    for i, container in enumerate(ax.containers):
        points, _, (bars,) = container
        np.testing.assert_array_equal(points.get_xydata(), np.stack([P, mean.sel(group="aligned")[i]], -1))
        half = [np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments()]
        expected = [0.0196] * 3 if i else [0.0196, 0, 0.0196]  # 1.96 standard errors; none known: no interval
        np.testing.assert_allclose(half, expected, atol=1e-12)


def test_learners_with_one_prediction_share_its_line(ax):
    predicted, mean, error = arrays(("mmcl", "mmcl_gradient"), without=())
    predicted[1] = predicted[0]
    plots.accuracy_against_p_spu(ax, predicted, mean, error, thick=["aligned"], thin=[])
    assert len(lines(ax, "-", 1.8)) == 1
    assert len(ax.containers) == 2


def test_a_learner_without_prediction_gets_a_dotted_guide_through_its_points(ax):
    predicted, mean, error = arrays(("info_nce",))
    plots.accuracy_against_p_spu(ax, predicted, mean, error, thick=["aligned"], thin=[])
    (guide,) = lines(ax, ":", 0.7)
    np.testing.assert_array_equal(guide.get_ydata(), mean.sel(learner="info_nce", group="aligned"))


def test_the_axis_is_named_and_all_accuracies_fit(ax):
    plots.accuracy_against_p_spu(ax, *arrays(), thick=["aligned"], thin=[])
    assert PARAMETERS["p_spu"].symbol in ax.get_xlabel() and "(probability)" in ax.get_xlabel()
    low, high = ax.get_ylim()
    assert low <= 0 and high >= 1


def test_the_legend_names_every_learner_and_which_have_no_prediction():
    handles = plots.legend_handles(list(LEARNERS), ["mmcl", "supervised"])
    labels = [handle.get_label() for handle in handles]
    assert len(set(labels)) == len(LEARNERS)
    for learner, handle in zip(LEARNERS, handles, strict=True):
        with_theory = learner in ("mmcl", "supervised")
        assert handle.get_label().startswith(plots.STYLE[learner].label)
        assert handle.get_label().endswith("(no prediction)") != with_theory
        assert handle.get_marker() == plots.STYLE[learner].marker
        assert handle.get_linestyle() == (plots.STYLE[learner].dashes if with_theory else ":")


def test_learners_read_without_colour():
    assert set(plots.STYLE) == set(LEARNERS)
    assert len({look.marker for look in plots.STYLE.values()}) == len(LEARNERS)
