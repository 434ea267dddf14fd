"""Arms of the study `arms` at the same accuracy on P: the points that `sims.lines` gets."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sims.digits import figures, results, training
from sims.digits.config import AXES
from sims.lines import matched_text

ARMS, STEPS, SEEDS, TEST = ("clip", "cross_entropy"), (10, 20, 40), 3, 400


@pytest.fixture
def dataset():
    """Accuracies of both groups that rise along training; supervised has .2 less in the conflicting one."""
    coords = {axis: [0.5] for axis in AXES} | {"p_spu": [0.9]}
    labels = {
        "arm": list(ARMS),
        "seed": range(SEEDS),
        **coords,
        "step": list(STEPS),
        "measure": list(training.MEASURES),
    }
    shape = [len(values) for values in labels.values()]
    measured = xr.DataArray(np.full(shape, 0.5), dims=list(labels), coords=labels)
    rising = np.array([0.6, 0.7, 0.8])[None, :] + 0.01 * np.arange(SEEDS)[:, None]
    for arm, less in zip(ARMS, (0.0, 0.2), strict=True):
        for group, value in (("aligned", rising + 0.1), ("conflicting", rising - less)):
            for readout in training.READOUTS:
                for label in training.LABELS:
                    at = {"arm": arm, "measure": f"{readout} {group} {label}"}
                    measured.loc[at] = value.reshape(measured.sel(at).shape)
    config = {"study": "arms", "batch_size": 16, "test": TEST, "p_spu": 0.9}
    return xr.Dataset({"measured": measured}, attrs={"config": json.dumps(config)})


def test_points_are_stages_of_seeds(dataset):
    found = results.lines_of(dataset)
    assert list(found) == ["P*", "worst cell"] and [len(arms) for arms in found.values()] == [2, 2]
    clip, supervised = found["P*"].values()
    assert len(clip) == len(supervised) == SEEDS * len(STEPS) and {point.seed for point in clip} == {"0", "1", "2"}
    first = clip[0]
    assert (first.acc_id, first.acc_ood) == pytest.approx((0.9 * 0.7 + 0.1 * 0.6, 0.65))
    assert first.id_images == TEST and first.ood_sets == ((pytest.approx(0.7), TEST), (pytest.approx(0.6), TEST))
    worst = next(iter(found["worst cell"].values()))
    assert worst[0].acc_ood == pytest.approx(0.6) and worst[0].ood_sets == ((pytest.approx(0.6), TEST // 2),)


def test_arms_are_compared_where_both_have_been(dataset):
    """At the middle of what both reach, CLIP less supervised, by hand; twin: the other order."""
    text = matched_text({"P*": results.lines_of(dataset)["P*"]}, "plain")
    clip, supervised = (
        np.array([(p.acc_id, p.acc_ood) for p in arm]) for arm in results.lines_of(dataset)["P*"].values()
    )
    at = (max(clip[:, 0].min(), supervised[:, 0].min()) + min(clip[:, 0].max(), supervised[:, 0].max())) / 2
    each = [np.polyval(np.polyfit(*points.T, 1), at) for points in (clip, supervised)]
    row = next(line for line in text.splitlines() if line.startswith("CLIP - SL, cross-entropy") and ", line: " in line)
    assert f"at ID {at:.3f}" in row and f"= {each[0] - each[1]:+.3f} [" in row and "over seeds, test items" in row
    assert f"= {each[1] - each[0]:+.3f} [" not in row and each[0] - each[1] > 0.05


def test_runs_that_diverged_and_arms_of_one_accuracy_have_no_line(dataset):
    dataset.measured.loc[{"arm": "clip", "seed": 1, "step": 20}] = np.nan
    dataset.measured.loc[{"arm": "cross_entropy"}] = 0.75
    found = results.lines_of(dataset)
    assert [list(arms) for arms in found.values()] == [["CLIP"], ["CLIP"]]
    assert len(found["P*"]["CLIP"]) == SEEDS * len(STEPS) - 1
    dataset.measured[:] = 0.75
    assert results.lines_of(dataset) == {}


def test_the_study_draws_the_lines(dataset, monkeypatch):
    monkeypatch.setattr(figures, "arms", lambda _: None)
    monkeypatch.setattr(figures, "features", lambda _: None)
    figure = figures.of("arms", dataset)["lines"]
    assert [ax.get_title() for ax in figure.axes] == ["P*", "worst cell"]
    plt.close(figure)
