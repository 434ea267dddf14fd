"""Tables from the folders of runs: what counts as measured, and which runs are compared."""

import dataclasses

import numpy as np
import pytest

from sims.digits import sensitivity, training
from sims.digits.config import PAPER, PRESETS
from sims.engine import store
from sims.engine.flags import UsageError
from sims.engine.grid import Grid

BASE = dataclasses.replace(
    PRESETS[PAPER], arms=("clip_1_1", "cross_entropy"), epochs=(1, 2), seeds=3, train_size=640, batch_size=128
)
STEPS = (5, 10)


def a_run(folder, config, shares):
    """A run whose first arm is done, with these accuracies by stage, and whose second arm is not begun."""
    grid = Grid(
        {"arm": config.arms_of(PAPER)}, lambda arm: None, config.axes(PAPER),
        {"step": STEPS, "measure": training.MEASURES}, config.seeds, 0,
    )  # fmt: skip
    folder.mkdir(parents=True)
    store.begin(folder, {**config.flat(PAPER, "digest"), "x64": False})
    store.Measured.create(folder, "measured", grid)
    block = (0,) * len(grid.blocks_shape)
    values = outcomes(config.seeds, shares).reshape(1, config.seeds, *(1 for _ in grid.axes), *grid.shape[-2:])
    store.Measured(folder, "measured", grid).write(block, values)
    return grid


def outcomes(seeds, shares):
    """(seeds, stages, measures): accuracy `share` at each stage, and a little more by seed; loss 1."""
    values = np.zeros((seeds, len(shares), len(training.MEASURES))) + np.array(shares)[:, None]
    values += 0.01 * np.arange(seeds)[:, None, None]
    values[..., training.MEASURES.index("loss")] = 1.0
    return values


@pytest.mark.costly
def test_an_effect_is_of_runs_that_differ_in_one_setting_alone(tmp_path):
    a_run(tmp_path / "base", BASE, (0.6, 0.7))
    a_run(tmp_path / "deep" / "scaled", dataclasses.replace(BASE, pixels="0:1"), (0.5, 0.5))
    a_run(tmp_path / "both", dataclasses.replace(BASE, pixels="0:1", temperature=0.5), (0.1, 0.1))
    a_run(tmp_path / "other", dataclasses.replace(BASE, pixels="0:1", weight_decay=0.0), (0.2, 0.2))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{")
    runs = sensitivity.runs_below(tmp_path)
    assert [run.folder.name for run in runs] == ["base", "both", "scaled", "other"]
    names, *lines = sensitivity.effects(runs)
    assert [line[1:5] for line in lines] == [["pixels", "-1:1", "0:1", "2"], ["temperature", "0.5", "1", "2"]]
    assert lines[0][5:] == ["-0.200 +- 0.000"] * 4 and names[5] == "change of OOD"
    assert [line[5] for line in sensitivity.table(runs)[1:]] == ["2"] * 4  # the second arm has nothing yet
    told = sensitivity.text(tmp_path)
    assert told.startswith("4 runs") and "-0.200 +- 0.000" in told


def test_the_stages_of_an_unfinished_arm_count(tmp_path):
    folder = tmp_path / "run"
    grid = a_run(folder, BASE, (0.6, 0.7))
    place = "-".join("1" if i == 0 else "0" for i in range(len(grid.blocks_shape)))
    kept = outcomes(3, (0.9,))
    kept[2] = np.inf  # diverged
    padded = np.concatenate([kept, kept[:1]])  # as for a device more
    (folder / "checkpoints").mkdir()
    for owner, counts in ((f"{store.run_of(folder)} {place}", True), ("another " + place, False)):
        np.savez(folder / "checkpoints" / f"{place}.npz", owner=np.array(owner), outcomes=padded.swapaxes(0, 1))
        found = sensitivity.so_far(folder).measured.sel(measure="class aligned low").squeeze()
        np.testing.assert_allclose(found.sel(arm="clip_1_1", step=10), [0.7, 0.71, 0.72], rtol=1e-6)
        expected = [0.9, 0.91, np.nan] if counts else [np.nan] * 3
        np.testing.assert_allclose(found.sel(arm="cross_entropy", step=5), expected, rtol=1e-6)
        assert found.sel(arm="cross_entropy", step=10).isnull().all()


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no run of sims\.digits, study paper"):
        sensitivity.runs_below(tmp_path)
