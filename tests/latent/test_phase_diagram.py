"""The phase diagrams at a tiny size: axes, files, a prediction that is wrong shows, and what is refused."""

import dataclasses
import json

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from sims import show
from sims.engine import runs, statistics
from sims.engine.flags import UsageError, integer
from sims.latent import panels
from sims.phase_diagram import config as phase_config
from sims.phase_diagram import diagrams, experiment
from sims.phase_diagram.config import DIAGRAMS, Axis, Config, axis
from tests.helpers import assert_another_run_is_refused, interrupt_write, quick_compilation

pytestmark = pytest.mark.usefixtures("float32")

SIZES = (("dim_image", 4.0), ("dim_text", 4.0))
TINY = Config(
    "whitening",
    x=Axis("theta", 0.0, 1.0, 5),
    y=Axis("noise", 0.2, 1.5, 4),
    cells=2,
    seeds=24,
    parameters=(("n", 2000.0), *SIZES),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("phase") / "out"
    with quick_compilation(), jax.enable_x64(False):
        return out, experiment.run(TINY, out)


@pytest.mark.costly
def test_the_folder_holds_the_files(finished):
    out, data = finished
    names = [f"phase_diagram_whitening.{suffix}" for suffix in ("pdf", "png")]
    assert sorted(p.name for p in out.iterdir()) == [".lock", "config.json", *names, "results.zarr", "summary.csv"]
    flat = json.loads(json.dumps(TINY.checked().flat()))
    found = json.loads((out / "config.json").read_text())["config"]
    assert found == json.loads(data.attrs["config"]) == {**flat, "x64": False}
    assert phase_config.Resolved.of_flat(found) == TINY.checked()


def test_the_dataset_has_the_promised_axes(finished):
    _, data = finished
    assert data.predicted.dims == ("panel", "y", "x", "outcome") and data.predicted.shape == (1, 4, 5, 2)
    assert data.measured.dims == ("panel", "seed", "y_cell", "x_cell", "outcome")
    assert data.measured.shape == (1, 24, 2, 2, 2)
    np.testing.assert_allclose(data.value, data.predicted.mean("outcome"))
    np.testing.assert_array_equal(data.x_cell, data.x.values[[1, 3]])
    np.testing.assert_array_equal(data.y_cell, data.y.values[[1, 3]])
    at_cells = data.predicted.sel(x=data.x_cell.values, y=data.y_cell.values).values
    np.testing.assert_allclose(data.cell_predicted.values, at_cells, rtol=1e-12)


def test_measured_cells_meet_the_prediction_and_no_wrong_one(finished):
    """24 seeds, 8 numbers: a right prediction is beyond 6 standard errors less than once in 10^4."""
    _, data = finished
    assert data.z.notnull().all() and data.z.max() < 6
    samples = np.moveaxis(data.measured.values, 1, -1)
    for wrong in (data.cell_predicted.values[..., ::-1, :, :], data.cell_predicted.values[..., ::-1]):
        assert statistics.z_scores(wrong, samples, 0.01).max() > 6
    assert "4 of 4 cells judged" in experiment.text(data)


def test_a_finished_run_is_not_measured_again(finished, monkeypatch, capsys):
    out, data = finished
    monkeypatch.setattr(runs, "run_blocks", lambda *_: pytest.fail("measured again"))
    xr.testing.assert_identical(experiment.run(TINY, out), data)
    assert capsys.readouterr().err == f"{out} already holds this run; nothing was measured again.\n"


def test_another_run_is_refused_and_nothing_changes(finished):
    assert_another_run_is_refused(experiment, TINY, finished[0], seed=1)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(finished, tmp_path, monkeypatch, capsys):
    with quick_compilation():
        with monkeypatch.context() as patch:
            interrupt_write(patch, 3)
            with pytest.raises(KeyboardInterrupt):
                experiment.run(TINY, tmp_path)
        again = experiment.run(TINY, tmp_path)
    assert "resuming: 2 of" in capsys.readouterr().err
    np.testing.assert_array_equal(again.measured, finished[1].measured)


def test_a_run_is_shown_again_without_measuring_or_predicting(finished, tmp_path, monkeypatch):
    out, _ = finished
    monkeypatch.setattr(runs, "run_blocks", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(panels, "evaluate", lambda *_: pytest.fail("predicted again"))
    assert "4 of 4 cells judged" in show.show(out, tmp_path)
    for name in ("summary.csv", "phase_diagram_whitening.png"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_the_figure_names_its_axes(finished):
    figure = experiment.draw(finished[1])
    ax, bar = figure.axes
    assert "whitening" in ax.get_xlabel() and "noise" in ax.get_ylabel() and "P*" in bar.get_ylabel()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any("best" in label for label in labels) and any("measured" in label for label in labels)
    plt.close(figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIAGRAMS)
def test_every_diagram_predicts_its_plane(name, tmp_path):
    default = DIAGRAMS[name]
    coarse = {k: dataclasses.replace(getattr(default, k), count=4) for k in ("x", "y")}
    with quick_compilation():
        data = experiment.run(Config(name, **coarse, cells=0), tmp_path / "out")
    assert data.value.shape[1:] == (4, 4)
    assert data.value.notnull().any(("x", "y")).all()
    assert (data.boundary.notnull().any(("x", "y", "panel"))).all()
    figure = experiment.draw(data)
    assert all(ax.get_xlabel() for ax in figure.axes[:-1])
    plt.close(figure)


@pytest.mark.long
@pytest.mark.parametrize("name", DIAGRAMS)
def test_every_diagram_measures_what_it_predicts(name, tmp_path):
    default = DIAGRAMS[name]
    coarse = {k: dataclasses.replace(getattr(default, k), count=6) for k in ("x", "y")}
    config = Config(name, **coarse, cells=2, seeds=8 if name == "caption_policy" else 32)
    data = experiment.run(config, tmp_path / "out")
    assert data.z.notnull().any() and data.z.max() < 6
    samples = np.moveaxis(data.measured.values, 1, -1)
    left_out = np.array([panel.left_out for panel in experiment.select(config.checked()).panels])[:, None, None, None]
    assert np.nanmax(statistics.z_scores(data.cell_predicted.values[:, ::-1], samples, left_out)) > 6


def test_recovery_chance_tends_to_the_criteria():
    """Far from a boundary the finite-sample chance is 0 or 1, as X7's limit says; at one it is 1/2."""
    base = {"signal": 1.0, "noise_x": 0.5, "noise_y": 1.0, "n": 10**6}
    with jax.enable_x64(True):
        for method, correlation in (("align", 3**-0.5), ("predict", 1.5**-0.5), ("contrast", 1.0)):
            for factor, chance in ((0.9, 1.0), (1.0, 0.5), (1 / 0.9, 0.0)):
                # A nuisance variance of 1 leaves eta / h to decide, but PLS also looks at h.
                h = factor if method == "contrast" else 1.0
                rho = correlation * (1.0 if method == "contrast" else factor)
                p = {**base, "nuisance_variance": h, "nuisance_correlation": rho}
                np.testing.assert_allclose(diagrams.recovery_chance(method, p), chance, atol=1e-6)


@pytest.mark.slow
def test_best_theta_is_the_best_of_a_grid():
    p = {**DIAGRAMS["whitening"].parameters, "dim_image": 4, "dim_text": 4}
    with jax.enable_x64(True):
        best = jax.jit(lambda noise: diagrams.best_theta({**p, "noise": noise}))
        for noise in (0.2, 0.8, 2.0):
            at = {**p, "noise": noise}
            found = diagrams.whitened_accuracy(at, best(noise)).shifted
            grid = diagrams.whitened_accuracy(at, np.linspace(0, 1, 1001)).shifted
            assert found >= grid.max() - 1e-9


def test_z_scores():
    samples = np.array([[1.0, 3.0], [1.0, 1.0], [1.0, 1.0], [1.0, np.nan]])
    z = statistics.z_scores(np.array([5.0, 1.0, 0.5, 1.0]), samples, np.array([0.0, 0.0, 0.1, 0.0]))
    # t = 3 of 1 degree of freedom, Cauchy's law: P(t > 3) = 1/2 - arctan(3)/pi = 0.1024, as P(z > 1.268).
    np.testing.assert_allclose(z, [1.268, 0.0, np.inf, np.nan], atol=1e-3)
    # 2 samples of 50 draws each, all right, where 0.9 was predicted: the standard error is that of a share.
    t = 0.1 / (0.09 / 100) ** 0.5
    expected = scipy.stats.norm.isf(0.5 - np.arctan(t) / np.pi)
    np.testing.assert_allclose(statistics.z_scores(np.array(0.9), np.ones(2), 0.0, 50), expected)


def test_an_axis_is_read():
    assert axis("p_spu:0.5:1:6") == Axis("p_spu", 0.5, 1.0, 6)
    assert axis("n:10:1000:3:log").values == (10.0, 100.0, 1000.0)
    assert Axis("num_pairs", 2, 4, 9).values == (2.0, 3.0, 4.0)
    np.testing.assert_allclose(axis("noise:0.1:0.3:3").values, [0.1, 0.2, 0.3])


BAD = [
    (["--diagram=other"], "--diagram must be of"),
    (["--x=p_spu:0.5:1"], "NAME:start:stop:count"),
    (["--x=nothing:0:1:5"], "NAME:start:stop:count"),
    (["--x=p_spu:1:0.5:5"], "start < stop"),
    (["--x=p_spu:0:1:5:log"], "start > 0"),
    (["--x=p_spu:0.5:1:2"], "count from 3"),
    (["--x=p_spu:0.5:1.5:5"], "--p_spu must be in [0, 1], got"),
    (["--x=n:10:20:5"], "--x must be over one of"),
    (["--x=theta:0:1:5"], "--x must be over one of"),
    (["--x=mu_spu:0:1:5", "--y=mu_spu:0:2:5"], "different parameters"),
    (["--value=best"], "--value must be of"),
    (["--learners=svm"], "--learners must be of mmcl, supervised"),
    (["--alpha=0.1"], "--alpha is no parameter of robustness"),
    (["--p_spu=0.9"], "--p_spu is an axis of the diagram"),
    (["--mu_core=0"], "--mu_core must be > 0, got 0"),
    (["--mu_spu=-1"], "--mu_spu must be >= 0, got -1"),
    (["--cells=-1"], "--cells must be >= 0"),
    (["--seeds=1"], "--seeds must be >= 2"),
    (["--n=2.5"], "whole number"),
    (["--n=1000000000"], "this machine has"),
    (["--diagram=sharing", "--num_pairs=40"], "the number of latents"),
    (["--diagram=caption_policy", "--batch_size=4000"], "--batch_size must be <="),
]


@pytest.mark.parametrize("arguments, mentioned", BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_values_are_refused(arguments, mentioned):
    given, parameters = {"diagram": "robustness"}, []
    with pytest.raises((UsageError, ValueError)) as error:
        for argument in arguments:
            name, value = argument[2:].split("=")
            if name in ("x", "y"):
                given[name] = axis(value)
            elif name in phase_config.PARAMETERS:
                convert = integer if name in phase_config.INTEGERS else float
                parameters.append((name, float(convert(value))))
            elif name == "learners":
                given[name] = (value,)
            else:
                given[name] = int(value) if name in ("cells", "seeds") else value
        Config(**given, parameters=tuple(parameters)).checked()
    assert mentioned in str(error.value) and "\n" not in str(error.value)
