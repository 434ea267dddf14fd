"""A whole sweep at a tiny size: what is stored and drawn, resuming after a kill, and independence of the chunks."""

import csv
import functools
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from sims import show
from sims.engine import grid, runs, store, style
from sims.engine.flags import UsageError
from sims.latent import measure, plots, summary
from sims.latent.parameters import PARAMETERS
from sims.sweep_spurious import experiment
from sims.sweep_spurious.config import AXES, LEARNERS, Config, Setting
from tests.helpers import ROOT, assert_another_run_is_refused, contents, interrupt_write, quick_compilation

pytestmark = pytest.mark.usefixtures("float32")

TINY = Setting(n=20, dim_image=8, dim_text=4, gradient_steps=5)
CONFIG = Config(p_spu=(0.5, 0.9), same_class_weight=(0.0, 0.5), setting=TINY, seeds=2)
SMALL = Config(p_spu=(0.5, 0.9), learners=("mmcl",), setting=TINY, seeds=2)
FILES = [".lock", "config.json", "results.zarr", "summary.csv", "sweep_spurious.pdf", "sweep_spurious.png"]
# 67 blocks of a few hundredths of a second.
SIZES = {"n": 200, "dim_image": 100, "gradient_steps": 1}
LONG = Config(p_spu=(0.5, 0.9), learners=("supervised_gradient",), seeds=400, setting=Setting(**SIZES))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    with quick_compilation(), jax.enable_x64(False):
        return out, experiment.run(CONFIG, out)


def no_measuring(*_):
    raise AssertionError("measured again")


@pytest.mark.slow
def test_the_folder_holds_the_files(finished):
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert (out / "sweep_spurious.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "sweep_spurious.pdf").read_bytes()[:5] == b"%PDF-"
    assert store.read_config(out) == {**json.loads(json.dumps(CONFIG.flat())), "x64": False}


@pytest.mark.slow
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
    assert json.loads(data.attrs["config"]) == {**json.loads(json.dumps(CONFIG.flat())), "x64": False}
    assert data.attrs["samplers"].startswith("mmcl: latent, mmcl_gradient: ambient")
    assert data.attrs["failed"] == 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_predictions_stand_at_their_cells(finished):
    _, data = finished
    points = [(0.9, 1.0, 0.1, 1.0, 0.0), (0.5, 1.0, 0.1, 1.0, 0.5), (0.9, 1.0, 0.1, 1.0, 0.5)]
    with jax.enable_x64(True):
        cells = dict(zip(AXES, np.array(points).T, strict=True))
        expected = jax.jit(functools.partial(measure.predict, TINY, "mmcl"))(cells)
    assert len(np.unique(expected, axis=0)) == 3
    for point, value in zip(points, expected, strict=True):
        at = dict(zip(AXES, point, strict=True))
        for learner in ("mmcl", "mmcl_gradient"):
            stored = data.accuracy_predicted.sel(learner=learner, **at)
            np.testing.assert_allclose(stored, value, rtol=0, atol=1e-12)
            on_curve = data.accuracy_curve.sel(learner=learner, p_spu_fine=at["p_spu"], same_class_weight=point[-1])
            np.testing.assert_array_equal(on_curve.squeeze(), stored)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_figure_shows_every_panel_with_names_and_a_legend(finished):
    figure = experiment.draw(finished[1])
    columns = len(style.PANELS)
    assert len(figure.axes) == 2 * columns  # a row for each same-class weight
    for i, panel in enumerate(figure.axes):
        assert "(probability)" in panel.get_xlabel()
        assert f"{PARAMETERS['same_class_weight'].symbol} = {(0, 0.5)[i // columns]:g}" in panel.get_title()
    assert all("(share correct)" in panel.get_ylabel() for panel in figure.axes[::columns])
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert [label for label in labels if "no prediction" in label] == [
        plots.STYLE["info_nce"].label + " (no prediction)"
    ]
    assert len(labels) == 5
    plt.close(figure)


@pytest.mark.slow
def test_a_finished_run_is_not_measured_again(finished, monkeypatch, capsys):
    out, data = finished
    monkeypatch.setattr(runs, "run_blocks", no_measuring)
    before = contents(out / "results.zarr")
    again = experiment.run(CONFIG, out)
    xr.testing.assert_identical(again, data)
    assert contents(out / "results.zarr") == before
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert capsys.readouterr().err == f"{out} already holds this run; nothing was measured again.\n"


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 1}, {"seeds": 3}, {"learners": ("mmcl",)}, {"p_spu": (0.6, 0.9)}])
def test_another_config_is_refused_and_nothing_changes(finished, change):
    assert_another_run_is_refused(experiment, CONFIG, finished[0], **change)


def test_a_bad_config_writes_nothing(tmp_path):
    with pytest.raises(UsageError, match="seeds"):
        experiment.run(Config(seeds=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def unpredicted(monkeypatch):
    """These runs are about what is measured."""

    def nothing(config, axes, *spread):
        return np.full([1, *map(len, axes.values()), *((3, 3) if spread else (2,))], np.nan)

    monkeypatch.setattr(experiment, "_predict", nothing)


@pytest.fixture(scope="module")
def uninterrupted():
    with jax.enable_x64(False):
        plan = experiment.grid_of(LONG)
        values = np.full(plan.shape, np.nan)
        for block, found in grid.run_blocks(plan, np.zeros(plan.blocks_shape, bool), grid.Programs(plan, np.inf)):
            values[plan.region(block)] = found
    return values


@pytest.mark.long
def test_an_interrupted_run_resumes_to_the_same_bits(uninterrupted, unpredicted, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_write(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(LONG, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json", "results.zarr"]
    with pytest.raises(UsageError, match="is unfinished: 4 of 67 blocks are there"):
        show.show(tmp_path, tmp_path)
    resumed = experiment.run(LONG, tmp_path)
    assert "resuming: 4 of 67 blocks were already measured." in capsys.readouterr().err
    np.testing.assert_array_equal(resumed.accuracy_measured, uninterrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "out"
    with quick_compilation(), jax.enable_x64(False):
        return out, experiment.run(SMALL, out)


@pytest.mark.parametrize(
    "variable, damage",
    [
        pytest.param("accuracy_measured", "removed", marks=pytest.mark.slow),
        pytest.param("accuracy_measured", "flipped", marks=pytest.mark.slow),
        pytest.param("p_spu", "removed", marks=pytest.mark.long),
        pytest.param("learner", "flipped", marks=pytest.mark.long),
    ],
)
def test_a_finished_run_mends_what_is_damaged(small, tmp_path, variable, damage, capsys):
    shutil.copytree(small[0], tmp_path / "copy")
    out, data = tmp_path / "copy", small[1]
    chunk = next(p for p in sorted((out / "results.zarr" / variable / "c").rglob("*")) if p.is_file())
    content = chunk.read_bytes()
    if damage == "removed":
        chunk.unlink()
    else:
        chunk.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    with pytest.raises(UsageError, match=r"unfinished or damaged .* repeat its command"):
        show.show(out, out)
    with quick_compilation():
        mended = experiment.run(SMALL, out)
    xr.testing.assert_identical(mended.drop_attrs(), data.drop_attrs())
    said = capsys.readouterr().err
    seen = variable == "accuracy_measured" and damage == "flipped"
    assert ("1 damaged blocks (by their checksum) are measured again." in said) is seen
    assert "already holds" not in said
    show.show(out, out)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_a_killed_process_resumes_to_the_same_bits(uninterrupted, unpredicted, tmp_path, fault):
    flags = {"p_spu": "0.5,0.9", "learners": LONG.learners[0], "seeds": 400, **SIZES, "cpu_devices": 1}
    command = [
        sys.executable,
        "-m",
        "sims.sweep_spurious",
        f"--out={tmp_path}",
        *(f"--{k}={v}" for k, v in flags.items()),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        give_up = time.monotonic() + 60
        while process.poll() is None and not store.progress(tmp_path)[0] and time.monotonic() < give_up:
            time.sleep(0.005)
        process.send_signal(getattr(signal, fault))
        _, err = process.communicate()
    assert process.returncode == (143 if fault == "SIGTERM" else -signal.SIGKILL), err
    done, blocks = store.progress(tmp_path)
    assert 0 < done < blocks == 67
    resumed = experiment.run(LONG, tmp_path)
    np.testing.assert_array_equal(resumed.accuracy_measured, uninterrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_is_traced_in_either_precision(learner):
    for x64, dtype in ((True, jnp.float64), (False, jnp.float32)):
        with jax.enable_x64(x64):
            point = {name: jnp.asarray(0.5) for name in AXES}
            found = jax.eval_shape(measure.task(TINY, learner).kernel, jax.random.key(0), point)
            assert (found.shape, found.dtype) == ((2,), dtype)


def test_failed_runs_are_listed_and_spare_the_others(tmp_path, monkeypatch, capsys):
    """A learner that diverges at p_spu = 0.9 in every other seed."""

    def kernel(key, point):
        fails = (point["p_spu"] > 0.8) & jax.random.bernoulli(jax.random.fold_in(key, 1))
        return jnp.where(fails, jnp.nan, jax.random.uniform(key, (2,)))

    monkeypatch.setattr(measure, "task", lambda *_: grid.Task(kernel))
    config = Config(p_spu=(0.5, 0.9), learners=("info_nce",), seeds=20, setting=TINY)
    with quick_compilation():
        data = experiment.run(config, tmp_path)
    failed = data.accuracy_measured.isnull().any("group")
    assert 0 < failed.sel(p_spu=0.9).sum() < 20 and not failed.sel(p_spu=0.5).any()
    with open(tmp_path / "failed.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == failed.sum() == data.attrs["failed"]
    for row in rows:
        assert failed.sel(learner=row["learner"], seed=int(row["seed"]), p_spu=float(row["p_spu"])).all()
    assert [v for v in summary.columns(data)["verdict"]][1] == f"diverged in {len(rows)} runs"
    capsys.readouterr()
    assert runs.closing(tmp_path, data) == 1
    assert (
        capsys.readouterr().err
        == f"error: {len(rows)} runs gave no finite number; {tmp_path / 'failed.csv'} lists them.\n"
    )


@pytest.mark.long
@pytest.mark.parametrize("learner, sampler", [("mmcl", "statistics"), ("mmcl", "latent"), ("supervised", "latent")])
def test_samplers_have_the_law_of_the_ambient_run(tmp_path, learner, sampler):
    """Means over 600 runs by group, six standard errors of their difference; another p_spu is told apart."""

    def measured(name, p_spu):
        setting = Setting(n=12, dim_image=20, dim_text=4, sampler=name)
        config = Config(p_spu=(p_spu,), learners=(learner,), seeds=600, setting=setting)
        plan = experiment.grid_of(config)
        blocks = grid.run_blocks(plan, np.zeros(plan.blocks_shape, bool), grid.Programs(plan, np.inf))
        return np.concatenate([values.reshape(-1, 2) for _, values in blocks]).astype(float)

    with quick_compilation():
        ambient, drawn, wrong = (measured(*args) for args in (("ambient", 0.8), (sampler, 0.8), (sampler, 0.95)))

    def z(a, b):
        return abs(np.nanmean(a, 0) - np.nanmean(b, 0)) / np.hypot(np.nanstd(a, 0), np.nanstd(b, 0)) * len(a) ** 0.5

    assert z(ambient, drawn).max() < 6
    assert z(ambient, wrong).max() > 6


@pytest.mark.slow
def test_the_verdict_on_a_real_run_sees_a_wrong_p_spu(tmp_path):
    setting = Setting(n=400, dim_image=8, dim_text=4, sigma_image=1.0)
    config = Config(p_spu=(0.9, 0.93), learners=("mmcl",), seeds=256, setting=setting)
    with quick_compilation():
        data = experiment.run(config, tmp_path)
    assert list(summary.columns(data)["verdict"]) == ["agrees", "agrees"]
    swapped = experiment._complete(config, data.accuracy_measured.values[:, :, ::-1])
    wrong = data.assign(p_value=swapped.p_value)
    assert list(summary.columns(wrong)["verdict"]) == ["differs", "differs"]
