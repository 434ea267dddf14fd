"""The command `python -m sims.digits`: what it refuses, what it leaves behind, how it scores the theories."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from sims import show
from sims.digits import __main__ as main
from sims.digits import figures, images, moments, results, studies, training
from sims.digits.arms import ARMS
from sims.digits.config import ARMS_OF, AXES, GRIDS, PRESETS, STUDIES, Config, parse_groups
from sims.engine import devices, runs, store
from sims.engine.flags import DEFAULTS, Options, UsageError
from sims.engine.grid import Grid
from tests.helpers import ROOT


@pytest.fixture
def command(mmcl, monkeypatch):
    """(arguments) -> (exit code, stdout, stderr), in this process."""
    monkeypatch.setattr(devices, "_start_jax", lambda *_: None)
    return functools.partial(mmcl, main)


@pytest.mark.parametrize(
    "argument, told",
    [
        ("--preset=tiny", "--preset must be of smoke, small, paper, full, got 'tiny'"),
        ("--study=arms,wolves", "--study must be of arms,"),
        ("--arms=clap", "--arms must be of clip,"),
        ("--arms=sup_con", "--arms has none of the study captions"),
        ("--p_spu=1.2", "--p_spu must be in [0, 1], got 1.2"),
        ("--p_spu_grid=0.5,2", "--p_spu_grid must be in [0, 1], got 2"),
        ("--pi_companion=-1", "--pi_companion must be in [0, 1], got -1"),
        ("--core_accuracy=0.5", "--core_accuracy must be in (1/2, 1], got 0.5"),
        ("--core_accuracy=1.1", "--core_accuracy must be in (1/2, 1], got 1.1"),
        ("--temperature=0", "--temperature must be > 0, got 0"),
        ("--pi_grid=0:1:1000", "--pi_grid must make at most 10000 cells in the study captions, got 1000000"),
        ("--seeds=1", "--seeds must be in [2, 10000], got 1"),
        ("--seeds=10001", "--seeds must be in [2, 10000]"),
        ("--steps=10.5,20", "--steps must be whole numbers"),
        ("--steps=20,10", "--steps"),
        ("--learning_rate=0", "--learning_rate must be in (0, 1]"),
        ("--image_encoder=resnet", "--image_encoder must be of cnn, vit, linear"),
        ("--groups=0:1", "--groups needs all of 0-9"),
        ("--train_size=100000", "--train_size must be none or at most 1438, the training images, got 100000"),
        ("--image_encoder=lenet", "--image_encoder=lenet needs images of 16 + 4k pixels a side, got 12"),
        ("--train_size=500 --epochs=none --steps=1.5", "--steps must be whole numbers"),
        ("--colours=/nowhere", "--colours=/nowhere must be hues, paper or a file of six lines"),
        ("--sensitivity=/nowhere", "--sensitivity=/nowhere holds no run of sims.digits, study paper"),
        ("--pool=5", "--pool must divide half of the images' side, 6, got 5"),
        ("--data=mnist", "--data must be builtin or idx:DIR"),
        ("--data=idx:/nowhere", "has no train-images-idx3-ubyte"),
        pytest.param("--memory_gb=0.001", "a run of clip needs about", marks=pytest.mark.long),
        ("extra", "unexpected argument"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(command, tmp_path, argument, told):
    out = tmp_path / "out"
    preset = () if argument.startswith("--preset") else ("--preset=smoke",)
    code, printed, error = command(*preset, *argument.split(" "), f"--out={out}")
    assert code == 2 and not printed and told in error
    assert len([line for line in error.splitlines() if not line.startswith("warning")]) == 1
    assert not out.exists()


def test_help_explains_every_flag():
    shown = subprocess.run([sys.executable, "-m", "sims.digits", "--help"], cwd=ROOT, capture_output=True, text=True)
    printed = shown.stdout
    assert shown.returncode == 0
    code = "import sys, sims.digits.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name}:" in printed or f"--[no]{field.name}:" in printed, field.name


def test_more_results_than_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(studies.os, "sysconf", lambda name: 1)
    with pytest.raises(UsageError, match="this machine has 0"):
        studies.run(PRESETS["smoke"], tmp_path / "out", DEFAULTS)
    assert not (tmp_path / "out").exists()


def test_presets_and_studies_are_whole():
    for config in PRESETS.values():
        config.check()
    assert {arm for arms in ARMS_OF.values() for arm in arms} == set(ARMS)
    for study in STUDIES:
        assert tuple(Config().axes(study)) == AXES
        assert all(len(v) == 1 or v == getattr(Config(), GRIDS[a]) for a, v in Config().axes(study).items())


def test_a_studys_config_holds_what_decides_it_and_no_more():
    base = Config().flat("correlation", "digest")
    assert base == dataclasses.replace(Config(), temperature_grid=(1.0,), data="idx:elsewhere").flat(
        "correlation", "digest"
    )
    for change in ({"p_spu_grid": (0.5,)}, {"pi_core": 0.1}, {"seeds": 3}, {"arms": ("clip",)}, {"groups": "5:6"}):
        assert dataclasses.replace(Config(), **change).flat("correlation", "digest") != base
    # Folders from before this setting go on.
    assert "core_accuracy" not in base
    assert dataclasses.replace(Config(), core_accuracy=0.84).flat("correlation", "digest")["core_accuracy"] == 0.84
    assert Config().flat("correlation", "other") != base


TINY = dataclasses.replace(
    PRESETS["smoke"],
    image_encoder="linear",
    text_encoder="bag",
    embed_dim=4,
    steps=(1, 2),
    batch_size=8,
    test=16,
    arms=("clip", "whitened"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished folder."""
    out = tmp_path_factory.mktemp("digits")
    with jax.enable_x64(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_SAMPLES", 2048)
        found = studies.run(TINY, out, DEFAULTS)
    return out, found["captions"]


@pytest.mark.long
def test_a_study_leaves_results_table_and_figures(finished):
    out, dataset = finished
    assert {p.name for p in out.iterdir()} == {"captions"}
    folder = {p.name for p in (out / "captions").iterdir()}
    assert folder >= {"results.zarr", "config.json", "summary.csv", "captions.png", "pi_core.png", "samples.png"}
    assert "checkpoints" not in folder
    assert dataset.measured.dims == ("arm", "seed", *AXES, "step", "measure")
    assert dataset.attrs["failed"] == 0
    assert dataset.moments.shape == (1, 1, 1, 6) and "the linear loss takes the shortcut (X4)" in studies.text(dataset)
    shape = (4, 2, 1, 1, 1, 2, 2, 1, 1, 1, 2, 2)
    assert dataset.accuracy_predicted.shape == shape and bool(dataset.accuracy_predicted.notnull().all())
    lines = (out / "captions" / "summary.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 4 * 2 * (len(training.READOUTS) - 1)  # words have no regression prompt
    assert len((out / "captions" / "digits.csv").read_text().splitlines()) == 1 + 2 * 4 * 2 * 10 * 2


@pytest.mark.long
def test_the_same_command_measures_nothing_again(finished, capsys):
    out, dataset = finished
    with jax.enable_x64(False):
        again = studies.run(TINY, out, DEFAULTS)["captions"]
    assert "already holds this run" in capsys.readouterr().err
    xr.testing.assert_identical(again.measured, dataset.measured)
    with jax.enable_x64(False), pytest.raises(UsageError, match="differs in p_spu"):
        studies.run(dataclasses.replace(TINY, p_spu=0.5), out, DEFAULTS)


@pytest.mark.long
def test_show_draws_it_again(finished, tmp_path):
    out, dataset = finished
    with jax.enable_x64(False):
        printed = show.show(out / "captions", tmp_path / "again")
    assert printed == studies.text(dataset)
    assert {p.name for p in (tmp_path / "again").iterdir()} >= {"captions.png", "pi_core.png", "summary.csv"}


def test_no_study_begins_if_one_cannot(tmp_path):
    config = dataclasses.replace(TINY, study=("captions", "temperature"))
    (tmp_path / "temperature").mkdir()
    (tmp_path / "temperature" / "mine.txt").write_text("kept")
    with jax.enable_x64(False), pytest.raises(UsageError, match="is not the folder of a run"):
        studies.run(config, tmp_path, DEFAULTS)
    assert [p.name for p in tmp_path.iterdir()] == ["temperature"]


def a_dataset(measured, predicted, study="captions", arms=("clip",), seeds=4):
    """A study over pi_core: measured accuracies (arm, seed, cell, group), predicted ones (cell, group)."""
    cells = measured.shape[2]
    coords = {a: [0.5] for a in AXES} | {"pi_core": np.linspace(0, 1, cells)}
    shape = (len(arms), seeds, *(len(v) for v in coords.values()), 1, len(training.MEASURES))
    full = xr.DataArray(
        np.full(shape, 0.5),
        dims=("arm", "seed", *AXES, "step", "measure"),
        coords={"arm": list(arms), **coords, "step": [10], "measure": list(training.MEASURES)},
    )
    for prompt in training.PROMPTS:
        for i, group in enumerate(training.GROUPS):
            for label in training.LABELS:
                full.loc[{"measure": f"{prompt} {group} {label}"}] = measured[..., i].reshape(shape[:-1])
    filled = xr.DataArray(
        np.full((len(moments.THEORIES), len(arms), *shape[2 : 2 + len(AXES)], len(moments.PROMPTS), 2), np.nan),
        dims=("theory", "arm", *AXES, "predicted_prompt", "group"),
        coords={
            "theory": list(moments.THEORIES),
            "predicted_prompt": list(moments.PROMPTS),
            "group": list(training.GROUPS),
        },
    )
    at = [1] * (2 + len(AXES) + 1)
    at[2 + AXES.index("pi_core")] = cells
    filled[:] = predicted.reshape(*at, 2)
    config = {"study": study, "batch_size": 16, "train_size": None, "test": 100}
    return xr.Dataset({"measured": full, "accuracy_predicted": filled}, attrs={"config": json.dumps(config)})


OLDER = tuple(m for m in training.MEASURES if not m.startswith(("regression", "digit")))


def begun(folder, measures):
    """A folder in which a run with these measures has begun."""
    one = {"arm": ["clip"]}, lambda arm: None, {axis: [0.5] for axis in AXES}
    grid = Grid(*one, {"step": [10], "measure": measures}, 2, 0)
    store.begin(folder, {"command": "digits"})
    store.Measured.create(folder, "measured", grid)
    return grid


def test_a_run_that_an_earlier_version_began_goes_on_with_its_measures(tmp_path):
    grid = begun(tmp_path, OLDER)
    assert studies.measures_of(tmp_path) == OLDER
    store.Measured(tmp_path, "measured", grid)
    with pytest.raises(UsageError, match="another shape"):
        outcomes = {**grid.outcomes, "measure": training.MEASURES}
        store.Measured(tmp_path, "measured", dataclasses.replace(grid, outcomes=outcomes))
    assert studies.measures_of(tmp_path / "new") == training.MEASURES


def test_measures_of_another_version_are_refused(tmp_path):
    begun(tmp_path, (*OLDER, "shape"))
    with pytest.raises(UsageError, match="measures 'shape', which this version does not"):
        studies.measures_of(tmp_path)


def test_results_of_an_earlier_version_are_read():
    dataset = a_dataset(np.full((1, 4, 2, 2), 0.7), np.zeros((2, 2)))
    dataset.attrs["config"] = json.dumps({"study": "captions", "captions": "vectors"})
    readouts = {row["prompt"] for row in results.rows(dataset)}
    assert readouts == set(training.READOUTS) and len(results.digit_rows(dataset)) == 2 * 10 * 2
    older = dataset.sel(measure=list(OLDER))
    assert {row["prompt"] for row in results.rows(older)} == readouts - {"regression"}
    assert results.digit_rows(older) == []


def test_values_are_those_of_the_groups():
    measured = np.zeros((1, 4, 2, 2)) + np.array([[0.9, 0.5], [0.2, 0.7]])
    dataset = a_dataset(measured, np.zeros((2, 2))).assign_coords(p_spu=[0.8])
    found = studies.accuracy(dataset).isel(seed=0, step=0).sel(arm="clip", prompt="class").squeeze()
    expected = {"aligned": [0.9, 0.2], "conflicting": [0.5, 0.7], "shifted": [0.7, 0.45], "train": [0.82, 0.3]}
    for name, values in (expected | {"worst": [0.5, 0.2]}).items():
        np.testing.assert_allclose(found.sel(value=name), values, err_msg=name)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    draws = xr.DataArray(rng.normal(3, 2, (5, 4000)), dims=("seed", "trial"))
    mean, half = studies.interval(draws)
    held = (np.abs(mean - 3) <= half).values
    assert scipy.stats.binomtest(int(held.sum()), held.size, 0.95).pvalue > 1e-6
    normal = (np.abs(mean - 3) <= half * 1.96 / scipy.stats.t.ppf(0.975, 4)).values
    assert scipy.stats.binomtest(int(normal.sum()), held.size, 0.95).pvalue < 1e-6


def scored(measured_gap, predicted_gap, noise=0.0):
    rng = np.random.default_rng(1)
    gap = np.asarray(measured_gap)[None, None, :] + noise * rng.normal(size=(1, 4, len(measured_gap)))
    measured = np.stack([0.5 + gap / 2, 0.5 - gap / 2], -1)
    p = np.asarray(predicted_gap)
    return studies.scores(a_dataset(measured, np.stack([0.5 + p / 2, 0.5 - p / 2], -1)))[0]


def test_scores_tell_a_right_theory_from_a_wrong_one():
    gap = [-0.4, -0.1, 0.2, 0.3]
    right, wrong = scored(gap, gap, 0.01), scored(gap, [0.3, 0.2, -0.1, -0.4], 0.01)
    assert (right.rank, right.signs, right.significant) == (1.0, 1.0, 4) and right.error < 0.01
    assert wrong.rank == -1.0 and wrong.signs == 0.0 and wrong.error > 0.1


def test_a_theory_is_compared_with_the_other_rule_on_the_same_features():
    gap = np.array([-0.4, -0.1, 0.2, 0.3])
    measured = np.tile(np.stack([0.5 + gap / 2, 0.5 - gap / 2], -1), (1, 4, 1, 1))
    dataset = a_dataset(measured, measured[0, 0])
    errors = {"linear_pixels": 0.1, "whitened_pixels": 0.2, "linear_features": 0.04, "whitened_features": 0.03}
    for theory, error in errors.items():
        dataset.accuracy_predicted.loc[{"theory": theory}] += error
    nearer = {score.theory: score.nearer for score in results.scores(dataset)}
    assert nearer == {"linear_pixels": 4, "whitened_pixels": 0, "linear_features": 0, "whitened_features": 4}
    dataset.accuracy_predicted.loc[{"theory": "linear_pixels"}] = np.nan
    nearer = {score.theory: score.nearer for score in results.scores(dataset)}
    assert np.isnan(nearer.pop("whitened_pixels")) and nearer == {"linear_features": 0, "whitened_features": 4}


@pytest.mark.parametrize("arms", [("whitened",), ("linear_mmcl", "whitened"), ("clip_linear",)])
def test_captions_are_drawn_for_any_of_their_arms(arms):
    rng = np.random.default_rng(0)
    dataset = a_dataset(rng.random((len(arms), 4, 3, 2)), rng.random((3, 2)), "captions", arms)
    made = figures.of("captions", dataset)
    assert ("pi_core" in made) == ("clip_linear" in arms)
    for figure in made.values():
        plt.close(figure)


@pytest.mark.parametrize("aligned, conflicting, shown, orange", [(0.9, 0.5, "+0.40", False), (0.4, 0.9, "-0.50", True)])
def test_the_caption_map_shows_aligned_minus_conflicting(aligned, conflicting, shown, orange):
    """In measured panels and predicted ones; over-correction alone, which is below 0, is orange."""
    cells = np.tile([aligned, conflicting], (3, 1))
    drawn = figures.caption_map(a_dataset(np.tile(cells, (1, 4, 1, 1)), cells))
    panels = [ax for ax in drawn.axes if ax.images]
    assert len(panels) == 1 + len(moments.THEORIES)
    for ax in panels:
        (image,) = ax.images
        assert {text.get_text() for text in ax.texts} == {shown}
        red, _, blue, _ = image.cmap(image.norm(image.get_array()[0, 0]))
        assert (red > blue, red < blue) == (orange, not orange)
    assert drawn.axes[-1].get_ylabel().startswith("aligned minus conflicting accuracy (above 0: shortcut; below: over")
    plt.close(drawn)


def test_scores_say_what_they_cannot_tell():
    flat = scored([-0.4, -0.1, 0.2, 0.3], [-1.0] * 4)
    assert np.isnan(flat.rank) and flat.signs == 0.5
    unclear = scored([0.0] * 4, [0.1] * 4, 0.2)
    assert unclear.significant < 4


@pytest.mark.costly
@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_figures_that_name_their_axes(study):
    arms = ARMS_OF[study]
    rng = np.random.default_rng(0)
    axis = {
        "captions": "pi_core",
        "correlation": "p_spu",
        "contrasting": "same_class_weight",
        "temperature": "temperature",
        "sharing": "pi_companion",
        "arms": "pi_core",
        "strength": "hue_contrast",
    }
    cells = 1 if study == "arms" else 3
    dataset = a_dataset(rng.random((len(arms), 4, cells, 2)), rng.random((cells, 2)), study, arms)
    if axis[study] != "pi_core":
        dataset = dataset.rename({"pi_core": "moved"}).rename({axis[study]: "pi_core"}).rename({"moved": axis[study]})
    made = figures.of(study, dataset)
    assert made
    for figure in made.values():
        figure.draw_without_rendering()
        panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
        named = [bool(ax.get_xlabel() or any(t.get_text() for t in ax.get_xticklabels())) for ax in panels]
        side = panels[0].get_ylabel() or any(t.get_text() for t in panels[0].get_yticklabels())
        assert panels and all(named) and side
        plt.close(figure)


@pytest.mark.long
def test_the_smoke_preset_runs_networks_and_survives_a_kill(tmp_path, monkeypatch):
    """The real encoders, in float32; killed after the first checkpoint it ends with the same bits."""
    config = dataclasses.replace(
        PRESETS["smoke"], arms=("clip",), pi_grid=(1.0,), steps=(5, 10), batch_size=16, test=32
    )
    monkeypatch.setattr(moments, "_SAMPLES", 1024)
    with jax.enable_x64(False):
        whole = studies.run(config, tmp_path / "whole", DEFAULTS)["captions"]
        save, saved = store.Checkpoint.save, []

        def dying(self, state, found):
            if saved:
                raise KeyboardInterrupt
            saved.append(save(self, state, found))

        monkeypatch.setattr(store.Checkpoint, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            studies.run(config, tmp_path / "cut", DEFAULTS)
        assert list((tmp_path / "cut" / "captions" / "checkpoints").iterdir())
        monkeypatch.setattr(store.Checkpoint, "save", save)
        resumed = studies.run(config, tmp_path / "cut", Options(keep_checkpoints=True))["captions"]
    xr.testing.assert_identical(resumed.measured, whole.measured)
    assert runs.closing(tmp_path, resumed) == 0
    assert (
        images.load("builtin", parse_groups(config.groups)).digest
        == store.read_config(tmp_path / "cut" / "captions")["digest"]
    )
