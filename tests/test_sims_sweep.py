"""A whole sweep at a tiny size: what is stored and drawn, resuming after a kill, and independence of the chunks."""

import contextlib
import csv
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sims import grid, measure, plots, store, summary, sweep, sweep_spurious
from sims.config import AXES, LEARNERS, Config, Setting
from sims.flags import UsageError

pytestmark = pytest.mark.usefixtures("float32")

ROOT = pathlib.Path(sweep_spurious.__file__).parents[1]
TINY = Setting(n=20, dim_image=8, dim_text=4, gradient_steps=5)
CONFIG = Config(p_spu=(0.9, 0.5), same_class_weight=(0.0, 0.5), setting=TINY, seeds=2)
FILES = ["config.json", "results.zarr", "summary.csv", "sweep_spurious.pdf", "sweep_spurious.png"]
# 32 chunks of a few hundredths of a second.
SIZES = {"n": 200, "dim_image": 100, "gradient_steps": 1}
LONG = Config(p_spu=(0.5, 0.9), learners=("supervised_gradient",), seeds=1000, setting=Setting(**SIZES))


@contextlib.contextmanager
def quick_compilation():
    """Tiny runs spend their time in compilation, which this makes a third."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    with quick_compilation(), jax.enable_x64(False):
        return out, sweep_spurious.run(CONFIG, out)


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in sorted(folder.rglob("*"))}


def no_measuring(*_):
    raise AssertionError("measured again")


def test_the_folder_holds_the_files(finished):
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert (out / "sweep_spurious.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "sweep_spurious.pdf").read_bytes()[:5] == b"%PDF-"
    assert json.loads((out / "config.json").read_text())["config"] == json.loads(json.dumps(CONFIG.flat()))


def test_the_dataset_has_the_promised_axes(finished):
    _, data = finished
    assert data.accuracy_predicted.dims == ("learner", *AXES, "group")
    assert data.accuracy_measured.dims == ("learner", "seed", *AXES, "group")
    assert data.accuracy_predicted.shape == (5, 2, 1, 1, 1, 2, 2)
    assert data.accuracy_measured.shape == (5, 2, 2, 1, 1, 1, 2, 2)
    assert tuple(data.learner.values) == LEARNERS
    assert list(data.group.values) == ["aligned", "conflicting"]
    for name, values in CONFIG.axes.items():
        assert tuple(data[name].values) == values
    assert json.loads(data.attrs["config"]) == json.loads(json.dumps(CONFIG.flat()))


def test_accuracies_are_missing_only_where_there_is_none(finished):
    _, data = finished
    assert data.accuracy_predicted.sel(learner="info_nce").isnull().all()
    assert data.accuracy_predicted.sel(learner=["mmcl", "supervised"], same_class_weight=0.5, p_spu=0.5).notnull().all()
    assert (
        data.accuracy_measured.sel(learner=["mmcl", "mmcl_gradient", "info_nce", "supervised_gradient"]).notnull().all()
    )
    for values in (data.accuracy_predicted.values, data.accuracy_measured.values):
        known = values[~np.isnan(values)]
        assert known.min() >= 0 and known.max() <= 1


def test_predictions_stand_at_their_cells(finished):
    _, data = finished
    points = [(0.9, 1.0, 0.1, 1.0, 0.0), (0.5, 1.0, 0.1, 1.0, 0.5), (0.9, 1.0, 0.1, 1.0, 0.5)]
    with jax.enable_x64(True):
        expected = jax.jit(functools.partial(measure.predict, TINY, "mmcl"))(grid.cell_arrays(points))
    assert len(np.unique(expected, axis=0)) == 3
    for point, value in zip(points, expected, strict=True):
        at = dict(zip(AXES, point, strict=True))
        for learner in ("mmcl", "mmcl_gradient"):
            stored = data.accuracy_predicted.sel(learner=learner, **at)
            np.testing.assert_allclose(stored, value, rtol=0, atol=1e-12)
            on_curve = data.accuracy_curve.sel(learner=learner, p_spu_fine=at["p_spu"], same_class_weight=point[-1])
            np.testing.assert_array_equal(on_curve.squeeze(), stored)


def test_the_table_has_a_row_for_each_cell_and_learner(finished):
    out, data = finished
    with open(out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 5
    for row in rows:
        cell = data.sel(learner=row["learner"], **{a: float(row[a]) for a in AXES})
        for group in ("aligned", "conflicting"):
            mean = cell.accuracy_measured.sel(group=group).mean().item()
            np.testing.assert_allclose(float(row[f"{group}_measured"]), mean, rtol=1e-12)
            prediction = cell.accuracy_predicted.sel(group=group).item()
            np.testing.assert_allclose(float(row[f"{group}_predicted"]), prediction, rtol=1e-12)


def test_the_figure_shows_every_panel_with_names_and_a_legend(finished):
    figure = sweep.draw(finished[1])
    columns = len(plots.PANELS)
    assert len(figure.axes) == 2 * columns  # a row for each same-class weight
    for i, panel in enumerate(figure.axes):
        assert "(probability)" in panel.get_xlabel()
        assert f"{plots.SYMBOLS['same_class_weight']} = {(0, 0.5)[i // columns]:g}" in panel.get_title()
    assert all("(share correct)" in panel.get_ylabel() for panel in figure.axes[::columns])
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert [label for label in labels if "no prediction" in label] == [plots.STYLE["info_nce"][3] + " (no prediction)"]
    assert len(labels) == 5
    plt.close(figure)


def test_a_finished_run_is_not_measured_again(finished, monkeypatch, capsys):
    out, data = finished
    monkeypatch.setattr(grid, "run_chunks", no_measuring)
    before = contents(out / "results.zarr")
    again = sweep_spurious.run(CONFIG, out)
    xr.testing.assert_identical(again, data)
    assert contents(out / "results.zarr") == before
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert capsys.readouterr().err == f"{out} already holds this run; nothing was measured again.\n"


@pytest.mark.parametrize("change", [{"seed": 1}, {"seeds": 3}, {"learners": ("mmcl",)}, {"p_spu": (0.9, 0.6)}])
def test_another_config_is_refused_and_nothing_changes(finished, change):
    out, _ = finished
    before = contents(out)
    with pytest.raises(UsageError, match=f"differs in {next(iter(change))}"):
        sweep_spurious.run(Config(**{**vars(CONFIG), **change}), out)
    assert contents(out) == before


def test_a_bad_config_writes_nothing(tmp_path):
    with pytest.raises(UsageError, match="seeds"):
        sweep.run(Config(seeds=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def unpredicted(monkeypatch):
    """These runs are about what is measured."""
    monkeypatch.setattr(sweep, "_predict", lambda config, axes: np.full([1, *map(len, axes.values()), 2], np.nan))


@pytest.fixture(scope="module")
def uninterrupted():
    with jax.enable_x64(False):
        points = grid.cells(LONG.axes)
        skip = np.zeros(32, bool)
        chunks = grid.run_chunks(LONG.setting, LONG.learners[0], points, LONG.seeds, LONG.seed, skip)
        values = np.concatenate([values for _, values in chunks])
    return np.moveaxis(values.reshape(2, 1000, 2), 0, 1).reshape(1, 1000, 2, 1, 1, 1, 1, 2)


def test_an_interrupted_run_resumes_to_the_same_bits(uninterrupted, unpredicted, tmp_path, monkeypatch, capsys):
    save, saves = store.Partial.save, []

    def interrupt_fifth(partial):
        saves.append(partial)
        if len(saves) == 5:
            raise KeyboardInterrupt
        save(partial)

    with monkeypatch.context() as patch:
        patch.setattr(store.Partial, "save", interrupt_fifth)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(LONG, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "partial.npz"]
    resumed = sweep.run(LONG, tmp_path)
    assert "resuming: 4 of 32 chunks were already measured." in capsys.readouterr().err
    np.testing.assert_array_equal(resumed.accuracy_measured, uninterrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def test_a_killed_process_resumes_to_the_same_bits(uninterrupted, unpredicted, tmp_path):
    flags = {"p_spu": "0.5,0.9", "learners": LONG.learners[0], "seeds": 1000, **SIZES}
    command = [
        sys.executable,
        "-m",
        "sims.sweep_spurious",
        f"--out={tmp_path}",
        *(f"--{k}={v}" for k, v in flags.items()),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 60
        while process.poll() is None and not (tmp_path / "partial.npz").exists() and time.monotonic() < give_up:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with np.load(tmp_path / "partial.npz") as saved:
        assert 0 < saved["done"].sum() < saved["done"].size
    resumed = sweep.run(LONG, tmp_path)
    np.testing.assert_array_equal(resumed.accuracy_measured, uninterrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def measured(learner, cells, seeds, size, monkeypatch):
    monkeypatch.setattr(grid, "BYTES_BUDGET", size * TINY.run_bytes(learner))
    runs = len(cells) * seeds
    assert grid.chunk_size(TINY, learner, runs) == size
    values = np.full((runs, 2), np.nan)
    skip = np.zeros(grid.num_chunks(TINY, learner, runs), bool)
    for flat, chunk in grid.run_chunks(TINY, learner, cells, seeds, 0, skip):
        assert np.isnan(values[flat]).all()
        values[flat] = chunk
    return values


def test_draws_do_not_depend_on_the_chunks(monkeypatch):
    learner = "supervised_gradient"
    cells = grid.cells({**CONFIG.axes, "p_spu": (0.5, 0.7, 0.9)})
    with quick_compilation():
        whole = measured(learner, cells, 3, 18, monkeypatch)
        pieces = measured(learner, cells, 3, 5, monkeypatch)  # 18 runs in chunks of 5: the last is filled up
    assert np.unique(whole.round(6), axis=0).shape == whole.shape
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-5)


def test_cells_are_all_combinations_the_last_axis_fastest():
    assert grid.cells({"a": [1, 2], "b": [3], "c": [4, 5]}) == [(1, 3, 4), (1, 3, 5), (2, 3, 4), (2, 3, 5)]


def test_the_verdict_on_a_real_run_sees_a_wrong_p_spu(tmp_path):
    setting = Setting(n=400, dim_image=8, dim_text=4, sigma_image=1.0)
    config = Config(p_spu=(0.9, 0.93), learners=("mmcl",), seeds=256, setting=setting)
    with quick_compilation():
        data = sweep.run(config, tmp_path)
    assert [row["verdict"] for row in summary.rows(data)] == ["agrees", "agrees"]
    wrong = data.assign(accuracy_predicted=data.accuracy_predicted.copy(data=data.accuracy_predicted.values[:, ::-1]))
    assert [row["verdict"] for row in summary.rows(wrong)] == ["differs", "differs"]
