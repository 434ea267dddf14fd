"""Means, standard errors and verdicts, on datasets whose answer is known."""

import math

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from sims.latent import summary
from sims.sweep_spurious.config import AXES

GROUPS = ["aligned", "conflicting"]


def dataset(predicted, measured, learners=("mmcl",), spread=(math.nan, math.nan, 0.0), **axes):
    """predicted (learner, cells..., group), measured (learner, seed, cells..., group), cells over the given axes.

    spread: sd, skewness and what the prediction leaves out, of every outcome; no law without an sd.
    """
    values = {name: axes.get(name, [0.5]) for name in AXES}
    shape = tuple(len(v) for v in values.values())
    seeds = np.shape(measured)[1]
    data = xr.Dataset(
        {
            "accuracy_predicted": (("learner", *AXES, "group"), np.reshape(predicted, (len(learners), *shape, 2))),
            "accuracy_measured": (
                ("learner", "seed", *AXES, "group"),
                np.reshape(measured, (len(learners), seeds, *shape, 2)),
            ),
        },
        coords={"learner": list(learners), "seed": np.arange(seeds), **values, "group": GROUPS},
    )
    of_cells = np.broadcast_to(spread, (len(learners), *shape, 3, 3))
    law = xr.DataArray(of_cells, dims=("learner", *AXES, "group", "moment"))
    return data.assign(p_value=summary.p_values(data.accuracy_predicted, data.accuracy_measured, law))


def verdicts(data):
    return list(summary.columns(data)["verdict"])


def samples(mean, error, seeds=8):
    """(seeds, groups) with these means and standard errors; the groups vary independently of each other."""
    wave = np.stack([np.tile([-1, 1], seeds // 2), np.repeat([-1, 1], seeds // 2)], -1)
    return np.asarray(mean) + error * (seeds - 1) ** 0.5 * wave


def judge(gap, error=0.01, predicted=(0.9, 0.6), left_out=0.0, seeds=8, cells=1, spread=math.nan, learner="mmcl"):
    """Verdict on measurements off the prediction by `gap`, (2,) by group, in one of so many cells that agree."""
    predicted = np.tile(predicted, (cells, 1))
    measured = np.stack([samples(p, error, seeds) for p in predicted], 1)
    measured[:, 0] += gap
    p_spu = np.linspace(0.5, 1, cells)
    found = verdicts(dataset(predicted, measured[None], [learner], (spread, 0.0, left_out), p_spu=p_spu))
    assert set(found[1:]) <= {"agrees"}
    return found[0]


@pytest.mark.parametrize("cells", [1, 50])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("law", [True, False])
def test_a_verdict_holds_its_level_for_all_cells_and_outcomes_together(cells, sign, law):
    """Normal where theory gives a run's standard deviation, of which seeds tell nothing, Student's t else."""
    at = 1 - 0.01 / (2 * 3 * cells)
    limit = scipy.stats.norm.ppf(at) if law else scipy.stats.t.ppf(at, 7)
    given = {"cells": cells, "spread": 0.01 * 8**0.5 if law else math.nan, "left_out": 0.02}
    inside, outside = sign * (0.99 * limit * 0.01 + 0.02), sign * (1.01 * limit * 0.01 + 0.02)
    assert judge((0, 0), **given) == "agrees"
    assert judge((inside, -inside), **given) == "agrees"
    assert judge((outside, 0), **given) == "differs"
    assert judge((0, outside), **given) == "differs"


def test_few_seeds_are_judged_where_theory_gives_their_spread():
    few = dict(error=1e-9, seeds=2)
    assert judge((0.05, 0), **few, learner="supervised") == "not judged: few seeds"
    assert judge((0.005, 0), **few, spread=0.01) == "agrees"
    assert judge((0.05, 0), **few, spread=0.01) == "differs"


@pytest.mark.parametrize("seeds", [2, 8])
def test_more_seeds_are_asked_for_only_where_they_would_help(seeds):
    """The linear loss lacks a law where n is too small, at any number of seeds; max-margin lacks seeds alone."""
    assert judge((0.05, 0), seeds=seeds, left_out=math.nan) == "not judged: n too small"
    assert judge((0.05, 0), 1e-9, seeds=seeds, learner="supervised") == (
        "not judged: few seeds" if seeds == 2 else "differs"
    )


def test_a_gap_hidden_in_the_groups_is_not_hidden_in_the_verdict():
    assert judge((0.2, -0.2)) == "differs"  # the shifted accuracy is exactly right


def test_swapped_groups_differ():
    measured = samples([0.9, 0.6], 0.01)[None]
    assert verdicts(dataset([0.9, 0.6], measured)) == ["agrees"]
    assert verdicts(dataset([0.6, 0.9], measured)) == ["differs"]


def test_what_cannot_be_judged_says_why():
    nan = math.nan
    good = np.array([[[0.9, 0.6], [0.8, 0.7]]])
    assert verdicts(dataset([nan, nan], good)) == ["no prediction"]
    assert verdicts(dataset([0.9, nan], good)) == ["no prediction"]
    assert verdicts(dataset([0.9, 0.6], good[:, :1])) == ["not judged: few seeds"]
    one_failed = np.array([[[0.9, 0.6], [nan, nan], [0.8, 0.7]]])
    assert verdicts(dataset([0.9, 0.6], one_failed, ["supervised"])) == ["not separable in 1 runs"]
    assert verdicts(dataset([0.9, 0.6], one_failed * nan, ["supervised"])) == ["not separable in 3 runs"]
    assert verdicts(dataset([nan, nan], one_failed, ["supervised"])) == ["not separable in 1 runs"]


def test_seed_statistics_leave_out_the_seeds_without_a_value():
    nan = math.nan
    columns = {"all": [0.1, 0.4, 0.7], "two": [0.1, nan, 0.5], "one": [nan, 0.3, nan], "none": [nan, nan, nan]}
    measured = xr.DataArray(np.transpose(list(columns.values())), dims=("seed", "cell"), coords={"cell": list(columns)})
    mean, error = summary.seed_statistics(measured)
    np.testing.assert_allclose(mean, [0.4, 0.3, 0.3, nan], atol=1e-15)
    np.testing.assert_allclose(error, [0.3 / 3**0.5, 0.2, nan, nan], atol=1e-15)  # sd 0.3 of 3; sd 0.4/sqrt(2) of 2
    mean, error = summary.seed_statistics(measured.isel(seed=[0]))
    np.testing.assert_allclose(mean, [0.1, 0.1, nan, nan], atol=1e-15)
    assert np.isnan(error).all()


def test_the_shifted_accuracy_is_the_groups_mean_run_by_run():
    accuracy = xr.DataArray([[0.9, 0.5], [math.nan, 0.5]], dims=("seed", "group"), coords={"group": GROUPS})
    shifted = summary.with_shifted(accuracy)
    assert list(shifted.group.values) == [*GROUPS, "shifted"]
    np.testing.assert_allclose(shifted.sel(group="shifted"), [0.7, math.nan], atol=1e-15)
    xr.testing.assert_equal(shifted.sel(group=GROUPS), accuracy)


def test_the_error_of_the_shifted_accuracy_knows_that_the_groups_move_together():
    opposite = np.array([[[0.9, 0.5], [0.8, 0.6]]])  # their mean does not vary
    table = summary.columns(dataset([0.85, 0.55], opposite))
    assert list(table["shifted_se"]) == pytest.approx([0], abs=1e-15)
    assert list(table["aligned_se"]) == pytest.approx([0.05]) and list(table["conflicting_se"]) == pytest.approx([0.05])


def test_rows_put_every_value_at_its_cell_and_learner():
    learners, p_spu, pi_core = ["supervised", "mmcl"], [0.5, 0.9], [0.0, 1.0]
    predicted = np.arange(16.0).reshape(2, 2, 2, 2) / 100
    measured = predicted[:, None] + np.array([-0.01, 0.01]).reshape(1, 2, 1, 1, 1)
    data = dataset(predicted, measured, learners, p_spu=p_spu, pi_core=pi_core)
    data = data.transpose("group", "pi_core", ...)  # a store may hold the axes in another order
    table = summary.columns(data).to_dict("records")
    order = [(r["p_spu"], r["pi_core"], r["learner"]) for r in table]
    assert order == [(p, c, l) for p in (0.5, 0.9) for c in (0.0, 1.0) for l in learners]
    for row in table:
        at = learners.index(row["learner"]), p_spu.index(row["p_spu"]), pi_core.index(row["pi_core"])
        for g, group in enumerate(GROUPS):
            assert row[f"{group}_predicted"] == predicted[(*at, g)]
            assert row[f"{group}_measured"] == pytest.approx(predicted[(*at, g)], abs=1e-15)
            assert row[f"{group}_se"] == pytest.approx(0.01, abs=1e-15)
        assert row["shifted_predicted"] == pytest.approx(predicted[at].mean(), abs=1e-15)


def test_the_text_has_a_line_for_each_cell_and_learner():
    learners, p_spu = ["mmcl", "info_nce", "supervised"], [0.5, 0.7, 0.9]
    predicted = np.full((3, 3, 2), 0.8)
    predicted[1] = math.nan
    measured = np.stack([predicted - 0.01, predicted + 0.01], 1)
    measured[1] = 0.75
    measured[0, :, 2] += 0.3
    lines = summary.text(
        summary.columns(dataset(predicted, measured, learners, spread=(0.01, 0.0, 0.0), p_spu=p_spu))
    ).splitlines()
    assert lines[0] == "sigma_core = 0.5, sigma_spu = 0.5, pi_core = 0.5, same_class_weight = 0.5"
    assert lines[1].split()[:2] == ["p_spu", "learner"]
    assert [line.split()[:2] for line in lines[2:-1]] == [[f"{p:g}", l] for p in p_spu for l in learners]
    assert [line.split()[-1] for line in lines[2:-1]] == ["agrees", "prediction", "agrees"] * 2 + [
        *("differs", "prediction", "agrees")
    ]
    assert "0.8000  0.8000 +- 0.0100" in lines[2]
    assert lines[-1] == (
        "5 of 6 judged cells agree with their prediction (chance of any false alarm in all of them: 1% at most)."
    )


def test_the_text_without_standard_errors_shows_none():
    text = summary.text(summary.columns(dataset([0.9, 0.6], [[[0.9, 0.6]]])))
    assert "+-" not in text and "nan" not in text
    assert text.endswith("0 of 0 judged cells agree with their prediction.")


def test_a_long_table_is_cut():
    p_spu = np.linspace(0.5, 1, 100).tolist()
    values = np.full((1, 100, 2), 0.8)
    lines = summary.text(
        summary.columns(dataset(values, np.stack([values, values], 1), spread=(0.01, 0.0, 0.0), p_spu=p_spu))
    ).splitlines()
    assert len(lines) == 2 + summary.MAX_ROWS + 2
    assert lines[-2] == f"... {100 - summary.MAX_ROWS} more rows in summary.csv"
    assert lines[-1].startswith("100 of 100")
